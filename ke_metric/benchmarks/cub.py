"""CUB-200-2011: birds; for retrieval classes 1-100 against 101-200, for classification the official parts of all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ke_metric.benchmarks.layout import Layout, ListRow, find_layout, parse_whole, read_rows, whole_number
from ke_metric.benchmarks.listings import key_below, some_of
from ke_metric.benchmarks.table import Item, PublishedCounts, Table, build_benchmark, build_classification, split_at
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

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
OFFICIAL_LAYOUT = Layout(LAYOUT.name, {**LAYOUT.paths, "official split": ["train_test_split.txt"]})
OLD_ARCHIVE = "This looks like CUB-200 of 2010 (6,033 images); the benchmark is CUB-200-2011 (11,788 images)."
COUNTS = PublishedCounts(
    {"train": (5864, 100), "test": (5924, 100)}, class_sizes=(41, 60), suspects={6033: OLD_ARCHIVE}
)
OFFICIAL_COUNTS = PublishedCounts(
    {"train": (5994, 200), "test": (5794, 200)}, class_sizes=(41, 60), suspects={6033: OLD_ARCHIVE}
)


def read(data: Data) -> Benchmark:
    """Read CUB-200-2011 for retrieval; its official train/test flag, which mixes the classes, is not used.

    Args:
        data: The recipe's section; `root` is the folder CUB_200_2011 or the one above it.

    Raises:
        KeMetricError: Files are missing, contradict each other or have other counts.
    """
    paths = find_layout(data, [LAYOUT], recognize=_recognize).paths
    train, test = split_at(_items(paths).values(), LAST_TRAIN_CLASS)
    split = f"class ids up to {LAST_TRAIN_CLASS} for training, above for testing; official flag not used"
    table = _table(paths, train, test=test, split=split)
    if data.verify_counts:
        COUNTS.verify(table)
    return build_benchmark(data, table)


def read_classification(data: Data) -> Benchmark:
    """Read CUB-200-2011 for classification, with its official train/test flag.

    Args:
        data: The recipe's section; `root` is the folder CUB_200_2011 or the one above it.

    Raises:
        KeMetricError: Files are missing, contradict each other or have other counts.
    """
    paths = find_layout(data, [OFFICIAL_LAYOUT], recognize=_recognize).paths
    items = _items(paths)
    flags = _by_image_id(read_rows(paths["official split"], ("image_id", "is_training_image"), header=False))
    _refuse_unjoined((paths["images"], paths["official split"]), ids=items, other_ids=flags)
    trained = {image_id for image_id, row in flags.items() if _flag(row)}
    table = _table(
        paths,
        [item for image_id, item in items.items() if image_id in trained],
        test=[item for image_id, item in items.items() if image_id not in trained],
        split=f"official: {paths['official split'].name}",
    )
    if data.verify_counts:
        OFFICIAL_COUNTS.verify(table)
    return build_classification(data, table)


def _table(paths: Mapping[str, Path], train: Sequence[Item], *, test: Sequence[Item], split: str) -> Table:
    return Table(
        origin=paths["images"],
        folder=paths["pictures"],
        train=train,
        query=test,
        gallery=None,
        class_names=_class_names(paths["classes"]),
        notes={"layout": LAYOUT.name, "split": split},
    )


def _recognize(base: Path) -> str | None:
    return OLD_ARCHIVE if (base / "lists" / "files.txt").is_file() or (base / "annotations-mat").is_dir() else None


def _items(paths: Mapping[str, Path]) -> dict[int, Item]:
    """Join pictures and classes by image id; in the order of the ids."""
    path_of = _by_image_id(read_rows(paths["images"], ("image_id", "path"), header=False))
    class_of = _by_image_id(read_rows(paths["labels"], ("image_id", "class_id"), header=False))
    _refuse_unjoined((paths["images"], paths["labels"]), ids=path_of, other_ids=class_of)
    return {image_id: _item(path_of[image_id], class_of[image_id]) for image_id in sorted(path_of)}


def _refuse_unjoined(paths: tuple[Path, Path], *, ids: Collection[int], other_ids: Collection[int]) -> None:
    unjoined = sorted(set(ids) ^ set(other_ids))
    if unjoined:
        raise KeMetricError(
            f"{paths[0]} and {paths[1].name} do not have the same image ids; {len(unjoined):,} are in one only: "
            f"{some_of([str(image_id) for image_id in unjoined])}",
            ExitCode.DATA,
        )


def _flag(row: ListRow) -> bool:
    flag = row.cells[1]
    if flag not in ("0", "1"):
        raise KeMetricError(
            f"{row.where}: is_training_image must be 1 (training) or 0 (testing), not {flag!r}", ExitCode.DATA
        )
    return flag == "1"


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
