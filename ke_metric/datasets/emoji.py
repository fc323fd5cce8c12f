"""Making the benchmark `emoji`: the artwork of eight icon sets, fetched, joined by emoji and rendered once."""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ke_metric.benchmarks.emoji import COLUMNS, EmojiRow
from ke_metric.datasets.emoji_artwork import (
    STYLES,
    DrawingError,
    IconSet,
    fetch_packages,
    join_styles,
    read_icon_set,
    render,
)
from ke_metric.disk import new_folder, refuse_occupied
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import Progress

SIDE = 64
MIN_STYLES = 5


@dataclass(frozen=True)
class PreparedEmoji:
    """What `prepare_emoji` made.

    Attributes:
        classes: Number of emojis.
        images: Number of pictures.
        left_out: `style/name: reason` of the drawings that gave no picture.
    """

    classes: int
    images: int
    left_out: tuple[str, ...]


def prepare_emoji(target: Path, *, source: Path | None = None, progress: Progress | None = None) -> PreparedEmoji:
    """Render the artwork of eight openly licensed icon sets, once.

    Writes `index.csv`, `images/<code points>/<style>.png` (64 x 64 pixels, RGB, on white) and `licences.json`. The
    folder appears when all of it is there: one that exists is complete.

    Args:
        target: Folder to make; nothing may lie in it.
        source: Folder with the npm packages as archives or unpacked; fetched with the npm client when left out.
        progress: Called with the number of drawings done and their total.

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
        _write_licences(icon_sets, rows, renderer, folder)
    return PreparedEmoji(len({row.code_points for row in rows}), len(rows), (*left_out, *shared.values()))


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
) -> tuple[dict[EmojiRow, Image.Image], list[str]]:
    """Draw every emoji in every style that has it; what gives no picture is named in the second value."""
    by_style = {icon_set.style.name: icon_set for icon_set in icon_sets}
    total = sum(len(names) for names in joined.values())
    pictures: dict[EmojiRow, Image.Image] = {}
    left_out: list[str] = []
    for code_points, names in joined.items():
        class_name = next(iter(names.values()))
        for style, name in names.items():
            row = EmojiRow(f"images/{code_points}/{style}.png", code_points, class_name, style)
            try:
                pictures[row] = render(by_style[style], name, SIDE)
            except DrawingError as error:
                left_out.append(f"{style}/{name}: {error}")
        if progress is not None:
            progress(len(pictures) + len(left_out), total)
    return pictures, left_out


def _shared(pictures: Mapping[EmojiRow, Image.Image]) -> dict[EmojiRow, str]:
    """Return pictures that a style uses for several emojis: nobody can tell which of them is meant."""
    alike: dict[tuple[str, bytes], list[EmojiRow]] = {}
    for row, picture in pictures.items():
        alike.setdefault((row.style, picture.tobytes()), []).append(row)
    return {
        row: f"{row.style}/{row.name}: the same picture for {', '.join(other.name for other in rows)}"
        for rows in alike.values()
        if len(rows) > 1
        for row in rows
    }


def _drawn_often(rows: Collection[EmojiRow]) -> list[EmojiRow]:
    styles = Counter(row.code_points for row in rows)
    return [row for row in rows if styles[row.code_points] >= MIN_STYLES]


def _write_pictures(rows: Sequence[EmojiRow], pictures: Mapping[EmojiRow, Image.Image], folder: Path) -> None:
    for row in rows:
        path = folder / row.path
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[row].save(path)
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def _write_licences(icon_sets: Sequence[IconSet], rows: Sequence[EmojiRow], renderer: str, folder: Path) -> None:
    styles = [
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
