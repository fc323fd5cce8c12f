"""Search results as one picture: each query at the left, what it found beside it, right and wrong ones marked."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import UPRIGHT_ON_WHITE, Decoding, read_picture
from ke_metric.retrieval.index import Result

MOST_QUERIES = 50
MOST_RESULTS = 20
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# In pixels.
PICTURE, FRAME, GAP, MARGIN = 112, 5, 16, 24
CELL = PICTURE + 2 * FRAME
TEXT_LINE, LINES_OF_LABEL = 14, 3
HEADER = 46
ROW = CELL + TEXT_LINE * (1 + LINES_OF_LABEL) + 24
# Between the query and its results.
DIVIDE = 34

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
    width = 2 * MARGIN + CELL + DIVIDE + max(columns, 3) * (CELL + GAP) - GAP
    sheet = Image.new("RGB", (width, HEADER + MARGIN + max(len(rows), 1) * ROW), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_header(draw, columns)
    for number, row in enumerate(rows):
        _draw_row(sheet, partial(_thumbnail, decoding=decoding), row, HEADER + MARGIN // 2 + number * ROW)
    return sheet


def _left_of(column: int) -> int:
    """Return where a column begins; column 0 is the query."""
    return MARGIN if column == 0 else MARGIN + CELL + DIVIDE + (column - 1) * (CELL + GAP)


def _draw_header(draw: ImageDraw.ImageDraw, columns: int) -> None:
    top = MARGIN
    for column in range(columns + 1):
        text = "query" if column == 0 else str(column)
        draw.text((_left_of(column) + CELL // 2, top), text, FAINT, _font(13), anchor="ma")


def _draw_row(sheet: Image.Image, thumbnail: Callable[[str], Image.Image], row: MontageRow, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    line = MARGIN + CELL + DIVIDE // 2
    draw.line(((line, top), (line, top + ROW - 24)), "#dadce0", 1)
    _draw_cell(
        sheet, (MARGIN, top), picture=thumbnail(row.path), color=QUERY, caption="", label=row.label or row.name
    )
    for result in row.results[:MOST_RESULTS]:
        known = bool(row.label and result.label)
        right = known and row.label == result.label
        color = (RIGHT if right else WRONG) if known else UNKNOWN
        mark = ("✓ " if right else "✗ ") if known else ""
        _draw_cell(
            sheet,
            (_left_of(result.rank), top),
            picture=thumbnail(result.path),
            color=color,
            caption=f"{mark}{result.similarity:.3f}",
            label=result.label or result.id,
        )
    if not row.results:
        draw.text((_left_of(1), top + CELL // 2), "nothing found", FAINT, _font(13), anchor="lm")


def _draw_cell(
    sheet: Image.Image, corner: tuple[int, int], *, picture: Image.Image, color: str, caption: str, label: str
) -> None:
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), PAPER, color, FRAME)
    sheet.paste(picture, (left + FRAME, top + FRAME))
    centre, below = left + CELL // 2, top + CELL + 4
    if caption:
        draw.text((centre, below), caption, INK if color == UNKNOWN else color, _font(13, bold=True), anchor="ma")
        below += TEXT_LINE + 3
    for line in shortened(label, CELL + 4, LINES_OF_LABEL):
        draw.text((centre, below), line, INK, _font(11), anchor="ma")
        below += TEXT_LINE


def _thumbnail(path: str, *, decoding: Decoding) -> Image.Image:
    """Return a picture, whole, on a white square; a grey one that says what is missing where there is none."""
    try:
        picture = read_picture(Path(path), decoding)
    except KeMetricError:
        return _placeholder(path)
    small = ImageOps.contain(picture, (PICTURE, PICTURE), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (PICTURE, PICTURE), PAPER)
    square.paste(small, ((PICTURE - small.width) // 2, (PICTURE - small.height) // 2))
    return square


def _placeholder(path: str) -> Image.Image:
    square = Image.new("RGB", (PICTURE, PICTURE), NO_PICTURE)
    draw = ImageDraw.Draw(square)
    lines = ["no picture", *shortened(Path(path).name or "path not known", PICTURE - 8, 3)]
    top = (PICTURE - TEXT_LINE * len(lines)) // 2
    for number, line in enumerate(lines):
        draw.text((PICTURE // 2, top + TEXT_LINE * number), line, FAINT, _font(11, bold=number == 0), anchor="ma")
    return square


def shortened(text: str, width: int, lines: int) -> list[str]:
    """Break a text into lines of at most `width` pixels; what does not fit is left out of its middle.

    Characters that the font has not are shown by their number, as `U+9E1F`.
    """
    text = _drawable(text)
    whole = _broken(text, width)
    for kept in range(len(text) - 1, 0, -1):
        if len(whole) <= lines:
            break
        # The end often tells what the beginning does not: LATIN CAPITAL LETTER A.
        whole = _broken(f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}", width)
    return whole[:lines]


def _broken(text: str, width: int) -> list[str]:
    """Break a text between words, and inside those that are too long."""
    lines: list[str] = []
    rest = text.strip()
    while rest:
        fits = len(rest)
        while fits > 1 and _font(11).getlength(rest[:fits]) > width:
            fits -= 1
        cut = fits if fits == len(rest) else max(rest.rfind(" ", 0, fits + 1), 0) or fits
        lines.append(rest[:cut].strip())
        rest = rest[cut:].strip()
    return lines


def _drawable(text: str) -> str:
    """Return a text in one line of which the font has every character."""
    line = " ".join(text.split())
    return "".join(letter if ord(letter) in _characters() else f"U+{ord(letter):04X}" for letter in line)


@cache
def _characters() -> frozenset[int]:
    return frozenset(FT2Font(str(_font_file(bold=False))).get_charmap()) | {ord(" ")}


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_file(bold=bold), size)


def _font_file(*, bold: bool) -> Path:
    """Return DejaVu Sans, which matplotlib brings along."""
    return Path(mpl.get_data_path(), "fonts", "ttf", f"DejaVuSans{'-Bold' if bold else ''}.ttf")
