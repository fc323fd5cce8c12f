"""The splits that we draw ourselves: of benchmarks that bring none, and of what a recipe asks for beyond the parts.

Every draw depends on the benchmark and its items alone, never on the recipe's seed: recipes with different seeds
are scored on the same test classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ke_metric.arrays import IntArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.randomness import derive_seed, numpy_generator
from ke_metric.recipe.schema import Data

Id = TypeVar("Id", int, str)

SPLIT_SEED = 0


def split_classes(class_ids: Iterable[Id], test_fraction: float, name: str) -> tuple[tuple[Id, ...], tuple[Id, ...]]:
    """Divide classes into training and test classes, the same way on every machine.

    Args:
        class_ids: Ids of at least 2 classes, in any order; repetitions count once.
        test_fraction: Share of the classes that is for testing, see `draw_share`.
        name: Name of the benchmark; two benchmarks with the same ids are split differently.

    Returns:
        Training ids and test ids, each in ascending order.

    Raises:
        KeMetricError: DATA: there are fewer than 2 classes.
    """
    ordered = sorted(set(class_ids))
    if len(ordered) < 2:
        raise KeMetricError(
            f"benchmark {name}: {len(ordered)} class(es) found; splitting by class needs at least 2", ExitCode.DATA
        )
    return draw_share(ordered, test_fraction, f"class split/{name}")


def draw_share(ids: Iterable[Id], share: float, purpose: str) -> tuple[tuple[Id, ...], tuple[Id, ...]]:
    """Draw a share of some ids, the same ones on every machine.

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
    """Draw a share of the N items of every class by a hash of their keys, see `draw_share`; return the keys drawn."""
    members: dict[Hashable, list[str]] = defaultdict(list)
    for key, of_class in zip(keys, classes, strict=True):
        members[of_class].append(key)
    return frozenset(key for group in members.values() for key in draw_share(group, share, purpose)[1])


def arrange_parts(benchmark: Benchmark, data: Data) -> Benchmark:
    """Make of the parts that a reader gave what a recipe asks for; notes say what was made.

    Fewer classes are always a part of more classes, and the order of the items stays.

    Raises:
        KeMetricError: RECIPE: the benchmark has fewer classes, or the validation part cannot be arranged so. DATA: no
            training class has two images, of which one could be held out; none that is held out has two.
    """
    if data.train_classes is not None:
        benchmark = _keep_train(benchmark, data.train_classes)
    if data.test_classes is not None:
        benchmark = _keep_test(benchmark, data.test_classes)
    benchmark = arrange_validation(benchmark, data)
    return _with_wrong_labels(benchmark, data.label_noise) if data.label_noise else benchmark


def arrange_validation(benchmark: Benchmark, data: Data) -> Benchmark:
    """Keep the validation part of a classification, join it to the training part, or hold one out of every class.

    Of a retrieval, hold classes out.
    """
    if benchmark.task == "retrieval":
        return _without_classes(benchmark, data.validation_fraction) if data.validation_fraction > 0 else benchmark
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
        raise _has_validation(benchmark, validation, data.validation_fraction)
    train = benchmark.train
    assert train.source == validation.source, "the parts are decoded differently"
    labels = np.concatenate([train.labels, validation.labels])
    joined = ImageSet(train.keys + validation.keys, labels, train.class_names, train.source)
    note = f"official part of {len(validation):,} images, joined to the training part"
    return _noted(replace(benchmark, train=joined, validation=None), "validation", note)


def _held_out(benchmark: Benchmark, fraction: float) -> Benchmark:
    if benchmark.validation is not None:
        raise _has_validation(benchmark, benchmark.validation, fraction)
    train, purpose = benchmark.train, f"validation split/{benchmark.name}"
    drawn = draw_of_every_class(train.keys, train.labels.tolist(), share=fraction, purpose=purpose)
    if not drawn:
        raise KeMetricError(
            f"data.validation_fraction = {fraction}: no training class of {benchmark.name!r} has two images, of "
            "which one could be held out",
            ExitCode.DATA,
        )
    is_drawn = np.array([key in drawn for key in train.keys])
    parts = (train.at(np.flatnonzero(~is_drawn)), train.at(np.flatnonzero(is_drawn)))
    note = f"{len(drawn):,} training images held out, {fraction:g} of every class (data.validation_fraction)"
    return _noted(replace(benchmark, train=parts[0], validation=parts[1]), "validation", note)


def _without_classes(benchmark: Benchmark, fraction: float) -> Benchmark:
    """Hold a share of the training classes out, which are searched among themselves."""
    train = benchmark.train
    drawn = set(draw_share(train.class_names, fraction, f"validation classes/{benchmark.name}")[1])
    is_drawn = np.array([name in drawn for name in train.class_names])
    left, held = (np.flatnonzero(flags) for flags in (~is_drawn, is_drawn))
    # Of a single class every picture finds the others, whatever the network: its score would say nothing.
    if min(len(left), len(held)) < 2:
        raise KeMetricError(
            f"data.validation_fraction = {fraction}: the training part of {benchmark.name!r} has "
            f"{len(train.class_names)} classes, of which that leaves {len(left)} to learn from and {len(held)} to "
            "validate with; there must be 2 of each at least",
            ExitCode.RECIPE,
        )
    validation = _only(train, held)
    if np.bincount(validation.labels).max() < 2:
        raise KeMetricError(
            f"data.validation_fraction = {fraction}: no class of {benchmark.name!r} that is held out has two images, "
            "of which one could find the other",
            ExitCode.DATA,
        )
    note = f"{len(held):,} of {len(is_drawn):,} training classes held out (data.validation_fraction)"
    return _noted(replace(benchmark, train=_only(train, left), validation=validation), "validation", note)


def _has_validation(benchmark: Benchmark, validation: ImageSet, fraction: float) -> KeMetricError:
    return KeMetricError(
        f"data.validation_fraction = {fraction}: the benchmark {benchmark.name!r} has a validation part of its own "
        f"({len(validation):,} images); allowed: 0",
        ExitCode.RECIPE,
    )


def _keep_train(benchmark: Benchmark, count: int) -> Benchmark:
    """Keep `count` training classes; in classification the other parts keep the same ones."""
    benchmark, kept = _drawn(benchmark, "train", labels=benchmark.train.labels, count=count)
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
    benchmark, kept = _drawn(benchmark, "test", labels=benchmark.query.labels, count=count)
    query = _only(benchmark.query, kept)
    gallery = query if benchmark.leave_one_out else _only(benchmark.gallery, kept)
    return replace(benchmark, query=query, gallery=gallery)


def _drawn(benchmark: Benchmark, part: str, *, labels: IntArray, count: int) -> tuple[Benchmark, IntArray]:
    """Draw `count` of the classes that occur in `labels` [N], sorted; return the benchmark with a note on it too."""
    present = np.unique(labels)
    if count > len(present):
        raise KeMetricError(
            f"data.{part}_classes = {count}: the benchmark {benchmark.name!r} has {len(present)} {part} classes",
            ExitCode.RECIPE,
        )
    generator = numpy_generator(SPLIT_SEED, 0, f"kept {part} classes of {benchmark.name}")
    # The head of a permutation, so that fewer classes are a part of more.
    kept = np.sort(generator.permutation(present)[:count])
    return _noted(benchmark, f"{part} classes kept", f"{count} of {len(present)}"), kept


def _only(images: ImageSet, kept: IntArray) -> ImageSet:
    """Return the items whose label is in the sorted array `kept`, labels renumbered from 0."""
    chosen = images.at(np.flatnonzero(np.isin(images.labels, kept)))
    labels = np.searchsorted(kept, chosen.labels).astype(np.int64)
    return replace(chosen, labels=labels, class_names=tuple(images.class_names[label] for label in kept))


def _with_wrong_labels(benchmark: Benchmark, share: float) -> Benchmark:
    """Shuffle the labels of a share of the training images among them: every class stays as large as it is.

    A label may come back to its image, as in the symmetric noise of the literature.
    """
    train = benchmark.train
    generator = numpy_generator(SPLIT_SEED, 0, f"label noise of {benchmark.name}")
    chosen = generator.permutation(len(train))[: round(share * len(train))]
    labels = train.labels.copy()
    labels[chosen] = labels[generator.permutation(chosen)]
    note = f"{int((labels != train.labels).sum())} of {len(train)} training labels are wrong"
    return _noted(replace(benchmark, train=replace(train, labels=labels)), "label noise", note)


def _noted(benchmark: Benchmark, topic: str, text: str) -> Benchmark:
    return replace(benchmark, notes={**benchmark.notes, topic: text})
