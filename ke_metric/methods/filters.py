"""Filters of convolutions: which ones overlap with the others of their layer, and what does not overlap with them.

Shapes: J filters of a layer, M entries of a filter, N of the filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.graph import ChannelGraph
from ke_metric.split.labels import ALWAYS

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# A share of a whole number of filters is that number, whatever rounding makes of the product.
ROUNDING = 1e-9


def filters_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of all convolutions but the first, name -> [J, ...].

    Transposed ones, whose filters are columns, are left out, and heads that are convolutions without a kernel.

    Raises:
        KeMetricError: There are none.
    """
    convolutions = [
        name
        for name, module in network.named_modules()
        if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) and module.weight.ndim > 2
    ]
    if len(convolutions) < 2:
        raise KeMetricError(
            "method.name = 'repr', drops filters of convolutions after the first one, and the network has none",
            ExitCode.RECIPE,
        )
    return {f"{name}.weight": network.get_parameter(f"{name}.weight") for name in convolutions[1:]}


def redundancy(weight: Tensor) -> Tensor:
    """Return O_f = (1 / J) sum_j |W W^T - I|[f, j] of every filter f, [J].

    Args:
        weight: [J, ...]; W are its rows, flattened and L2-normalised.
    """
    rows = normalize(weight.flatten(1).float(), dim=1)
    identity = torch.eye(len(rows), device=rows.device)
    return (rows @ rows.T - identity).abs().mean(dim=1)


def most_redundant(weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the floor(share x filters) most redundant filters of all layers together, name -> bool [J].

    Layers of which none is chosen are not in it; of equals the earlier ones are chosen.
    """
    scores = [redundancy(weight) for weight in weights.values()]
    flat = torch.cat(scores)
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    count = most_redundant_count(len(flat), share)
    chosen[torch.argsort(flat, descending=True, stable=True)[:count]] = True
    parts = torch.split(chosen, [len(each) for each in scores])
    return {name: part for name, part in zip(weights, parts, strict=True) if bool(part.any())}


def most_redundant_count(filters: int, share: float) -> int:
    """Return floor(share x filters)."""
    return int(share * filters + ROUNDING)


def elsewhere(old: Tensor, staying: Tensor, generator: torch.Generator) -> Tensor:
    """Return unit filters [N, M] that point where neither the filters that stay nor those they replace point.

    Args:
        old: What they replace, [N, M].
        staying: The other filters of the layer, [K, M].
        generator: CPU generator of the random directions.

    Returns:
        Where there is room, M >= K + 2 N, filters that are orthogonal to all staying ones, to all old ones and to
        each other. Where there is less, as much of that as a filter can have for itself: orthogonal to the staying
        ones if M > K, and to the one it replaces if a direction is left for that.
    """
    count, size = old.shape
    old, staying = old.double(), staying.double()
    directions = torch.randn(count, size, generator=generator).double()
    if len(staying) + 2 * count <= size:
        return _basis(torch.cat([staying, old, directions])).T[-count:].float()
    basis = _basis(staying) if len(staying) < size else directions.new_zeros(size, 0)
    if size - basis.shape[1] > 1:
        own = normalize(_without(old, basis), dim=1)
        directions = directions - (directions * own).sum(dim=1, keepdim=True) * own
    return normalize(_without(directions, basis), dim=1).float()


def _basis(rows: Tensor) -> Tensor:
    """Return orthonormal columns [M, K] of which the first n span what the first n rows [K, M] span, or more."""
    basis: Tensor = torch.linalg.qr(rows.T)[0]
    return basis


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    """Return rows [N, M] less their part in the space of a basis [M, K]; twice, for what rounding leaves."""
    for _ in range(2):
        rows = rows - rows @ basis @ basis.T
    return rows


@dataclass(frozen=True)
class Reach:
    """Where the output of some filters goes, and nothing else with it.

    Attributes:
        norms: Name of a parameter or statistic of a norm -> its channels, bool [channels].
        readers: Name of a weight that reads the output -> the entries that do, bool of its shape.
    """

    norms: Mapping[str, Tensor]
    readers: Mapping[str, Tensor]


def reach_of(chosen: Mapping[str, Tensor], network: nn.Module, graph: ChannelGraph) -> Reach:
    """Return where the output of filters goes.

    Where it meets others, in a residual sum or a gate, the sum is not theirs: neither what reads it nor what
    normalises the channels that meet is part of the reach.

    Args:
        chosen: Weight name -> which filters, bool [J].
        network: The network.
        graph: Its channels.
    """
    labels = torch.cat([graph.layers[name].outputs[flags.cpu()] for name, flags in chosen.items()])
    met = torch.cat([torch.tensor([ALWAYS]), *(pairs.flatten() for pairs in graph.ties)])
    labels = labels[~torch.isin(labels, met)]
    norms = {
        name: torch.isin(follower.labels, labels)
        for name, follower in graph.followers.items()
        if isinstance(network.get_submodule(name.rpartition(".")[0]), NORMS)
    }
    readers = {}
    for name, layer in graph.layers.items():
        flags = torch.isin(layer.inputs, labels)
        aligned = [1] * len(layer.shape)
        aligned[0 if layer.transposed else 1] = -1
        readers[name] = flags.view(aligned).expand(layer.shape)
    return Reach(
        {name: flags for name, flags in norms.items() if bool(flags.any())},
        {name: flags for name, flags in readers.items() if bool(flags.any())},
    )
