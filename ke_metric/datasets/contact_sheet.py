"""A contact sheet of training pictures: as a network is scored on such ones, and as it is trained on them.

What is shown went through a training's own batches and a scoring's own, and is standardised no more. Shapes: S image
size in pixels.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ke_metric.arrays import IntArray
from ke_metric.disk import write_bytes
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.batches import TrainingEpochs, evaluation_batches, first_pictures
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.lettering import FONT, SMALL, shortened
from ke_metric.images.preparation import CPU
from ke_metric.recipe.schema import Recipe

# In pixels. A small picture is shown several times as large, each of its pixels as a square.
SMALLEST_CELL, GAP, MARGIN, DIVIDE, NAME, LINE = 96, 6, 16, 14, 150, 14
HEAD = MARGIN + 2 * LINE + GAP
# Widest letter of the font, and the lines below a mixed picture.
LETTER, CAPTION = 7, 3
# Grey, so that white pictures have an edge.
PAPER, INK, FAINT = "#e4e6e9", "#202124", "#5f6368"


@dataclass
class SheetRow:
    """One picture.

    Attributes:
        key: The item's.
        name: Its class.
        scored: As a network is scored on it, [S, S].
        drawn: As a network is trained on it, in successive epochs.
        shares: Where pictures are mixed, in words: what of each of these is its own class, and what another one.
    """

    key: str
    name: str
    scored: Image.Image
    drawn: list[Image.Image] = field(default_factory=list)
    shares: list[tuple[str, str]] = field(default_factory=list)


def sheet_rows(benchmark: Benchmark, recipe: Recipe, *, pictures: int, draws: int) -> list[SheetRow]:
    """Return pictures of the first training batches, of as many classes as there are.

    The epochs are those of a training of these batches alone, on the CPU: every picture is drawn once in each, as far
    as the recipe's batches have it. Nothing else is decoded.

    Args:
        benchmark: Its training part.
        recipe: What happens to them.
        pictures: How many; fewer where an epoch has fewer.
        draws: Of each.

    Raises:
        KeMetricError: The recipe's batches cannot be made, or a picture cannot be decoded.
    """
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": 0})})
    small, _ = first_pictures(benchmark, recipe, pictures)
    train = small.benchmark.train
    chosen = _of_every_class(train.labels)[:pictures]
    scored = evaluation_batches(small.train, chosen.tolist(), recipe=recipe, device=CPU)
    rows = {
        train.keys[index]: SheetRow(train.keys[index], train.class_names[train.labels[index]], picture)
        for index, picture in zip(chosen.tolist(), _pictures(scored, recipe), strict=True)
    }
    epochs, number = TrainingEpochs(small, recipe, generation=1, device=CPU), 0
    while any(len(row.drawn) < draws for row in rows.values()):
        number += 1
        for batch in epochs.epoch(number):
            for key, picture, label in zip(batch.keys, _pictures([batch.images], recipe), batch.labels, strict=True):
                # One of each epoch, also of a picture that repeats in it.
                if key in rows and len(rows[key].drawn) < min(number, draws):
                    rows[key].drawn.append(picture)
                    rows[key].shares += [_in_words(label, rows[key].name, train)] * label.ndim
    return list(rows.values())


def _of_every_class(labels: IntArray) -> IntArray:
    """Return the places of labels, first one of each class, then a second one of each."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    turns = np.empty(len(labels), np.int64)
    turns[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return np.argsort(turns, kind="stable")


def _pictures(batches: Iterator[Tensor] | Sequence[Tensor], recipe: Recipe) -> Iterator[Image.Image]:
    """Yield the pictures of standardised batches [B, 3, S, S]; what lies outside of black and white is cut off."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.data.mean, recipe.data.std))
    for batch in batches:
        levels = ((batch * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        yield from map(Image.fromarray, levels.permute(0, 2, 3, 1).contiguous().numpy())


def _in_words(shares: Tensor, own: str, train: ImageSet) -> tuple[str, str]:
    """Return how much of a mixed picture, of shares [C], is of its own class, and how much of which other one."""
    in_percent = {train.class_names[label]: 100 * float(shares[label]) for label in shares.nonzero().flatten()}
    others = [f"{share:.0f} % {name}" for name, share in in_percent.items() if name != own]
    return f"{in_percent.get(own, 0):.0f} % its own", " ".join(others)


def draw_sheet(title: str, rows: Sequence[SheetRow]) -> Image.Image:
    """Draw rows of pictures below each other, their names at the left, then what they are as they are scored."""
    size = rows[0].scored.width
    cell = size * max(1, -(-SMALLEST_CELL // size))
    step = cell + GAP + (CAPTION * LINE if rows[0].shares else 0)
    draws, font = len(rows[0].drawn), ImageFont.truetype(FONT, SMALL)
    width = max(_left_of(draws + 1, cell) - GAP, MARGIN + round(font.getlength(title))) + MARGIN
    sheet = Image.new("RGB", (width, HEAD + len(rows) * step + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, INK, font)
    for column in range(draws + 1):
        head = f"training {column}" if column else "scored"
        pen.text((_left_of(column, cell), MARGIN + LINE), head, FAINT, font)
    for row, top in zip(rows, itertools.count(HEAD, step), strict=False):
        for column, picture in enumerate((row.scored, *row.drawn)):
            large = picture.resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(large, (_left_of(column, cell), top))
        _caption_row(pen, row, top, cell)
    return sheet


def _caption_row(pen: ImageDraw.ImageDraw, row: SheetRow, top: int, cell: int) -> None:
    _write(pen, shortened(row.name, NAME // LETTER, 4), (MARGIN, top), INK)
    _write(pen, shortened(row.key, NAME // LETTER, 2), (MARGIN, top + cell - 2 * LINE), FAINT)
    for column, (own, other) in enumerate(row.shares, start=1):
        lines = [own, *shortened(other, cell // LETTER, CAPTION - 1)]
        _write(pen, lines, (_left_of(column, cell), top + cell), FAINT)


def _left_of(column: int, cell: int) -> int:
    """Return where a column begins; column 0 is of scored pictures."""
    return MARGIN + NAME + GAP + column * (cell + GAP) + (DIVIDE if column else 0)


def _write(pen: ImageDraw.ImageDraw, lines: Sequence[str], place: tuple[int, int], ink: str) -> None:
    font = ImageFont.truetype(FONT, SMALL)
    for number, line in enumerate(lines):
        pen.text((place[0], place[1] + number * LINE), line, ink, font)


def require_png(path: Path) -> None:
    """Check, before anything is read, that a sheet can be written to a file.

    Raises:
        KeMetricError: USAGE: its name does not end in .png, or it is a folder or in none.
    """
    if path.suffix.lower() != ".png":
        raise KeMetricError(f"--to {path}: must end in .png", ExitCode.USAGE)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise KeMetricError(f"--to {path}: is a folder, or there is no such folder", ExitCode.USAGE)


def write_sheet(sheet: Image.Image, path: Path) -> int:
    """Write a sheet as a PNG file, which is whole or as it was, and return its bytes.

    Raises:
        KeMetricError: ENVIRONMENT: it cannot be written.
    """
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    write_bytes(path, content.getvalue())
    return content.tell()
