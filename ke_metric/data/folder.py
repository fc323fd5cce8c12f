"""The user's own pictures: a folder per class, such folders below train/ and test/, or a CSV file that lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ke_metric.data.class_folders import scan_class_folders
from ke_metric.data.class_split import split_classes
from ke_metric.data.csv_rows import read_csv_rows
from ke_metric.data.images import Benchmark
from ke_metric.data.table import Item, LabelledPath, Table, build_benchmark
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe import Data


def read(data: Data) -> Benchmark:
    """Read the user's own pictures: `data.root` is a folder of class folders or a CSV file.

    The classes are divided by `data.test_fraction` unless train and test folders or the CSV's split column do it.

    Args:
        data: The recipe's section.

    Raises:
        KeMetricError: Nothing usable is there; the message says what is expected.
    """
    root = Path(data.root or f"data/{data.benchmark}").expanduser()
    if root.is_file():
        pictures, notes = read_csv_rows(root), {"layout": "CSV file"}
    elif root.is_dir():
        pictures, notes = scan_class_folders(root)
    else:
        raise KeMetricError(
            f"data.root = {str(root)!r} does not exist; it must be a folder with a folder per class, one with such "
            "folders below train/ and test/, or a CSV file with the columns path,label or path,label,split",
            ExitCode.DATA,
        )
    return build_benchmark(data.benchmark, _table(root, pictures, notes, data=data))


def _table(root: Path, pictures: Sequence[LabelledPath], notes: Mapping[str, str], *, data: Data) -> Table:
    class_names = sorted({picture.label for picture in pictures})
    split_note = "as given"
    if all(picture.split is None for picture in pictures):
        train_names, test_names = split_classes(class_names, data.test_fraction, data.benchmark)
        split_of = {**dict.fromkeys(train_names, "train"), **dict.fromkeys(test_names, "test")}
        pictures = [picture._replace(split=split_of[picture.label]) for picture in pictures]
        split_note = (
            f"classes divided by data.test_fraction = {data.test_fraction}: {len(train_names):,} for training, "
            f"{len(test_names):,} for testing"
        )
    number_of = {name: number for number, name in enumerate(class_names)}
    # Sorted by path: the order in which a disk lists its files is nobody's.
    parts = {
        part: sorted(Item(path, number_of[label]) for path, label, split in pictures if split == part)
        for part in ("train", "test", "query", "gallery")
    }
    return Table(
        origin=root,
        folder=root.parent if root.is_file() else root,
        train=parts["train"],
        query=parts["test"] or parts["query"],
        gallery=parts["gallery"] or None,
        class_names=dict(enumerate(class_names)),
        notes={**notes, "split": split_note},
    )
