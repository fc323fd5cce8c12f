"""The table of rendered emojis: which file shows which emoji in which style.

The benchmark `emoji`: real artwork, one class per emoji, one picture per style that draws it.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ke_metric.benchmarks.archives import new_folder, refuse_occupied
from ke_metric.benchmarks.emoji_artwork import (
    STYLES,
    DrawingError,
    IconSet,
    fetch_packages,
    join_styles,
    read_icon_set,
    render,
)
from ke_metric.benchmarks.own_splits import draw_share, split_classes
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import Decoding
from ke_metric.images.image_set import Benchmark, FolderSource, ImageSet, labelled_set
from ke_metric.recipe.schema import Data

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


SIDE = 64
MIN_STYLES = 5

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prepared:
    """What `prepare_emoji` made.

    Attributes:
        classes: Number of emojis.
        images: Number of pictures.
        left_out: `style/name: reason` of the drawings that gave no picture.
    """

    classes: int
    images: int
    left_out: tuple[str, ...]


def read(data: Data) -> Benchmark:
    """Read the rendered emojis and split them by class.

    Args:
        data: Section of the recipe; `root` (default `data/emoji`) and `test_fraction` are used.

    Returns:
        Pictures of 64 x 64 pixels. Every test picture queries all others. Class names are the emojis' names; keys
        are paths below the root.

    Raises:
        KeMetricError: The folder is missing or its index is not as `prepare_emoji` writes it (DATA).
    """
    root = _root(data)
    rows = read_index(root)
    source = FolderSource(root, Decoding.of_recipe(data))
    train_ids, test_ids = split_classes({row.code_points for row in rows}, data.test_fraction, "emoji")
    test = _image_set(rows, test_ids, source)
    notes = _notes(root, "by class, test classes never seen in training")
    return Benchmark("emoji", _image_set(rows, train_ids, source), test, test, notes)


def read_classification(data: Data) -> Benchmark:
    """Read the rendered emojis and split them by style: every emoji is trained and tested on, in different styles.

    Args:
        data: Section of the recipe; `root` and `test_fraction`, as the share of the styles that is for testing, are
            used.

    Returns:
        The emojis that have a training and a test style. Pictures, class names and keys are as those of `read`.

    Raises:
        KeMetricError: As `read`, or no emoji has a training and a test style (DATA).
    """
    root = _root(data)
    rows = read_index(root)
    source = FolderSource(root, Decoding.of_recipe(data))
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


def _root(data: Data) -> Path:
    return Path(data.root or "data/emoji").expanduser()


def prepare_emoji(target: Path, *, source: Path | None = None, progress: Progress | None = None) -> Prepared:
    """Render the artwork of eight openly licensed icon sets, once.

    Writes `index.csv`, `images/<code points>/<style>.png` (64 x 64 pixels, RGB, on white) and `licences.json`. The
    folder appears when all of it is there: one that exists is complete.

    Args:
        target: Folder to make; nothing may lie in it.
        source: Folder with the npm packages as archives or unpacked; fetched with the npm client when left out.
        progress: Called with the number of drawings done and their total.

    Returns:
        How many classes and pictures there are, and what was left out.

    Raises:
        KeMetricError: resvg_py or npm is missing, or the disk is full (ENVIRONMENT); a package is missing or broken,
            or something lies in the target (DATA).
    """
    renderer = _renderer()
    refuse_occupied(target)
    icon_sets = _icon_sets(source)
    joined = {key: names for key, names in join_styles(icon_sets).items() if len(names) >= MIN_STYLES}
    pictures, left_out = _render_all(icon_sets, joined, progress)
    shared = _shared(pictures)
    rows = _drawn_often([row for row in pictures if row not in shared])
    if not rows:
        raise KeMetricError(f"the packages have no emoji that {MIN_STYLES} styles draw", ExitCode.DATA)
    with new_folder(target) as folder:
        _write_pictures(rows, pictures, folder)
        write_index(rows, folder)
        _write_licences(icon_sets, rows, renderer, folder)
    return Prepared(len({row.code_points for row in rows}), len(rows), (*left_out, *shared.values()))


def _renderer() -> str:
    try:
        import resvg_py
    except ImportError:
        raise KeMetricError(
            "rendering the emojis needs the package resvg-py; install ke_metric[emoji]", ExitCode.ENVIRONMENT
        ) from None
    return f"resvg {resvg_py.__resvg_version__} (resvg-py {resvg_py.__version__})"


def _icon_sets(source: Path | None) -> list[IconSet]:
    if source is not None:
        return [read_icon_set(style, source) for style in STYLES]
    with tempfile.TemporaryDirectory(prefix="ke-metric-emoji-") as folder:
        fetch_packages(Path(folder))
        return [read_icon_set(style, Path(folder)) for style in STYLES]


def _render_all(
    icon_sets: Sequence[IconSet], joined: Mapping[str, Mapping[str, str]], progress: Progress | None
) -> tuple[dict[Row, Image.Image], list[str]]:
    """Draw every emoji in every style that has it; what gives no picture is named in the second value."""
    by_style = {icon_set.style.name: icon_set for icon_set in icon_sets}
    total = sum(len(names) for names in joined.values())
    pictures: dict[Row, Image.Image] = {}
    left_out: list[str] = []
    for code_points, names in joined.items():
        class_name = next(iter(names.values()))
        for style, name in names.items():
            try:
                pictures[Row.of(code_points, class_name, style)] = render(by_style[style], name, SIDE)
            except DrawingError as error:
                left_out.append(f"{style}/{name}: {error}")
        if progress is not None:
            progress(len(pictures) + len(left_out), total)
    return pictures, left_out


def _shared(pictures: Mapping[Row, Image.Image]) -> dict[Row, str]:
    """Pictures that a style uses for several emojis: nobody can tell which of them is meant."""
    alike: dict[tuple[str, bytes], list[Row]] = {}
    for row, picture in pictures.items():
        alike.setdefault((row.style, picture.tobytes()), []).append(row)
    return {
        row: f"{row.style}/{row.name}: the same picture for {', '.join(other.name for other in rows)}"
        for rows in alike.values()
        if len(rows) > 1
        for row in rows
    }


def _drawn_often(rows: Collection[Row]) -> list[Row]:
    styles = Counter(row.code_points for row in rows)
    return [row for row in rows if styles[row.code_points] >= MIN_STYLES]


def _write_pictures(rows: Sequence[Row], pictures: Mapping[Row, Image.Image], folder: Path) -> None:
    for row in rows:
        path = folder / row.path
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[row].save(path)


def _write_licences(icon_sets: Sequence[IconSet], rows: Sequence[Row], renderer: str, folder: Path) -> None:
    styles: list[dict[str, Any]] = [
        {
            "style": icon_set.style.name,
            "package": icon_set.style.package,
            "version": icon_set.version,
            "author": icon_set.author,
            "licence": icon_set.licence,
            "images": sum(row.style == icon_set.style.name for row in rows),
        }
        for icon_set in icon_sets
    ]
    document = {"renderer": renderer, "images": len(rows), "styles": styles}
    (folder / "licences.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _image_set(rows: Sequence[Row], class_ids: Sequence[str], source: FolderSource) -> ImageSet:
    number = {code_points: class_id for class_id, code_points in enumerate(class_ids)}
    kept = [row for row in rows if row.code_points in number]
    names = {number[row.code_points]: row.name for row in kept}
    keys = [row.path for row in kept]
    return labelled_set(keys, [number[row.code_points] for row in kept], names, source)


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
