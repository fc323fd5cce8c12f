"""Scores of a classifier: top-1 and top-5 accuracy.

Shapes: N items, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import IntArray, as_array

RANKS = (1, 5)


def score_classification(
    logits: npt.ArrayLike | torch.Tensor, labels: npt.ArrayLike | torch.Tensor
) -> dict[str, float]:
    """Return how often the right class is among the likeliest ones.

    Top-k of an item is 1 if fewer than k classes have a higher logit than its own class, else 0. Where classes have
    the very same logit as its own, they share the places that are left: top-k is the chance of a place in a random
    order of them, the mean over all orders in which the classes could be stored. A network that gives every class the
    same logit scores k/C, no more and no less than guessing.

    Args:
        logits: [N, C] real numbers, array or tensor on any device; cosines or probabilities do as well.
        labels: [N] integers in [0, C).

    Returns:
        `top1` and `top5`, means over the items, in [0, 1], not percent. A score that would be 1 whatever the network
        says is absent: top-5 of fewer than 6 classes.

    Raises:
        KeMetricError: DATA, for shapes or types that do not fit, no items, a label that is no class, or a logit that
            is not finite, naming the item.
    """
    values, own_classes = _checked(as_array(logits), as_array(labels))
    own = np.take_along_axis(values, own_classes[:, None], axis=1)
    higher = np.sum(values > own, axis=1)
    # Its own class included: at least 1.
    equal = np.sum(values == own, axis=1)
    chances = {rank: np.clip((rank - higher) / equal, 0, 1) for rank in RANKS if values.shape[1] > rank}
    # fsum rounds only once, so that the order of the items does not matter.
    return {f"top{rank}": math.fsum(chance) / len(chance) for rank, chance in chances.items()}


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
