"""What the rules for aten operations share: the last resort, and how labels of several operands meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ke_metric.split.call import Call
from ke_metric.split.labels import ALWAYS, broadcast, collapse, collapsed_always, varying

Rule = Callable[[Call], list[Tensor]]


def mix(call: Call) -> list[Tensor]:
    """Every other operation: each element of the result may depend on all channels."""
    if not call.labelled:
        # A product of parameters.
        return [collapsed_always(output.ndim) for output in call.outputs]
    for _, labels in call.labelled:
        call.demand(labels, "mixes channels, or moves them in a way that is not followed")
    [(tensor, labels), *others] = call.labelled
    # Labels that must be kept anyway are passed on all the same: the last layer's reach the network's output through
    # a softmax or a layer norm, and that is how the last layer is known to be one.
    return [
        labels
        if not others and output is not tensor and output.shape == tensor.shape
        else collapsed_always(output.ndim)
        for output in call.outputs
    ]


def along_channels(labels: Tensor, dimensions: int, dim: int = 1) -> Tensor:
    """Return collapsed labels that vary along one dimension, from the labels [n] along it."""
    return collapse(labels.view([-1 if each == dim else 1 for each in range(dimensions)]))


def meet(call: Call, operands: Sequence[tuple[Tensor, Tensor]], output: Tensor) -> Tensor:
    """Tie the channels of operands that meet element by element; return the labels of the result.

    Args:
        call: The operation.
        operands: Tensors and their collapsed labels, aligned to the dimensions of the output.
        output: The result.
    """
    if not operands:
        return collapsed_always(output.ndim)
    together = max((labels for _, labels in operands), key=Tensor.numel)
    across = varying(broadcast(*(labels for _, labels in operands))[0])
    partners = []
    for tensor, labels in operands:
        # A tensor that is broadcast over some of the channels' dimensions has one value for many of them; those that
        # share a value are kept or dropped together, unless it is the same for all: then it must be there.
        axes = [dim - output.ndim + tensor.ndim for dim in across]
        is_spread = not any(axis >= 0 and tensor.size(axis) > 1 and tensor.stride(axis) > 0 for axis in axes)
        is_one = bool((labels != ALWAYS).all()) and call.graph.are_one(labels, together)
        if across and is_spread and not is_one:
            call.demand(labels, "spreads one channel over many")
        else:
            partners.append(labels)
    for other in partners[1:]:
        call.graph.tie(partners[0], other)
    # The labels that change along the fewest positions, and of those the smallest, stand for all that they are tied
    # to, whichever order the operands come in: a table of relative positions has those of the heads it is added to.
    fewest = min(labels.numel() for labels in partners)
    merged, *others = (labels for labels in partners if labels.numel() == fewest)
    for other in others:
        merged = torch.minimum(merged, other)
    return collapse(merged)
