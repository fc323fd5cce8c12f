"""Published methods whose step is the generation: Born-Again, Dense-Sparse-Dense, layer-wise re-initialisation.

How Taha et al. set up the first two, and divided epochs among phases, for their tables is not published.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ke_metric.methods.forgetting import unit_starts
from ke_metric.methods.method import Inheritance, LineageMethod, taught
from ke_metric.recipe.schema import Method
from ke_metric.split.wels import multiplicative_weights
from ke_metric.training.hooks import TrainingHooks

# Share of a layer's weights that Dense-Sparse-Dense holds at 0 when the recipe names none: the paper's for ResNets,
# where it uses 25 to 50 %.
SHARE = 0.3
# Learning rate of its later dense phases over the recipe's, as in the paper.
DENSE_AGAIN_FACTOR = 0.1


class BornAgain(LineageMethod):
    """Born-Again Networks: a student from new random weights, its parent the teacher.

    Furlanello, Lipton, Tschannen, Itti, Anandkumar: Born Again Neural Networks, ICML 2018. Generation k learns from
    CE(y, z_k) + CE(softmax(z_(k-1)), softmax(z_k)), equally weighted, T = 1; the teacher is frozen, in eval mode, and
    sees the same augmented views. No weight is inherited. N_10 is the tenth network of the chain.
    """

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Leave the child as it was built."""

    def hooks(self, network: nn.Module, inheritance: Inheritance) -> TrainingHooks:
        """Return the teacher; its weight is 1 unless the recipe names another."""
        return taught(inheritance, least=1.0)


class DenseSparseDense(LineageMethod):
    """Inherits everything; in even generations the smallest weights become 0 and stay 0.

    Han et al.: DSD: Dense-Sparse-Dense Training for Deep Neural Networks, ICLR 2017. A phase is a generation, and has
    the recipe's epochs:

    - generation 1, dense: a plain training;
    - even generations, sparse: in every layer the `share` of the weights that is smallest in absolute value is set to
      0 and stays there, the others train on; the mask is fixed when the phase begins;
    - odd generations from 3 on, dense again: every weight trains, those that were 0 from 0, at a tenth of the
      learning rate. The paper finds that a second pair of phases can help further.
    """

    def check(self, network: nn.Module, recipe: Method) -> None:
        """Refuse a network with a weight that no rule covers."""
        multiplicative_weights(network)

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Load the parent; in an even generation, set its smallest weights to 0."""
        inheritance.load_parent(child)
        if _is_sparse(inheritance):
            Sparse(child, _smallest_of(child, inheritance)).set_to_zero()

    def hooks(self, network: nn.Module, inheritance: Inheritance) -> TrainingHooks:
        """Return the phase of the generation."""
        if inheritance.parent is None:
            return TrainingHooks()
        return Sparse(network, _smallest_of(network, inheritance)) if _is_sparse(inheritance) else DenseAgain()


class Sparse(TrainingHooks):
    """Holds entries of some parameters at 0.

    Args:
        network: The network.
        zeros: Parameter name -> bool tensor of its shape, or one that broadcasts to it, True where it is held.
    """

    def __init__(self, network: nn.Module, zeros: Mapping[str, Tensor]) -> None:
        self._network = network
        self._zeros = {name: flags.to(network.get_parameter(name).device) for name, flags in zeros.items()}

    def before_step(self) -> None:
        """Drop the gradients of what is held: neither clipping nor the optimizer's moments may count them."""
        for name, flags in self._zeros.items():
            gradient = self._network.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(flags, 0)

    def after_step(self) -> None:
        """Put what is held back to 0, whatever the optimizer does to a weight without gradient."""
        self.set_to_zero()

    def set_to_zero(self) -> None:
        """Set what is held to 0."""
        with torch.no_grad():
            for name, flags in self._zeros.items():
                self._network.get_parameter(name).masked_fill_(flags, 0)


class DenseAgain(TrainingHooks):
    """A tenth of the learning rate, as in the paper."""

    learning_rate_factor = DENSE_AGAIN_FACTOR


def smallest(weight: Tensor, share: float) -> Tensor:
    """Return which entries of a weight are the round(share x entries) smallest ones in absolute value, bool."""
    flags = torch.zeros(weight.numel(), dtype=torch.bool)
    flags[torch.argsort(weight.detach().abs().flatten(), stable=True)[: round(share * weight.numel())]] = True
    return flags.view(weight.shape)


def _is_sparse(inheritance: Inheritance) -> bool:
    return inheritance.number % 2 == 0


def _smallest_of(network: nn.Module, inheritance: Inheritance) -> dict[str, Tensor]:
    """Return which of its parent's weights a network holds at 0: the same ones whenever it is asked."""
    share = SHARE if inheritance.method.share is None else inheritance.method.share
    return {name: smallest(inheritance.parent_weights[name], share) for name in multiplicative_weights(network)}


class LayerWise(LineageMethod):
    """Inherits the lower units, rescaled; `method.layers` names where units begin, every layer is one when empty.

    Alabdulmohsin, Maennel, Keysers: The Impact of Reinitialization on Generalization in Convolutional Neural
    Networks, 2021 (arXiv 2109.00267). The network is cut into K units from the bottom up. In generation g the first k
    units, and whatever comes before the first one, keep their directions, rescaled to the norms they were initialised
    with, and everything above is initialised anew. As in the re-implementation of Zhou et al. (ICLR 2022) the K units
    are gone through in the G generations of the lineage, k = floor((g - 1) * K / G), and both rules are those of all
    parameters, norms and biases included: one whose first norm was 0, such as a bias, goes back to 0. Running
    statistics are inherited. Their K is 9 for ResNet18: its eight blocks and the classifier.

    Left out: the paper also puts a normalisation with fixed statistics after unit k. That would change the
    architecture from one generation to the next, and networks with batch norm have one there.
    """

    def check(self, network: nn.Module, recipe: Method) -> None:
        """Refuse a layer that the network does not have."""
        units(network, recipe)

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Load the parent, rescale its lower units and put the child's own weights back above them."""
        starts = units(child, inheritance.method)
        first = starts[(inheritance.number - 1) * len(starts) // inheritance.generations]
        fresh = [parameter.detach().clone() for parameter in child.parameters()]
        inheritance.load_parent(child)
        initial = inheritance.networks.build(1, load_pretrained=True)
        with torch.no_grad():
            for index, (parameter, begun) in enumerate(zip(child.parameters(), initial.parameters(), strict=True)):
                parameter.copy_(fresh[index] if index >= first else rescaled(parameter, begun.norm()))


def units(network: nn.Module, recipe: Method) -> list[int]:
    """Return the number of the first parameter of every unit, ascending.

    Raises:
        KeMetricError: The network has no such layer.
    """
    names = [name for name, _ in network.named_parameters()]
    if recipe.layers:
        return unit_starts(names, recipe.layers)
    return [names.index(name) for name in multiplicative_weights(network)]


def rescaled(values: Tensor, norm: Tensor) -> Tensor:
    """Return values in their own direction with another norm; zeros, which have none, as they are."""
    own = values.norm()
    return values * (norm / own) if own > 0 else values
