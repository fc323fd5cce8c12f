"""Unpacking archives that strangers made, and comparing their checksums.

Nothing is written outside the target, the sizes are bounded, and the target appears whole or not at all.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from ke_metric.data.archive_limits import ExtractionBudget, ExtractionLimits
from ke_metric.data.archive_members import LARGEST_READ, Member, archive_members
from ke_metric.errors import ExitCode, KeMetricError

_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    UnicodeError,
)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
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


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` that takes its name when the block ends well, and vanishes otherwise.

    Args:
        target: A path where nothing lies yet, or an empty folder. Missing parents are made.

    Raises:
        KeMetricError: DATA: the target holds something; ENVIRONMENT: the disk is full or cannot be written to.
    """
    target = target.resolve()
    refuse_occupied(target)
    missing_parents = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-unpacking-", dir=target.parent) as scratch:
            # A folder inside it, since the temporary one is closed to everybody but its owner.
            folder = Path(scratch) / "content"
            folder.mkdir()
            yield folder
            if target.exists():
                target.rmdir()
            folder.rename(target)
    except OSError as error:
        reason = "the disk is full" if error.errno in _DISK_FULL else str(error)
        raise KeMetricError(f"{target}: cannot be made: {reason}; nothing was kept", ExitCode.ENVIRONMENT) from error
    finally:
        # Innermost first; one that holds something, the target above all, stays.
        for parent in missing_parents:
            with suppress(OSError):
                parent.rmdir()


def refuse_occupied(target: Path) -> None:
    """Raise a KeMetricError (DATA) when `target` is anything but an empty folder or a path where nothing lies."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise KeMetricError(f"{target}: exists and is not an empty folder; nothing is overwritten", ExitCode.DATA)


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
        raise _refused(budget.archive, member, "would be written outside of the target folder")
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
        raise _refused(budget.archive, member, fault) from error


def _refused(archive: Path, member: Member, fault: str) -> KeMetricError:
    return KeMetricError(f"{archive}: member {member.name[:200]!r} {fault}", ExitCode.DATA)


def _member_fault(error: OSError) -> str | None:
    """Say what is wrong with the member; None when it is the disk that fails."""
    if error.errno in _COLLIDES:
        return "comes twice, or collides with another member"
    return "has a name that no file can have here" if error.errno in _IMPOSSIBLE_NAME else None
