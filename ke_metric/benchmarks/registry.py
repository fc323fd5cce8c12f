"""The one table of benchmarks, and the way to load one: adding a benchmark is one reader and one row here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import cast

from ke_metric.benchmarks.own_splits import arrange_parts
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data
from ke_metric.schema import shown

Reader = Callable[[Data], Benchmark]
"""Reads the files that a recipe's section names, else those in `data/<name>`.

A KeMetricError (DATA) says which are missing, malformed, contradict each other or have other counts than published.
"""

READERS: Mapping[str, Mapping[str, str]] = {
    "glyphs": {"retrieval": "drawn.read_glyphs", "classification": "drawn.read_glyphs_classification"},
    "emoji": {"retrieval": "drawn.read_emoji", "classification": "drawn.read_emoji_classification"},
    "folder": {"retrieval": "folder.read", "classification": "folder.read_classification"},
    "solar": {"retrieval": "solar.read", "classification": "solar.read_classification"},
    "cub": {"retrieval": "cub_and_cars.read_cub", "classification": "cub_and_cars.read_cub_classification"},
    "cars": {"retrieval": "cub_and_cars.read_cars", "classification": "cub_and_cars.read_cars_classification"},
    "sop": {"retrieval": "products.read_sop"},
    "inshop": {"retrieval": "products.read_inshop"},
    "flowers": {"classification": "official_lists.read_flowers"},
    "aircraft": {"classification": "official_lists.read_aircraft"},
    "mit67": {"classification": "official_lists.read_mit67"},
    "dogs": {"classification": "official_lists.read_dogs"},
}
"""Name of a benchmark in a recipe, and its tasks, to module and function that read it."""

NAMES = tuple(READERS)


def _lazily(place: str) -> Reader:
    """Return a reader whose module is imported when it is called: only the benchmark in use needs its packages."""

    def read(data: Data) -> Benchmark:
        module, _, function = place.partition(".")
        found = importlib.import_module(f"ke_metric.benchmarks.{module}")
        return cast(Benchmark, getattr(found, function)(data))

    return read


BENCHMARKS: Mapping[str, Mapping[str, Reader]] = MappingProxyType(
    {
        task: MappingProxyType({name: _lazily(tasks[task]) for name, tasks in READERS.items() if task in tasks})
        for task in ("retrieval", "classification")
    }
)
"""Task to the benchmarks that have it: name in a recipe to the function that reads it."""

_WITHOUT_SPLIT = ("glyphs", "emoji", "folder")
_READERS_OF: Mapping[str, Mapping[str, Collection[str]]] = {
    "test_fraction": {"retrieval": _WITHOUT_SPLIT, "classification": (*_WITHOUT_SPLIT, "solar")},
    "test_classes": {"retrieval": tuple(BENCHMARKS["retrieval"])},
    "train_on": {"classification": tuple(BENCHMARKS["classification"])},
    "crop_banner": {"classification": ("aircraft",)},
    "path_column": {"retrieval": ("folder",), "classification": ("folder",)},
    "label_column": {"retrieval": ("folder",), "classification": ("folder",)},
}
"""Field of the recipe's section that not every benchmark and task reads, to those that do."""


def load_benchmark(data: Data, task: str = "retrieval") -> Benchmark:
    """Read the benchmark a recipe names and make of it what the recipe asks for.

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
    return arrange_parts(benchmark, data)


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
