"""CUB-200-2011: birds, classes 1-100 for training and 101-200 for testing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ke_metric.data.images import Benchmark
from ke_metric.data.layout import Layout, find_layout
from ke_metric.data.list_files import ListRow, parse_whole, read_rows, whole_number
from ke_metric.data.published_counts import PublishedCounts
from ke_metric.data.table import Item, Table, build_benchmark, key_below, some_of, split_at
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe import Data

LAST_TRAIN_CLASS = 100
LAYOUT = Layout(
    "CUB-200-2011 (CUB_200_2011.tgz)",
    {
        "images": ["images.txt"],
        "labels": ["image_class_labels.txt"],
        "classes": ["classes.txt"],
        "pictures": ["images/"],
    },
)
OLD_ARCHIVE = "This looks like CUB-200 of 2010 (6,033 images); the benchmark is CUB-200-2011 (11,788 images)."
COUNTS = PublishedCounts(
    {"train": (5864, 100), "test": (5924, 100)}, class_sizes=(41, 60), suspects={6033: OLD_ARCHIVE}
)


def read(data: Data) -> Benchmark:
    """Read CUB-200-2011; its official train/test flag, which mixes the classes, is not used.

    Args:
        data: The recipe's section; `root` is the folder CUB_200_2011 or the one above it.

    Raises:
        KeMetricError: Files are missing, contradict each other or have other counts.
    """
    paths = find_layout(data, [LAYOUT], recognize=_recognize).paths
    train, test = split_at(_items(paths), LAST_TRAIN_CLASS)
    table = Table(
        origin=paths["images"],
        folder=paths["pictures"],
        train=train,
        query=test,
        gallery=None,
        class_names=_class_names(paths["classes"]),
        notes={
            "layout": LAYOUT.name,
            "split": f"class ids up to {LAST_TRAIN_CLASS} for training, above for testing; official flag not used",
        },
    )
    if data.verify_counts:
        COUNTS.verify(table)
    return build_benchmark(data.benchmark, table)


def _recognize(base: Path) -> str | None:
    return OLD_ARCHIVE if (base / "lists" / "files.txt").is_file() or (base / "annotations-mat").is_dir() else None


def _items(paths: Mapping[str, Path]) -> list[Item]:
    """Join pictures and classes by image id; in the order of the ids."""
    path_of = _by_image_id(read_rows(paths["images"], ("image_id", "path"), header=False))
    class_of = _by_image_id(read_rows(paths["labels"], ("image_id", "class_id"), header=False))
    unjoined = sorted(path_of.keys() ^ class_of.keys())
    if unjoined:
        raise KeMetricError(
            f"{paths['images']} and {paths['labels'].name} do not have the same image ids; {len(unjoined):,} are in "
            f"one only: {some_of([str(image_id) for image_id in unjoined])}",
            ExitCode.DATA,
        )
    return [_item(path_of[image_id], class_of[image_id]) for image_id in sorted(path_of)]


def _by_image_id(rows: list[ListRow]) -> dict[int, ListRow]:
    found: dict[int, ListRow] = {}
    for row in rows:
        image_id = whole_number(row, 0, "image_id")
        if image_id in found:
            raise KeMetricError(f"{row.where}: image_id {image_id} is given twice", ExitCode.DATA)
        found[image_id] = row
    return found


def _item(path_row: ListRow, class_row: ListRow) -> Item:
    key = key_below(path_row.cells[1], path_row.where)
    class_id = whole_number(class_row, 1, "class_id")
    number = parse_whole(key.partition(".")[0], f"{path_row.where}: the number before the class folder's name")
    if number != class_id:
        raise KeMetricError(
            f"{class_row.where}: class_id {class_id}, but the picture lies in the folder of class {number} ({key})",
            ExitCode.DATA,
        )
    return Item(key, class_id)


def _class_names(path: Path) -> dict[int, str]:
    rows = read_rows(path, ("class_id", "name"), header=False)
    return {whole_number(row, 0, "class_id"): row.cells[1] for row in rows}
