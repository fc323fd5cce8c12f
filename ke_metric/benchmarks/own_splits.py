"""The class-disjoint split of benchmarks that bring none of their own, and the draw that all our splits rely on.

The training, validation and test parts of classification, where all parts have the same classes.

What a benchmark brings is left to its reader; here is what we draw ourselves, and what a recipe says of the
validation part: kept apart, joined to the training part, or held out of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.randomness import derive_seed
from ke_metric.recipe.schema import Data

Id = TypeVar("Id", int, str)

# Belongs to the benchmark: recipes with different seeds must be scored on the same test classes.
SPLIT_SEED = 0


def split_classes(class_ids: Iterable[Id], test_fraction: float, name: str) -> tuple[tuple[Id, ...], tuple[Id, ...]]:
    """Divide classes into training and test classes, the same way on every machine and for every recipe seed.

    Args:
        class_ids: Ids of at least 2 classes, in any order; repetitions count once.
        test_fraction: Share of the classes that is for testing, in (0, 1); rounded to whole classes, at least one
            on either side.
        name: Name of the benchmark; two benchmarks with the same ids are split differently.

    Returns:
        Training ids and test ids, each in ascending order.

    Raises:
        KeMetricError: There are fewer than 2 classes (DATA).
    """
    ordered = sorted(set(class_ids))
    if len(ordered) < 2:
        raise KeMetricError(
            f"benchmark {name}: {len(ordered)} class(es) found; splitting by class needs at least 2", ExitCode.DATA
        )
    return draw_share(ordered, test_fraction, f"class split/{name}")


def draw_share(ids: Iterable[Id], share: float, purpose: str) -> tuple[tuple[Id, ...], tuple[Id, ...]]:
    """Draw a share of some ids, the same ones on every machine and for every recipe seed.

    Every id gets a number hashed from the purpose and the id itself, and those with the smallest numbers are drawn.
    So an id that is added or left out moves no more than one other, and a larger share has all ids of a smaller one.

    Args:
        ids: In any order; repetitions count once.
        share: In (0, 1); rounded to whole ids, at least one drawn and one left where there are 2 ids or more. A
            single id is never drawn.
        purpose: What the draw is for; every purpose draws differently.

    Returns:
        The ids left and the ids drawn, each in ascending order.
    """
    ordered = sorted(set(ids))
    hashed = sorted(ordered, key=lambda drawn_id: derive_seed(SPLIT_SEED, 0, f"{purpose}/{drawn_id}"))
    count = min(max(round(share * len(ordered)), 1), max(len(ordered) - 1, 0))
    return tuple(sorted(hashed[count:])), tuple(sorted(hashed[:count]))


def draw_of_every_class(
    keys: Sequence[str], classes: Sequence[Hashable], *, share: float, purpose: str
) -> frozenset[str]:
    """Draw a share of the items of every class by a hash of their keys.

    Args:
        keys: N item keys.
        classes: Ids or names of the N items' classes.
        share: In (0, 1); of every class at least one item is drawn and one is left, but a class of one item stays
            whole.
        purpose: What the draw is for; every purpose draws differently.

    Returns:
        The keys drawn.
    """
    members: dict[Hashable, list[str]] = defaultdict(list)
    for key, of_class in zip(keys, classes, strict=True):
        members[of_class].append(key)
    return frozenset(key for group in members.values() for key in draw_share(group, share, purpose)[1])


def arrange_validation(benchmark: Benchmark, data: Data) -> Benchmark:
    """Make the training and validation part that a recipe asks for.

    Args:
        benchmark: Of classification, with its official parts.
        data: `train_on` and `validation_fraction` are used.

    Returns:
        The benchmark with its validation part kept apart or joined to the training part, or with images held out of
        every training class; a note says which.

    Raises:
        KeMetricError: RECIPE: there is no validation part to join, or there is one already where the recipe asks to
            hold one out. DATA: no training class has two images.
    """
    if data.train_on == "trainval":
        return _joined(benchmark, data)
    if data.validation_fraction > 0:
        return _held_out(benchmark, data.validation_fraction)
    if benchmark.validation is None:
        return benchmark
    return _noted(benchmark, "validation", "official part, kept apart")


def _joined(benchmark: Benchmark, data: Data) -> Benchmark:
    validation = benchmark.validation
    if validation is None:
        raise KeMetricError(
            f"data.train_on = 'trainval': the benchmark {benchmark.name!r} has no validation part to join to the "
            "training part; allowed: 'train'",
            ExitCode.RECIPE,
        )
    if data.validation_fraction > 0:
        raise _has_validation(benchmark, data.validation_fraction)
    train = benchmark.train
    assert train.source == validation.source, "the parts are decoded differently"
    labels = np.concatenate([train.labels, validation.labels])
    joined = ImageSet(train.keys + validation.keys, labels, train.class_names, train.source)
    note = f"official part of {len(validation):,} images, joined to the training part"
    return _noted(replace(benchmark, train=joined, validation=None), "validation", note)


def _held_out(benchmark: Benchmark, fraction: float) -> Benchmark:
    if benchmark.validation is not None:
        raise _has_validation(benchmark, fraction)
    train = benchmark.train
    purpose = f"validation split/{benchmark.name}"
    drawn = draw_of_every_class(train.keys, train.labels.tolist(), share=fraction, purpose=purpose)
    if not drawn:
        raise KeMetricError(
            f"data.validation_fraction = {fraction}: no training class of {benchmark.name!r} has two images, of "
            "which one could be held out",
            ExitCode.DATA,
        )
    is_drawn = np.array([key in drawn for key in train.keys])
    parts = (train.at(np.flatnonzero(~is_drawn)), train.at(np.flatnonzero(is_drawn)))
    parted = replace(benchmark, train=parts[0], validation=parts[1])
    note = f"{len(drawn):,} training images held out, {fraction:g} of every class (data.validation_fraction)"
    return _noted(parted, "validation", note)


def _has_validation(benchmark: Benchmark, fraction: float) -> KeMetricError:
    assert benchmark.validation is not None
    return KeMetricError(
        f"data.validation_fraction = {fraction}: the benchmark {benchmark.name!r} has a validation part of its own "
        f"({len(benchmark.validation):,} images); allowed: 0",
        ExitCode.RECIPE,
    )


def _noted(benchmark: Benchmark, topic: str, text: str) -> Benchmark:
    return replace(benchmark, notes={**benchmark.notes, topic: text})
