"""What lies inside a tar, tar.gz or zip archive, member by member, as strangers' files have to be read.

A file is recognised by its content, never by its extension. Only regular files and folders are handed out; links,
devices, sparse and encrypted members are refused by name, and so is an archive that ends early.
"""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal

from ke_metric.errors import ExitCode, KeMetricError

# Python's tarfile reads a header extension in one piece, whatever length it declares; no honest one comes near this.
LARGEST_READ = 64 * 1024


@dataclass(frozen=True)
class Member:
    """One regular file or folder of an archive; `open` is valid until the next member is asked for.

    Attributes:
        name: As written in the archive, not yet trusted.
        is_folder: Whether it is a folder; otherwise a regular file.
        size: Declared number of bytes, not yet trusted.
        open: Opens the content of a file.
    """

    name: str
    is_folder: bool
    size: int
    open: Callable[[], IO[bytes]]


def archive_format(path: Path) -> Literal["tar", "tar.gz", "zip"] | None:
    """Tell the format of a file by its content; None for anything that is not an archive of these three.

    A gzip stream counts as `tar.gz` without a look inside: what it holds is known only when it is unpacked.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    try:
        tarfile.TarInfo.frombuf(start, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return None
    return "tar"


def archive_members(archive: Path, most_bytes: int) -> Iterator[Member]:
    """Hand out the members of an archive in stored order.

    Args:
        archive: A tar, tar.gz or zip file.
        most_bytes: Give up after this many unpacked bytes, headers and skipped content included.

    Raises:
        KeMetricError: DATA, naming the archive and the member: not an archive, damaged, cut short, encrypted, too
            large, or with a member that is neither a regular file nor a folder.
    """
    kind = archive_format(archive)
    if kind is None:
        raise KeMetricError(f"{archive}: not a tar, tar.gz or zip archive (judged by its content)", ExitCode.DATA)
    return _zip_members(archive) if kind == "zip" else _tar_members(archive, most_bytes, packed=kind == "tar.gz")


class _BoundedStream:
    """The bytes of a tar archive, of which only so many may be read, and only so many at once."""

    def __init__(self, stream: IO[bytes], archive: Path, most_bytes: int) -> None:
        self._stream = stream
        self._archive = archive
        self._most_bytes = most_bytes
        self.last = b""

    def read(self, size: int) -> bytes:
        # A negative length, which a forged header can ask for, would read everything.
        if not 0 <= size <= LARGEST_READ:
            raise KeMetricError(f"{self._archive}: a header of {size} bytes; damaged or hostile", ExitCode.DATA)
        self._check(self._stream.tell() + size)
        self.last = self._stream.read(size)
        return self.last

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, "tarfile seeks from the start"
        self._check(offset)
        return self._stream.seek(offset)

    def tell(self) -> int:
        return self._stream.tell()

    def drain(self) -> None:
        """Read to the end, whereupon gzip compares its checksum."""
        while self.read(LARGEST_READ):
            pass

    def _check(self, position: int) -> None:
        if not 0 <= position <= self._most_bytes + LARGEST_READ:
            raise KeMetricError(
                f"{self._archive}: unpacks to more than {self._most_bytes:,} bytes; a decompression bomb?",
                ExitCode.DATA,
            )


def _tar_members(archive: Path, most_bytes: int, *, packed: bool) -> Iterator[Member]:
    with gzip.open(archive) if packed else archive.open("rb") as file:
        stream = _BoundedStream(file, archive, most_bytes)  # type: ignore[arg-type]
        with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                yield _tar_member(tar, member, archive)
                # tarfile remembers every header it has seen; nobody asks for them again.
                tar.members.clear()
            # tarfile takes a broken header for the end; only a block of zeros is one.
            if stream.last != bytes(tarfile.BLOCKSIZE):
                raise KeMetricError(
                    f"{archive}: the archive breaks off without an end mark: damaged, or downloaded incompletely",
                    ExitCode.DATA,
                )
            stream.drain()


def _tar_member(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> Member:
    if not (member.isdir() or member.isreg()) or member.issparse():
        kind = "link" if member.issym() or member.islnk() else "sparse file" if member.issparse() else "special file"
        raise _refused(archive, member.name, f"a {kind}")
    return Member(member.name, member.isdir(), member.size, partial(_content, tar, member))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None, "a regular file has content"
    return content


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as zipped:
        for entry in zipped.infolist():
            mode = entry.external_attr >> 16
            if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise _refused(archive, entry.filename, "a link" if stat.S_ISLNK(mode) else "a special file")
            if entry.flag_bits & 0x1:
                raise KeMetricError(
                    f"{archive}: member {entry.filename!r} is encrypted: unpack the archive with its password and "
                    f"give the folder",
                    ExitCode.DATA,
                )
            # zipfile unpacks bzip2 and LZMA without a limit on what a few bytes become.
            if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise _refused(archive, entry.filename, f"compressed by method {entry.compress_type}, not by deflate")
            # Not is_dir(), which stumbles over an empty name.
            yield Member(entry.filename, entry.filename.endswith("/"), entry.file_size, partial(zipped.open, entry))


def _refused(archive: Path, name: str, what: str) -> KeMetricError:
    return KeMetricError(
        f"{archive}: member {name!r} is {what}; only ordinary files and folders are unpacked", ExitCode.DATA
    )
