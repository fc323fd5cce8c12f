"""Which pictures somebody means who names files, folders and CSV files: their ids, paths and labels."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ke_metric.data.class_folders import IMAGE_EXTENSIONS
from ke_metric.data.csv_rows import read_csv_rows
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.vector_store import Item, is_unicode
from ke_metric.retrieval.where import LONGEST_TEXT


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A picture that cannot be used.

    Attributes:
        name: Its path, as it can be printed.
        reason: Why, in words that name it.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class PictureList:
    """The pictures somebody means.

    Attributes:
        items: In the order of what was named, those of a folder sorted by id; paths are absolute.
        left_out: Files whose name no index can hold.
    """

    items: tuple[Item, ...]
    left_out: tuple[LeftOut, ...] = ()


def list_pictures(sources: Sequence[Path], *, labels: bool = True, unique: bool = True) -> PictureList:
    """List the pictures of files, folders and CSV files.

    A folder gives the pictures in it and in all folders below, by their suffix: the id is the path relative to the
    folder named, the label the folder that holds the picture, relative to it too (`crow` for `photos/crow/1.jpg`
    where `photos` was named; none for a picture directly in it). Hidden files and folders are passed over, and a
    folder reached twice through links is looked into once. A CSV file lists `path,label`, paths relative to itself,
    which are the ids. A file has its name as id, and no label.

    Args:
        sources: What was named.
        labels: Keep the labels; False: none is known.
        unique: Refuse two pictures of the same id, which no index can hold; False: queries may share one.

    Raises:
        KeMetricError: DATA: nothing lies where one is named, it cannot be read, there is no picture, or two have the
            same id.
    """
    found = [item for source in sources for item in _pictures_of(source)]
    if unique:
        _refuse_same_ids(found)
    items = [item for item in found if _can_be_held(item)]
    if not found:
        raise KeMetricError(
            f"no pictures in {', '.join(map(str, sources))}; pictures end in {' '.join(sorted(IMAGE_EXTENSIONS))}",
            ExitCode.DATA,
        )
    return PictureList(
        tuple(items if labels else [replace(item, label="") for item in items]),
        tuple(_unholdable(item) for item in found if not _can_be_held(item)),
    )


def _pictures_of(source: Path) -> Iterable[Item]:
    try:
        is_folder, is_there = source.is_dir(), source.exists()
    except OSError as error:
        # A name that is too long, a folder above it that may not be entered.
        raise KeMetricError(f"{source}: cannot be read: {error.strerror or error}", ExitCode.DATA) from error
    if is_folder:
        return _of_folder(source)
    if not is_there:
        raise KeMetricError(f"{source}: no such file or folder", ExitCode.DATA)
    if source.suffix.lower() == ".csv":
        return _of_csv(source)
    return [Item(source.name, _absolute(source))]


def _of_csv(source: Path) -> Iterator[Item]:
    folder = source.parent
    # No divisions: whatever a split column says, all rows are meant.
    for row in read_csv_rows(source, divisions=()):
        yield Item(row.path, _absolute(folder / row.path), row.label)


def _of_folder(root: Path) -> list[Item]:
    found = []
    for relative in sorted(_files_below(root)):
        folder = relative.rpartition("/")[0]
        found.append(Item(relative, _absolute(root / relative), folder))
    return found


def _files_below(root: Path) -> Iterator[str]:
    """Yield the pictures below a folder, as relative paths; links to folders are followed after all real ones."""
    seen: set[tuple[int, int]] = set()
    waiting: deque[str] = deque([""])
    links: deque[str] = deque()
    while waiting or links:
        relative = waiting.popleft() if waiting else links.popleft()
        folder = root / relative
        status = _status(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in _entries(folder):
            name = f"{relative}/{entry.name}".lstrip("/")
            if _is_folder(entry):
                (links if entry.is_symlink() else waiting).append(name)
            elif Path(entry.name).suffix.lower() in IMAGE_EXTENSIONS and _may_be_read(entry):
                yield name


def _status(folder: Path) -> os.stat_result:
    try:
        return folder.stat()
    except OSError as error:
        raise KeMetricError(f"{folder}: cannot be read: {error.strerror or error}", ExitCode.DATA) from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, in order, without hidden entries and macOS's left-overs."""
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise KeMetricError(f"{folder}: cannot be read: {error.strerror or error}", ExitCode.DATA) from error
    return sorted(kept, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself is nothing.
        return False


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Tell a file, or a link to nothing (to be reported), from a pipe or device, whose reading may not end."""
    try:
        return entry.is_file() or not Path(entry.path).exists()
    except OSError:
        return True


def _absolute(path: Path) -> str:
    """Return a path by which the picture is found from anywhere; links stay."""
    return os.path.abspath(path)  # noqa: PTH100  (Path.absolute keeps `..`)


def _can_be_held(item: Item) -> bool:
    texts = (item.id, item.path, item.label)
    return all(len(text) <= LONGEST_TEXT and is_unicode(text) for text in texts)


def _unholdable(item: Item) -> LeftOut:
    name = item.path if is_unicode(item.path) else ascii(item.path)
    what = f"longer than {LONGEST_TEXT:,} characters" if is_unicode(item.path) else "not UTF-8"
    return LeftOut(name, f"{name}: the path is {what}; rename the file")


def _refuse_same_ids(items: Sequence[Item]) -> None:
    first: dict[str, Item] = {}
    for item in items:
        if (other := first.setdefault(item.id, item)) is not item:
            if other.path == item.path:
                raise KeMetricError(f"{item.path}: is named twice", ExitCode.DATA)
            raise KeMetricError(
                f"two pictures have the id {item.id!r}: {other.path} and {item.path}; name a folder that holds both, "
                "whose relative paths then differ",
                ExitCode.DATA,
            )
