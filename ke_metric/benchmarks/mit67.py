"""MIT Indoor-67: 67 kinds of rooms, official lists of training and test pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ke_metric.benchmarks.layout import Layout, find_layout, read_rows
from ke_metric.benchmarks.listings import key_below
from ke_metric.benchmarks.table import Item, PublishedCounts, Table, build_classification
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

LAYOUT = Layout(
    "MIT Indoor-67 (indoorCVPR_09.tar, TrainImages.txt, TestImages.txt)",
    {
        "train": ["TrainImages.txt"],
        "test": ["TestImages.txt"],
        # The second one as in a copy on the web, whose lists lie beside the folder.
        "pictures": ["Images/", "indoorCVPR_09/Images/"],
    },
)
COUNTS = PublishedCounts(
    {"train": (5360, 67), "test": (1340, 67)},
    suspects={
        15620: "The training list seems to be every image that is not in the test list; the official one has 5,360.",
        15620 + 1340: "TrainImages.txt seems to list all 15,620 images on disk; the official one has 5,360.",
        2 * 5360: "Both lists seem to be TrainImages.txt.",
        2 * 1340: "Both lists seem to be TestImages.txt.",
    },
    remark="The benchmark is the 6,700 listed images; the other 8,920 of the archive are in no part.",
)


def read_classification(data: Data) -> Benchmark:
    """Read MIT Indoor-67 with its official lists; pictures that are in neither are not used.

    Args:
        data: The recipe's section; `root` is the folder with Images/ and the two lists, or the one above it.

    Raises:
        KeMetricError: Files are missing, malformed or have other counts.
    """
    paths = find_layout(data, [LAYOUT], recognize=_recognize).paths
    keys = {part: _keys(paths[part]) for part in ("train", "test")}
    # The lists have no class numbers: they are those of the names in the order of their bytes.
    categories = sorted({_category(key) for part in keys.values() for key in part}, key=str.encode)
    class_of = {category: position for position, category in enumerate(categories)}
    table = Table(
        origin=paths["train"],
        folder=paths["pictures"],
        train=_items(keys["train"], class_of),
        query=_items(keys["test"], class_of),
        gallery=None,
        class_names=dict(enumerate(categories)),
        notes={"layout": LAYOUT.name, "split": "official: TrainImages.txt and TestImages.txt"},
    )
    if data.verify_counts:
        COUNTS.verify(table)
    return build_classification(data, table)


def _recognize(base: Path) -> str | None:
    if (base / "Images").is_dir() and not (base / "TrainImages.txt").is_file():
        return (
            "TrainImages.txt and TestImages.txt are not in indoorCVPR_09.tar: they are downloads of their own and "
            "belong beside the folder Images."
        )
    return None


def _keys(path: Path) -> list[str]:
    """Return the listed paths, `category/file.jpg`, which may hold blanks, in the order of their bytes."""
    keys = []
    for row in read_rows(path, ("path",), header=False):
        key = key_below(row.cells[0], row.where)
        if key.count("/") != 1:
            raise KeMetricError(f"{row.where}: expected category/file.jpg, found {key!r}", ExitCode.DATA)
        keys.append(key)
    return sorted(keys, key=str.encode)


def _category(key: str) -> str:
    return key.partition("/")[0]


def _items(keys: Sequence[str], class_of: Mapping[str, int]) -> list[Item]:
    return [Item(key, class_of[_category(key)]) for key in keys]
