"""The file of a kept store: nobody else's to read, locked while it is used, with an end that says what it holds.

Folders of kept stores may be shared with strangers. So no link is followed, nothing is written into a file that
somebody else has made or has another name for, and what is not known to be a kept store is not removed.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

from ke_metric.disk import reach_disk
from ke_metric.images.pixel_store import PixelStore

if sys.platform != "win32":
    import fcntl

# What a store ends with: this mark, and how long the JSON before it is.
END = struct.Struct("<8sQ")
MARK = b"ke_store"


def open_to_read(path: Path) -> BinaryIO:
    """Open a file to be read, or raise an OSError; a link is an error."""
    return open(path, "rb", opener=_opener)


def open_to_write(path: Path) -> BinaryIO:
    """Open a file that this user alone may read; made where there is none, else as it is.

    Raises:
        OSError: It cannot be made, is a link, belongs to another user, or has another name too.
    """
    file = open(path, "r+b", opener=lambda name, flags: _opener(name, flags | os.O_CREAT))  # noqa: SIM115
    facts = os.fstat(file.fileno())
    if facts.st_uid != os.geteuid() or facts.st_nlink > 1:
        file.close()
        raise PermissionError(errno.EPERM, f"{path.name} belongs to another user, or has another name")
    return file


def _open_to_lock(path: Path) -> BinaryIO:
    """Open a file, to be written where that is allowed: on NFS no other can be locked exclusively."""
    try:
        return open(path, "r+b", opener=_opener)
    except OSError:
        return open_to_read(path)


def _opener(name: str, flags: int) -> int:
    # Without waiting: a pipe of that name would be waited for as long as nobody writes into it.
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 where it has gone."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def end_of(store: PixelStore, of: str, settings: dict[str, Any]) -> bytes:
    """Return what stands behind the pixels of a store."""
    shapes = [array.tolist() for array in store.sides]
    text = json.dumps({"of": of, "settings": settings, "heights": shapes[0], "widths": shapes[1]}).encode()
    return text + END.pack(MARK, len(text))


def read_end(file: BinaryIO) -> dict[str, Any] | None:
    """Return what stands behind the pixels; None where it does not belong to so many bytes."""
    try:
        size = file.seek(-END.size, os.SEEK_END)
        mark, length = END.unpack(file.read(END.size))
        file.seek(size - length)
        end: dict[str, Any] = json.loads(file.read(length))
        pixels = sum(3 * height * width for height, width in zip(end["heights"], end["widths"], strict=True))
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    return end if mark == MARK and pixels == size - length else None


def look_at(path: Path) -> tuple[dict[str, Any] | None, bool]:
    """Return what stands behind the pixels, and whether a process uses the file, or that cannot be known.

    Raises:
        OSError: It cannot be read, or has gone.
    """
    with _open_to_lock(path) as file:
        end = read_end(file)
        try:
            return end, not is_locked_now(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # A file system without locks.
            return end, True


def finish(file: BinaryIO, place: Path) -> None:
    """Give a file that is complete and exclusively locked its name; from then on others may read it too."""
    file.flush()
    os.fsync(file.fileno())
    # Named before the lock is shared: a lock is let go before it is taken anew, and who waits for a file that is to
    # be written would empty it.
    Path(file.name).replace(place)
    fcntl.flock(file, fcntl.LOCK_SH)
    reach_disk(place.parent)


def removed(path: Path) -> bool:
    """Remove a file that no process uses; return whether it has gone."""
    try:
        with _open_to_lock(path) as file:
            if not is_locked_now(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return not path.exists()
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def is_locked_now(file: BinaryIO, path: Path, kind: int) -> bool:
    """Take a lock of an open file; False where another process has it, or the file has gone from its place."""
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    return lies_at(file, path)


def lies_at(file: BinaryIO, path: Path) -> bool:
    """Return whether it is this open file that has a name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False
