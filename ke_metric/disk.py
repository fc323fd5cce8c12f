"""Files and folders that are whole or not there at all, whatever stops the process that writes them.

What is written gets a temporary name beside its place, reaches the disk, and is renamed.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ke_metric.errors import ExitCode, KeMetricError

TEMPORARY = ".writing-"
TOKEN_BYTES = 4


def temporary_name(folder: Path) -> Path:
    """Return a name beside `folder` that nothing has: two processes never write into one temporary folder."""
    return folder.with_name(f"{TEMPORARY}{secrets.token_hex(TOKEN_BYTES)}-{folder.name}")


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left of earlier tries to write or remove `folder`."""
    for path in folder.parent.glob(f"{TEMPORARY}*"):
        if path.name[len(TEMPORARY) + 2 * TOKEN_BYTES :] == f"-{folder.name}":
            shutil.rmtree(path, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder; to everybody else it is gone at once.

    Raises:
        KeMetricError: It cannot be renamed.
    """
    removed = temporary_name(folder)
    try:
        folder.rename(removed)
    except OSError as error:
        raise disk_error(folder, error) from error
    shutil.rmtree(removed, ignore_errors=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it becomes `folder`, on any error nothing is left of it.

    Args:
        folder: What it becomes; may be an empty folder already.

    Raises:
        KeMetricError: The disk is full or cannot be written, or `folder` is not empty.
    """
    temporary = temporary_name(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        temporary.mkdir()
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            _reach_disk(path)
        temporary.rename(folder)
        _reach_disk(folder.parent)
    except OSError as error:
        raise disk_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole.

    Raises:
        KeMetricError: The disk is full or cannot be written; the file is as it was.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _reach_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: Any) -> str:
    """Return the text of a JSON file; a number that is not finite is our own mistake."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def append_line(path: Path, line: str) -> None:
    """Append one line to a file, on a line of its own even if a killed process left the last one unfinished.

    Raises:
        KeMetricError: The disk is full or cannot be written.
    """
    try:
        with path.open("a+b") as file:
            mend = "\n" if _is_torn(file) else ""
            file.write(f"{mend}{line}\n".encode())
    except OSError as error:
        raise disk_error(path, error) from error


def _is_torn(file: IO[bytes]) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        KeMetricError: It is missing, cannot be read, or is no text.
    """
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise KeMetricError(f"{path}: no such file; the lineage is damaged", ExitCode.LINEAGE) from None
    except (OSError, UnicodeDecodeError) as error:
        raise damage(path, error) from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        KeMetricError: It is missing or damaged.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise damage(path, error) from error
    if not isinstance(value, dict):
        raise KeMetricError(f"{path}: damaged: holds {type(value).__name__}, not an object", ExitCode.LINEAGE)
    return value


def damage(path: Path, error: Exception) -> KeMetricError:
    """Return the error a user sees when a file of a lineage does not hold what it should."""
    what = "cannot be read" if isinstance(error, OSError) else "damaged"
    return KeMetricError(f"{path}: {what}: {type(error).__name__}: {error}", ExitCode.LINEAGE)


def disk_error(path: Path, error: OSError) -> KeMetricError:
    """Return the error a user sees when something could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk is full. Free some space and go on with --resume"
    else:
        what = f"{error.strerror or error}. Once this is mended, go on with --resume"
    return KeMetricError(
        f"{path}: cannot be written: {what}; what was complete before still is", ExitCode.ENVIRONMENT
    )


def _reach_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
