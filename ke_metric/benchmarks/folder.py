"""The user's own pictures: a folder per class, such folders below train/ and test/, or a CSV file that lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ke_metric.benchmarks.listings import (
    CLASSIFICATION,
    IMAGE_EXTENSIONS,
    RETRIEVAL,
    Columns,
    FolderContent,
    LabelledPath,
    look_into,
    read_csv_rows,
)
from ke_metric.benchmarks.own_splits import draw_of_every_class, split_classes
from ke_metric.benchmarks.table import Table, TableRow, build_benchmark, build_classification
from ke_metric.errors import ExitCode, KeMetricError, some_of
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

SPLIT_FOLDERS = ("train", "test")
VALIDATION_FOLDER = "val"
SKIPPED = " skipped"
"""What the topic of a note on passed-over files or folders ends with."""


class ClassFolders(NamedTuple):
    """What lies in class folders.

    Attributes:
        pictures: With paths relative to the root.
        notes: On the layout and on how much was passed over.
        skipped: `files` and `folders` that were passed over, by kind: relative paths.
    """

    pictures: list[LabelledPath]
    notes: dict[str, str]
    skipped: dict[str, tuple[str, ...]]


def read(data: Data) -> Benchmark:
    """Read the user's own pictures for retrieval: `data.root` is a folder of class folders or a CSV file.

    The classes are divided by `data.test_fraction` unless train and test folders or the CSV's split column do it,
    where a recipe that sets it is refused (RECIPE).
    """
    root, listing = _listed(data, task="retrieval")
    if _is_divided(root, listing.pictures, data):
        return build_benchmark(data, _table(root, listing, {}, "as given"))
    class_names = {picture.label for picture in listing.pictures}
    train_names, test_names = split_classes(class_names, data.test_fraction, data.benchmark)
    split = (
        f"classes divided by data.test_fraction = {data.test_fraction}: {len(train_names):,} for training, "
        f"{len(test_names):,} for testing"
    )
    for_testing = set(test_names)
    tested = {picture.path: picture.label in for_testing for picture in listing.pictures}
    return build_benchmark(data, _table(root, listing, tested, split))


def read_classification(data: Data) -> Benchmark:
    """Read the user's own pictures for classification: `data.root` is a folder of class folders or a CSV file.

    The images of every class are divided by `data.test_fraction` unless train and test folders (and val, for
    validation) or the CSV's split column do it, where a recipe that sets it is refused (RECIPE). A class with a
    single image is for training.
    """
    root, listing = _listed(data, task="classification")
    if _is_divided(root, listing.pictures, data):
        return build_classification(data, _table(root, listing, {}, "as given"))
    keys, labels = [picture.path for picture in listing.pictures], [picture.label for picture in listing.pictures]
    purpose = f"image split/{data.benchmark}"
    test_keys = draw_of_every_class(keys, labels, share=data.test_fraction, purpose=purpose)
    split = f"images of every class divided by data.test_fraction = {data.test_fraction}"
    return build_classification(data, _table(root, listing, {key: key in test_keys for key in keys}, split))


def _listed(data: Data, *, task: str) -> tuple[Path, ClassFolders]:
    """Return what was named and its pictures, each with its part or all without one."""
    root = Path(data.root or f"data/{data.benchmark}").expanduser()
    if root.is_file():
        divisions = CLASSIFICATION if task == "classification" else RETRIEVAL
        columns = Columns(data.path_column, data.label_column)
        return root, ClassFolders(read_csv_rows(root, divisions, columns), {"layout": "CSV file"}, {})
    if root.is_dir():
        return root, scan_class_folders(root, validation=task == "classification")
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


def _table(root: Path, listing: ClassFolders, tested: Mapping[str, bool], split: str) -> Table:
    """Return the pictures as a table; `tested` says which are, by path, where the user did not divide them."""
    class_names = sorted({picture.label for picture in listing.pictures})
    number_of = {name: number for number, name in enumerate(class_names)}
    parts: dict[str, list[TableRow]] = {part: [] for part in ("train", "val", "test", "query", "gallery")}
    for path, label, part in listing.pictures:
        parts[part or ("test" if tested[path] else "train")].append(TableRow(path, number_of[label]))
    # Sorted by path: the order in which a disk lists its files is nobody's.
    ordered = {part: sorted(rows) for part, rows in parts.items()}
    return Table(
        origin=root,
        folder=root.parent if root.is_file() else root,
        train=ordered["train"],
        query=ordered["test"] or ordered["query"],
        gallery=ordered["gallery"] or None,
        class_names=dict(enumerate(class_names)),
        notes={**listing.notes, "split": split},
        validation=ordered["val"] or None,
        skipped=listing.skipped,
    )


def scan_class_folders(root: Path, *, validation: bool = False) -> ClassFolders:
    """List the pictures of class folders that lie in a folder, or below its folders train and test.

    A picture is a file with an image's extension directly in a class folder. Everything else is passed over and
    named: hidden files, `Thumbs.db`, files beside the class folders, folders inside them.

    Args:
        root: The folder.
        validation: Whether a folder val beside train and test is a part as well; otherwise it is passed over.

    Raises:
        KeMetricError: DATA: there is no class folder, one has no pictures, or a file name is not UTF-8.
    """
    skipped: dict[str, list[str]] = {"files": [], "folders": []}
    beside = look_into(root)
    folders = beside.folders
    if all(split in folders and look_into(root / split).folders for split in SPLIT_FOLDERS):
        has_validation = validation and VALIDATION_FOLDER in folders
        splits = ("train", VALIDATION_FOLDER, "test") if has_validation else SPLIT_FOLDERS
        skipped["files"] += [*beside.pictures, *beside.others]
        skipped["folders"] += [folder for folder in folders if folder not in splits]
        layout = f"class folders below {', '.join(splits[:-1])} and {splits[-1]}"
        pictures = [
            picture._replace(split=split)
            for split in splits
            for picture in _pictures_below(root / split, f"{split}/", skipped)
        ]
    else:
        layout = "a folder per class"
        pictures = _pictures_below(root, "", skipped)
    # Such a name carries surrogates, which can be written to no JSON file.
    unreadable = [ascii(path) for path, _, _ in pictures if not _is_utf8(path)]
    if unreadable:
        raise KeMetricError(
            f"{root}: {len(unreadable):,} file names are not UTF-8: {some_of(unreadable)}; rename them", ExitCode.DATA
        )
    found = {kind: tuple(map(_printable, paths)) for kind, paths in skipped.items() if paths}
    notes = {"layout": layout, **{f"{kind}{SKIPPED}": f"{len(paths):,}" for kind, paths in found.items()}}
    return ClassFolders(pictures, notes, found)


def _pictures_below(parent: Path, prefix: str, skipped: Mapping[str, list[str]]) -> list[LabelledPath]:
    """List the pictures of the class folders in `parent`, and add to `skipped`, by kind, what is passed over.

    Paths begin with the prefix, as seen from the root.
    """
    content = look_into(parent)
    if not content.folders:
        raise KeMetricError(
            f"{parent} has no class folders: expected {parent.name}/<class>/<image>, or such folders below "
            f"{parent.name}/train and {parent.name}/test",
            ExitCode.DATA,
        )
    skipped["files"] += [prefix + name for name in [*content.pictures, *content.others]]
    classes = {folder: look_into(parent / folder) for folder in content.folders}
    for folder, inside in classes.items():
        skipped["files"] += [f"{prefix}{folder}/{name}" for name in inside.others]
        skipped["folders"] += [f"{prefix}{folder}/{name}" for name in inside.folders]
    _refuse_empty_classes(parent, {folder: inside for folder, inside in classes.items() if not inside.pictures})
    return [
        LabelledPath(f"{prefix}{folder}/{name}", folder, None)
        for folder, inside in classes.items()
        for name in inside.pictures
    ]


def _refuse_empty_classes(parent: Path, empty: Mapping[str, FolderContent]) -> None:
    if empty:
        names = [f"{name} (holds only folders)" if inside.folders else name for name, inside in empty.items()]
        raise KeMetricError(
            f"{parent}: {len(empty):,} class folders have no images: {some_of(names)}. Images are files that end in "
            f"{' '.join(sorted(IMAGE_EXTENSIONS))}, directly in the folder of their class; fill or remove these "
            "folders. Folders that divide the classes must be called train and test",
            ExitCode.DATA,
        )


def _printable(path: str) -> str:
    return path if _is_utf8(path) else ascii(path)


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
