"""Which pictures somebody means who names files, folders and CSV files: their ids, paths and labels."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ke_metric.benchmarks.listings import (
    IMAGE_EXTENSIONS,
    OWN_LIST,
    PATH_AND_LABEL,
    Columns,
    LabelledPath,
    is_own_list,
    look_into,
    read_csv_rows,
)
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.stores.contract import LONGEST_TEXT, Item, is_unicode

# A picture of `ke-metric data pictures` lies below its part and its class.
LEVELS = 2


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A picture that cannot be used: its path, as it can be printed, and why, in words that name it."""

    name: str
    reason: str


@dataclass(frozen=True)
class PictureList:
    """The pictures somebody means.

    Attributes:
        items: In the order of what was named, those of a folder sorted by id; paths are absolute.
        left_out: Files whose name no index can hold.
        skipped: Paths of other files in the folders named.
    """

    items: tuple[Item, ...]
    left_out: tuple[LeftOut, ...] = ()
    skipped: tuple[str, ...] = ()


def list_pictures(
    sources: Iterable[Path | str], *, labels: bool = True, unique: bool = True, columns: Columns = PATH_AND_LABEL
) -> PictureList:
    """List the pictures of files, folders and CSV files.

    A folder gives the pictures in it and in all folders below, by their suffix: the id is the path relative to the
    folder named, the label the folder that holds the picture, relative to it too (`crow` for `photos/crow/1.jpg`
    where `photos` was named; none for a picture directly in it). Hidden files and folders are passed over. Links are
    followed: a folder that has two names is two folders, as in a training; one inside itself is looked into once. A
    CSV file lists `path,label`, paths relative to itself or absolute, which are the ids; a label may be empty, and a
    file of paths alone has none. A file has its name as id, and no label. In what `ke-metric data pictures` wrote,
    labels are the names of the classes as its `pictures.csv` has them, not those of its folders.

    Args:
        sources: What was named.
        labels: Keep the labels; False: none is known.
        columns: What the columns of the CSV files are called.
        unique: Refuse two pictures of the same id, which no index can hold; False: queries may share one.

    Raises:
        KeMetricError: DATA: the sources are one text or path, nothing lies where one is named, it cannot be read,
            there is no picture, or two have the same id.
    """
    if isinstance(sources, str | bytes | Path) or not isinstance(sources, Iterable):
        raise KeMetricError(
            f"sources = {str(sources)[:80]!r}: is one {type(sources).__name__}, must be a list of paths: "
            f"[{str(sources)[:80]!r}]",
            ExitCode.DATA,
        )
    places = [Path(source) for source in sources]
    listings = [_found_in(source, columns, labels=labels) for source in places]
    found = [item for items, _ in listings for item in items]
    if unique:
        _refuse_same_ids(found)
    items = [item for item in found if _can_be_held(item)]
    if not found:
        raise KeMetricError(
            f"no pictures in {', '.join(map(str, places))}; pictures end in {' '.join(sorted(IMAGE_EXTENSIONS))}",
            ExitCode.DATA,
        )
    return PictureList(
        tuple(items if labels else [replace(item, label="") for item in items]),
        tuple(_unholdable(item) for item in found if not _can_be_held(item)),
        tuple(other if is_unicode(other) else ascii(other) for _, others in listings for other in others),
    )


def _found_in(source: Path, columns: Columns, *, labels: bool) -> tuple[list[Item], list[str]]:
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
        rows = _listed_in(source, columns, labels=labels)
        items = [Item(row.path, _absolute(source.parent / row.path), row.label) for row in rows]
        if not any(os.path.lexists(item.path) for item in items):
            raise KeMetricError(
                f"{source}: none of the {len(items):,} pictures that it lists is there (the first one would be "
                f"{items[0].path}); paths are relative to the folder of the CSV file",
                ExitCode.DATA,
            )
        return items, []
    own = _own_labels(source.parent).get(source.name, "")
    return [Item(source.name, _absolute(source), own)], []


def _listed_in(file: Path, columns: Columns, *, labels: bool) -> list[LabelledPath]:
    # No divisions: whatever a split column says, all rows are meant.
    if not labels:
        columns = Columns(columns.path, columns.path)
    return read_csv_rows(file, divisions=(), columns=columns, labels_needed=False)


def _of_folder(root: Path) -> tuple[list[Item], list[str]]:
    pictures, others = _files_below(root)
    own = _own_labels(root)
    items = [
        # The pictures of a folder share one text, of which there may be millions.
        Item(relative, _absolute(root / relative), own.get(relative, sys.intern(relative.rpartition("/")[0])))
        for relative in sorted(pictures)
    ]
    return items, sorted(other for other in others if not (own and other == OWN_LIST))


def _own_labels(folder: Path) -> dict[str, str]:
    """Return the labels, by path relative to the folder, that `ke-metric data pictures` wrote down for it, if it did.

    Its class folders have names that every file system takes; what the classes are called is in its list, which lies
    in the folder itself, or above its parts and classes.
    """
    place = folder.absolute()
    for above in (place, *place.parents)[: 1 + LEVELS]:
        if is_own_list(above / OWN_LIST):
            prefix = "".join(f"{part}/" for part in place.relative_to(above).parts)
            rows = read_csv_rows(above / OWN_LIST, divisions=())
            return {row.path[len(prefix) :]: row.label for row in rows if row.path.startswith(prefix)}
    return {}


def _files_below(root: Path) -> tuple[list[str], list[str]]:
    """Return pictures and other files below a folder, as relative paths; a folder within itself is passed over."""
    pictures: list[str] = []
    others: list[str] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        prefix, above = waiting.pop()
        status = _status(root / prefix)
        place = (status.st_dev, status.st_ino)
        if place in above:
            continue
        content = look_into(root / prefix)
        pictures += [prefix + name for name in content.pictures]
        others += [prefix + name for name in content.others]
        waiting += [(f"{prefix}{name}/", above | {place}) for name in content.folders]
    return pictures, others


def _status(folder: Path) -> os.stat_result:
    try:
        return folder.stat()
    except OSError as error:
        raise KeMetricError(f"{folder}: cannot be read: {error.strerror or error}", ExitCode.DATA) from error


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
