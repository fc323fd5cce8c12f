"""Folders that are whole or not there at all: stored networks, indexes, exports."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.description import CONFIG, WEIGHTS

TEMPORARY = ".writing-"


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


def _is_stored_network(path: Path) -> bool:
    if not path.is_dir() or {entry.name for entry in path.iterdir()} != {CONFIG, WEIGHTS}:
        return False
    try:
        document = json.loads((path / CONFIG).read_bytes())
    except (OSError, RecursionError, ValueError):
        return False
    # Other libraries use the same two names.
    return isinstance(document, dict) and {"format_version", "architecture", "tensors", "weights"} <= document.keys()


STORED_NETWORK = FolderKind("a stored network", f"{CONFIG}, {WEIGHTS}", _is_stored_network)


def require_free(path: Path, *, overwrite: bool, kind: FolderKind = STORED_NETWORK) -> Path:
    """Return where a folder can be made, links followed.

    Args:
        path: The folder to make.
        overwrite: Replace one of its kind.
        kind: What is going to be there.

    Raises:
        KeMetricError: Something is there, and is of another kind or may not be replaced.
    """
    try:
        place = path.resolve()
        is_free = not place.exists() or _is_empty_folder(place)
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


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def whole_folder(place: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it becomes `place`, on any error nothing is left of it.

    Args:
        place: What it becomes: not there, an empty folder, or one to be replaced.
        overwrite: Whether it takes the place of a folder; that one is gone only when the new one is in its place.

    Raises:
        KeMetricError: The disk is full or cannot be written, or something has come into `place` in between.
    """
    token = f"{TEMPORARY}{secrets.token_hex(4)}-"
    temporary, former = place.with_name(token + place.name), place.with_name(f"{token}former-{place.name}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            _reach_disk(path)
        if overwrite and place.exists():
            place.rename(former)
        try:
            temporary.rename(place)
        except OSError:
            if former.exists():
                former.rename(place)
            raise
        _reach_disk(place.parent)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else error.strerror or str(error)
        raise KeMetricError(f"{place}: cannot be written: {what}", ExitCode.ENVIRONMENT) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_new_folder(place: Path) -> None:
    """Delete a folder that this process has made and that turned out to be of no use."""
    former = place.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{place.name}")
    place.rename(former)
    shutil.rmtree(former, ignore_errors=True)


def _reach_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
