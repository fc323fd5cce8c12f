"""KELS, kernel-level convolutional-aware splitting: decides which channels of a network are fit.

Taha, Shrivastava, Davis: Knowledge Evolution in Neural Networks, CVPR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.graph import ChannelGraph, Demand
from ke_metric.split.labels import ALWAYS


def prefix(rate: float, channels: int) -> int:
    """Return how many of a layer's channels are fit: ceil(rate x channels).

    The product is lowered by 1e-9, so that 0.55 of 100 channels is 55: in floats it is 55.000000000000007.
    """
    return math.ceil(rate * channels - 1e-9)


def fit_labels(graph: ChannelGraph, rate: float, keep_whole: Collection[str] = ()) -> Tensor:
    """Return for every label of a network whether its channel is fit, bool [graph.labels].

    Every layer keeps a prefix of its output channels. Channels that are tied are kept where all of them are in
    their layer's prefix, and always where one of them can never be dropped.

    Args:
        graph: The network's channels.
        rate: Split rate in (0, 1].
        keep_whole: Names of weights whose layers keep all of their outputs.

    Raises:
        KeMetricError: An operation needs channels that would be dropped, or a layer would lose all of its channels.
    """
    ties = torch.cat([*graph.ties, torch.empty(2, 0, dtype=torch.int64, device="cpu")], dim=1)
    ties = torch.cat([ties, ties.flip(0)], dim=1)
    prefixes = torch.zeros(graph.labels, dtype=torch.uint8, device="cpu")
    whole = torch.zeros_like(prefixes)
    prefixes[ALWAYS] = whole[ALWAYS] = 1
    for first, (_, channels) in graph.origins.items():
        prefixes[first : first + prefix(rate, channels)] = 1
    for name, layer in graph.layers.items():
        if name in keep_whole:
            whole[layer.outputs] = 1
    kept = (_spread(prefixes, ties, "amin") | _spread(whole, ties, "amax")).bool()
    _refuse_cut(graph, kept, rate)
    _refuse_empty(graph, kept, rate)
    return kept


def _spread(flags: Tensor, ties: Tensor, reduce: str) -> Tensor:
    """Give tied labels the smallest (`amin`) or largest (`amax`) flag of all labels they are tied to."""
    while True:
        spread = flags.scatter_reduce(0, ties[0], flags[ties[1]], reduce)
        if torch.equal(spread, flags):
            return flags
        flags = spread


def _refuse_cut(graph: ChannelGraph, kept: Tensor, rate: float) -> None:
    """Raise if an operation needs labels that are not kept; name every layer that would have to be kept whole."""
    cut = [demand for demand in graph.all_demands() if not _is_met(demand, kept)]
    if cut:
        dropped = {label for demand in cut for label in demand.labels[~kept[demand.labels]].tolist()}
        first = kept[cut[0].labels]
        others = f" (and {len(cut) - 1} more such places)" if len(cut) > 1 else ""
        raise KeMetricError(
            f"{cut[0].reason}; at rate {rate} only {int(first.sum())} of these {first.numel()} channels are fit"
            f"{others}. Leave the layers they come from whole (keep_whole={_sources(graph, dropped)}), or split "
            "single weights (kind='wels')",
            ExitCode.RECIPE,
        )


def _is_met(demand: Demand, kept: Tensor) -> bool:
    rows = kept[demand.labels]
    whole = rows.all(dim=1)
    return bool((whole | ~rows.any(dim=1) if demand.droppable else whole).all())


def _sources(graph: ChannelGraph, labels: Collection[int]) -> list[str]:
    """Return the modules whose layers made the labels."""
    weights = {
        weight: None
        for first, (weight, channels) in graph.origins.items()
        if any(first <= label < first + channels for label in labels)
    }
    return [weight.rpartition(".")[0] for weight in weights]


def _refuse_empty(graph: ChannelGraph, kept: Tensor, rate: float) -> None:
    for name, layer in graph.layers.items():
        if not bool(kept[layer.outputs].any()):
            raise KeMetricError(
                f"{name} would keep none of its {layer.shape[0]} output channels at rate {rate}: the channels they "
                f"are added to or multiplied with are dropped; keep_whole=[{name.rpartition('.')[0]!r}] keeps both",
                ExitCode.RECIPE,
            )
