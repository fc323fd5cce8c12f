"""Arithmetic on labels: which channel every element of a tensor belongs to.

While a network is followed, every tensor has a companion of integers, its labels. A label names one channel of the
layer that made it; label `ALWAYS` is given to what can never be dropped, such as the network's input. A companion has
as many dimensions as its tensor and is kept collapsed: a dimension along which the label does not change has size 1,
so that the labels of a feature map [B, C, H, W] are stored as [1, C, 1, 1]. Labels live on the CPU, wherever the
network is.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def meetings(first: Tensor, second: Tensor, *, through_one: bool = False) -> Tensor:
    """Return the pairs of different labels that meet when two label tensors are broadcast: [2, n].

    Where one of them does not change along a dimension, all labels of the other along it meet the same one, and so
    each other: they are paired with the first of them, which alone is paired with the other tensor's. That ties the
    same labels together with far fewer pairs.

    Args:
        first: Labels [...].
        second: Labels [...] of a broadcastable shape.
        through_one: Whether labels are paired through one of them even if the other tensor has a single label; by
            default they are paired with that one.
    """
    dimensions = max(first.ndim, second.ndim)
    both = [align(first, dimensions), align(second, dimensions)]
    pairs = []
    for dim in range(dimensions) if through_one or min(first.numel(), second.numel()) > 1 else ():
        for number, labels in enumerate(both):
            if labels.size(dim) > 1 and both[1 - number].size(dim) == 1:
                both[number] = labels.narrow(dim, 0, 1)
                pairs += [_flat(labels, both[number])]
    found = torch.cat([*pairs, _flat(*both)], dim=1)
    return found[:, found[0] != found[1]]


def _flat(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([labels.flatten() for labels in broadcast(first, second)])


def broadcast(*labels: Tensor) -> list[Tensor]:
    """Expand labels [...] to the shape they have together."""
    return list(torch.broadcast_tensors(*labels))  # type: ignore[no-untyped-call]  # untyped in torch


def restrict(labels: Tensor, kept: Tensor) -> Tensor | None:
    """Return the labels that the narrow tensor has, in the order of the wide one; None if they make no tensor.

    What is kept of a tensor is a tensor again where, in every dimension, the same positions are kept all over the
    others.

    Args:
        labels: Collapsed labels of the wide tensor.
        kept: For every label whether it is kept, bool [labels].
    """
    flags = kept[labels]
    if not bool(flags.any()):
        return None
    for dim in varying(labels):
        others = [each for each in range(flags.ndim) if each != dim]
        positions = (flags.any(dim=others) if others else flags).nonzero().flatten()
        flags, labels = flags.index_select(dim, positions), labels.index_select(dim, positions)
    return labels if bool(flags.all()) else None


def narrow_shape(shape: Sequence[int], labels: Tensor, narrow: Tensor) -> tuple[int, ...]:
    """Return the shape of the narrow tensor, from the wide one's and the labels of both."""
    return tuple(narrow.size(dim) if labels.size(dim) > 1 else size for dim, size in enumerate(shape))


def families(pairs: Tensor, labels: int) -> Tensor:
    """Return for every label the smallest label that it is tied to, directly or over others: int64 [labels].

    Args:
        pairs: Labels that are tied, [2, n].
        labels: How many labels there are.
    """
    smallest = torch.arange(labels, device="cpu")
    pairs = torch.cat([pairs, pairs.flip(0)], dim=1)
    while True:
        spread = smallest.scatter_reduce(0, pairs[0], smallest[pairs[1]], "amin")
        # Following the pointers halves the length of chains that are tied one after another.
        spread = spread[spread]
        if torch.equal(spread, smallest):
            return smallest
        smallest = spread
