"""The user's own pictures: a folder per class, such folders below train/ and test/, or a CSV file that lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ke_metric.benchmarks.listings import (
    CLASSIFICATION,
    RETRIEVAL,
    ClassFolders,
    Columns,
    LabelledPath,
    read_csv_rows,
    scan_class_folders,
)
from ke_metric.benchmarks.own_splits import draw_of_every_class, split_classes
from ke_metric.benchmarks.table import Table, TableRow, build_benchmark, build_classification
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data


def read(data: Data) -> Benchmark:
    """Read the user's own pictures for retrieval: `data.root` is a folder of class folders or a CSV file.

    The classes are divided by `data.test_fraction` unless train and test folders or the CSV's split column do it.

    Args:
        data: The recipe's section.

    Raises:
        KeMetricError: Nothing usable is there, or the classes are divided already and `test_fraction` is set; the
            message says what is expected.
    """
    root = _root(data)
    pictures, notes, skipped = _listing(root, data, task="retrieval")
    if not _is_divided(root, pictures, data):
        class_names = {picture.label for picture in pictures}
        train_names, test_names = split_classes(class_names, data.test_fraction, data.benchmark)
        pictures = [
            picture._replace(split="test" if picture.label in test_names else "train") for picture in pictures
        ]
        notes["split"] = (
            f"classes divided by data.test_fraction = {data.test_fraction}: {len(train_names):,} for training, "
            f"{len(test_names):,} for testing"
        )
    return build_benchmark(data, _table(root, pictures, notes, skipped))


def read_classification(data: Data) -> Benchmark:
    """Read the user's own pictures for classification: `data.root` is a folder of class folders or a CSV file.

    The images of every class are divided by `data.test_fraction` unless train and test folders (and val, for
    validation) or the CSV's split column do it. A class with a single image is for training.

    Args:
        data: The recipe's section.

    Raises:
        KeMetricError: Nothing usable is there, or the images are divided already and `test_fraction` is set; the
            message says what is expected.
    """
    root = _root(data)
    pictures, notes, skipped = _listing(root, data, task="classification")
    if not _is_divided(root, pictures, data):
        keys, labels = [picture.path for picture in pictures], [picture.label for picture in pictures]
        purpose = f"image split/{data.benchmark}"
        test_keys = draw_of_every_class(keys, labels, share=data.test_fraction, purpose=purpose)
        pictures = [picture._replace(split="test" if picture.path in test_keys else "train") for picture in pictures]
        notes["split"] = f"images of every class divided by data.test_fraction = {data.test_fraction}"
    return build_classification(data, _table(root, pictures, notes, skipped))


def _root(data: Data) -> Path:
    return Path(data.root or f"data/{data.benchmark}").expanduser()


def _listing(root: Path, data: Data, *, task: str) -> ClassFolders:
    """Return the pictures, each with its part or all without one."""
    if root.is_file():
        divisions = CLASSIFICATION if task == "classification" else RETRIEVAL
        columns = Columns(data.path_column, data.label_column)
        return ClassFolders(read_csv_rows(root, divisions, columns), {"layout": "CSV file"}, {})
    if root.is_dir():
        return scan_class_folders(root, validation=task == "classification")
    raise KeMetricError(
        f"data.root = {str(root)!r} does not exist; it must be a folder with a folder per class, one with such "
        "folders below train/ and test/, or a CSV file with the columns path,label or path,label,split",
        ExitCode.DATA,
    )


def _is_divided(root: Path, pictures: Sequence[LabelledPath], data: Data) -> bool:
    """Return whether the user has divided the pictures, where nothing may ask for another division."""
    if any(picture.split is None for picture in pictures):
        return False
    if data.test_fraction != Data.model_fields["test_fraction"].default:
        raise KeMetricError(
            f"data.test_fraction = {data.test_fraction}: {root} says itself what is for testing, by folders called "
            "train and test or by its split column; leave the field out",
            ExitCode.RECIPE,
        )
    return True


def _table(
    root: Path, pictures: Sequence[LabelledPath], notes: Mapping[str, str], skipped: Mapping[str, tuple[str, ...]]
) -> Table:
    class_names = sorted({picture.label for picture in pictures})
    number_of = {name: number for number, name in enumerate(class_names)}
    # Sorted by path: the order in which a disk lists its files is nobody's.
    parts = {
        part: sorted(TableRow(path, number_of[label]) for path, label, split in pictures if split == part)
        for part in ("train", "val", "test", "query", "gallery")
    }
    return Table(
        origin=root,
        folder=root.parent if root.is_file() else root,
        train=parts["train"],
        query=parts["test"] or parts["query"],
        gallery=parts["gallery"] or None,
        class_names=dict(enumerate(class_names)),
        notes={**notes, "split": notes.get("split", "as given")},
        validation=parts["val"] or None,
        skipped=skipped,
    )
