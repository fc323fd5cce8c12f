"""KELS, kernel-level convolutional-aware splitting: decides which channels of a network are fit.

Taha, Shrivastava, Davis: Knowledge Evolution in Neural Networks, CVPR 2021. Every layer keeps the first
ceil(rate x channels) of its output channels. Where a network ties channels together, what is tied is decided at once:

- Channels that are added or multiplied element by element form a family; so do the channels of a group (grouped
  convolution, group norm) and of a head. The prefix is rounded up to whole families.
- Families that the same layers take part in form a section, of which a prefix is kept: the channels of a sum of a
  concatenation and a plain layer have one section for every chunk.
- Channels that the network itself takes apart (a split into halves) are sections, too: each half keeps a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.graph import ChannelGraph, Demand
from ke_metric.split.labels import ALWAYS, families, varying

# Any odd number with well-mixed bits: numbers of layers and parts times it are told apart when they are added up.
_MIXER = 0x1E3779B97F4A7C15


class CutError(KeMetricError):
    """An operation needs channels that would be dropped.

    Args:
        place: Where, why, and how many of the channels are fit.
        weights: Names of the weights whose channels are dropped.

    Attributes:
        place: See above.
        weights: See above.
    """

    def __init__(self, place: str, weights: list[str]) -> None:
        super().__init__(f"{place}. Keep whole: {', '.join(weights)}", ExitCode.RECIPE)
        self.place, self.weights = place, weights


def prefix(rate: float, channels: int, multiple: int = 1) -> int:
    """Return how many of a layer's channels are fit: ceil(rate x channels), rounded up to a multiple.

    The product is lowered by 1e-9, so that 0.55 of 100 channels is 55: in floats it is 55.000000000000007.
    """
    count = math.ceil(rate * channels - 1e-9)
    return min(channels, -(-count // multiple) * multiple)


def fit_labels(
    graph: ChannelGraph,
    rate: float,
    keep_whole: Collection[str] = (),
    *,
    multiple: int = 1,
    whole: Collection[Tensor] = (),
) -> Tensor:
    """Return for every label of a network whether its channel is fit, bool [graph.labels].

    Args:
        graph: The network's channels.
        rate: Split rate in (0, 1].
        keep_whole: Names of weights whose layers keep all of their outputs.
        multiple: Numbers of kept channels are rounded up to a multiple of this.
        whole: More labels that are kept.

    Raises:
        CutError: An operation needs channels that would be dropped.
    """
    pairs = torch.cat([*graph.ties, torch.empty(2, 0, dtype=torch.int64, device="cpu")], dim=1)
    family = _make_boxes(graph, families(pairs, graph.labels))
    needed = [torch.zeros(1, dtype=torch.int64, device="cpu"), *(labels.flatten() for labels in whole)]
    needed += [layer.outputs for name, layer in graph.layers.items() if name in keep_whole]
    needed += [labels for name, labels in graph.made.items() if name in keep_whole]
    kept = torch.ones(graph.labels, dtype=torch.bool, device="cpu")
    _cut(graph, family, kept, rate, multiple)
    kept[family[torch.cat(needed)]] = True
    kept = kept[family]
    _refuse_cut(graph, family, kept, rate)
    return kept


def _make_boxes(graph: ChannelGraph, family: Tensor) -> Tensor:
    """Tie channels so that what is kept of a tensor is a tensor again; return the families after that.

    Labels that vary along several dimensions (heads x channels, groups x channels of a group) can be narrowed along
    one of them. Where nothing else decides, it is the last: a channel shuffle keeps the same channels of every group.
    """
    boxes = [labels for several in graph.boxes.values() for labels in several]
    more = True
    while more:
        more = False
        for labels in boxes:
            members = family[labels]
            across = varying(_collapsed(members))
            if len(across) > 1:
                first = labels
                for dim in across[:-1]:
                    first = first.narrow(dim, 0, 1)
                pairs = torch.stack([labels.flatten(), first.expand(labels.shape).flatten()])
                family = families(torch.cat([pairs, _pairs_of(family)], dim=1), graph.labels)
                more = True
    return family


def _collapsed(members: Tensor) -> Tensor:
    for dim in range(members.ndim):
        first = members.narrow(dim, 0, 1)
        if bool((members == first).all()):
            members = first
    return members


def _pairs_of(family: Tensor) -> Tensor:
    return torch.stack([torch.arange(len(family), device="cpu"), family])


def _cut(graph: ChannelGraph, family: Tensor, kept: Tensor, rate: float, multiple: int) -> None:
    """Drop, in `kept`, all families behind the prefix of their section."""
    owners = torch.full_like(family, -1)
    for number, (first, (_, channels)) in enumerate(graph.origins.items()):
        owners[first : first + channels] = number
    made = (owners >= 0).nonzero().flatten()
    section = torch.zeros_like(family)
    _mark(section, family[made], owners[made] + 1)
    part = len(graph.origins) + 1
    for parts in (parts for several in graph.parts.values() for parts in several):
        for labels in parts:
            _mark(section, family[labels], torch.full_like(labels, part))
            part += 1
    # How many channels a family has, counted in the first of the layers that take part in it.
    first_owner = torch.full_like(family, part).scatter_reduce(0, family[made], owners[made], "amin")
    counted = made[owners[made] == first_owner[family[made]]]
    sizes = torch.zeros_like(family).scatter_add(0, family[counted], torch.ones_like(counted))
    heads = family[made].unique()  # type: ignore[no-untyped-call]  # untyped in torch
    heads = heads[(heads != ALWAYS) & (heads != family[ALWAYS])]
    for _, members in _grouped(section[heads], heads):
        total = int(sizes[members].sum())
        before = torch.cumsum(sizes[members], 0) - sizes[members]
        kept[members[before >= prefix(rate, total, multiple)]] = False


def _mark(section: Tensor, members: Tensor, number: Tensor) -> None:
    """Add what a layer or part contributes to the sections of its families, once for every family."""
    unique = torch.stack([members, number]).unique(dim=1)  # type: ignore[no-untyped-call]  # untyped in torch
    section.scatter_add_(0, unique[0], (unique[1] * _MIXER) ^ ((unique[1] * _MIXER) >> 29))


def _grouped(keys: Tensor, values: Tensor) -> list[tuple[int, Tensor]]:
    """Return the values (ascending) of every key, keys in any order."""
    order = torch.argsort(keys, stable=True)
    found, counts = torch.unique_consecutive(keys[order], return_counts=True)
    return list(zip(found.tolist(), values[order].split(counts.tolist()), strict=True))  # type: ignore[no-untyped-call]  # untyped in torch


def _refuse_cut(graph: ChannelGraph, family: Tensor, kept: Tensor, rate: float) -> None:
    """Raise if an operation needs labels that are not kept; name every layer that would have to be kept whole."""
    cut = [demand for demand in graph.all_demands() if not bool(kept[demand.labels].all())]
    if cut:
        dropped = torch.cat([demand.labels[~kept[demand.labels]] for demand in cut])
        dropped = torch.isin(family, family[dropped]).nonzero().flatten()
        first = kept[cut[0].labels]
        raise CutError(
            f"{cut[0].reason}; at rate {rate} only {int(first.sum())} of these {first.numel()} channels are fit"
            f"{_and_more(cut)}",
            sources(graph, set(dropped.tolist())),
        )


def _and_more(cut: list[Demand]) -> str:
    return f" (and {len(cut) - 1} more such places)" if len(cut) > 1 else ""


def sources(graph: ChannelGraph, labels: Collection[int]) -> list[str]:
    """Return the names of the weights whose layers made the labels."""
    return [
        weight
        for first, (weight, channels) in graph.origins.items()
        if any(first <= label < first + channels for label in labels)
    ]
