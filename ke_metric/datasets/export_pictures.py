"""A benchmark's pictures as files: decoded once more, written without loss, in a folder per class.

Some benchmarks have no files (glyphs are drawn), or files in a layout of their own. What is written here is what any
program for picture folders reads, and decodes to the very pixels that were scored.
"""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ke_metric.benchmarks.listings import IMAGE_EXTENSIONS, OWN_LIST, OWN_LIST_COLUMNS
from ke_metric.disk import new_folder, refuse_occupied
from ke_metric.images.decoding import Progress, in_order
from ke_metric.images.image_set import Benchmark, ImageSet

LONGEST_NAME = 80
"""Characters of a name made here: with four bytes each, and a number against doubles, still within 255 + suffix."""

RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
"""Names that Windows keeps for devices, whatever their suffix."""


class WrittenPictures(NamedTuple):
    """What was written.

    Attributes:
        counts: Folder (`gallery`, `query` or `train`) to its number of pictures.
        classes: Number of class folders with different names.
    """

    counts: dict[str, int]
    classes: int


class _Row(NamedTuple):
    """One picture to write; the first four are a line of `pictures.csv`."""

    path: str
    label: str
    part: str
    key: str
    position: int
    images: ImageSet


def write_pictures(
    benchmark: Benchmark, target: Path, *, part: str = "test", progress: Progress | None = None
) -> WrittenPictures:
    """Write the pictures of a part as `<gallery|query|train>/<class>/<picture>.png`, whole or not at all.

    Where every test picture queries all others, the first picture of each class goes to `query` and the rest to
    `gallery`. Classes and pictures get names that every file system takes; `pictures.csv` beside the folders lists
    `path,label,split,key` in the order of the benchmark, with class names and keys as they are.

    Args:
        benchmark: What is written.
        target: Folder to make; nothing may lie in it.
        part: `test` or `train`.
        progress: Called with the number of pictures done and their total.

    Raises:
        KeMetricError: Something lies in the target or a picture cannot be decoded (DATA), or the disk is full
            (ENVIRONMENT).
    """
    refuse_occupied(target)
    rows = _rows(benchmark, part)
    with new_folder(target) as folder:
        for folder_name in {str(PurePosixPath(row.path).parent) for row in rows}:
            (folder / folder_name).mkdir(parents=True)
        for done, _ in enumerate(in_order(partial(_write, folder), rows), start=1):
            if progress is not None:
                progress(done, len(rows))
        with (folder / OWN_LIST).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(OWN_LIST_COLUMNS)
            writer.writerows(row[:4] for row in rows)
    return WrittenPictures(dict(Counter(row.part for row in rows)), len({row.path.split("/")[1] for row in rows}))


def _write(folder: Path, row: _Row) -> None:
    row.images.read(row.position).save(folder / row.path, "PNG")


def _rows(benchmark: Benchmark, part: str) -> list[_Row]:
    query, gallery = benchmark.query, benchmark.gallery
    if part == "train":
        placed = [(benchmark.train, ["train"] * len(benchmark.train))]
    elif benchmark.leave_one_out:
        first = set(np.unique(query.labels, return_index=True)[1].tolist())
        placed = [(query, ["query" if position in first else "gallery" for position in range(len(query))])]
    else:
        placed = [(query, ["query"] * len(query)), (gallery, ["gallery"] * len(gallery))]
    names, rows = _Names(), []
    for images, parts in placed:
        for position, (of, key, number) in enumerate(zip(parts, images.keys, images.labels.tolist(), strict=True)):
            label = images.class_names[number]
            rows.append(_Row(names.path(of, label, key), label, of, key, position, images))
    return rows


class _Names:
    """Gives every class its folder, the same one in all parts, and every picture its file name in it."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}
        self._taken: dict[str, set[str]] = {}

    def path(self, part: str, label: str, key: str) -> str:
        if label not in self._folders:
            self._folders[label] = self._free(safe_name(label), "")
        folder = f"{part}/{self._folders[label]}"
        last = PurePosixPath(key)
        stem = last.stem if last.suffix.lower() in IMAGE_EXTENSIONS else last.name
        return f"{folder}/{self._free(safe_name(stem), folder)}.png"

    def _free(self, name: str, folder: str) -> str:
        """Return the name, with a number where the folder has it already, upper and lower case being the same."""
        taken = self._taken.setdefault(folder, set())
        number, free = 1, name
        while _folded(free) in taken:
            number += 1
            free = f"{name}-{number}"
        taken.add(_folded(free))
        return free


def safe_name(text: str) -> str:
    """Return a name for a file or folder that every file system takes: letters, digits, blanks and `+-_.,()=@#`.

    Different texts may get the same name.
    """
    composed = unicodedata.normalize("NFC", text)
    kept = "".join(letter if letter.isalnum() or letter in " +-_.,()=@#" else "_" for letter in composed)
    # Windows drops blanks and points at the end; a leading point would hide the file.
    name = kept[:LONGEST_NAME].strip(" .") or "_"
    return f"{name}_" if name.partition(".")[0].strip().casefold() in RESERVED else name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKD", name).casefold())
