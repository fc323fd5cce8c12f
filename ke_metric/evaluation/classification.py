"""Scores of a classifier: top-1, top-5 and balanced accuracy, and how each class was recognised.

Shapes: N items, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ke_metric.arrays import DoubleArray, FloatArray, IntArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import as_array
from ke_metric.generation import ClassScores

FEWEST_CLASSES = {1: 2, 5: 10}
"""Rank to the number of classes from which on top-k is computed: below, guessing comes to half of it or more."""


def score_classification(logits: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor) -> dict[str, float]:
    """Return how often the right class is among the likeliest ones.

    Top-k of an item is 1 if fewer than k classes have a higher logit than its own class, else 0. Where classes have
    the very same logit as its own, they share the places that are left: top-k is the chance of a place in a random
    order of them, the mean over all orders in which the classes could be stored. A network that gives every class the
    same logit scores k/C, no more and no less than guessing.

    Args:
        logits: [N, C] real numbers, array or tensor on any device; cosines or probabilities do as well.
        labels: [N] integers in [0, C).

    Returns:
        `top1` and, from 10 classes on, `top5`, means over the items; `balanced_accuracy`, the mean over the classes
        that have items of their top-1; `majority_baseline`, the top-1 of whoever always answers the class with the
        most items. Shares in [0, 1], not percent. With a single class, of which nothing can be said, there are none.

    Raises:
        KeMetricError: DATA, for shapes or types that do not fit, no items, a label that is no class, or a logit that
            is not finite, naming the item.
    """
    values, own_classes = _checked(as_array(logits), as_array(labels))
    ranks = [rank for rank, fewest in FEWEST_CLASSES.items() if values.shape[1] >= fewest]
    if not ranks:
        return {}
    # fsum rounds only once, so that the order of the items does not matter.
    tops = {f"top{rank}": math.fsum(_chances(values, own_classes, rank)) / len(values) for rank in ranks}
    classes, sizes = np.unique(own_classes, return_counts=True)
    balanced = math.fsum(_top1_by_class(values, own_classes).values()) / len(classes)
    return tops | {"balanced_accuracy": balanced, "majority_baseline": int(sizes.max()) / len(values)}


def score_classes(
    logits: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor, class_names: Sequence[str]
) -> ClassScores:
    """Return how each class was recognised.

    Args:
        logits: As in `score_classification`, errors included.
        labels: As in `score_classification`.
        class_names: [C] different names.

    Returns:
        The top-1 of every class that has items, and how many of its items were taken for which class: that of the
        highest logit, the first of several that are equally high.
    """
    values, own_classes = _checked(as_array(logits), as_array(labels))
    assert len(set(class_names)) == len(class_names) == values.shape[1], (len(class_names), values.shape)
    pairs, counts = np.unique(np.stack([own_classes, values.argmax(axis=1)]), axis=1, return_counts=True)
    confusion: dict[str, dict[str, int]] = {}
    for own, taken_for, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        confusion.setdefault(class_names[own], {})[class_names[taken_for]] = count
    accuracy = {class_names[label]: value for label, value in _top1_by_class(values, own_classes).items()}
    return ClassScores(accuracy, confusion)


def top1_of_each(logits: FloatArray, labels: IntArray) -> DoubleArray:
    """Return [N] the top-1 of each item, of logits [N, C], whose mean `score_classification` gives."""
    return _chances(*_checked(logits, labels), 1)


def _chances(values: npt.NDArray[Any], own_classes: IntArray, rank: int) -> DoubleArray:
    """Return [N] the chance of each item's own class to be among the `rank` likeliest ones."""
    own = np.take_along_axis(values, own_classes[:, None], axis=1)
    higher = np.sum(values > own, axis=1)
    # Its own class included: at least 1.
    equal = np.sum(values == own, axis=1)
    chances: DoubleArray = np.clip((rank - higher) / equal, 0, 1)
    return chances


def _top1_by_class(values: npt.NDArray[Any], own_classes: IntArray) -> dict[int, float]:
    """Return class to the mean top-1 of its items, for the classes that have any."""
    chances = _chances(values, own_classes, 1)
    order = np.argsort(own_classes, kind="stable")
    classes, starts = np.unique(own_classes[order], return_index=True)
    parts = np.split(chances[order], starts[1:])
    return {label: math.fsum(part) / len(part) for label, part in zip(classes.tolist(), parts, strict=True)}


def _checked(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], IntArray]:
    if logits.ndim != 2 or 0 in logits.shape or logits.dtype.kind not in "fiu":
        raise _refused(
            f"logits have shape {list(logits.shape)} and type {logits.dtype}, must be [N, C] real numbers with N and "
            "C at least 1"
        )
    items, classes = logits.shape
    if labels.shape != (items,) or labels.dtype.kind not in "iu":
        raise _refused(
            f"labels have shape {list(labels.shape)} and type {labels.dtype}, must be [{items}] integers, one for "
            "each item"
        )
    foreign = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(foreign):
        raise _refused(
            f"the label of item {foreign[0]} is {labels[foreign[0]]}, must be one of the {classes} classes, 0 to "
            f"{classes - 1}"
        )
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise _refused(f"the logits of item {broken[0]} hold a value that is not finite: no class is the likeliest")
    return logits, labels.astype(np.int64)


def _refused(message: str) -> KeMetricError:
    return KeMetricError(message, ExitCode.DATA)
