"""CUB-200-2011: birds; for retrieval classes 1-100 against 101-200, for classification the official parts of all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ke_metric.benchmarks.layout import (
    FoundLayout,
    Hint,
    Layout,
    ListRow,
    find_layout,
    parse_whole,
    read_rows,
    whole_number,
)
from ke_metric.benchmarks.listings import key_below
from ke_metric.benchmarks.table import (
    PublishedCounts,
    Table,
    TableRow,
    build_benchmark,
    build_classification,
    split_at,
)
from ke_metric.errors import ExitCode, KeMetricError, some_of
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

LAST_TRAIN_CLASS = 100
OLD_ARCHIVE = "This looks like CUB-200 of 2010 (6,033 images); the benchmark is CUB-200-2011 (11,788 images)."
LAYOUT = Layout(
    "CUB-200-2011 (CUB_200_2011.tgz)",
    {
        "images": ["images.txt"],
        "labels": ["image_class_labels.txt"],
        "classes": ["classes.txt"],
        "pictures": ["images/"],
    },
    [Hint(OLD_ARCHIVE, place) for place in ("lists/files.txt", "annotations-mat/")],
)
OFFICIAL_LAYOUT = replace(LAYOUT, paths={**LAYOUT.paths, "official split": ["train_test_split.txt"]})
COUNTS = PublishedCounts(
    {"train": (5864, 100), "test": (5924, 100)}, class_sizes=(41, 60), suspects={6033: OLD_ARCHIVE}
)
OFFICIAL_COUNTS = PublishedCounts(
    {"train": (5994, 200), "test": (5794, 200)}, class_sizes=(41, 60), suspects={6033: OLD_ARCHIVE}
)


def read(data: Data) -> Benchmark:
    """Read CUB-200-2011 for retrieval; its official train/test flag, which mixes the classes, is not used.

    `data.root` is the folder CUB_200_2011 or the one above it.
    """
    found = find_layout(data, [LAYOUT])
    train, test = split_at(_rows(found.paths).values(), LAST_TRAIN_CLASS)
    split = f"class ids up to {LAST_TRAIN_CLASS} for training, above for testing; official flag not used"
    return build_benchmark(data, _table(found, train, test, split), COUNTS)


def read_classification(data: Data) -> Benchmark:
    """Read CUB-200-2011 for classification, with its official train/test flag; `data.root` as for `read`."""
    found = find_layout(data, [OFFICIAL_LAYOUT])
    rows, split = _rows(found.paths), found.paths["official split"]
    flags = _by_image_id(read_rows(split, ("image_id", "is_training_image"), header=False))
    _refuse_unjoined((found.paths["images"], split), ids=rows, other_ids=flags)
    trained = {image_id for image_id, listed in flags.items() if _flag(listed)}
    table = _table(
        found,
        [row for image_id, row in rows.items() if image_id in trained],
        [row for image_id, row in rows.items() if image_id not in trained],
        f"official: {split.name}",
    )
    return build_classification(data, table, OFFICIAL_COUNTS)


def _table(found: FoundLayout, train: Sequence[TableRow], test: Sequence[TableRow], split: str) -> Table:
    classes = read_rows(found.paths["classes"], ("class_id", "name"), header=False)
    names = {whole_number(row, 0, "class_id"): row.cells[1] for row in classes}
    return Table(found.paths["images"], found.paths["pictures"], train, test, None, names, found.notes(split))


def _rows(paths: Mapping[str, Path]) -> dict[int, TableRow]:
    """Join pictures and classes by image id; in the order of the ids."""
    path_of = _by_image_id(read_rows(paths["images"], ("image_id", "path"), header=False))
    class_of = _by_image_id(read_rows(paths["labels"], ("image_id", "class_id"), header=False))
    _refuse_unjoined((paths["images"], paths["labels"]), ids=path_of, other_ids=class_of)
    return {image_id: _row(path_of[image_id], class_of[image_id]) for image_id in sorted(path_of)}


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


def _row(path_row: ListRow, class_row: ListRow) -> TableRow:
    key = key_below(path_row.cells[1], path_row.where)
    class_id = whole_number(class_row, 1, "class_id")
    number = parse_whole(key.partition(".")[0], f"{path_row.where}: the number before the class folder's name")
    if number != class_id:
        raise KeMetricError(
            f"{class_row.where}: class_id {class_id}, but the picture lies in the folder of class {number} ({key})",
            ExitCode.DATA,
        )
    return TableRow(key, class_id)
