"""Stanford Dogs: 120 breeds, official lists of training and test pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ke_metric.benchmarks.layout import Layout, find_layout, read_strings, read_whole_numbers
from ke_metric.benchmarks.listings import key_below
from ke_metric.benchmarks.table import Item, PublishedCounts, Table, build_classification
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

LISTS = ("", "lists/")
LAYOUT = Layout(
    "Stanford Dogs (images.tar, lists.tar)",
    {
        "train": [f"{folder}train_list.mat" for folder in LISTS],
        "test": [f"{folder}test_list.mat" for folder in LISTS],
        "pictures": ["Images/", "images/Images/"],
    },
)
COUNTS = PublishedCounts(
    {"train": (12000, 120), "test": (8580, 120)},
    class_sizes=(148, 252),
    suspects={
        20580 + 8580: "train_list.mat seems to be a copy of file_list.mat, which lists all 20,580 images.",
        20580 + 12000: "test_list.mat seems to be a copy of file_list.mat, which lists all 20,580 images.",
        2 * 12000: "Both lists seem to be train_list.mat.",
        2 * 8580: "Both lists seem to be test_list.mat.",
    },
)


class _Row(NamedTuple):
    """One listed picture, and `file, image n` for errors."""

    item: Item
    where: str


def read_classification(data: Data) -> Benchmark:
    """Read Stanford Dogs with its official lists.

    Args:
        data: The recipe's section; `root` is the folder with Images/ and the .mat lists, or the one above it.

    Raises:
        KeMetricError: Files are missing, contradict each other or have other counts.
    """
    paths = find_layout(data, [LAYOUT], recognize=_recognize).paths
    train, test = _rows(paths["train"]), _rows(paths["test"])
    table = Table(
        origin=paths["train"],
        folder=paths["pictures"],
        train=_items(train),
        query=_items(test),
        gallery=None,
        class_names=_class_names([*train, *test]),
        notes={"layout": LAYOUT.name, "split": "official: train_list.mat and test_list.mat"},
    )
    if data.verify_counts:
        COUNTS.verify(table)
    return build_classification(data, table)


def _recognize(base: Path) -> str | None:
    if any((base / folder / "file_list.mat").is_file() for folder in LISTS):
        return "file_list.mat lists all images without the split; train_list.mat and test_list.mat have it."
    return None


def _rows(path: Path) -> list[_Row]:
    """Read a list; paths look like `n02085620-Chihuahua/n02085620_5927.jpg`."""
    files, labels = read_strings(path, "file_list"), read_whole_numbers(path, "labels")
    if len(files) != len(labels):
        raise KeMetricError(f"{path}: {len(files):,} files in file_list, but {len(labels):,} labels", ExitCode.DATA)
    rows = []
    for number, (file, label) in enumerate(zip(files, labels, strict=True), start=1):
        where = f"{path}, image {number}"
        key = key_below(file, where)
        if key.count("/") != 1:
            raise KeMetricError(f"{where}: expected folder/file.jpg, found {key!r}", ExitCode.DATA)
        rows.append(_Row(Item(key, label), where))
    return rows


def _items(rows: Sequence[_Row]) -> list[Item]:
    """Return the pictures in the order of the bytes of their paths."""
    return sorted((row.item for row in rows), key=lambda item: item.key.encode())


def _class_names(rows: Sequence[_Row]) -> dict[int, str]:
    """Name every label by its folder; labels are those of the lists, whatever the order of the folders."""
    folder_of: dict[int, str] = {}
    label_of: dict[str, int] = {}
    for (key, label), where in rows:
        folder = key.partition("/")[0]
        known_folder, known_label = folder_of.setdefault(label, folder), label_of.setdefault(folder, label)
        if (known_folder, known_label) != (folder, label):
            claim = f"label {label} is {known_folder}" if known_folder != folder else f"that has label {known_label}"
            raise KeMetricError(
                f"{where}: label {label} for a picture in {folder}, but by other images {claim}", ExitCode.DATA
            )
    return folder_of
