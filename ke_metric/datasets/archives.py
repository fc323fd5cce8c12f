"""Unpacking tar, tar.gz and zip archives that strangers made: nothing outside the target, never more than declared.

tarfile and zipfile read; here is what they leave open: a file is recognised by its content, only regular files and
folders are taken, names are refused by the rules of tarfile's `data` filter and stricter ones, every member counts
with its declared size before anything of it is written, and an archive that ends early is damaged. The target appears
whole or not at all.
"""

from __future__ import annotations

import errno
import gzip
import io
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Literal

from ke_metric.disk import new_folder
from ke_metric.errors import ExitCode, KeMetricError

# Python's tarfile reads a header extension in one piece, whatever length it declares; no honest one comes near this.
LARGEST_READ = 64 * 1024
# A few compressible bytes are no bomb: the ratio counts only above this.
RATIO_FREE_BYTES = 16 * 1024**2
# Headers and padding of a tar come on top of the content: 1 KiB for a member, 2 more for a long name.
HEADER_BYTES = 4 * 1024
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    UnicodeError,
)
MEMBER_FAULTS = {
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "comes twice, or collides with another member"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ), "has a name that no file can have here"),
}
"""Errors in writing that are the member's fault, not the disk's."""


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


@dataclass(frozen=True)
class ExtractionLimits:
    """What an archive may grow to. The defaults leave room above Stanford Online Products (3.1 GB, 120,000 files).

    Attributes:
        members: Most files and folders.
        file_bytes: Largest single file, in bytes.
        total_bytes: All files together, in bytes.
        ratio: Most unpacked bytes for one byte of archive, counted above 16 MiB; images hardly compress at all.
        depth: Most folders inside one another.
    """

    members: int = 400_000
    file_bytes: int = 2 * 10**9
    total_bytes: int = 20 * 10**9
    ratio: float = 100.0
    depth: int = 32


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
        self._stream, self._archive, self._most_bytes = stream, archive, most_bytes
        self.last = b""
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        # A negative length, which a forged header can ask for, would read everything.
        if not 0 <= size <= LARGEST_READ:
            raise KeMetricError(f"{self._archive}: a header of {size} bytes; damaged or hostile", ExitCode.DATA)
        self._check(self.tell() + size)
        self.last = self._stream.read(size)
        return self.last

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, "tarfile seeks from the start"
        self._check(offset)
        return self._stream.seek(offset)

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
            # At the end of its stream gzip compares its checksum.
            while stream.read(LARGEST_READ):
                pass


def _tar_member(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> Member:
    if not (member.isdir() or member.isreg()) or member.issparse():
        kind = "link" if member.issym() or member.islnk() else "sparse file" if member.issparse() else "special file"
        raise _not_ordinary(archive, member.name, f"a {kind}")
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
                raise _not_ordinary(archive, entry.filename, "a link" if stat.S_ISLNK(mode) else "a special file")
            if entry.flag_bits & 0x1:
                raise KeMetricError(
                    f"{archive}: member {entry.filename!r} is encrypted: unpack the archive with its password and "
                    f"give the folder",
                    ExitCode.DATA,
                )
            # zipfile unpacks bzip2 and LZMA without a limit on what a few bytes become.
            if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                how = f"compressed by method {entry.compress_type}, not by deflate"
                raise _not_ordinary(archive, entry.filename, how)
            # Not is_dir(), which stumbles over an empty name.
            yield Member(entry.filename, entry.filename.endswith("/"), entry.file_size, partial(zipped.open, entry))


def _not_ordinary(archive: Path, name: str, what: str) -> KeMetricError:
    return KeMetricError(
        f"{archive}: member {name!r} is {what}; only ordinary files and folders are unpacked", ExitCode.DATA
    )


def safe_extract(archive: Path, target: Path, *, limits: ExtractionLimits | None = None) -> None:
    """Unpack an archive by `extract_into` into a new folder: in a temporary one beside it, renamed at the end.

    Raises:
        KeMetricError: What `extract_into` refuses, or the target holds something (DATA); the disk is full
            (ENVIRONMENT). Nothing is left behind in either case.
    """
    with new_folder(target) as folder:
        extract_into(archive, folder, limits=limits)


def extract_into(archive: Path, folder: Path, *, limits: ExtractionLimits | None = None) -> None:
    """Unpack an archive into an existing folder, leaving it to the caller to clean up.

    The content is copied here rather than by `extractall`, which cannot stop at a size; modes, owners and times of
    the archive are not taken over, and what lies in the folder is never overwritten.

    Args:
        archive: The archive, recognised by content.
        folder: Where to write.
        limits: Caps on number, sizes and ratio; `ExtractionLimits()` when left out.

    Raises:
        KeMetricError: DATA: not an archive, damaged, hostile (the member is named) or above a limit; ENVIRONMENT: the
            disk has too little room.
        OSError: The disk is full or cannot be written to.
    """
    if not archive.is_file():
        raise KeMetricError(f"{archive}: no such file", ExitCode.DATA)
    _refuse_full_disk(archive, folder)
    folder = folder.resolve()
    budget = _Budget(archive, limits or ExtractionLimits())
    try:
        for member in archive_members(archive, budget.stream_bytes):
            budget.charge(member)
            _write(member, folder, archive)
    except DAMAGED as error:
        raise KeMetricError(f"{archive}: damaged, or downloaded incompletely: {error}", ExitCode.DATA) from error


def inner_path(name: str, folder: Path) -> Path | None:
    """Return where a member of this name belongs inside a resolved folder; None for a name that leads out of it.

    Refused are absolute names, drives, `..`, a NUL and ways through a link, by the rules of POSIX and of Windows;
    empty and "." mean the folder itself.
    """
    spellings = (PurePosixPath(name), PureWindowsPath(name))
    # Windows drops blanks and dots at the end of a name, so that ".. " is ".." there.
    if "\0" in name or any(path.anchor or any(not part.strip(" .") for part in path.parts) for path in spellings):
        return None
    target = folder / PurePosixPath(name)
    return target if target.resolve().is_relative_to(folder) else None


class _Budget:
    """What an archive may still use up of its limits; `stream_bytes` of its unpacked stream, headers included."""

    def __init__(self, archive: Path, limits: ExtractionLimits) -> None:
        packed = archive.stat().st_size
        self._archive, self._limits = archive, limits
        self._bytes_left = min(limits.total_bytes, max(RATIO_FREE_BYTES, int(limits.ratio * packed)))
        self._members_left = limits.members
        self.stream_bytes = self._bytes_left + limits.members * HEADER_BYTES

    def charge(self, member: Member) -> None:
        """Count a member before anything of it is read or written, or refuse it.

        The declared size is enough: neither tarfile nor zipfile hands out more bytes than that.
        """
        limits, too_much = self._limits, ""
        self._members_left -= 1
        self._bytes_left -= member.size
        if self._members_left < 0:
            too_much = f"more than {limits.members:,} files and folders"
        elif member.name.count("/") + member.name.count("\\") > limits.depth:
            too_much = f"more than {limits.depth} folders inside one another"
        elif not 0 <= member.size <= limits.file_bytes:
            too_much = f"a file of {member.size:,} bytes, at most {limits.file_bytes:,} are allowed"
        elif self._bytes_left < 0:
            too_much = (
                f"unpacks to more than {limits.total_bytes:,} bytes, or to more than {limits.ratio:g} times its own "
                "size: a decompression bomb?"
            )
        if too_much:
            raise KeMetricError(f"{self._archive}: {too_much} (at member {member.name[:200]!r})", ExitCode.DATA)


def _refuse_full_disk(archive: Path, folder: Path) -> None:
    # Pictures do not compress: they need at least the room that the archive takes.
    needed, free = archive.stat().st_size, shutil.disk_usage(folder).free
    if free < needed:
        raise KeMetricError(
            f"{folder}: unpacking {archive.name} needs at least {needed:,} bytes, {free:,} are free on this disk",
            ExitCode.ENVIRONMENT,
        )


def _write(member: Member, folder: Path, archive: Path) -> None:
    path = inner_path(member.name, folder)
    if path is None:
        raise _refused(archive, member, "would be written outside of the target folder")
    try:
        if member.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as content, path.open("xb") as file:
            shutil.copyfileobj(content, file, LARGEST_READ)
    except OSError as error:
        if error.errno not in MEMBER_FAULTS:
            raise
        raise _refused(archive, member, MEMBER_FAULTS[error.errno]) from error


def _refused(archive: Path, member: Member, fault: str) -> KeMetricError:
    return KeMetricError(f"{archive}: member {member.name[:200]!r} {fault}", ExitCode.DATA)
