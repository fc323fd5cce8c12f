"""The files of a published benchmark: where they lie on disk, and how its text lists and MATLAB files are read."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data


class Hint(NamedTuple):
    """What a folder without a complete layout looks like, a wrong or partial archive: what to say where it is so.

    `{path}` in the text is the place that is there, `{folder}` the folder that it lies in.
    """

    text: str
    there: str
    lacking: str | None = None


@dataclass(frozen=True)
class Layout:
    """One way in which the files of a benchmark lie on disk.

    Attributes:
        name: Stands in notes and errors.
        paths: What a path is for, to the places relative to the base where it may lie, the usual one first. A path
            that ends in `/` is a folder, and may hold one folder of its own name that has the content instead.
        hints: The first one that is true of a folder is said of it.
    """

    name: str
    paths: Mapping[str, Sequence[str]]
    hints: Sequence[Hint] = ()

    def find(self, base: Path) -> dict[str, Path]:
        """Return what is there, by what it is for; complete when it has as many entries as `paths`."""
        found = {}
        for purpose, places in self.paths.items():
            there = next((base / place for place in places if _is_there(base, place)), None)
            if there:
                # Copies on the web pack a folder into one of its own name: cars_train/cars_train/00001.jpg.
                inner = there / there.name
                found[purpose] = inner if inner.is_dir() else there
        return found


def _is_there(base: Path, place: str) -> bool:
    path = base / place
    return path.is_dir() if place.endswith("/") else path.is_file()


@dataclass(frozen=True)
class FoundLayout:
    """A layout of which every file is there: the folder it lies in, and what a path is for, to the path."""

    layout: Layout
    base: Path
    paths: Mapping[str, Path]

    def below(self, purpose: str) -> str:
        """Return the path of a purpose as seen from the folder."""
        return self.paths[purpose].relative_to(self.base).as_posix()

    def notes(self, split: str) -> dict[str, str]:
        """Return what a scorecard says of the files and of their split."""
        return {"layout": self.layout.name, "split": split}


def find_layout(data: Data, layouts: Sequence[Layout]) -> FoundLayout:
    """Return the first layout that is complete in `data.root` or in one folder directly below it.

    Args:
        data: The recipe's section; the root is `data/<benchmark>` where it names none.
        layouts: Those a reader knows; an earlier one wins inside one folder.

    Raises:
        KeMetricError: DATA: no layout is complete, or those of two folders are; the message lists what is expected,
            where it was looked for, what is missing, and the command that prepares an archive.
    """
    root = Path(data.root or f"data/{data.benchmark}").expanduser()
    below = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    for bases in ([root], below):
        complete = [found for base in bases if (found := _first_complete(base, layouts))]
        if len(complete) > 1:
            raise KeMetricError(
                f"data.root = {str(root)!r} has the files of {data.benchmark} in more than one folder: "
                f"{', '.join(found.base.name for found in complete)}; name one of them",
                ExitCode.DATA,
            )
        if complete:
            return complete[0]
    bases = [root, *below]
    lines = [
        *_what_was_looked_for(data, root, layouts),
        *_closest(bases, layouts),
        *dict.fromkeys(said for base in bases if (said := _hint(base, layouts))),
        "An archive or folder you have elsewhere is taken over by: "
        f"ke-metric data prepare {data.benchmark} --from PATH",
    ]
    raise KeMetricError("\n".join(lines), ExitCode.DATA)


def _first_complete(base: Path, layouts: Sequence[Layout]) -> FoundLayout | None:
    for layout in layouts:
        paths = layout.find(base)
        if len(paths) == len(layout.paths):
            return FoundLayout(layout, base, paths)
    return None


def _what_was_looked_for(data: Data, root: Path, layouts: Sequence[Layout]) -> list[str]:
    default = "" if data.root else f" (the default of data.benchmark = {data.benchmark})"
    state = "and in the folders directly below it" if root.is_dir() else "which is no folder"
    usual = {layout.name: ", ".join(places[0] for places in layout.paths.values()) for layout in layouts}
    return [
        f"data.root = {str(root)!r}{default}: the files of {data.benchmark} are not there.",
        f"Looked in {root.absolute()}, {state}. Expected one of:",
        *(f"  {name}: {places}" for name, places in usual.items()),
    ]


def _closest(bases: Sequence[Path], layouts: Sequence[Layout]) -> list[str]:
    """Return a line on the folder that has the largest part of a layout; none where nothing is there."""

    def share(pair: tuple[Path, Layout]) -> float:
        return len(pair[1].find(pair[0])) / len(pair[1].paths)

    base, layout = max(((base, layout) for base in bases for layout in layouts), key=share)
    found = layout.find(base)
    missing = [places[0] for purpose, places in layout.paths.items() if purpose not in found]
    return [f"Closest: {base} has a part of {layout.name}; missing: {', '.join(missing)}."] if found else []


def _hint(base: Path, layouts: Sequence[Layout]) -> str:
    for hint in (hint for layout in layouts for hint in layout.hints):
        if _is_there(base, hint.there) and not (hint.lacking and _is_there(base, hint.lacking)):
            path = base / hint.there
            return hint.text.format(path=path, folder=path.parent)
    return ""


class ListRow(NamedTuple):
    """The columns of one line, and `file, line n` for errors."""

    cells: list[str]
    where: str


def read_rows(path: Path, columns: Sequence[str], *, header: bool) -> list[ListRow]:
    """Read a list whose columns are separated by any run of spaces; the last column may hold spaces.

    Args:
        path: UTF-8 text, lines ended by LF or CRLF; empty lines are passed over.
        columns: Names of the columns, for errors and for the header.
        header: Whether a first line must name exactly these columns.

    Raises:
        KeMetricError: DATA: the header is missing or a line has fewer columns.
    """
    lines = _numbered_lines(path)
    if header:
        _refuse_header(path, lines[:1], columns)
    return [_row(path, line, columns) for line in (lines[1:] if header else lines)]


def read_counted_rows(path: Path, columns: Sequence[str]) -> list[ListRow]:
    """Read a list, see `read_rows`, whose first line is the number of its rows and whose second line is the header.

    Raises:
        KeMetricError: DATA: number or header is missing, another number of rows follows, or a line has fewer columns.
    """
    lines = _numbered_lines(path)
    count_line = lines[0].text.strip() if lines else ""
    promised = parse_whole(count_line, f"{path}: the first line, the number of images,")
    _refuse_header(path, lines[1:2], columns)
    rows = [_row(path, line, columns) for line in lines[2:]]
    if len(rows) != promised:
        raise KeMetricError(
            f"{path}: the first line promises {promised:,} images, but {len(rows):,} follow the header; is the file "
            "whole?",
            ExitCode.DATA,
        )
    return rows


def read_text(path: Path) -> str:
    """Read a UTF-8 text file with any line ends; a KeMetricError names one that is not text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise KeMetricError(f"{path}: not a UTF-8 text file: {error}", ExitCode.DATA) from error


def whole_number(row: ListRow, column: int, name: str) -> int:
    """Return one cell as a whole number; a KeMetricError has file, line and column name."""
    return parse_whole(row.cells[column], f"{row.where}: {name}")


def parse_whole(text: str, where: str) -> int:
    """Return a text of digits as a number; a KeMetricError begins with `where`."""
    if not (text.isascii() and text.isdigit()):
        raise KeMetricError(f"{where} must be a whole number, not {text!r}", ExitCode.DATA)
    return int(text)


class _Line(NamedTuple):
    number: int
    text: str


def _numbered_lines(path: Path) -> list[_Line]:
    lines = read_text(path).split("\n")
    return [_Line(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _refuse_header(path: Path, lines: Sequence[_Line], columns: Sequence[str]) -> None:
    # Without this a list that lost its header would silently lose its first image too.
    if not lines or lines[0].text.split() != list(columns):
        found = lines[0].text.strip() if lines else "nothing"
        raise KeMetricError(
            f"{path}: expected the header {' '.join(columns)!r} before the images, found {found!r}", ExitCode.DATA
        )


def _row(path: Path, line: _Line, columns: Sequence[str]) -> ListRow:
    where = f"{path}, line {line.number}"
    cells = line.text.strip().split(None, len(columns) - 1)
    if len(cells) != len(columns):
        raise KeMetricError(
            f"{where}: expected the columns {' '.join(columns)}, found {line.text.strip()!r}", ExitCode.DATA
        )
    return ListRow(cells, where)


def read_labels(path: Path, *, path_field: str) -> list[tuple[str, int]]:
    """Read picture path and class of every record of the struct array `annotations` of a .mat file.

    Fields are found by name, since their order differs between the distributions, and classes become whole numbers,
    since the file's uint8 overflows when something is added.

    Raises:
        KeMetricError: DATA: the file, the array or a field is missing or cannot be read.
    """
    try:
        return [(str(record[path_field]), int(record["class"])) for record in _records(path, (path_field, "class"))]
    except (TypeError, ValueError) as error:
        raise KeMetricError(f"{path}: a record's class is not a number: {error}", ExitCode.DATA) from error


def read_flags(path: Path, *, field: str) -> list[bool]:
    """Read a field of 0 or 1 of every record of the struct array `annotations`, in the order of the file.

    Raises:
        KeMetricError: DATA: the file, the array or the field is missing or cannot be read, or holds something else.
    """
    flags = [str(record[field]) for record in _records(path, (field,))]
    for position, flag in enumerate(flags, start=1):
        if flag not in ("0", "1"):
            raise KeMetricError(
                f"{path}: annotations, record {position}: {field} must be 0 or 1, not {flag!r}", ExitCode.DATA
            )
    return [flag == "1" for flag in flags]


def read_strings(path: Path, key: str) -> list[str]:
    """Read a cell array of strings of a .mat file; a KeMetricError (DATA) names one that cannot be read."""
    return [str(text) for text in _read_array(path, key)]


def read_whole_numbers(path: Path, key: str) -> list[int]:
    """Read a vector of whole numbers, which .mat files of one benchmark keep as bytes and of another as fractions.

    Raises:
        KeMetricError: DATA: the file or the array is missing or cannot be read, is a table, or an entry is not whole.
    """
    array = _read_array(path, key)
    if array.ndim > 1:
        shape = " x ".join(str(side) for side in array.shape)
        raise KeMetricError(f"{path}: {key!r} must be one row or one column, not {shape}", ExitCode.DATA)
    numbers = array.tolist()
    for position, number in enumerate(numbers, start=1):
        if not (isinstance(number, int) or (isinstance(number, float) and number.is_integer())):
            raise KeMetricError(
                f"{path}: {key}, entry {position}: must be a whole number, not {number!r}", ExitCode.DATA
            )
    return [int(number) for number in numbers]


def _records(path: Path, fields: Sequence[str]) -> Any:
    records = _read_array(path, "annotations")
    found = records.dtype.names or ()
    missing = [name for name in fields if name not in found]
    if missing:
        raise KeMetricError(
            f"{path}: the records have no field {', '.join(missing)}; they have {', '.join(found) or 'none'}",
            ExitCode.DATA,
        )
    return records


def _read_array(path: Path, key: str) -> Any:
    """Return an array of the file, at least one-dimensional: squeezing makes a single record zero-dimensional."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, squeeze_me=True)
    except (MatReadError, ValueError, TypeError, NotImplementedError, OSError, zlib.error) as error:
        raise KeMetricError(f"{path}: cannot be read as a MATLAB file: {error}", ExitCode.DATA) from error
    if key not in content:
        names = ", ".join(name for name in content if not name.startswith("__"))
        raise KeMetricError(f"{path}: has no array {key!r}; it has {names or 'none'}", ExitCode.DATA)
    return np.atleast_1d(content[key])
