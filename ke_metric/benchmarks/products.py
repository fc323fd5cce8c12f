"""Pictures of products for retrieval, with official class-disjoint parts.

Stanford Online Products (`sop`): two to twelve pictures of every product. In-Shop Clothes Retrieval of DeepFashion
(`inshop`): training, query and gallery pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ke_metric.benchmarks.layout import (
    Hint,
    Layout,
    ListRow,
    find_layout,
    parse_whole,
    read_counted_rows,
    read_rows,
    whole_number,
)
from ke_metric.benchmarks.listings import key_below
from ke_metric.benchmarks.table import PublishedCounts, Table, TableRow, build_benchmark
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

LAYOUTS = {
    "sop": Layout(
        "Stanford Online Products (Stanford_Online_Products.zip)",
        {"train": ["Ebay_train.txt"], "test": ["Ebay_test.txt"]},
        [
            Hint(
                "Ebay_info.txt lists all images without the split; Ebay_train.txt and Ebay_test.txt have it.",
                there="Ebay_info.txt",
            )
        ],
    ),
    "inshop": Layout(
        "In-Shop Clothes Retrieval (DeepFashion)",
        {
            "list": ["Eval/list_eval_partition.txt", "list_eval_partition.txt"],
            # The 256-pixel pictures first: they are the ones that published numbers were measured on.
            "pictures": ["Img/img/", "img/", "Img/img_highres/", "img_highres/"],
        },
        [Hint("{path} is there but not unpacked; its content belongs in Img/img.", there="Img/img.zip")],
    ),
}
COUNTS = {
    "sop": PublishedCounts(
        {"train": (59551, 11318), "test": (60502, 11316)},
        suspects={
            120053 + 60502: "Ebay_train.txt seems to be a copy of Ebay_info.txt, which lists all 120,053 images.",
            120053 + 59551: "Ebay_test.txt seems to be a copy of Ebay_info.txt, which lists all 120,053 images.",
            2 * 59551: "Both lists seem to be Ebay_train.txt.",
            2 * 60502: "Both lists seem to be Ebay_test.txt.",
        },
        remark=(
            "The benchmark has 120,053 images of 22,634 classes (22,364 in some catalogues is a swap of two digits)."
        ),
    ),
    "inshop": PublishedCounts(
        {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)},
        suspects={
            52711: "One image is missing: a tool that drops one line too many after the header wrote this list."
        },
    ),
}
SOP_COLUMNS = ("image_id", "class_id", "super_class_id", "path")
INSHOP_COLUMNS = ("image_name", "item_id", "evaluation_status")
INSHOP_PARTS = ("train", "query", "gallery")
INSHOP_FOLDERS = ("img", "img_highres")


def read_sop(data: Data) -> Benchmark:
    """Read Stanford Online Products with its official split.

    `data.root` is the folder Stanford_Online_Products or the one above it.
    """
    found = find_layout(data, [LAYOUTS["sop"]])
    rows = {part: _by_image_id(path) for part, path in found.paths.items()}
    table = Table(
        origin=found.paths["train"],
        folder=found.paths["train"].parent,
        train=[_sop_row(row) for row in rows["train"]],
        query=[_sop_row(row) for row in rows["test"]],
        gallery=None,
        class_names=_product_names([*rows["train"], *rows["test"]]),
        notes=found.notes("official: Ebay_train.txt and Ebay_test.txt"),
    )
    return build_benchmark(data, table, COUNTS["sop"])


def _by_image_id(path: Path) -> list[ListRow]:
    return sorted(read_rows(path, SOP_COLUMNS, header=True), key=lambda row: whole_number(row, 0, "image_id"))


def _sop_row(row: ListRow) -> TableRow:
    return TableRow(key_below(row.cells[3], row.where), whole_number(row, 1, "class_id"))


def _product_names(rows: Iterable[ListRow]) -> dict[int, str]:
    """Name a product, which has no name of its own, by its category and number: `bicycle 1`."""
    return {
        whole_number(row, 1, "class_id"): f"{row.cells[3].partition('/')[0].removesuffix('_final')} {row.cells[1]}"
        for row in rows
    }


def read_inshop(data: Data) -> Benchmark:
    """Read In-Shop with its official parts; query and gallery share one numbering of the items.

    `data.root` holds the list (or Eval/) and Img/img, img or img_highres, or is the folder above it.
    """
    found = find_layout(data, [LAYOUTS["inshop"]])
    rows = _inshop_rows(found.paths["list"])
    parts = {part: sorted(_inshop_row(row) for row in rows if row.cells[2] == part) for part in INSHOP_PARTS}
    table = Table(
        origin=found.paths["list"],
        folder=found.paths["pictures"],
        train=parts["train"],
        query=parts["query"],
        gallery=parts["gallery"],
        class_names={row.class_id: f"id_{row.class_id:08d}" for part in parts.values() for row in part},
        notes={**found.notes("official"), "pictures": found.below("pictures")},
    )
    return build_benchmark(data, table, COUNTS["inshop"])


def _inshop_rows(path: Path) -> list[ListRow]:
    rows = read_counted_rows(path, INSHOP_COLUMNS)
    for row in rows:
        if row.cells[2] not in INSHOP_PARTS:
            raise KeMetricError(
                f"{row.where}: evaluation_status {row.cells[2]!r}{closest(row.cells[2], INSHOP_PARTS)}; allowed: "
                f"{', '.join(INSHOP_PARTS)}",
                ExitCode.DATA,
            )
    return rows


def _inshop_row(row: ListRow) -> TableRow:
    """Return a row's picture below the picture folder, whichever name that folder has in the list."""
    key = key_below(row.cells[0], row.where)
    if key.partition("/")[0] not in INSHOP_FOLDERS:
        raise KeMetricError(
            f"{row.where}: image_name {key!r} must begin with {' or '.join(f'{name}/' for name in INSHOP_FOLDERS)}",
            ExitCode.DATA,
        )
    number = parse_whole(row.cells[1].removeprefix("id_"), f"{row.where}: the number in item_id")
    return TableRow(key.partition("/")[2], number)
