"""Files and folders that are whole or not there at all, whatever stops the process that writes them.

What is written gets a temporary name beside its place, reaches the disk, and is renamed. Every room says in its own
words what a failure means to its user: it gives `as_error`, which makes the error from a path and what went wrong.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from ke_metric.errors import ExitCode, KeMetricError

if sys.platform != "win32":
    import fcntl

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
TEMPORARY = ".writing-"
TOKEN_BYTES = 4
ABANDONED_SECONDS = 3600
"""After which a temporary file that nobody touched is a killed process's: who takes longer touches it meanwhile."""
LOCK_SECONDS = 0.5
"""That a writer waits for a lock: whoever only looks whether it is taken holds it for less than a millisecond."""

AsError = Callable[[Path, OSError], KeMetricError]


def disk_error(path: Path, error: OSError, cannot: str = "cannot be written", afterwards: str = "") -> KeMetricError:
    """Return the error a user sees when something could not be written."""
    what = "the disk is full" if error.errno in DISK_FULL else error.strerror or str(error)
    return KeMetricError(f"{path}: {cannot}: {what}{afterwards}", ExitCode.ENVIRONMENT)


def reach_disk(path: Path) -> None:
    """Make sure that a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(place: Path) -> Path:
    """Return a name beside `place` that nothing has: two processes never write into one temporary folder."""
    return place.with_name(f"{TEMPORARY}{secrets.token_hex(TOKEN_BYTES)}-{place.name}")


def _leftovers(place: Path) -> Iterator[Path]:
    """Yield what is left of tries to write or remove `place`: of killed processes, or of one that is at it."""
    for path in place.parent.glob(f"{TEMPORARY}*"):
        if path.name[len(TEMPORARY) + 2 * TOKEN_BYTES :] == f"-{place.name}":
            yield path


def _remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left of earlier tries to write or remove `folder`."""
    for path in _leftovers(folder):
        shutil.rmtree(path, ignore_errors=True)


def _remove_left_files(place: Path, *, sole_writer: bool) -> None:
    """Delete what killed processes left of a file; where others may be writing it too, only what is old."""
    for path in _leftovers(place):
        with suppress(OSError):
            if sole_writer or time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def is_empty_folder(path: Path) -> bool:
    """Return whether there is a folder with nothing in it."""
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def whole_folder(
    place: Path, *, overwrite: bool = False, sole_writer: bool = False, as_error: AsError = disk_error
) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it becomes `place`, on any error nothing is left of it.

    Args:
        place: What it becomes: not there, an empty folder, or one to be replaced.
        overwrite: Whether it takes the place of a folder; that one is gone only when the new one is in its place.
        sole_writer: Nobody else can be writing this folder: what killed processes left of it is deleted.
        as_error: Makes the error that is raised.

    Raises:
        KeMetricError: The disk is full or cannot be written, or something is in `place`.
    """
    temporary = temporary_name(place)
    parents: list[Path] = []
    try:
        parents = [above for above in place.parents if not above.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        if sole_writer:
            _remove_leftovers(place)
        temporary.mkdir()
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            reach_disk(path)
        _take_place(temporary, place, overwrite=overwrite)
    except OSError as error:
        raise as_error(place, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        # Innermost first; one that holds something, `place` above all, stays.
        for above in parents:
            with suppress(OSError):
                above.rmdir()


def _take_place(temporary: Path, place: Path, *, overwrite: bool) -> None:
    former = temporary_name(place.with_name(f"former-{place.name}"))
    if overwrite and place.exists():
        place.rename(former)
    try:
        temporary.rename(place)
    except OSError:
        if former.exists():
            former.rename(place)
        raise
    reach_disk(place.parent)
    shutil.rmtree(former, ignore_errors=True)


def remove_folder(folder: Path, *, as_error: AsError = disk_error) -> None:
    """Delete a folder; to everybody else it is gone at once.

    Raises:
        KeMetricError: It cannot be renamed.
    """
    removed = temporary_name(folder)
    try:
        folder.rename(removed)
    except OSError as error:
        raise as_error(folder, error) from error
    shutil.rmtree(removed, ignore_errors=True)


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that may take the place of one of its own kind.

    Attributes:
        name: What it is called, with its article.
        files: The names of its files, in words.
        is_one: Whether a path is such a folder and nothing else.
    """

    name: str
    files: str
    is_one: Callable[[Path], bool]


def require_free(path: Path, *, overwrite: bool, kind: FolderKind) -> Path:
    """Return where a folder of a kind can be made, links followed.

    Raises:
        KeMetricError: Something is there, and is of another kind or may not be replaced.
    """
    try:
        place = path.resolve()
        is_free = not place.exists() or is_empty_folder(place)
    except (OSError, RuntimeError) as error:
        # A name that is too long, a folder that may not be entered, a link to itself.
        raise KeMetricError(f"{path}: {kind.name} cannot be made there: {error}", ExitCode.USAGE) from error
    if place == Path.cwd():
        raise KeMetricError(f"{path}: is the current folder; name one of its own for {kind.name}", ExitCode.USAGE)
    if is_free:
        return place
    if not kind.is_one(place):
        raise KeMetricError(
            f"{path}: exists and is not just {kind.name} ({kind.files} and nothing else), so it is never replaced; "
            "choose another folder, or delete it yourself",
            ExitCode.USAGE,
        )
    if not overwrite:
        raise KeMetricError(
            f"{path}: there is {kind.name} already; choose another folder, or replace it (overwrite=True, "
            "--overwrite)",
            ExitCode.USAGE,
        )
    return place


def refuse_occupied(target: Path) -> None:
    """Raise a KeMetricError (DATA) when `target` is anything but an empty folder or a path where nothing lies."""
    if not is_empty_folder(target) and (target.exists() or target.is_symlink()):
        raise KeMetricError(f"{target}: exists and is not an empty folder; nothing is overwritten", ExitCode.DATA)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `target` when the block ends well, and vanishes otherwise.

    Raises:
        KeMetricError: DATA: the target holds something; ENVIRONMENT: the disk is full or cannot be written to.
    """
    target = target.resolve()
    refuse_occupied(target)
    with whole_folder(target, as_error=_cannot_be_made) as folder:
        yield folder


def _cannot_be_made(path: Path, error: OSError) -> KeMetricError:
    return disk_error(path, error, "cannot be made", "; nothing was kept")


def write_text(path: Path, text: str, *, sole_writer: bool = False, as_error: AsError = disk_error) -> None:
    """Replace a file as a whole by a text; see `write_bytes`."""
    write_bytes(path, text.encode(), sole_writer=sole_writer, as_error=as_error)


def write_bytes(path: Path, content: bytes, *, sole_writer: bool = False, as_error: AsError = disk_error) -> None:
    """Replace a file as a whole; see `whole_file`."""
    with whole_file(path, sole_writer=sole_writer, as_error=as_error) as temporary:
        temporary.write_bytes(content)


@contextmanager
def whole_file(path: Path, *, sole_writer: bool = False, as_error: AsError = disk_error) -> Iterator[Path]:
    """Give a name to write a file to, which becomes `path` when the block ends well; else nothing is left of it.

    Of several processes that write one file, the last one has its content there. A block that may go an hour without
    writing touches the file meanwhile, or another process takes it to be a killed one's.

    Args:
        path: The file.
        sole_writer: Nobody else can be writing this file: what killed processes left of it is deleted at once, and
            not only when it is old.
        as_error: Makes the error that is raised.

    Raises:
        KeMetricError: It cannot be written, and is as it was.
    """
    temporary = temporary_name(path)
    try:
        _remove_left_files(path, sole_writer=sole_writer)
        yield temporary
        reach_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise as_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str, *, as_error: AsError = disk_error) -> None:
    """Append one line to a file, on a line of its own even if a killed process left the last one unfinished.

    Raises:
        KeMetricError: The disk is full or cannot be written.
    """
    try:
        with path.open("a+b") as file:
            mend = "\n" if _is_torn(file) else ""
            file.write(f"{mend}{line}\n".encode())
    except OSError as error:
        raise as_error(path, error) from error


def _is_torn(file: IO[bytes]) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def to_json(value: Any) -> str:
    """Return the text of a JSON file; a number that is not finite is our own mistake."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def lock_for_writing(path: Path, busy: str, *, as_error: AsError = disk_error) -> FileLock:
    """Take the lock of a folder's one writer; it is freed when the process ends, however it ends.

    It waits half a second for one that is taken: that may be somebody who only looks, see `is_locked`.

    Args:
        path: The lock's file; its folder is made where there is none.
        busy: What an error says when another process holds it.
        as_error: Makes the error that is raised when the file cannot be written.

    Raises:
        KeMetricError: Another process holds it (LINEAGE), or it cannot be written.
    """
    lock = FileLock(path, timeout=LOCK_SECONDS, poll_interval=LOCK_SECONDS / 20, thread_local=False)
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise KeMetricError(busy, ExitCode.LINEAGE) from None
    except OSError as error:
        raise as_error(path, error) from error
    return lock


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of this file; False where there is none, or nobody may know.

    Those who look do not take one another for a writer, and no writer is refused for their sake.
    """
    if sys.platform == "win32":
        return _is_taken(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # A file system without locks: there a writer marks the file by its content.
        return _is_taken(path)
    finally:
        # Frees the lock too.
        os.close(descriptor)
    return False


def _is_taken(path: Path) -> bool:
    """Return whether a lock cannot be taken, where that is the only way to know."""
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False
