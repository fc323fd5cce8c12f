"""Rows of the plain-text lists that CUB, SOP and In-Shop bring along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ke_metric.errors import ExitCode, KeMetricError


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
        KeMetricError: The header is missing or a line has fewer columns.
    """
    lines = _numbered_lines(path)
    if header:
        _refuse_header(path, lines[:1], columns)
    return [_row(path, line, columns) for line in (lines[1:] if header else lines)]


def read_counted_rows(path: Path, columns: Sequence[str]) -> list[ListRow]:
    """Read a list whose first line is the number of its rows and whose second line is the header.

    Args:
        path: As for `read_rows`.
        columns: Names of the columns.

    Raises:
        KeMetricError: Number or header is missing, another number of rows follows, or a line has fewer columns.
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
