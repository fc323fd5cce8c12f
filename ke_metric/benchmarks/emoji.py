"""The benchmark `emoji`: real artwork, one class per emoji, one picture per style that draws it.

Its folder is made by `ke-metric data prepare emoji`; `index.csv` says which file shows which emoji in which style.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ke_metric.benchmarks.own_splits import draw_share, split_classes
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import Decoding
from ke_metric.images.image_set import Benchmark, FolderSource, ImageSet, labelled_set
from ke_metric.recipe.schema import Data

COLUMNS = ("path", "code points", "name", "style")


class EmojiRow(NamedTuple):
    """One line of `index.csv`: a picture, the emoji that it shows and its style."""

    path: str
    code_points: str
    name: str
    style: str


def read(data: Data) -> Benchmark:
    """Read the rendered emojis, 64 x 64 pixels, and split them by class.

    Every test picture queries all others. Class names are the emojis' names; keys are paths below the root.
    """
    root, rows, source = _opened(data)
    train_ids, test_ids = split_classes({row.code_points for row in rows}, data.test_fraction, "emoji")
    test = _image_set(rows, test_ids, source)
    notes = _notes(root, "by class, test classes never seen in training")
    return Benchmark("emoji", _image_set(rows, train_ids, source), test, test, notes)


def read_classification(data: Data) -> Benchmark:
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
    both = _image_set(rows, sorted(trained & tested), source)
    style_of = {row.path: row.style for row in rows}
    is_test = np.array([style_of[key] in test_styles for key in both.keys])
    train, query = both.at(np.flatnonzero(~is_test)), both.at(np.flatnonzero(is_test))
    notes = _notes(root, f"by style, test styles never seen in training: {', '.join(test_styles)}")
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
    if tuple(header) != COLUMNS:
        raise KeMetricError(f"{path}: columns {header}, expected {list(COLUMNS)}", ExitCode.DATA)
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=2)]


def _row(line: list[str], where: str) -> EmojiRow:
    if len(line) != len(COLUMNS):
        raise KeMetricError(f"{where}: {len(line)} fields, expected {len(COLUMNS)}", ExitCode.DATA)
    row = EmojiRow(*line)
    picture = PurePosixPath(row.path)
    if picture.is_absolute() or ".." in picture.parts:
        raise KeMetricError(f"{where}: path {row.path!r} leads out of the folder", ExitCode.DATA)
    return row


def _image_set(rows: Sequence[EmojiRow], class_ids: Sequence[str], source: FolderSource) -> ImageSet:
    number = {code_points: class_id for class_id, code_points in enumerate(class_ids)}
    kept = [row for row in rows if row.code_points in number]
    names = {number[row.code_points]: row.name for row in kept}
    return labelled_set([row.path for row in kept], [number[row.code_points] for row in kept], names, source)


def _notes(root: Path, split: str) -> dict[str, str]:
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
