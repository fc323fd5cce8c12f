"""Dense-Sparse-Dense training: small weights are held at zero for a while, then train again from zero.

Han et al.: DSD: Dense-Sparse-Dense Training for Deep Neural Networks, ICLR 2017. A phase is a generation:

- generation 1, dense: a plain training;
- even generations, sparse: in every layer the `share` of the weights that is smallest in absolute value is set to 0
  and stays there, the others train on; the mask is fixed when the phase begins;
- odd generations from 3 on, dense again: every weight trains, those that were 0 from 0, at a tenth of the learning
  rate. The paper finds that a second pair of phases can help further.

The share is 0.3 when the recipe names none, as in the paper for ResNets (it uses 25 to 50 %). How Taha et al. divided
the epochs among the phases for their tables is not published; here every phase has the recipe's epochs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ke_metric.generation import load_whole
from ke_metric.methods.method import Birth, Method
from ke_metric.recipe.schema import Method as MethodRecipe
from ke_metric.split.wels import multiplicative_weights
from ke_metric.training.hooks import TrainingHooks

SHARE = 0.3
DENSE_AGAIN_FACTOR = 0.1


class DenseSparseDense(Method):
    """Inherits everything; in even generations the smallest weights become 0 and stay 0."""

    def check(self, network: nn.Module, recipe: MethodRecipe) -> None:
        """See `Method.check`."""
        multiplicative_weights(network)

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`."""
        assert birth.parent is not None, "generation 1 has no parent"
        load_whole(child, birth.parent, "the parent's weights")
        if _is_sparse(birth):
            _hold_at_zero(child, _smallest_of(child, birth))

    def hooks(self, network: nn.Module, birth: Birth) -> TrainingHooks:
        """See `Method.hooks`."""
        if birth.parent is None:
            return TrainingHooks()
        return Sparse(network, _smallest_of(network, birth)) if _is_sparse(birth) else DenseAgain()


class Sparse(TrainingHooks):
    """Holds some weights at 0.

    Args:
        network: The network.
        zeros: Weight name -> bool tensor of its shape, True where it is held.
    """

    def __init__(self, network: nn.Module, zeros: Mapping[str, Tensor]) -> None:
        self._network = network
        self._zeros = {name: flags.to(network.get_parameter(name).device) for name, flags in zeros.items()}

    def before_step(self) -> None:
        """Drop the gradients of the held weights: neither clipping nor the optimizer's moments may count them."""
        for name, flags in self._zeros.items():
            gradient = self._network.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(flags, 0)

    def after_step(self) -> None:
        """Put the held weights back to 0, whatever the optimizer does to a weight without gradient."""
        _hold_at_zero(self._network, self._zeros)


class DenseAgain(TrainingHooks):
    """A tenth of the learning rate, as in the paper."""

    learning_rate_factor = DENSE_AGAIN_FACTOR


def smallest(weight: Tensor, share: float) -> Tensor:
    """Return which entries of a weight are the round(share x entries) smallest ones in absolute value, bool."""
    flags = torch.zeros(weight.numel(), dtype=torch.bool)
    flags[torch.argsort(weight.detach().abs().flatten(), stable=True)[: round(share * weight.numel())]] = True
    return flags.view(weight.shape)


def _is_sparse(birth: Birth) -> bool:
    return birth.number % 2 == 0


def _smallest_of(network: nn.Module, birth: Birth) -> dict[str, Tensor]:
    """Return which of its parent's weights a network holds at 0: the same ones whenever it is asked."""
    assert birth.parent is not None, "generation 1 is dense"
    share = SHARE if birth.recipe.share is None else birth.recipe.share
    return {name: smallest(birth.parent[name], share) for name in multiplicative_weights(network)}


def _hold_at_zero(network: nn.Module, zeros: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, flags in zeros.items():
            network.get_parameter(name).masked_fill_(flags, 0)
