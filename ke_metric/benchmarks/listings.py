"""Lists of pictures: what lies in a folder, and what a CSV file names.

A CSV file has one header line, `path,label[,split]`, and one row a picture, with paths relative to the file.
"""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from ke_metric.errors import ExitCode, KeMetricError, closest, some_of

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"})
# What a spreadsheet may write between the cells, by the country it is set to.
DELIMITERS = (",", ";", "\t")
OWN_LIST = "pictures.csv"
OWN_LIST_COLUMNS = ("path", "label", "split", "key")
"""The list that `ke-metric data pictures` writes beside its pictures."""

Divisions = Sequence[Sequence[str]]
"""The sets of parts that a split column may divide the pictures into."""

RETRIEVAL: Divisions = (("train", "test"), ("train", "query", "gallery"))
CLASSIFICATION: Divisions = (("train", "test"), ("train", "val", "test"))


class LabelledPath(NamedTuple):
    """One of the user's own pictures: path relative to their folder, class name, part (None: not yet divided)."""

    path: str
    label: str
    split: str | None


class FolderContent(NamedTuple):
    """The names of what lies directly in a folder, sorted.

    Attributes:
        pictures: Files that end as pictures do, and links to nothing that do, which a reader then reports.
        folders: Folders and links to folders, without hidden ones and macOS's left-overs.
        others: All other files, hidden ones among them.
    """

    pictures: list[str]
    folders: list[str]
    others: list[str]


class Columns(NamedTuple):
    """What the columns are called that have a picture's path and its class."""

    path: str = "path"
    label: str = "label"


PATH_AND_LABEL = Columns()


def look_into(folder: Path) -> FolderContent:
    """Return what lies directly in a folder: the one rule by which every command takes pictures.

    A link is what it leads to, so a folder that two links lead to is two folders.

    Raises:
        KeMetricError: DATA: it cannot be read.
    """
    content = FolderContent([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                kind = _kind(entry)
                if kind is not None:
                    content[kind].append(entry.name)
    except OSError as error:
        raise KeMetricError(f"{folder}: cannot be read: {error.strerror or error}", ExitCode.DATA) from error
    return content


def _kind(entry: os.DirEntry[str]) -> int | None:
    """Return where a name belongs among the attributes of `FolderContent`; None: nowhere."""
    hidden = entry.name.startswith((".", "__MACOSX"))
    if _is(entry, os.DirEntry.is_dir):
        return None if hidden else 1
    is_picture = not hidden and Path(entry.name).suffix.lower() in IMAGE_EXTENSIONS
    # The reading of a pipe or a device need not end.
    if is_picture and (_is(entry, os.DirEntry.is_file) or not Path(entry.path).exists()):
        return 0
    return 2 if _is(entry, os.DirEntry.is_file) else None


def _is(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    try:
        return kind(entry)
    except OSError:
        # A link to itself is nothing.
        return False


def key_below(path: str, where: str) -> str:
    """Return a listed path in its plain form, `a/b.jpg`; refuse one that leaves the picture folder."""
    # By hand, since pathlib would take longer over the 120,053 paths of a large list than everything else together.
    parts = path.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or parts[0][1:2] == ":":
        raise KeMetricError(
            f"{where}: the path {path!r} leaves the data folder; paths must be relative to it and without '..' (the "
            "folder of a list of your own is the one that it lies in)",
            ExitCode.DATA,
        )
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def is_own_list(path: Path) -> bool:
    """Return whether a file is a list that `ke-metric data pictures` wrote beside its pictures."""
    header = ",".join(OWN_LIST_COLUMNS) + "\n"
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(len(header)) == header
    except (OSError, ValueError):
        return False


def read_csv_rows(
    path: Path, divisions: Divisions = RETRIEVAL, columns: Columns = PATH_AND_LABEL, *, labels_needed: bool = True
) -> list[LabelledPath]:
    """Read and check all rows of a CSV file.

    Args:
        path: The file; UTF-8, separated by commas, semicolons or tabs, first line `path,label` or `path,label,split`
            in any order. Further columns are allowed and not used. Paths are relative to the file's folder.
        divisions: What the split column may have: all parts of one of these.
        columns: What the columns are called; the third one is `split` always.
        labels_needed: Whether every picture must have a label, and lie below the folder of the file, as for a
            training. False: the pictures are only looked at; a file of paths alone will do, a label may be empty, a
            path absolute.

    Raises:
        KeMetricError: DATA, with file and line: a column is missing, a row is malformed, leaves the folder, repeats
            or contradicts another, or the splits are not those of one division.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True, delimiter=_delimiter(lines, columns))
            header = [(column or "").strip() for column in reader.fieldnames or ()]
            # A column of another name may be the one that has the labels.
            alone = columns.path in header and set(header) <= {columns.path, "split"}
            if labels_needed or not alone or columns.label != PATH_AND_LABEL.label:
                _refuse_columns(path, header, columns, "" if labels_needed else "; --no-labels reads the paths only")
            reader.fieldnames = header
            splits = divisions if "split" in header else ()
            rows = list(_rows(path, reader, columns, divisions=splits, labels_needed=labels_needed))
    except UnicodeDecodeError as error:
        raise KeMetricError(
            f"{path}: not a UTF-8 text file: {error}; save it as CSV in UTF-8", ExitCode.DATA
        ) from error
    except OSError as error:
        raise KeMetricError(f"{path}: cannot be read: {error}", ExitCode.DATA) from error
    except csv.Error as error:
        raise KeMetricError(f"{path}: not a CSV file: {error}", ExitCode.DATA) from error
    if not rows:
        raise KeMetricError(f"{path}: the file has a header but no rows", ExitCode.DATA)
    _refuse_contradictions(path, rows)
    _refuse_mixed_splits(path, rows, divisions=divisions)
    return rows


def _delimiter(lines: TextIO, columns: Columns) -> str:
    """Return what separates the cells of the header; the comma where nothing tells."""
    first = lines.readline()
    lines.seek(0)
    for delimiter in DELIMITERS:
        cells = {cell.strip().strip('"') for cell in first.split(delimiter)}
        if set(columns) <= cells:
            return delimiter
    return max(DELIMITERS, key=first.count)


def _refuse_columns(path: Path, header: Sequence[str], columns: Columns, otherwise: str) -> None:
    for column in columns:
        if column not in header:
            raise KeMetricError(
                f"{path}: the header has no column {column!r}{closest(column, header)}; found: "
                f"{', '.join(header) or 'an empty file'}; expected: path,label or path,label,split, or other names "
                "that --path-column and --label-column tell (in a recipe: data.path_column and data.label_column)"
                f"{otherwise if column == columns.label else ''}",
                ExitCode.DATA,
            )
    others = [name for name in header if name not in columns]
    if "split" not in header and (meant := closest("split", others)):
        # Ignoring a misspelt split column would draw another split than the one the user wrote down.
        raise KeMetricError(f"{path}: the header has no column 'split'{meant}; rename that column", ExitCode.DATA)


def _rows(
    path: Path, reader: csv.DictReader[str], columns: Columns, *, divisions: Divisions, labels_needed: bool
) -> Iterator[LabelledPath]:
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        if None in cells or None in cells.values():
            raise KeMetricError(
                f"{where}: the row and the header differ in their number of cells; quote a cell that has a separator",
                ExitCode.DATA,
            )
        picture, label = cells[columns.path].strip(), cells.get(columns.label, "").strip()
        if not picture or (labels_needed and not label):
            what = f"path {picture!r} and label {label!r}" if labels_needed else f"path {picture!r}"
            raise KeMetricError(f"{where}: {what} must not be empty", ExitCode.DATA)
        split = _checked_split(cells["split"].strip(), where, divisions=divisions) if divisions else None
        anywhere = not labels_needed and picture.startswith("/")
        yield LabelledPath(posixpath.normpath(picture) if anywhere else key_below(picture, where), label, split)


def _checked_split(split: str, where: str, *, divisions: Divisions) -> str:
    splits = _splits_of(divisions)
    if split not in splits:
        raise KeMetricError(
            f"{where}: split {split!r} does not exist{closest(split, splits)}; allowed: {_in_words(divisions)}",
            ExitCode.DATA,
        )
    return split


def _splits_of(divisions: Divisions) -> tuple[str, ...]:
    return tuple(dict.fromkeys(split for division in divisions for split in division))


def _in_words(divisions: Divisions) -> str:
    return ", or ".join(f"{', '.join(division[:-1])} and {division[-1]}" for division in divisions)


def _refuse_contradictions(path: Path, rows: Sequence[LabelledPath]) -> None:
    """Refuse a picture with two labels, or one that is both trained on and tested on."""
    labels: dict[str, set[str]] = {}
    parts: dict[str, set[str | None]] = {}
    for row in rows:
        labels.setdefault(row.path, set()).add(row.label)
        parts.setdefault(row.path, set()).add(row.split)
    two_labels = [picture for picture, found in labels.items() if len(found) > 1]
    if two_labels:
        raise KeMetricError(f"{path}: images with more than one label: {some_of(two_labels)}", ExitCode.DATA)
    # One picture may be searched with and searched in; its self-match is removed by its key.
    two_parts = [picture for picture, found in parts.items() if len(found) > 1 and found != {"query", "gallery"}]
    if two_parts:
        raise KeMetricError(f"{path}: images in more than one split: {some_of(two_parts)}", ExitCode.DATA)


def _refuse_mixed_splits(path: Path, rows: Sequence[LabelledPath], *, divisions: Divisions) -> None:
    found = {row.split for row in rows}
    if found == {None} or found in [set(division) for division in divisions]:
        return
    names = ", ".join(split for split in _splits_of(divisions) if split in found)
    raise KeMetricError(f"{path}: the split column has {names}; it must have {_in_words(divisions)}", ExitCode.DATA)
