"""In-Shop Clothes Retrieval (DeepFashion): official training, query and gallery pictures."""

from __future__ import annotations

from pathlib import Path

from ke_metric.benchmarks.layout import Layout, ListRow, find_layout, parse_whole, read_counted_rows
from ke_metric.benchmarks.listings import key_below
from ke_metric.benchmarks.table import Item, PublishedCounts, Table, build_benchmark
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

COLUMNS = ("image_name", "item_id", "evaluation_status")
PARTS = ("train", "query", "gallery")
LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
# The 256-pixel pictures first: they are the ones that published numbers were measured on.
PICTURES = ("Img/img/", "img/", "Img/img_highres/", "img_highres/")
LISTED_FOLDERS = ("img", "img_highres")
LAYOUT = Layout("In-Shop Clothes Retrieval (DeepFashion)", {"list": LISTS, "pictures": PICTURES})
OFF_BY_ONE = "One image is missing: a tool that drops one line too many after the header wrote this list."
COUNTS = PublishedCounts(
    {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)}, suspects={52711: OFF_BY_ONE}
)


def read(data: Data) -> Benchmark:
    """Read In-Shop with its official parts; query and gallery share one numbering of the items.

    Args:
        data: The recipe's section; `root` holds the list (or Eval/) and Img/img, img or img_highres, or is the folder
            above it.

    Raises:
        KeMetricError: Files are missing, malformed or have other counts.
    """
    found = find_layout(data, [LAYOUT], recognize=_recognize)
    paths = found.paths
    rows = _rows(paths["list"])
    items = {part: sorted(_item(row) for row in rows if row.cells[2] == part) for part in PARTS}
    table = Table(
        origin=paths["list"],
        folder=paths["pictures"],
        train=items["train"],
        query=items["query"],
        gallery=items["gallery"],
        class_names={item.class_id: f"id_{item.class_id:08d}" for part in PARTS for item in items[part]},
        notes={
            "layout": LAYOUT.name,
            "split": "official",
            "pictures": paths["pictures"].relative_to(found.base).as_posix(),
        },
    )
    if data.verify_counts:
        COUNTS.verify(table)
    return build_benchmark(data, table)


def _recognize(base: Path) -> str | None:
    if (base / "Img" / "img.zip").is_file():
        return f"{base / 'Img' / 'img.zip'} is there but not unpacked; its content belongs in Img/img."
    return None


def _rows(path: Path) -> list[ListRow]:
    rows = read_counted_rows(path, COLUMNS)
    for row in rows:
        if row.cells[2] not in PARTS:
            raise KeMetricError(
                f"{row.where}: evaluation_status {row.cells[2]!r}{closest(row.cells[2], PARTS)}; allowed: "
                f"{', '.join(PARTS)}",
                ExitCode.DATA,
            )
    return rows


def _item(row: ListRow) -> Item:
    """Return a row's picture below the picture folder, whichever name that folder has in the list."""
    key = key_below(row.cells[0], row.where)
    if key.partition("/")[0] not in LISTED_FOLDERS:
        raise KeMetricError(
            f"{row.where}: image_name {key!r} must begin with {' or '.join(f'{name}/' for name in LISTED_FOLDERS)}",
            ExitCode.DATA,
        )
    number = parse_whole(row.cells[1].removeprefix("id_"), f"{row.where}: the number in item_id")
    return Item(key.partition("/")[2], number)
