"""Decoded pictures kept on the disk: a later training, scoring or report of the same pictures need not decode them.

A kept store is one file, named by a digest of all that its pixels depend on: the contents of the picture files, which
are read in full every time (hashing takes some 2 % of the time that decoding takes; sizes and times of files would be
quicker, and could be wrong), the settings, and the versions of what decodes. It is written under another name,
reaches the disk, and is renamed: what has its name is whole. Whoever uses it holds a shared lock, whoever writes or
removes it an exclusive one, so that what a killed process left can be told from what is being written. Whose
files those are, and how they are opened, is said in `kept_files`.

Pictures that are drawn (glyphs) are not kept: to know whether they are the same ones is to draw them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from PIL import features

from ke_metric.disk import DISK_FULL
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import Progress, in_order
from ke_metric.images.image_set import ImageSet, StoredSource
from ke_metric.images.kept_files import (
    end_of,
    finish,
    is_locked_now,
    lies_at,
    look_at,
    open_to_read,
    open_to_write,
    read_end,
    removed,
    size_of,
)
from ke_metric.images.pixel_store import PixelStore, decoded
from ke_metric.images.preparation import StoreShape

if sys.platform != "win32":
    import fcntl

VERSION = 1
"""To be raised whenever the same file gives other pixels, or a kept store has another format."""
FOLDER_VARIABLE = "KE_METRIC_CACHE"
LIMIT_VARIABLE = "KE_METRIC_CACHE_GB"
MOST_GIGABYTES = 64.0
"""That all kept stores may have together, where the environment says nothing."""
LEAST_SECONDS = 2.0
"""What decodes faster is decoded anew every time: nobody waits for it, and the folder stays easy to look through.

A test part beside a training part that is kept is kept too, or it would be what the next training waits for.
"""
SPARE_BYTES = 10**9
"""That stay free on the disk."""
SAMPLE = 32
"""Pictures that are decoded first, to know how long all take and how large they are."""
POLL_SECONDS = 0.1
FINISHED, UNFINISHED = ".pixels", ".writing"
DIGEST_LETTERS = 32
# Parts of Pillow whose other version may decode the same file to other pixels.
DECODERS = ("pil", "jpg", "libjpeg_turbo", "jpg_2000", "webp", "avif", "libtiff", "zlib")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class KeptStore:
    """A store on the disk.

    Attributes:
        path: Its file.
        bytes: Its size.
        used: When it was last opened, in seconds since 1970.
        in_use: Whether a process has it open, or the file system does not tell.
        pictures: How many it has.
        of: What was decoded, in words; else why that is not known.
        settings: How; empty for a file that cannot be read, or is not a whole store. That may be anybody's.
    """

    path: Path
    bytes: int
    used: float
    in_use: bool
    pictures: int
    of: str
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return what there is to know of it; times are UTC."""
        used = datetime.fromtimestamp(self.used, UTC).isoformat(timespec="seconds")
        return {**vars(self), "path": str(self.path), "used": used}


class KeptStores:
    """The kept stores of a folder.

    Args:
        folder: Where they lie; made when the first one is kept.
        most_bytes: That all may have together; 0: none are kept, and none are looked for.
        tell: Hears of what is kept, found, removed, and why something is not kept.
        keeps: Whether stores that are not there are made; else only those that are there are used.
        least_seconds: What decodes faster is not kept, unless something was found or kept before.
    """

    def __init__(
        self,
        folder: Path,
        *,
        most_bytes: int = int(MOST_GIGABYTES * 1e9),
        tell: Tell = lambda text: None,
        keeps: bool = True,
        least_seconds: float = LEAST_SECONDS,
    ) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._tell, self._keeps, self._least_seconds = tell, keeps, least_seconds

    @classmethod
    def of_environment(cls, tell: Tell = lambda text: None, *, keeps: bool = True) -> Self:
        """Return those of this user: in KE_METRIC_CACHE, else in ke_metric of XDG_CACHE_HOME or ~/.cache.

        Raises:
            KeMetricError: KE_METRIC_CACHE_GB is no number of gigabytes (ENVIRONMENT).
        """
        named, general = os.environ.get(FOLDER_VARIABLE), os.environ.get("XDG_CACHE_HOME")
        folder = Path(named) if named else Path(general or "~/.cache", "ke_metric")
        # Path.expanduser raises an error for a user without a home.
        folder, most_bytes = Path(os.path.expanduser(folder)), _most_bytes()  # noqa: PTH111
        if most_bytes and not folder.is_absolute():
            tell(f"decoded pictures are not kept: {folder} is no absolute path. Another folder: {FOLDER_VARIABLE}")
            most_bytes = 0
        return cls(folder / "pixels", most_bytes=most_bytes, tell=tell, keeps=keeps, least_seconds=LEAST_SECONDS)

    def store(
        self,
        images: ImageSet,
        store_size: int,
        *,
        shape: StoreShape = "keep",
        progress: Progress | None = None,
    ) -> PixelStore:
        """Return the very store that `PixelStore.build` gives: found, or decoded and kept where that is worth it.

        Raises:
            KeMetricError: See `PixelStore.build`. That something cannot be kept is told and is no error.
        """
        job = _Job(images, store_size, shape, progress)
        contents = job.contents() if self.most_bytes and sys.platform != "win32" else None
        if contents is None:
            return job.build()
        try:
            return self._found_or_made(job, contents)
        except OSError as error:
            why = "the disk is full" if error.errno in DISK_FULL else error.strerror or str(error)
            self._tell(
                f"{job.of}: the decoded pictures cannot be kept in {self.folder}: {why}; they are decoded for this "
                f"process alone. Another folder: {FOLDER_VARIABLE}; none: {LIMIT_VARIABLE}=0"
            )
            return job.build()

    def __iter__(self) -> Iterator[KeptStore]:
        """Yield what is kept, last used first; what is damaged or cannot be read counts as empty."""
        found = [kept for path in self._files(FINISHED) if (kept := _looked_at(path)) is not None]
        return iter(sorted(found, key=lambda kept: kept.used, reverse=True))

    def clear(self) -> tuple[list[KeptStore], list[KeptStore]]:
        """Remove stores that no process uses, and what killed processes left; return what went and what stayed."""
        self._remove_leftovers()
        found = list(self)
        gone = {kept.path for kept in found if kept.settings and removed(kept.path)}
        return [kept for kept in found if kept.path in gone], [kept for kept in found if kept.path not in gone]

    def _found_or_made(self, job: _Job, contents: tuple[str, ...]) -> PixelStore:
        settings = job.settings()
        place = self.folder / f"{_digest([settings, contents])}{FINISHED}"
        found = self._found(place, job, contents)
        if found is not None:
            return found
        expected = job.expected() if self._keeps else None
        if expected is None or expected[1] < self._least_seconds or not self._has_room(expected[0], job.of):
            return job.build()
        with self._file_to_write(place, job.of) as file:
            if file is not None:
                self._tell(
                    f"{job.of}: keeping about {_size(expected[0])} of decoded pictures in {self.folder} "
                    "(ke-metric data store list)"
                )
                return self._made(file, place, job, contents, settings)
        made_by_another = self._found(place, job, contents)
        return job.build() if made_by_another is None else made_by_another

    def _found(self, place: Path, job: _Job, contents: tuple[str, ...]) -> PixelStore | None:
        store = _opened(place, contents)
        if store is not None:
            self._least_seconds = 0.0
            self._tell(f"{job.of}: {_size(store.nbytes)} of decoded pictures found in {self.folder}")
            if job.progress is not None:
                job.progress(len(store), len(store))
        return store

    def _made(
        self, file: BinaryIO, place: Path, job: _Job, contents: tuple[str, ...], settings: dict[str, Any]
    ) -> PixelStore:
        store = PixelStore.built_into(file, job.images, job.store_size, shape=job.shape, progress=job.progress)
        if store.contents != contents:
            self._tell(f"{job.of}: some were changed while they were decoded; the decoded pictures are not kept")
            return store
        file.write(end_of(store, job.of, settings))
        finish(file, place)
        self._least_seconds = 0.0
        # It may have become larger than was expected.
        self._make_room(0)
        return store

    @contextmanager
    def _file_to_write(self, place: Path, of: str) -> Iterator[BinaryIO | None]:
        """Give the empty, locked file that is to become `place`; None when another process has made it meanwhile.

        Unless it was renamed it is gone afterwards; the lock goes with the last process that uses the file.
        """
        self.folder.mkdir(0o700, parents=True, exist_ok=True)
        path = place.with_suffix(UNFINISHED)
        file = self._locked_unless_made(path, place, of)
        try:
            if file is not None:
                file.truncate(0)
            yield file
        finally:
            if file is not None and lies_at(file, path):
                path.unlink()

    def _locked_unless_made(self, path: Path, place: Path, of: str) -> BinaryIO | None:
        waits = False
        while not place.exists():
            file = open_to_write(path)
            if is_locked_now(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if not place.exists():
                    return file
                path.unlink()
            file.close()
            if not waits:
                self._tell(f"{of}: another process is decoding the same pictures; waiting for it")
            waits = True
            time.sleep(POLL_SECONDS)
        return None

    def _has_room(self, expected: int, of: str) -> bool:
        """Remove what was used longest ago until there is room for another; tell where there is none."""
        # What a killed process left takes no room from anybody.
        self._remove_leftovers()
        above = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(above).free - SPARE_BYTES
        if expected <= self.most_bytes and expected <= free and self._make_room(expected):
            return True
        limit = f"a limit of {_size(self.most_bytes)} ({LIMIT_VARIABLE})"
        if expected > free:
            limit = f"{_size(max(0, free))} on its disk"
        self._tell(f"{of}: about {_size(expected)} of decoded pictures are not kept: {self.folder} has {limit}")
        return False

    def _make_room(self, expected: int) -> bool:
        found = list(self)
        used = sum(kept.bytes for kept in found) + sum(map(size_of, self._files(UNFINISHED)))
        for kept in reversed(found):
            if used + expected <= self.most_bytes:
                break
            if kept.settings and removed(kept.path):
                used -= kept.bytes
                self._tell(f"removed {_size(kept.bytes)} of decoded pictures, used longest ago: {kept.of}")
        return used + expected <= self.most_bytes

    def _remove_leftovers(self) -> None:
        for path in self._files(UNFINISHED):
            removed(path)

    def _files(self, suffix: str) -> Iterator[Path]:
        """Yield the files with a name that kept stores have; whatever else lies in the folder is somebody's own."""
        name = re.compile(f"[0-9a-f]{{{DIGEST_LETTERS}}}")
        for path in self.folder.glob(f"*{suffix}"):
            if name.fullmatch(path.stem) and path.is_file() and not path.is_symlink():
                yield path


@dataclass(frozen=True)
class _Job:
    """Pictures to be decoded, and how."""

    images: ImageSet
    store_size: int
    shape: StoreShape
    progress: Progress | None

    @property
    def of(self) -> str:
        assert isinstance(self.images.source, StoredSource)
        return f"{len(self.images):,} pictures of {self.images.source.root}"

    def build(self) -> PixelStore:
        return PixelStore.build(self.images, self.store_size, shape=self.shape, progress=self.progress)

    def contents(self) -> tuple[str, ...] | None:
        """Return the digests of all files; None where the pictures are none, or one cannot be read."""
        if not isinstance(self.images.source, StoredSource) or not len(self.images):
            return None
        try:
            return tuple(in_order(self.images.source.content, self.images.keys))
        except KeMetricError:
            # Decoding names all that cannot be read.
            return None

    def settings(self) -> dict[str, Any]:
        """Return all but the files that decides about the pixels."""
        assert isinstance(self.images.source, StoredSource)
        with warnings.catch_warnings():
            # Of a part that this version of Pillow has never heard of.
            warnings.simplefilter("ignore")
            versions = {name: features.version(name) for name in DECODERS}
        return {
            "version": VERSION,
            "store_size": self.store_size,
            "store_shape": self.shape,
            "reading": self.images.source.reading,
            "decoders": versions,
            "machine": platform.machine(),
        }

    def expected(self) -> tuple[int, float] | None:
        """Return how many bytes all pictures have and how many seconds decoding takes, judged by some of them.

        None where one of these cannot be decoded.
        """
        some = np.unique(np.linspace(0, len(self.images) - 1, SAMPLE).astype(np.int64)).tolist()
        begun = time.perf_counter()
        decode = partial(decoded, self.images, store_size=self.store_size, shape=self.shape)
        sizes = [0 if isinstance(found, KeMetricError) else found[0].nbytes for found in in_order(decode, some)]
        share = len(self.images) / len(some)
        return (round(sum(sizes) * share), (time.perf_counter() - begun) * share) if all(sizes) else None


def _most_bytes() -> int:
    text = os.environ.get(LIMIT_VARIABLE) or str(MOST_GIGABYTES)
    try:
        most = float(text)
        if 0 <= most < float("inf"):
            return int(most * 1e9)
    except ValueError:
        pass
    raise KeMetricError(
        f"{LIMIT_VARIABLE} = {text!r}: must be the gigabytes that decoded pictures may take on the disk, 0 for none",
        ExitCode.ENVIRONMENT,
    )


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:DIGEST_LETTERS]


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _opened(place: Path, contents: tuple[str, ...]) -> PixelStore | None:
    """Return the store of a file, which is not removed as long as it is used; None where there is none."""
    try:
        file = open_to_read(place)
    except FileNotFoundError:
        return None
    # Waits for nobody but those who look whether it is in use, remove it, or have just given it its name.
    if not is_locked_now(file, place, fcntl.LOCK_SH):
        file.close()
        return None
    end = read_end(file)
    if end is None:
        file.close()
        removed(place)
        return None
    with suppress(OSError):
        # When it was last used. Another user's folder may be read without that.
        os.utime(place)
    heights, widths = (np.array(end[side], np.int64) for side in ("heights", "widths"))
    return PixelStore.of_file(file, heights, widths=widths, contents=contents)


def _looked_at(path: Path) -> KeptStore | None:
    """Return what is known of a store; None where it has gone."""
    try:
        facts = path.lstat()
        end, in_use = look_at(path)
        unknown = "damaged"
    except FileNotFoundError:
        return None
    except OSError:
        end, in_use, unknown = None, False, "not readable"
    end = end or {"heights": [], "of": f"{unknown}: {path.name}", "settings": {}}
    return KeptStore(path, facts.st_size, facts.st_mtime, in_use, len(end["heights"]), end["of"], end["settings"])
