"""Stanford Online Products: official class-disjoint split, two to twelve pictures of every product."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ke_metric.benchmarks.layout import Layout, ListRow, find_layout, read_rows, whole_number
from ke_metric.benchmarks.listings import key_below
from ke_metric.benchmarks.table import Item, PublishedCounts, Table, build_benchmark
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

COLUMNS = ("image_id", "class_id", "super_class_id", "path")
LAYOUT = Layout(
    "Stanford Online Products (Stanford_Online_Products.zip)",
    {"train": ["Ebay_train.txt"], "test": ["Ebay_test.txt"]},
)
COUNTS = PublishedCounts(
    {"train": (59551, 11318), "test": (60502, 11316)},
    suspects={
        120053 + 60502: "Ebay_train.txt seems to be a copy of Ebay_info.txt, which lists all 120,053 images.",
        120053 + 59551: "Ebay_test.txt seems to be a copy of Ebay_info.txt, which lists all 120,053 images.",
        2 * 59551: "Both lists seem to be Ebay_train.txt.",
        2 * 60502: "Both lists seem to be Ebay_test.txt.",
    },
    remark="The benchmark has 120,053 images of 22,634 classes (22,364 in some catalogues is a swap of two digits).",
)


def read(data: Data) -> Benchmark:
    """Read Stanford Online Products with its official split.

    Args:
        data: The recipe's section; `root` is the folder Stanford_Online_Products or the one above it.

    Raises:
        KeMetricError: Files are missing, malformed or have other counts.
    """
    paths = find_layout(data, [LAYOUT], recognize=_recognize).paths
    rows = {part: _by_image_id(path) for part, path in paths.items()}
    table = Table(
        origin=paths["train"],
        folder=paths["train"].parent,
        train=[_item(row) for row in rows["train"]],
        query=[_item(row) for row in rows["test"]],
        gallery=None,
        class_names=_class_names([*rows["train"], *rows["test"]]),
        notes={"layout": LAYOUT.name, "split": "official: Ebay_train.txt and Ebay_test.txt"},
    )
    if data.verify_counts:
        COUNTS.verify(table)
    return build_benchmark(data, table)


def _recognize(base: Path) -> str | None:
    if (base / "Ebay_info.txt").is_file():
        return "Ebay_info.txt lists all images without the split; Ebay_train.txt and Ebay_test.txt have it."
    return None


def _by_image_id(path: Path) -> list[ListRow]:
    return sorted(read_rows(path, COLUMNS, header=True), key=lambda row: whole_number(row, 0, "image_id"))


def _item(row: ListRow) -> Item:
    return Item(key_below(row.cells[3], row.where), whole_number(row, 1, "class_id"))


def _class_names(rows: Iterable[ListRow]) -> dict[int, str]:
    """Name a product, which has no name of its own, by its category and number: `bicycle 1`."""
    return {
        whole_number(row, 1, "class_id"): f"{row.cells[3].partition('/')[0].removesuffix('_final')} {row.cells[1]}"
        for row in rows
    }
