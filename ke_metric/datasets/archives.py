"""What lies inside a tar, tar.gz or zip archive, member by member, as strangers' files have to be read.

A file is recognised by its content, never by its extension. Only regular files and folders are handed out; links,
devices, sparse and encrypted members are refused by name, and so is an archive that ends early.

How much an archive may unpack to, and the count of how much it did.

Unpacking archives that strangers made, and comparing their checksums.

Nothing is written outside the target, the sizes are bounded, and the target appears whole or not at all.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
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


# A few compressible bytes are no bomb: the ratio counts only above this.
RATIO_FREE_BYTES = 16 * 1024**2
HEADER_BYTES = 4 * 1024


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


class ExtractionBudget:
    """What an archive may still use up of its limits.

    Attributes:
        archive: The archive; errors name it.
        stream_bytes: Most bytes of its unpacked stream, headers included.
    """

    def __init__(self, archive: Path, limits: ExtractionLimits) -> None:
        packed = archive.stat().st_size
        self.archive = archive
        self.limits = limits
        self.bytes_left = min(limits.total_bytes, max(RATIO_FREE_BYTES, int(limits.ratio * packed)))
        self.members_left = limits.members
        # Headers and padding of a tar come on top of the content: 1 KiB for a member, 2 more for a long name.
        self.stream_bytes = self.bytes_left + limits.members * HEADER_BYTES

    def charge(self, member: Member) -> None:
        """Count a member before anything of it is read or written.

        The declared size is enough: neither tarfile nor zipfile hands out more bytes than that.

        Raises:
            KeMetricError: DATA: one of the limits is exceeded.
        """
        self.members_left -= 1
        if self.members_left < 0:
            raise self._exceeded(member, f"more than {self.limits.members:,} files and folders")
        if member.name.count("/") + member.name.count("\\") > self.limits.depth:
            raise self._exceeded(member, f"more than {self.limits.depth} folders inside one another")
        if not 0 <= member.size <= self.limits.file_bytes:
            allowed = f"at most {self.limits.file_bytes:,} are allowed"
            raise self._exceeded(member, f"a file of {member.size:,} bytes, {allowed}")
        self.bytes_left -= member.size
        if self.bytes_left < 0:
            raise self._exceeded(
                member,
                f"unpacks to more than {self.limits.total_bytes:,} bytes, or to more than {self.limits.ratio:g} "
                "times its own size: a decompression bomb?",
            )

    def _exceeded(self, member: Member, what: str) -> KeMetricError:
        return KeMetricError(f"{self.archive}: {what} (at member {member.name[:200]!r})", ExitCode.DATA)


_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    UnicodeError,
)
_COLLIDES = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_IMPOSSIBLE_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


def safe_extract(archive: Path, target: Path, *, limits: ExtractionLimits | None = None) -> None:
    """Unpack a tar, tar.gz or zip archive, recognised by content, into a new folder.

    Regular files and folders only, each inside the target, by the rules of tarfile's `data` filter and stricter ones;
    the content is copied here rather than by `extractall`, which cannot stop at a size. Modes, owners and times of
    the archive are not taken over. The work is done in a temporary folder beside the target, renamed at the end.

    Args:
        archive: The archive.
        target: The folder to make; may exist when it is empty.
        limits: Caps on number, sizes and ratio; `ExtractionLimits()` when left out.

    Raises:
        KeMetricError: DATA: not an archive, damaged, hostile (the member is named) or above a limit, or the target
            holds something; ENVIRONMENT: the disk is full. Nothing is left behind in either case.
    """
    with new_folder(target) as folder:
        extract_into(archive, folder, limits=limits)


def extract_into(archive: Path, folder: Path, *, limits: ExtractionLimits | None = None) -> None:
    """Unpack an archive into an existing folder as `safe_extract` does, leaving it to the caller to clean up.

    Args:
        archive: The archive, recognised by content.
        folder: Where to write; what lies there is never overwritten.
        limits: Caps on number, sizes and ratio; `ExtractionLimits()` when left out.

    Raises:
        KeMetricError: DATA: not an archive, damaged, hostile or above a limit.
        OSError: The disk is full or cannot be written to.
    """
    if not archive.is_file():
        raise KeMetricError(f"{archive}: no such file", ExitCode.DATA)
    budget = ExtractionBudget(archive, limits or ExtractionLimits())
    _refuse_full_disk(archive, folder)
    folder = folder.resolve()
    try:
        for member in archive_members(archive, budget.stream_bytes):
            _write(member, folder, budget)
    except _DAMAGED as error:
        raise KeMetricError(f"{archive}: damaged, or downloaded incompletely: {error}", ExitCode.DATA) from error


def inner_path(name: str, folder: Path) -> Path | None:
    """Return where a member of this name belongs inside `folder`; None for a name that leads out of it.

    Refused are absolute names, drives, `..`, a NUL and ways through a link, by the rules of POSIX and of Windows.

    Args:
        name: As written in an archive; empty and "." mean the folder itself.
        folder: A resolved folder.
    """
    spellings = (PurePosixPath(name), PureWindowsPath(name))
    # Windows drops blanks and dots at the end of a name, so that ".. " is ".." there.
    if "\0" in name or any(path.anchor or any(not part.strip(" .") for part in path.parts) for path in spellings):
        return None
    target = folder / PurePosixPath(name)
    return target if target.resolve().is_relative_to(folder) else None


def file_checksum(path: Path, algorithm: Literal["md5", "sha256"]) -> str:
    """Return the checksum of a file's bytes in lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def verify_checksum(archive: Path, known: str) -> None:
    """Compare a file with its published checksum.

    Args:
        archive: The file.
        known: 32 (md5) or 64 (sha256) hexadecimal digits.

    Raises:
        KeMetricError: DATA: they differ; expected and found are named.
    """
    assert len(known) in {32, 64}, known
    algorithm: Literal["md5", "sha256"] = "md5" if len(known) == 32 else "sha256"
    found = file_checksum(archive, algorithm)
    if found != known.lower():
        raise KeMetricError(f"{archive}: {algorithm} {found}, expected {known.lower()}", ExitCode.DATA)


def _refuse_full_disk(archive: Path, folder: Path) -> None:
    # Pictures do not compress: they need at least the room that the archive takes.
    needed = archive.stat().st_size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise KeMetricError(
            f"{folder}: unpacking {archive.name} needs at least {needed:,} bytes, {free:,} are free on this disk",
            ExitCode.ENVIRONMENT,
        )


def _write(member: Member, folder: Path, budget: ExtractionBudget) -> None:
    budget.charge(member)
    path = inner_path(member.name, folder)
    if path is None:
        raise _refused_archive(budget.archive, member, "would be written outside of the target folder")
    try:
        if member.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as content, path.open("xb") as file:
            shutil.copyfileobj(content, file, LARGEST_READ)
    except OSError as error:
        fault = _member_fault(error)
        if fault is None:
            raise
        raise _refused_archive(budget.archive, member, fault) from error


def _refused_archive(archive: Path, member: Member, fault: str) -> KeMetricError:
    return KeMetricError(f"{archive}: member {member.name[:200]!r} {fault}", ExitCode.DATA)


def _member_fault(error: OSError) -> str | None:
    """Say what is wrong with the member; None when it is the disk that fails."""
    if error.errno in _COLLIDES:
        return "comes twice, or collides with another member"
    return "has a name that no file can have here" if error.errno in _IMPOSSIBLE_NAME else None
