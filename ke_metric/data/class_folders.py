"""Pictures in folders: which files count wherever a folder is named, and those that lie in a folder per class."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ke_metric.data.table import LabelledPath, some_of
from ke_metric.errors import ExitCode, KeMetricError

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"})
SPLIT_FOLDERS = ("train", "test")
VALIDATION_FOLDER = "val"
SKIPPED = " skipped"


class FolderContent(NamedTuple):
    """The names of what lies directly in a folder, sorted.

    Attributes:
        pictures: Files that end as pictures do, and links to nothing that do, which a reader then reports.
        folders: Folders and links to folders, without hidden ones and macOS's left-overs.
        others: All other files, hidden ones among them.
    """

    pictures: list[str]
    folders: list[str]
    others: list[str]


def look_into(folder: Path) -> FolderContent:
    """Return what lies directly in a folder: the one rule by which every command takes pictures.

    A link is what it leads to, so a folder that two links lead to is two folders.

    Raises:
        KeMetricError: DATA: it cannot be read.
    """
    content = FolderContent([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                kind = _kind(entry)
                if kind is not None:
                    content[kind].append(entry.name)
    except OSError as error:
        raise KeMetricError(f"{folder}: cannot be read: {error.strerror or error}", ExitCode.DATA) from error
    return content


def _kind(entry: os.DirEntry[str]) -> int | None:
    """Return where a name belongs among the attributes of `FolderContent`; None: nowhere."""
    hidden = entry.name.startswith((".", "__MACOSX"))
    if _is(entry, os.DirEntry.is_dir):
        return None if hidden else 1
    is_picture = not hidden and Path(entry.name).suffix.lower() in IMAGE_EXTENSIONS
    # The reading of a pipe or a device need not end.
    if is_picture and (_is(entry, os.DirEntry.is_file) or not Path(entry.path).exists()):
        return 0
    return 2 if _is(entry, os.DirEntry.is_file) else None


def _is(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    try:
        return kind(entry)
    except OSError:
        # A link to itself is nothing.
        return False


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


def scan_class_folders(root: Path, *, validation: bool = False) -> ClassFolders:
    """List the pictures of class folders that lie in a folder, or below its folders train and test.

    A picture is a file with an image's extension directly in a class folder. Everything else is passed over and
    named: hidden files, `Thumbs.db`, files beside the class folders, folders inside them.

    Args:
        root: The folder.
        validation: Whether a folder val beside train and test is a part as well; otherwise it is passed over.

    Raises:
        KeMetricError: There are no class folders, or one has no pictures, or a file name is not UTF-8.
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
    _refuse_unreadable_names(root, pictures)
    notes = {"layout": layout, **{f"{kind}{SKIPPED}": f"{len(paths):,}" for kind, paths in skipped.items() if paths}}
    return ClassFolders(pictures, notes, {kind: _printable(paths) for kind, paths in skipped.items() if paths})


def _pictures_below(parent: Path, prefix: str, skipped: Mapping[str, list[str]]) -> list[LabelledPath]:
    """List the pictures of the class folders in `parent`, and add to `skipped` what is passed over.

    Args:
        parent: The folder.
        prefix: What its paths begin with, as seen from the root.
        skipped: Paths by kind.
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
    if not empty:
        return
    names = [f"{name} (holds only folders)" if inside.folders else name for name, inside in empty.items()]
    raise KeMetricError(
        f"{parent}: {len(empty):,} class folders have no images: {some_of(names)}. Images are files that end in "
        f"{' '.join(sorted(IMAGE_EXTENSIONS))}, directly in the folder of their class; fill or remove these folders. "
        "Folders that divide the classes must be called train and test",
        ExitCode.DATA,
    )


def _refuse_unreadable_names(root: Path, pictures: Sequence[LabelledPath]) -> None:
    # Such a name carries surrogates, which can be written to no JSON file.
    unreadable = [ascii(path) for path, _, _ in pictures if not _is_utf8(path)]
    if unreadable:
        raise KeMetricError(
            f"{root}: {len(unreadable):,} file names are not UTF-8: {some_of(unreadable)}; rename them", ExitCode.DATA
        )


def _printable(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(path if _is_utf8(path) else ascii(path) for path in paths)


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
