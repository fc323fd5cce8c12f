"""Search results as one picture: each query at the left, what it found beside it, right and wrong ones marked."""

from __future__ import annotations

import io
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import UPRIGHT_ON_WHITE, Decoding, read_picture
from ke_metric.images.lettering import FONT, LETTERS, SMALL, shortened
from ke_metric.retrieval.index import Result

MOST_QUERIES = 50
MOST_RESULTS = 20
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# In pixels; a point of text is one too.
DOTS_PER_INCH = 72
PICTURE, FRAME, GAP, MARGIN, HEADER = 112, 5, 16, 24, 46
CELL = PICTURE + 2 * FRAME
ROW = CELL + 80
# Between the query and its results.
DIVIDE = 34
LARGE = 13

PAPER, INK, FAINT = "#ffffff", "#202124", "#6b7075"
RIGHT, WRONG, UNKNOWN, QUERY = "#1e8e4e", "#c9353f", "#b3b7bb", "#3c4043"
NO_PICTURE = "#eceef0"


@dataclass(frozen=True)
class MontageRow:
    """A query and what it found.

    Attributes:
        name: What it is called.
        path: Where its picture lies.
        label: Its class; empty where that is not known.
        results: Most similar first.
    """

    name: str
    path: str
    label: str
    results: Sequence[Result]


def require_picture_name(path: Path) -> None:
    """Check, before anything is searched, that a montage can be written to a file.

    Raises:
        KeMetricError: USAGE: the suffix is of no kind of picture, or the folder is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise KeMetricError(f"--montage {path}: must end in {', '.join(SUFFIXES)}", ExitCode.USAGE)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise KeMetricError(f"--montage {path}: is a folder, or there is no such folder", ExitCode.USAGE)


def write_montage(rows: Sequence[MontageRow], path: Path, decoding: Decoding = UPRIGHT_ON_WHITE) -> None:
    """Draw a montage into a file, which is whole or as it was.

    Args:
        rows: See `draw_montage`.
        path: The file.
        decoding: How the pictures are decoded: as the network saw them.

    Raises:
        KeMetricError: See `require_picture_name`; or ENVIRONMENT: it cannot be written.
    """
    require_picture_name(path)
    temporary = path.with_name(f".writing-{secrets.token_hex(4)}{path.suffix}")
    try:
        draw_montage(rows, decoding).save(temporary)
        temporary.replace(path)
    except OSError as error:
        raise KeMetricError(f"{path}: cannot be written: {error.strerror or error}", ExitCode.ENVIRONMENT) from error
    finally:
        temporary.unlink(missing_ok=True)


def draw_montage(rows: Sequence[MontageRow], decoding: Decoding = UPRIGHT_ON_WHITE) -> Image.Image:
    """Draw queries, one below the other, with their results.

    A result whose label is the query's has a green frame and a tick, another one a red frame and a cross, and a grey
    frame where one of the labels is not known. A picture that cannot be read is a grey square that names the file.

    Args:
        rows: At most MOST_QUERIES of them are drawn, and MOST_RESULTS results of each.
        decoding: How the pictures are decoded.
    """
    rows = rows[:MOST_QUERIES]
    columns = max((min(len(row.results), MOST_RESULTS) for row in rows), default=0)
    width, height = _left_of(max(columns, 3) + 1) - GAP + MARGIN, HEADER + MARGIN + max(len(rows), 1) * ROW
    figure = Figure((width / DOTS_PER_INCH, height / DOTS_PER_INCH), dpi=DOTS_PER_INCH, facecolor=PAPER)
    for column in range(columns + 1):
        name = "query" if column == 0 else str(column)
        _write(figure, name, _left_of(column) + CELL // 2, MARGIN, size=LARGE, color=FAINT)
    for number, row in enumerate(rows):
        _draw_row(figure, row, HEADER + MARGIN // 2 + number * ROW, decoding)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="raw")
    return Image.frombytes("RGBA", (width, height), drawn.getvalue()).convert("RGB")


def _left_of(column: int) -> int:
    """Return where a column begins; column 0 is the query."""
    return MARGIN if column == 0 else MARGIN + CELL + DIVIDE + (column - 1) * (CELL + GAP)


def _draw_row(figure: Figure, row: MontageRow, top: int, decoding: Decoding) -> None:
    _draw_picture(figure, row.path, _left_of(0), top, color=QUERY, decoding=decoding)
    _write(figure, "\n".join(shortened(row.label or row.name)), _left_of(0) + CELL // 2, top + CELL + 4)
    for result in row.results[:MOST_RESULTS]:
        color, mark = UNKNOWN, ""
        if row.label and result.label:
            color, mark = (RIGHT, "✓ ") if row.label == result.label else (WRONG, "✗ ")
        left, below = _left_of(result.rank), top + CELL + 4
        _draw_picture(figure, result.path, left, top, color=color, decoding=decoding)
        ink = INK if color == UNKNOWN else color
        _write(figure, f"{mark}{result.similarity:.3f}", left + CELL // 2, below, size=LARGE, color=ink)
        _write(figure, "\n".join(shortened(result.label or result.id)), left + CELL // 2, below + LARGE + 4)
    if not row.results:
        _write(figure, "nothing found", _left_of(1) + CELL // 2, top + CELL // 2, size=LARGE, color=FAINT)


def _draw_picture(figure: Figure, path: str, left: int, top: int, *, color: str, decoding: Decoding) -> None:
    """Draw a picture, whole, on a white square; a grey one that says what is missing where there is none."""
    try:
        picture = ImageOps.pad(
            read_picture(Path(path), decoding), (PICTURE, PICTURE), Image.Resampling.LANCZOS, PAPER
        )
    except KeMetricError:
        picture = Image.new("RGB", (PICTURE, PICTURE), NO_PICTURE)
        lines = ["no picture", *shortened(Path(path).name or "path not known", LETTERS - 2)]
        _write(figure, "\n".join(lines), left + CELL // 2, top + CELL // 3, color=FAINT)
    framed = np.asarray(ImageOps.expand(picture, FRAME, color))
    figure.figimage(framed, left, round(figure.bbox.height) - top - CELL)


def _write(figure: Figure, text: str, middle: int, top: int, *, size: int = SMALL, color: str = INK) -> None:
    height = figure.bbox.height - top
    written = figure.text(middle, height, text, ha="center", va="top", size=size, color=color, font=FONT)
    written.set_parse_math(False)
    written.set_transform(None)
