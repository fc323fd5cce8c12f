"""Every picture of a benchmark decoded: to look through it before training, or to write it out as files.

A check gives every problem a path and a cure. Some benchmarks have no files (glyphs are drawn), or files in a layout
of their own: what is written here, without loss and in a folder per class, is what any program for picture folders
reads, and decodes to the very pixels that were scored.
"""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ke_metric.benchmarks.folder import SKIPPED
from ke_metric.benchmarks.listings import IMAGE_EXTENSIONS, OWN_LIST, OWN_LIST_COLUMNS
from ke_metric.benchmarks.registry import NAMES, default_task, load_benchmark
from ke_metric.datasets.problems import DataProblem, look_at, problems_of, small_classes_note
from ke_metric.disk import new_folder, refuse_occupied
from ke_metric.errors import ExitCode, KeMetricError, closest, some_of
from ke_metric.images.decoding import UPRIGHT, Progress, in_order
from ke_metric.images.image_set import (
    Benchmark,
    ImageSet,
    ImageSource,
    PartCounts,
    count_parts,
    counts_text,
    parts_of,
)
from ke_metric.recipe.schema import Data


@dataclass(frozen=True)
class CheckReport:
    """What was found in a benchmark.

    Attributes:
        benchmark: Name.
        counts: Part to its number of images and classes.
        images: Number of different items that were decoded or failed to be.
        problems: Errors first.
        notes: What the reader has to say.
        skipped: Files and folders beside the pictures, by kind.
        transparent: Keys of the pictures that are not wholly opaque.
        turned: Keys of the pictures that their EXIF orientation turns, to that orientation (2 to 8).
    """

    benchmark: str
    counts: Mapping[str, PartCounts]
    images: int
    problems: tuple[DataProblem, ...]
    notes: Mapping[str, str]
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    transparent: tuple[str, ...] = ()
    turned: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there are warnings at most."""
        return not any(problem.is_error for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "benchmark": self.benchmark,
            "ok": self.ok,
            "images": self.images,
            "counts": {part: counts.to_json() for part, counts in self.counts.items()},
            "problems": [problem.to_json() for problem in self.problems],
            "notes": dict(self.notes),
            "skipped": {kind: list(paths) for kind, paths in self.skipped.items()},
            "transparent": list(self.transparent),
            "turned": dict(self.turned),
        }


def load_for_check(
    name_or_path: str,
    *,
    root: str | None = None,
    task: str | None = None,
    path_column: str = "path",
    label_column: str = "label",
) -> Benchmark:
    """Load what is to be checked.

    Args:
        name_or_path: Name of a benchmark; or a folder or CSV file in a layout of the benchmark `folder`. A name wins
            over a folder of that name, which is meant by `./name`.
        root: Data folder of a benchmark named; `data/<name>` when left out.
        task: "retrieval" or "classification"; when left out, retrieval where the benchmark has it.
        path_column: What the column of a CSV file is called that has the path.
        label_column: And the one that has the class.

    Raises:
        KeMetricError: DATA: it is neither, or what the reader says. RECIPE: the benchmark has not this task.
    """
    name = name_or_path
    if name not in NAMES:
        path = Path(name_or_path).expanduser()
        if not path.exists():
            raise KeMetricError(
                f"{name_or_path!r} is neither a file or folder nor a benchmark{closest(name_or_path, NAMES)}; "
                f"benchmarks: {', '.join(NAMES)}",
                ExitCode.DATA,
            )
        name, root = "folder", str(path)
    data = Data(benchmark=name, root=root, path_column=path_column, label_column=label_column)
    return load_benchmark(data, task or default_task(name))


def check_images(
    benchmark: Benchmark, *, workers: int | None = None, progress: Progress | None = None
) -> CheckReport:
    """Decode every picture of a benchmark and compare them all; what is looked for, `problems` has one by one.

    Args:
        benchmark: What to check.
        workers: Decoding threads, at least 1; the number of processors, at most 8, when left out.
        progress: Called with the number of pictures done and their total.
    """
    sources: dict[str, ImageSource] = {}
    for images in parts_of(benchmark).values():
        sources |= dict.fromkeys(images.keys, images.source)
    found = look_at(sources, workers=workers, progress=progress)
    traits_of_all = {key: picture.traits for key, picture in found.seen.items() if picture.traits is not None}
    problems = sorted(
        problems_of(benchmark, found), key=lambda problem: (not problem.is_error, problem.kind, problem.paths)
    )
    return CheckReport(
        benchmark=benchmark.name,
        counts=count_parts(benchmark),
        images=len(sources),
        problems=tuple(problems),
        notes={**benchmark.notes, **(small_classes_note(benchmark.train) if benchmark.task == "retrieval" else {})},
        skipped=benchmark.skipped,
        transparent=tuple(key for key, traits in traits_of_all.items() if traits.transparent),
        turned={key: traits.orientation for key, traits in traits_of_all.items() if traits.orientation != UPRIGHT},
    )


def check_text(report: CheckReport, *, most: int = 10) -> str:
    """Return the report as plain lines; of every kind of problem at most `most` are named, the others counted."""
    errors = sum(problem.is_error for problem in report.problems)
    warnings = len(report.problems) - errors
    lines = [
        f"{report.benchmark}: {report.images:,} images looked at, {errors:,} errors, {warnings:,} warnings",
        counts_text(report.counts),
        *(f"{topic}: {note}{_named(topic, report)}" for topic, note in report.notes.items()),
        *_traits_lines(report),
    ]
    for kind, same in groupby(report.problems, key=lambda problem: problem.kind):
        lines += _kind_lines(kind, list(same), most)
    return "\n".join(lines)


def _named(topic: str, report: CheckReport) -> str:
    """Return the first few of the paths that a note counts."""
    paths = report.skipped.get(topic.removesuffix(SKIPPED), ())
    return f" ({some_of(paths)})" if paths else ""


def _traits_lines(report: CheckReport) -> Iterator[str]:
    """Yield a line for each thing that decoding changes in some pictures."""
    if report.transparent:
        yield (
            f"transparent pictures: {len(report.transparent):,}, seen on white unless data.background says "
            f"otherwise: {some_of(report.transparent)}"
        )
    if report.turned:
        yield (
            f"turned pictures: {len(report.turned):,}, seen upright as their EXIF orientation says unless "
            f"data.exif_orientation is false: {some_of(list(report.turned))}"
        )


def _kind_lines(kind: str, problems: Sequence[DataProblem], most: int) -> list[str]:
    word = "ERROR" if problems[0].is_error else "warning"
    lines = [f"{word}: {kind} ({len(problems):,})"]
    for problem in problems[:most]:
        named = all(path in problem.reason for path in problem.paths)
        lines.append(f"  {problem.reason}" if named else f"  {', '.join(problem.paths)}: {problem.reason}")
    if len(problems) > most:
        lines.append(f"  and {len(problems) - most:,} more")
    return [*lines, f"  fix: {problems[0].fix}"]


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
