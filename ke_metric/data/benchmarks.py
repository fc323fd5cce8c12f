"""The one table of benchmarks, and the way to load one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import cast

import numpy as np

from ke_metric.data.images import Benchmark, ImageSet, IntArray
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.randomness import numpy_generator
from ke_metric.recipe import Data

Reader = Callable[[Data], Benchmark]


def _lazily(module: str) -> Reader:
    """Return the `read` of a module that is imported when called: only the benchmark in use needs its packages."""

    def read(data: Data) -> Benchmark:
        return cast(Benchmark, importlib.import_module(f"ke_metric.data.{module}").read(data))

    return read


BENCHMARKS: Mapping[str, Reader] = MappingProxyType(
    {
        "glyphs": _lazily("glyphs"),
        "emoji": _lazily("emoji"),
        "folder": _lazily("folder"),
        "cub": _lazily("cub"),
        "cars": _lazily("cars"),
        "sop": _lazily("sop"),
        "inshop": _lazily("inshop"),
    }
)
"""Name in a recipe to the function that reads that benchmark."""


def load_benchmark(data: Data) -> Benchmark:
    """Read the benchmark a recipe names and keep as many of its classes as the recipe asks for.

    Which classes are kept depends on the benchmark only, never on the recipe's seed, and fewer classes are always a
    part of more classes. The order of the items stays.

    Args:
        data: The recipe's section.

    Raises:
        KeMetricError: There is no such benchmark, its files are missing or wrong, or it has fewer classes.
    """
    if data.benchmark not in BENCHMARKS:
        raise KeMetricError(
            f"data.benchmark = {data.benchmark!r} does not exist{closest(data.benchmark, BENCHMARKS)}; "
            f"allowed: {', '.join(BENCHMARKS)}",
            ExitCode.RECIPE,
        )
    benchmark = BENCHMARKS[data.benchmark](data)
    if data.train_classes is not None:
        benchmark = _keep_train(benchmark, data.train_classes)
    if data.test_classes is not None:
        benchmark = _keep_test(benchmark, data.test_classes)
    return benchmark


def _keep_train(benchmark: Benchmark, count: int) -> Benchmark:
    kept, note = _drawn(benchmark.name, "train", labels=benchmark.train.labels, count=count)
    return replace(benchmark, train=_only(benchmark.train, kept), notes={**benchmark.notes, **note})


def _keep_test(benchmark: Benchmark, count: int) -> Benchmark:
    kept, note = _drawn(benchmark.name, "test", labels=benchmark.query.labels, count=count)
    query = _only(benchmark.query, kept)
    gallery = query if benchmark.leave_one_out else _only(benchmark.gallery, kept)
    return replace(benchmark, query=query, gallery=gallery, notes={**benchmark.notes, **note})


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
