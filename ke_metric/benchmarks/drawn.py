"""Drawn characters, whose split is ours: `glyphs` of the text faces that matplotlib ships, `emoji` of real artwork.

Glyphs: a class is a character, its images are that character in 12 to 16 faces; nothing is downloaded. All stand on
one baseline in one size, as in a line of print, so that a comma differs from an apostrophe and a capital from a small
letter.

Emoji: one class per emoji, one picture per style that draws it. The folder is made by `ke-metric data prepare emoji`;
`index.csv` says which file shows which emoji in which style.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from ke_metric.benchmarks.own_splits import draw_share, split_classes
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import Decoding
from ke_metric.images.image_set import Benchmark, FolderSource, ImageSet, labelled_set
from ke_metric.recipe.schema import Data

FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
MIN_FACES = 12

# What the faces are hashed with. Of a few wordings this one was taken, before any training, because already a quarter
# of the faces has upright, bold and slanted ones.
FACE_SPLIT = "faces/glyphs"

SIDE = 64
# The tallest capitals with two accents just fit.
FONT_SIZE = 40
BASELINE = 46
# What a character is drawn on before the picture is cut out: wider than any of them.
SHEET = 192

INK, PAPER = 0, 255


@dataclass(frozen=True)
class GlyphSource:
    """Draws a character in a face on demand; a key is `U+0041/DejaVuSans-Bold`. Every process opens its own fonts."""

    def read(self, key: str) -> Image.Image:
        """Draw the picture: RGB, 64 x 64 pixels, black on white; a key that cannot be drawn is a KeMetricError."""
        code_point, face = _parse(key)
        picture = draw(code_point, face)
        if picture is None:
            raise KeMetricError(f"glyph {key!r}: {face} has no such character, or it does not fit", ExitCode.DATA)
        return picture.convert("RGB")


def read_glyphs(data: Data) -> Benchmark:
    """Build the benchmark and split it by class; takes about two seconds, once per process.

    Every test picture queries all others. Class names are `U+0041 LATIN CAPITAL LETTER A`. Of the recipe's section
    only `test_fraction` is used.

    Raises:
        KeMetricError: matplotlib has not the fonts (ENVIRONMENT).
    """
    classes = _all_classes()
    train_ids, test_ids = split_classes(classes, data.test_fraction, "glyphs")
    train, test = (
        _glyph_set({code_point: classes[code_point] for code_point in ids}) for ids in (train_ids, test_ids)
    )
    return Benchmark("glyphs", train, test, test, _glyph_notes("by class, test classes never seen in training"))


def read_glyphs_classification(data: Data) -> Benchmark:
    """Build the benchmark and split it by face: every character is trained and tested on, in different faces.

    Characters that have no training or no test face are left out. `test_fraction` is the share of the faces that is
    for testing; names and errors are those of `read_glyphs`.
    """
    train_faces, test_faces = draw_share(FACES, data.test_fraction, FACE_SPLIT)
    parts: tuple[dict[int, tuple[str, ...]], ...] = ({}, {})
    for code_point, faces in _all_classes().items():
        trained, tested = (tuple(face for face in faces if face in part) for part in (train_faces, test_faces))
        if trained and tested:
            parts[0][code_point], parts[1][code_point] = trained, tested
    train, query = (_glyph_set(part) for part in parts)
    notes = _glyph_notes(f"by face, test faces never seen in training: {', '.join(test_faces)}")
    return Benchmark("glyphs", train, query, query, notes, task="classification")


def candidate_characters() -> list[int]:
    """Return code points, ascending, that at least 12 faces draw and that stand alone: no mark, control or space."""
    counts = Counter(code_point for face in FACES for code_point in _characters(face))
    return sorted(
        code_point
        for code_point, count in counts.items()
        if count >= MIN_FACES and unicodedata.category(chr(code_point))[0] not in "CMZ"
    )


def glyph_classes(code_points: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """Choose classes and images, so that no picture occurs twice.

    A face that draws a character exactly as an earlier face does (arrows do not lean in the oblique ones) adds no
    image. A character that looks exactly like an earlier one, in DejaVu Sans or any other face, is that class (Greek
    Alpha is Latin A) and adds none either. What is left with fewer than 12 images is left out.

    Returns:
        Code point to faces, both in ascending order (faces as in `FACES`), whatever the order of the candidates.
    """
    classes: dict[int, tuple[str, ...]] = {}
    taken: set[tuple[str, bytes]] = set()
    for code_point in sorted(code_points):
        faces = _distinct(code_point)
        drawn = {(face, pixels) for pixels, face in faces.items()}
        if len(faces) >= MIN_FACES and not drawn & taken:
            taken |= drawn
            classes[code_point] = tuple(faces.values())
    return classes


def draw(code_point: int, face: str) -> Image.Image | None:
    """Draw one character in one of `FACES`, its ink centred from left to right, standing on the common baseline.

    Returns:
        Grey picture of 64 x 64 pixels, black on white; None where the face lacks the character, draws nothing, or
        draws more than fits.
    """
    if code_point not in _characters(face):
        return None
    sheet = Image.new("L", (SHEET, SHEET), PAPER)
    ImageDraw.Draw(sheet).text((SHEET // 3, SHEET // 2), chr(code_point), font=_font(face), fill=INK, anchor="ls")
    box = ImageChops.invert(sheet).getbbox()
    if box is None:
        return None
    left, top = (box[0] + box[2] - SIDE) // 2, SHEET // 2 - BASELINE
    if box[0] < left or box[1] < top or box[2] > left + SIDE or box[3] > top + SIDE:
        return None
    return sheet.crop((left, top, left + SIDE, top + SIDE))


def _distinct(code_point: int) -> dict[bytes, str]:
    """Return the pixels of the different pictures of a character, and the first face that draws each."""
    faces: dict[bytes, str] = {}
    for face in FACES:
        picture = draw(code_point, face)
        if picture is not None:
            faces.setdefault(picture.tobytes(), face)
    return faces


@lru_cache(maxsize=1)
def _all_classes() -> Mapping[int, tuple[str, ...]]:
    return glyph_classes(candidate_characters())


@lru_cache(maxsize=len(FACES))
def _font(face: str) -> ImageFont.FreeTypeFont:
    # The basic layout: whether Raqm is there must not change a pixel.
    return ImageFont.truetype(_font_file(face), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=len(FACES))
def _characters(face: str) -> frozenset[int]:
    """Return the code points that the face has a glyph for; glyph 0 is the box for a missing one."""
    from matplotlib.ft2font import FT2Font

    charmap = FT2Font(str(_font_file(face))).get_charmap()
    return frozenset(code_point for code_point, glyph in charmap.items() if glyph != 0)


def _font_file(face: str) -> Path:
    import matplotlib as mpl

    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    if not path.is_file():
        raise KeMetricError(f"{path}: matplotlib comes without this font; reinstall matplotlib", ExitCode.ENVIRONMENT)
    return path


def _parse(key: str) -> tuple[int, str]:
    found = re.fullmatch("U\\+([0-9A-F]{4,6})/(.+)", key)
    if found is None or found[2] not in FACES:
        raise KeMetricError(f"glyph {key!r}: expected a key like U+0041/{FACES[0]}", ExitCode.DATA)
    return int(found[1], 16), found[2]


def _glyph_set(classes: Mapping[int, Sequence[str]]) -> ImageSet:
    items = [(code_point, face) for code_point, faces in classes.items() for face in faces]
    names = {code_point: f"U+{code_point:04X} {unicodedata.name(chr(code_point))}" for code_point in classes}
    keys = [f"U+{code_point:04X}/{face}" for code_point, face in items]
    return labelled_set(keys, [code_point for code_point, _ in items], names, GlyphSource())


def _glyph_notes(split: str) -> dict[str, str]:
    import matplotlib as mpl
    import PIL

    return {
        "split": split,
        "fonts": f"{len(FACES)} faces of DejaVu and STIX from matplotlib {mpl.__version__}",
        "renderer": f"FreeType {features.version('freetype2')} (Pillow {PIL.__version__})",
    }


EMOJI_COLUMNS = ("path", "code points", "name", "style")


class EmojiRow(NamedTuple):
    """One line of `index.csv`: a picture, the emoji that it shows and its style."""

    path: str
    code_points: str
    name: str
    style: str


def read_emoji(data: Data) -> Benchmark:
    """Read the rendered emojis, 64 x 64 pixels, and split them by class.

    Every test picture queries all others. Class names are the emojis' names; keys are paths below the root.
    """
    root, rows, source = _opened(data)
    train_ids, test_ids = split_classes({row.code_points for row in rows}, data.test_fraction, "emoji")
    test = _emoji_set(rows, test_ids, source)
    notes = _emoji_notes(root, "by class, test classes never seen in training")
    return Benchmark("emoji", _emoji_set(rows, train_ids, source), test, test, notes)


def read_emoji_classification(data: Data) -> Benchmark:
    """Read the rendered emojis and split them by style: every emoji is trained and tested on, in different styles.

    `data.test_fraction` is the share of the styles that is for testing. Emojis that have no training or no test style
    are left out; that none is left is an error (DATA).
    """
    root, rows, source = _opened(data)
    train_styles, test_styles = draw_share({row.style for row in rows}, data.test_fraction, "styles/emoji")
    trained, tested = ({row.code_points for row in rows if row.style in part} for part in (train_styles, test_styles))
    if not trained & tested:
        raise KeMetricError(
            f"{root / 'index.csv'}: no emoji has a picture in a training style ({', '.join(train_styles)}) and in a "
            f"test style ({', '.join(test_styles)})",
            ExitCode.DATA,
        )
    both = _emoji_set(rows, sorted(trained & tested), source)
    style_of = {row.path: row.style for row in rows}
    is_test = np.array([style_of[key] in test_styles for key in both.keys])
    train, query = both.at(np.flatnonzero(~is_test)), both.at(np.flatnonzero(is_test))
    notes = _emoji_notes(root, f"by style, test styles never seen in training: {', '.join(test_styles)}")
    return Benchmark("emoji", train, query, query, notes, task="classification")


def _opened(data: Data) -> tuple[Path, list[EmojiRow], FolderSource]:
    root = Path(data.root or "data/emoji").expanduser()
    return root, _read_index(root / "index.csv"), FolderSource(root, Decoding.of_recipe(data))


def _read_index(path: Path) -> list[EmojiRow]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except FileNotFoundError:
        raise KeMetricError(
            f"{path}: no such file; render the emojis first: ke-metric data prepare emoji", ExitCode.DATA
        ) from None
    if tuple(header) != EMOJI_COLUMNS:
        raise KeMetricError(f"{path}: columns {header}, expected {list(EMOJI_COLUMNS)}", ExitCode.DATA)
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=2)]


def _row(line: list[str], where: str) -> EmojiRow:
    if len(line) != len(EMOJI_COLUMNS):
        raise KeMetricError(f"{where}: {len(line)} fields, expected {len(EMOJI_COLUMNS)}", ExitCode.DATA)
    row = EmojiRow(*line)
    picture = PurePosixPath(row.path)
    if picture.is_absolute() or ".." in picture.parts:
        raise KeMetricError(f"{where}: path {row.path!r} leads out of the folder", ExitCode.DATA)
    return row


def _emoji_set(rows: Sequence[EmojiRow], class_ids: Sequence[str], source: FolderSource) -> ImageSet:
    number = {code_points: class_id for class_id, code_points in enumerate(class_ids)}
    kept = [row for row in rows if row.code_points in number]
    names = {number[row.code_points]: row.name for row in kept}
    return labelled_set([row.path for row in kept], [number[row.code_points] for row in kept], names, source)


def _emoji_notes(root: Path, split: str) -> dict[str, str]:
    path = root / "licences.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        styles = {style["style"]: _credit(style) for style in document["styles"]}
        return {"split": split, "renderer": document["renderer"], **styles}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KeMetricError(
            f"{path}: not as written by `ke-metric data prepare emoji`: {type(error).__name__}: {error}",
            ExitCode.DATA,
        ) from error


def _credit(style: Mapping[str, Any]) -> str:
    return f"{style['package']} {style['version']}, {style['licence']['title']}, {style['author']['name']}"
