"""Oxford Flowers102: 102 kinds of flowers, official parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ke_metric.benchmarks.layout import Layout, find_layout, read_whole_numbers
from ke_metric.benchmarks.table import Item, PublishedCounts, Table, build_classification
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

CLASSES = 102
LAYOUT = Layout(
    "Flowers102 (102flowers.tgz, imagelabels.mat, setid.mat)",
    {"labels": ["imagelabels.mat"], "parts": ["setid.mat"], "pictures": ["jpg/"]},
)
COUNTS = PublishedCounts(
    {"train": (1020, CLASSES), "validation": (1020, CLASSES), "test": (6149, CLASSES)},
    class_sizes=(40, 258),
    remark=(
        "The parts are trnid, valid and tstid of setid.mat; works that train on the 6,149 images of tstid, or on "
        "2,040, solve another task."
    ),
)


def read_classification(data: Data) -> Benchmark:
    """Read Flowers102 with its official parts.

    Args:
        data: The recipe's section; `root` is the folder with jpg/ and the two .mat files, or the one above it.

    Raises:
        KeMetricError: Files are missing, contradict each other or have other counts.
    """
    paths = find_layout(data, [LAYOUT], recognize=_recognize).paths
    labels = _labels(paths["labels"])
    table = Table(
        origin=paths["parts"],
        folder=paths["pictures"],
        train=_items(paths["parts"], "trnid", labels),
        validation=_items(paths["parts"], "valid", labels),
        query=_items(paths["parts"], "tstid", labels),
        gallery=None,
        # The archive has no names.
        class_names={class_id: f"class {class_id}" for class_id in range(1, CLASSES + 1)},
        notes={"layout": LAYOUT.name, "split": "official: trnid, valid and tstid of setid.mat"},
    )
    if data.verify_counts:
        COUNTS.verify(table)
    return build_classification(data, table)


def _recognize(base: Path) -> str | None:
    if (base / "102flowers.tgz").is_file():
        return f"{base / '102flowers.tgz'} is there but not unpacked; its content is the folder jpg."
    if (base / "datasplits.mat").is_file():
        return "datasplits.mat belongs to Flowers17 (17 classes); the benchmark is Flowers102."
    return None


def _labels(path: Path) -> list[int]:
    """Return the classes of all pictures, the one of picture 1 first."""
    labels = read_whole_numbers(path, "labels")
    for number, class_id in enumerate(labels, start=1):
        if not 1 <= class_id <= CLASSES:
            raise KeMetricError(
                f"{path}: labels, image {number}: class {class_id}, but classes go from 1 to {CLASSES}",
                ExitCode.DATA,
            )
    return labels


def _items(path: Path, part: str, labels: Sequence[int]) -> list[Item]:
    """Return the pictures of one part in the order of their numbers."""
    numbers = sorted(read_whole_numbers(path, part))
    for number in (*numbers[:1], *numbers[-1:]):
        if not 1 <= number <= len(labels):
            raise KeMetricError(
                f"{path}: {part}: image {number}, but imagelabels.mat has the classes of images 1 to {len(labels):,}",
                ExitCode.DATA,
            )
    return [Item(f"image_{number:05d}.jpg", labels[number - 1]) for number in numbers]
