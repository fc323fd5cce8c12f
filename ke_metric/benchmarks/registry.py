"""The one table of benchmarks by task, and the way to load one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import cast

import numpy as np

from ke_metric.arrays import IntArray
from ke_metric.benchmarks.own_splits import arrange_validation
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.randomness import numpy_generator
from ke_metric.recipe.file import shown
from ke_metric.recipe.schema import Data

Reader = Callable[[Data], Benchmark]

READ_FUNCTIONS = {"retrieval": "read", "classification": "read_classification"}
"""Task to the function that a reader module has for it."""


def _lazily(task: str, *modules: str) -> Mapping[str, Reader]:
    """Return the readers of modules that are imported when called: only the benchmark in use needs its packages."""

    def reader(module: str) -> Reader:
        def read(data: Data) -> Benchmark:
            module_found = importlib.import_module(f"ke_metric.benchmarks.{module}")
            return cast(Benchmark, getattr(module_found, READ_FUNCTIONS[task])(data))

        return read

    return MappingProxyType({module: reader(module) for module in modules})


BENCHMARKS: Mapping[str, Mapping[str, Reader]] = MappingProxyType(
    {
        "retrieval": _lazily("retrieval", "glyphs", "emoji", "folder", "cub", "cars", "sop", "inshop"),
        "classification": _lazily(
            "classification", "glyphs", "emoji", "folder", "cub", "cars", "flowers", "aircraft", "mit67", "dogs"
        ),
    }
)
"""Task to the benchmarks that have it: name in a recipe to the function that reads it."""

NAMES = tuple(dict.fromkeys(name for readers in BENCHMARKS.values() for name in readers))
"""Names of all benchmarks."""

_WITHOUT_SPLIT = ("glyphs", "emoji", "folder")
_READERS_OF: Mapping[str, Mapping[str, Collection[str]]] = MappingProxyType(
    {
        "test_fraction": {"retrieval": _WITHOUT_SPLIT, "classification": _WITHOUT_SPLIT},
        "test_classes": {"retrieval": tuple(BENCHMARKS["retrieval"])},
        "train_on": {"classification": tuple(BENCHMARKS["classification"])},
        "validation_fraction": {"classification": tuple(BENCHMARKS["classification"])},
        "crop_banner": {"classification": ("aircraft",)},
        "path_column": {"retrieval": ("folder",), "classification": ("folder",)},
        "label_column": {"retrieval": ("folder",), "classification": ("folder",)},
    }
)
"""Field of the recipe's section that not every benchmark and task reads, to those that do."""


def load_benchmark(data: Data, task: str = "retrieval") -> Benchmark:
    """Read the benchmark a recipe names and make of it what the recipe asks for.

    Classes are kept and images held out by draws that depend on the benchmark only, never on the recipe's seed, and
    fewer classes are always a part of more classes. The order of the items stays.

    Args:
        data: The recipe's section.
        task: "retrieval" or "classification".

    Raises:
        KeMetricError: There is no such benchmark, it has not this task or does not read a field that is set, its
            files are missing or wrong, or it has fewer classes.
    """
    reader = _reader(data.benchmark, task)
    _refuse_unread(data, task)
    benchmark = reader(data)
    assert benchmark.task == task, (benchmark.task, task)
    if data.train_classes is not None:
        benchmark = _keep_train(benchmark, data.train_classes)
    if data.test_classes is not None:
        benchmark = _keep_test(benchmark, data.test_classes)
    if task == "classification":
        benchmark = arrange_validation(benchmark, data)
    return _with_wrong_labels(benchmark, data.label_noise) if data.label_noise else benchmark


def default_task(name: str) -> str:
    """Return the task of a benchmark where none is asked for: retrieval if it has that one."""
    return next(task for task, readers in BENCHMARKS.items() if name in readers)


def _reader(name: str, task: str) -> Reader:
    if name not in NAMES:
        raise KeMetricError(
            f"data.benchmark = {name!r} does not exist{closest(name, NAMES)}; "
            f"allowed for {task}: {', '.join(BENCHMARKS[task])}",
            ExitCode.RECIPE,
        )
    if name not in BENCHMARKS[task]:
        raise KeMetricError(
            f"data.benchmark = {name!r} is no benchmark for {task}; benchmarks for it: {', '.join(BENCHMARKS[task])}",
            ExitCode.RECIPE,
        )
    return BENCHMARKS[task][name]


def _refuse_unread(data: Data, task: str) -> None:
    """Refuse a field that this benchmark and task would pass over.

    A field counts as set where it differs from its default: a resolved recipe writes out every field.
    """
    for field, readers in _READERS_OF.items():
        value = getattr(data, field)
        if value != Data.model_fields[field].default and data.benchmark not in readers.get(task, ()):
            read_by = "; ".join(f"in {name} by {', '.join(by)}" for name, by in readers.items())
            raise KeMetricError(
                f"data.{field} = {shown(value)} is not read where data.benchmark = {data.benchmark!r} and task = "
                f"{task!r}: leave it out. It is read {read_by}",
                ExitCode.RECIPE,
            )


def _keep_train(benchmark: Benchmark, count: int) -> Benchmark:
    """Keep `count` training classes; in classification the other parts keep the same ones."""
    kept, note = _drawn(benchmark.name, "train", labels=benchmark.train.labels, count=count)
    benchmark = replace(benchmark, notes={**benchmark.notes, **note})
    if benchmark.task == "retrieval":
        return replace(benchmark, train=_only(benchmark.train, kept))
    train, query = _only(benchmark.train, kept), _only(benchmark.query, kept)
    validation = None if benchmark.validation is None else _only(benchmark.validation, kept)
    for part, images in {"validation": validation, "test": query}.items():
        if images is not None and not len(images):
            raise KeMetricError(
                f"data.train_classes = {count}: the {part} part of {benchmark.name!r} has no image of those classes",
                ExitCode.RECIPE,
            )
    return replace(benchmark, train=train, query=query, gallery=query, validation=validation)


def _keep_test(benchmark: Benchmark, count: int) -> Benchmark:
    kept, note = _drawn(benchmark.name, "test", labels=benchmark.query.labels, count=count)
    query = _only(benchmark.query, kept)
    gallery = query if benchmark.leave_one_out else _only(benchmark.gallery, kept)
    return replace(benchmark, query=query, gallery=gallery, notes={**benchmark.notes, **note})


def _with_wrong_labels(benchmark: Benchmark, share: float) -> Benchmark:
    """Shuffle the labels of a share of the training images among them: every class stays as large as it is.

    A label may come back to its image, as in the symmetric noise of the literature.
    """
    train = benchmark.train
    generator = numpy_generator(0, 0, f"label noise of {benchmark.name}")
    chosen = generator.permutation(len(train))[: round(share * len(train))]
    labels = train.labels.copy()
    labels[chosen] = labels[generator.permutation(chosen)]
    note = {"label noise": f"{int((labels != train.labels).sum())} of {len(train)} training labels are wrong"}
    return replace(benchmark, train=replace(train, labels=labels), notes={**benchmark.notes, **note})


def _drawn(name: str, part: str, *, labels: IntArray, count: int) -> tuple[IntArray, dict[str, str]]:
    """Draw `count` of the classes that occur in `labels` [N]; return them sorted, with a note."""
    present = np.unique(labels)
    if count > len(present):
        raise KeMetricError(
            f"data.{part}_classes = {count}: the benchmark {name!r} has {len(present)} {part} classes",
            ExitCode.RECIPE,
        )
    generator = numpy_generator(0, 0, f"kept {part} classes of {name}")
    # The head of a permutation, so that fewer classes are a part of more.
    kept = np.sort(generator.permutation(present)[:count])
    return kept, {f"{part} classes kept": f"{count} of {len(present)}"}


def _only(images: ImageSet, kept: IntArray) -> ImageSet:
    """Return the items whose label is in the sorted array `kept`, labels renumbered from 0."""
    chosen = np.flatnonzero(np.isin(images.labels, kept))
    return ImageSet(
        tuple(images.keys[index] for index in chosen),
        np.searchsorted(kept, images.labels[chosen]).astype(np.int64),
        tuple(images.class_names[label] for label in kept),
        images.source,
    )
