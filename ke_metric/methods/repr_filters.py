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
weights that read the channel are redrawn as `method.reset: official` draws them. Norm layers and
readers are left alone where the channel meets others, in a residual sum or a gate: the sum goes on without the
filter. A filter that comes back has the mean norm that its layer's filters had at the beginning of the generation.
Readers are redrawn in the public re-implementation too; what becomes of norm layers is ours.

Shapes: J filters of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import Weights, load_whole
from ke_metric.methods.filters import Reach, elsewhere, filters_of, most_redundant, most_redundant_count, reach_of
from ke_metric.methods.method import Birth, Method
from ke_metric.methods.redraw import redraw_where
from ke_metric.regime import Regime

SHARE = 0.3
# Optimizer state that carries a gradient on: of a dropped filter it would go on moving the one that takes its place.
MOMENTS = ("momentum_buffer", "exp_avg")
# What norm layers begin with.
NORM_STARTS = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


class RePr(Method):
    """Inherits everything; inside every generation filters are dropped and come back."""

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`."""
        assert birth.parent is not None, "generation 1 has no parent"
        load_whole(child, birth.parent, "the parent's weights")

    def regime(self, network: nn.Module, birth: Birth) -> Regime:
        """See `Method.regime`."""
        return FilterCycles(network, birth)


class FilterCycles(Regime):
    """Drops filters and brings them back.

    Args:
        network: The network.
        birth: The recipe's share, epochs and cycles; channels; random numbers.

    Raises:
        KeMetricError: The network has a single convolution, or too few filters for the share to be one of them, or
            its channels cannot be followed.
    """

    def __init__(self, network: nn.Module, birth: Birth) -> None:
        self._network, self._birth = network, birth
        self._channels = birth.channels()
        self._norms = {
            name: weight.detach().flatten(1).norm(dim=1).mean() for name, weight in filters_of(network).items()
        }
        filters = sum(len(weight) for weight in filters_of(network).values())
        if not most_redundant_count(filters, self._share):
            raise KeMetricError(
                f"method.share = {self._share}, of the {filters} filters of this network that is none",
                ExitCode.RECIPE,
            )
        # Weight name -> which filters are dropped, bool [J], and what they were, [dropped, ...].
        self._dropped: dict[str, Tensor] = {}
        self._old: dict[str, Tensor] = {}
        self._reach = Reach({}, {})
        self._held: list[tuple[nn.Parameter, Tensor]] = []

    def epoch_begins(self, epoch: int, optimizer: Optimizer) -> None:
        """Drop filters, or bring them back, where the schedule says so."""
        due = is_dropped(epoch, self._birth)
        if due and not self._dropped:
            self._drop(optimizer)
        elif not due and self._dropped:
            self._bring_back(epoch)

    def before_step(self) -> None:
        """Drop the gradients of what is dropped: neither clipping nor the optimizer's moments may count them."""
        for parameter, flags in self._held:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(flags, 0)

    def after_step(self) -> None:
        """Put what is dropped back to 0, whatever the optimizer does to a weight without gradient."""
        self._set_to_zero()

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
        self._set_to_zero()
        for parameter, flags in self._held:
            state = optimizer.state.get(parameter, {})
            for moment in MOMENTS:
                if moment in state:
                    state[moment].masked_fill_(flags, 0)

    def _set_to_zero(self) -> None:
        with torch.no_grad():
            for parameter, flags in self._held:
                parameter.masked_fill_(flags, 0)

    @property
    def _share(self) -> float:
        return SHARE if self._birth.recipe.share is None else self._birth.recipe.share

    def _hold(self) -> None:
        """Find everything that is dropped with the filters."""
        self._reach = reach_of(self._dropped, self._network, self._channels) if self._dropped else Reach({}, {})
        self._held = []
        for name, flags in self._dropped.items():
            weight = self._network.get_parameter(name)
            self._held.append((weight, flags.view(-1, *(1,) * (weight.ndim - 1))))
            bias = self._network.get_submodule(name.rpartition(".")[0]).bias
            if isinstance(bias, nn.Parameter):
                self._held.append((bias, flags))
        parameters = dict(self._network.named_parameters())
        for name, flags in self._reach.norms.items():
            if name in parameters:
                self._held.append((parameters[name], flags.to(parameters[name].device)))

    def _bring_back(self, epoch: int) -> None:
        network, birth = self._network, self._birth
        redraw_where(
            network, self._reach.readers, rule="official", generator=birth.generator(f"readers in epoch {epoch}")
        )
        tensors = network.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, flags in self._reach.norms.items():
                tensors[name].masked_fill_(flags.to(tensors[name].device), NORM_STARTS[name.rpartition(".")[2]])
            # After the readers: a filter that comes back is orthogonal to what the others are now.
            for name, flags in self._dropped.items():
                weight = tensors[name]
                rows = weight.flatten(1)
                generator = birth.generator(f"filters of {name} in epoch {epoch}")
                new = elsewhere(self._old[name].flatten(1).cpu(), rows[~flags].cpu(), generator)
                weight[flags] = (new.to(weight.device) * self._norms[name]).view(-1, *weight.shape[1:])
        self._dropped, self._old = {}, {}
        self._hold()


def is_dropped(epoch: int, birth: Birth) -> bool:
    """Whether filters are dropped in an epoch, counted from 1."""
    recipe = birth.recipe
    cycle, position = divmod(epoch - 1, recipe.full_epochs + recipe.dropped_epochs)
    return cycle < recipe.cycles and position >= recipe.full_epochs
