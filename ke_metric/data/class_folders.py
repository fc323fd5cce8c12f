"""Pictures in a folder per class: which files count, and what is passed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ke_metric.data.table import LabelledPath, some_of
from ke_metric.errors import ExitCode, KeMetricError

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"})
SPLIT_FOLDERS = ("train", "test")
VALIDATION_FOLDER = "val"
SKIPPED_FILES = "files skipped"
SKIPPED_FOLDERS = "folders skipped"


def scan_class_folders(root: Path, *, validation: bool = False) -> tuple[list[LabelledPath], dict[str, str]]:
    """List the pictures of class folders that lie in a folder, or below its folders train and test.

    A picture is a file with an image's extension directly in a class folder. Everything else is passed over and
    counted: hidden files, `Thumbs.db`, files beside the class folders, folders inside them.

    Args:
        root: The folder.
        validation: Whether a folder val beside train and test is a part as well; otherwise it is passed over.

    Returns:
        The pictures, with paths relative to the root, and notes on layout and skipped files.

    Raises:
        KeMetricError: There are no class folders, or one has no pictures, or a file name is not UTF-8.
    """
    skipped: Counter[str] = Counter()
    if all(_visible_folders(root / split) for split in SPLIT_FOLDERS):
        has_validation = validation and (root / VALIDATION_FOLDER).is_dir()
        splits = ("train", VALIDATION_FOLDER, "test") if has_validation else SPLIT_FOLDERS
        skipped[SKIPPED_FOLDERS] = len(_visible_folders(root)) - len(splits)
        layout = f"class folders below {', '.join(splits[:-1])} and {splits[-1]}"
        pictures = [
            picture._replace(split=split)
            for split in splits
            for picture in _pictures_below(root, root / split, skipped)
        ]
    else:
        layout = "a folder per class"
        pictures = _pictures_below(root, root, skipped)
    _refuse_unreadable_names(root, pictures)
    return pictures, {"layout": layout, **{what: f"{count:,}" for what, count in skipped.items() if count}}


def _visible_folders(folder: Path) -> list[Path]:
    """Return the folders directly in `folder`, in order, without hidden ones and macOS's left-overs; maybe none."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]


def _pictures_below(root: Path, parent: Path, skipped: Counter[str]) -> list[LabelledPath]:
    """List the pictures of the class folders in `parent`, and count in `skipped` what is passed over."""
    folders = _visible_folders(parent)
    if not folders:
        raise KeMetricError(
            f"{parent} has no class folders: expected {parent.name}/<class>/<image>, or such folders below "
            f"{parent.name}/train and {parent.name}/test",
            ExitCode.DATA,
        )
    skipped[SKIPPED_FILES] += sum(path.is_file() for path in parent.iterdir())
    paths_of = {folder: _pictures_in(folder, skipped) for folder in folders}
    _refuse_empty_classes(parent, [folder for folder, paths in paths_of.items() if not paths])
    return [
        LabelledPath(path.relative_to(root).as_posix(), folder.name, None)
        for folder, paths in paths_of.items()
        for path in paths
    ]


def _pictures_in(folder: Path, skipped: Counter[str]) -> list[Path]:
    pictures = []
    for path in folder.iterdir():
        if path.is_dir():
            skipped[SKIPPED_FOLDERS] += 1
        elif path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith("."):
            pictures.append(path)
        else:
            skipped[SKIPPED_FILES] += 1
    return pictures


def _refuse_empty_classes(parent: Path, empty: Sequence[Path]) -> None:
    if not empty:
        return
    names = [f"{path.name} (holds only folders)" if _visible_folders(path) else path.name for path in empty]
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


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
