"""RePr: filters that overlap with others are dropped for some epochs, and come back pointing elsewhere.

Prakash, Storer, Florencio, Zhang: RePr: Improved Training of Convolutional Filters, CVPR 2019. Inside one training,
`cycles` times: `full_epochs` epochs of the full network; then the `share` of all filters that is most redundant is
set to 0 for `dropped_epochs` epochs, after which those filters are initialised anew, orthogonal to their old values
and to the filters of their layer that stayed, as long as a filter has entries enough for that. The rest of the epochs
trains the full network. Defaults 20, 10, 3 and 0.3 are those of the paper as its public re-implementations quote
them.

Redundancy of filter f in a layer of J filters, rows w_f of the weight flattened and L2-normalised:
O_f = (1 / J) sum_j |W W^T - I|[f, j]; large is redundant. All layers are ranked together, the first convolution,
whose filters see the picture, excluded (a remark of the authors).

What a dropped filter leaves behind is dropped with it: its bias, and the scale and shift of its channel in norm
layers, which would make a constant of it. They begin again at 0, 1 and 0, running statistics at 0 and 1, and the
weights that read the channel are redrawn as `method.reset: official` draws them. Norm layers and readers are left
alone where the channel meets others, in a residual sum or a gate: the sum goes on without the filter. A filter that
comes back has the mean norm that its layer's filters had at the beginning of the generation. Readers are redrawn in
the public re-implementation too; what becomes of norm layers is ours.

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
from torch.optim import Optimizer

from ke_metric.arrays import Weights
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.methods.forgetting import redraw_where
from ke_metric.methods.generations import Sparse
from ke_metric.methods.method import Inheritance, LineageMethod
from ke_metric.recipe.schema import Method
from ke_metric.split.graph import ALWAYS, ChannelGraph
from ke_metric.training.hooks import TrainingHooks

SHARE = 0.3
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# A share of a whole number of filters is that number, whatever rounding makes of the product.
ROUNDING = 1e-9
# Optimizer state that carries a gradient on: of a dropped filter it would go on moving the one that takes its place.
MOMENTS = ("momentum_buffer", "exp_avg")
# What norm layers begin with.
NORM_STARTS = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


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
    """Return O_f = (1 / J) sum_j |W W^T - I|[f, j] of every filter f of a weight [J, ...], [J]."""
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
    """Return where the output of chosen filters goes, weight name -> bool [J].

    Where it meets others, in a residual sum or a gate, the sum is not theirs: neither what reads it nor what
    normalises the channels that meet is part of the reach.
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


class RePr(LineageMethod):
    """Inherits everything; inside every generation filters are dropped and come back."""

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Load the parent."""
        inheritance.load_parent(child)

    def hooks(self, network: nn.Module, inheritance: Inheritance) -> TrainingHooks:
        """Return the cycles of the generation."""
        return FilterCycles(network, inheritance)


class FilterCycles(Sparse):
    """Drops filters and brings them back, in the cycles that the recipe asks for.

    Raises:
        KeMetricError: The network has a single convolution, or too few filters for the share to be one of them, or
            its channels cannot be followed.
    """

    def __init__(self, network: nn.Module, inheritance: Inheritance) -> None:
        super().__init__(network, {})
        self._inheritance = inheritance
        self._share = SHARE if inheritance.method.share is None else inheritance.method.share
        self._channels = inheritance.networks.channels()
        weights = filters_of(network)
        self._norms = {name: weight.detach().flatten(1).norm(dim=1).mean() for name, weight in weights.items()}
        filters = sum(len(weight) for weight in weights.values())
        if not most_redundant_count(filters, self._share):
            raise KeMetricError(
                f"method.share = {self._share}, of the {filters} filters of this network that is none",
                ExitCode.RECIPE,
            )
        # Weight name -> which filters are dropped, bool [J], and what they were, [dropped, ...].
        self._dropped: dict[str, Tensor] = {}
        self._old: dict[str, Tensor] = {}
        self._reach = Reach({}, {})

    def epoch_begins(self, epoch: int, optimizer: Optimizer) -> None:
        """Drop filters, or bring them back, where the schedule says so."""
        due = is_dropped(epoch, self._inheritance.method)
        if due and not self._dropped:
            self._drop(optimizer)
        elif not due and self._dropped:
            self._bring_back(epoch)

    def tensors(self) -> Weights:
        """Return which filters are dropped, what they were, and the norms that filters come back with."""
        kinds = {"norm": self._norms, "dropped": self._dropped, "old": self._old}
        return {
            f"{kind}/{name}": tensor.to("cpu", copy=True).contiguous()
            for kind, tensors in kinds.items()
            for name, tensor in tensors.items()
        }

    def restore(self, tensors: Weights) -> None:
        """Go on from what `tensors` returned.

        Raises:
            KeMetricError: These are not tensors of this network.
        """
        device = next(self._network.parameters()).device
        kinds: dict[str, dict[str, Tensor]] = {"norm": {}, "dropped": {}, "old": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            kinds[kind][name] = tensor.to(device)
        if kinds["norm"].keys() != self._norms.keys() or kinds["dropped"].keys() != kinds["old"].keys():
            raise KeMetricError("the state to resume from lacks what RePr keeps of its filters", ExitCode.LINEAGE)
        self._norms, self._dropped, self._old = kinds["norm"], kinds["dropped"], kinds["old"]
        self._hold()

    def _drop(self, optimizer: Optimizer) -> None:
        weights = {name: weight.detach() for name, weight in filters_of(self._network).items()}
        self._dropped = most_redundant(weights, self._share)
        self._old = {name: weights[name][flags] for name, flags in self._dropped.items()}
        self._hold()
        self.set_to_zero()
        for name, flags in self._zeros.items():
            state = optimizer.state.get(self._network.get_parameter(name), {})
            for moment in MOMENTS:
                if moment in state:
                    state[moment].masked_fill_(flags, 0)

    def _hold(self) -> None:
        """Find everything that is dropped with the filters."""
        self._reach = reach_of(self._dropped, self._network, self._channels) if self._dropped else Reach({}, {})
        parameters = dict(self._network.named_parameters())
        self._zeros = {
            name: flags.to(parameters[name].device) for name, flags in self._reach.norms.items() if name in parameters
        }
        for name, flags in self._dropped.items():
            self._zeros[name] = flags.view(-1, *(1,) * (self._network.get_parameter(name).ndim - 1))
            module = name.rpartition(".")[0]
            if isinstance(self._network.get_submodule(module).bias, nn.Parameter):
                self._zeros[f"{module}.bias"] = flags

    def _bring_back(self, epoch: int) -> None:
        generator = self._inheritance.generator(f"readers in epoch {epoch}")
        redraw_where(self._network, self._reach.readers, rule="official", generator=generator)
        tensors = self._network.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, flags in self._reach.norms.items():
                tensors[name].masked_fill_(flags.to(tensors[name].device), NORM_STARTS[name.rpartition(".")[2]])
            # After the readers: a filter that comes back is orthogonal to what the others are now.
            for name, flags in self._dropped.items():
                weight = tensors[name]
                rows = weight.flatten(1)
                generator = self._inheritance.generator(f"filters of {name} in epoch {epoch}")
                new = elsewhere(self._old[name].flatten(1).cpu(), rows[~flags].cpu(), generator)
                weight[flags] = (new.to(weight.device) * self._norms[name]).view(-1, *weight.shape[1:])
        self._dropped, self._old = {}, {}
        self._hold()


def is_dropped(epoch: int, recipe: Method) -> bool:
    """Whether filters are dropped in an epoch, counted from 1."""
    cycle, position = divmod(epoch - 1, recipe.full_epochs + recipe.dropped_epochs)
    return cycle < recipe.cycles and position >= recipe.full_epochs
