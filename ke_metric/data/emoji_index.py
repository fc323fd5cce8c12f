"""The table of rendered emojis: which file shows which emoji in which style."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ke_metric.errors import ExitCode, KeMetricError

COLUMNS = ("path", "code points", "name", "style")


@dataclass(frozen=True)
class Row:
    """One line of `index.csv`."""

    path: str
    code_points: str
    name: str
    style: str

    @classmethod
    def of(cls, code_points: str, name: str, style: str) -> Row:
        """The line of a picture at its place."""
        return cls(f"images/{code_points}/{style}.png", code_points, name, style)


def write_index(rows: Sequence[Row], folder: Path) -> None:
    """Write `index.csv` into a folder, a line per picture in the order given."""
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((row.path, row.code_points, row.name, row.style) for row in rows)


def read_index(root: Path) -> list[Row]:
    """Read `index.csv`.

    Args:
        root: Folder that `prepare_emoji` made.

    Returns:
        The lines in the order of the file.

    Raises:
        KeMetricError: The file is missing, has other columns, or names a picture outside the folder (DATA).
    """
    path = root / "index.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except FileNotFoundError:
        raise KeMetricError(
            f"{path}: no such file; render the emojis first: ke-metric data prepare emoji", ExitCode.DATA
        ) from None
    if tuple(header) != COLUMNS:
        raise KeMetricError(f"{path}: columns {header}, expected {list(COLUMNS)}", ExitCode.DATA)
    return [_row(path, number, line) for number, line in enumerate(lines, start=2)]


def _row(path: Path, number: int, line: list[str]) -> Row:
    if len(line) != len(COLUMNS):
        raise KeMetricError(f"{path}, line {number}: {len(line)} fields, expected {len(COLUMNS)}", ExitCode.DATA)
    row = Row(*line)
    picture = PurePosixPath(row.path)
    if picture.is_absolute() or ".." in picture.parts:
        raise KeMetricError(f"{path}, line {number}: path {row.path!r} leads out of the folder", ExitCode.DATA)
    return row
