"""Looking through a benchmark before training: every picture is decoded, and every problem gets a path and a cure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from ke_metric.benchmarks.folder import SKIPPED
from ke_metric.benchmarks.registry import NAMES, default_task, load_benchmark
from ke_metric.datasets.problems import DataProblem, look_at, problems_of, small_classes_note
from ke_metric.errors import ExitCode, KeMetricError, closest, some_of
from ke_metric.images.decoding import UPRIGHT, Progress
from ke_metric.images.image_set import Benchmark, ImageSource, PartCounts, count_parts, counts_text, parts_of
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
