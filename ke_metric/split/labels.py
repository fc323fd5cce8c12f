"""Arithmetic on labels: which channel every element of a tensor belongs to.

While a network is followed, every tensor has a companion of integers, its labels. A label names one channel of the
layer that made it; label `ALWAYS` is given to what can never be dropped, such as the network's input. A companion has
as many dimensions as its tensor and is kept collapsed: a dimension along which the label does not change has size 1,
so that the labels of a feature map [B, C, H, W] are stored as [1, C, 1, 1]. Labels live on the CPU, wherever the
network is.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALWAYS = 0


def always(*sizes: int) -> Tensor:
    """Return labels [sizes] of what can never be dropped."""
    return torch.full(sizes, ALWAYS, device="cpu")


def collapsed_always(dimensions: int) -> Tensor:
    """Return the collapsed labels of a tensor with this many dimensions in which nothing can be dropped."""
    return always(*(1,) * dimensions)


def collapse(labels: Tensor) -> Tensor:
    """Narrow every dimension along which the labels [...] do not change to size 1."""
    for dim in range(labels.ndim):
        first = labels.narrow(dim, 0, min(1, labels.size(dim)))
        if labels.size(dim) > 1 and bool((labels == first).all()):
            labels = first
    return labels


def varying(labels: Tensor) -> list[int]:
    """Return the dimensions along which collapsed labels [...] change."""
    return [dim for dim in range(labels.ndim) if labels.size(dim) > 1]


def align(labels: Tensor, dimensions: int) -> Tensor:
    """Put dimensions of size 1 in front of labels [...], as broadcasting does."""
    return labels.reshape((1,) * (dimensions - labels.ndim) + labels.shape)


def broadcast(*labels: Tensor) -> list[Tensor]:
    """Expand labels [...] to the shape they have together."""
    return list(torch.broadcast_tensors(*labels))  # type: ignore[no-untyped-call]  # untyped in torch


def same_channels_in_order(before: Tensor, after: Tensor) -> bool:
    """Tell whether rearranged labels still name every channel, in the same order.

    Flattening repeats a channel (c0 c0 c1 c1) or the whole sequence (c0 c1 c0 c1): both are the same channels in
    order, and a slim network that does the same arrives at the narrow version of the same tensor. Slicing or
    regrouping channels is not: there the numbers written in the network would mean something else when it is narrow.

    Args:
        before: Collapsed labels of the tensor that was rearranged, changing along one dimension at most.
        after: Collapsed labels of the result.
    """
    if len(varying(after)) > 1:
        return False
    sequence, result = (torch.unique_consecutive(labels.flatten()) for labels in (before, after))
    times, rest = divmod(result.numel(), sequence.numel())
    return rest == 0 and torch.equal(result, sequence.repeat(times))
