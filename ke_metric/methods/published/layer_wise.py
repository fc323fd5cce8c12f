"""Layer-wise re-initialisation: generation after generation, one more block from below keeps what it has learned.

Alabdulmohsin, Maennel, Keysers: The Impact of Reinitialization on Generalization in Convolutional Neural Networks,
2021 (arXiv 2109.00267). The network is cut into K units from the bottom up. In generation g the first k units, and
whatever comes before the first one, keep their directions, rescaled to the norms they were initialised with, and
everything above is initialised anew. As in the re-implementation of Zhou et al. (ICLR 2022) the K units are gone
through in the G generations of the lineage, k = floor((g - 1) * K / G), and both rules are those of all parameters,
norms and biases included: one whose first norm was 0, such as a bias, goes back to 0. Running statistics are
inherited. Their K is 9 for ResNet18: its eight blocks and the classifier.

Left out: the paper also puts a normalisation with fixed statistics after unit k. That would change the architecture
from one generation to the next, and networks with batch norm have one there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ke_metric.generation import load_whole
from ke_metric.methods.forgetting import unit_starts
from ke_metric.methods.method import Birth, Method
from ke_metric.methods.teacher import guidance
from ke_metric.recipe.schema import Method as MethodRecipe
from ke_metric.split.wels import multiplicative_weights
from ke_metric.training.hooks import TrainingHooks


class LayerWise(Method):
    """Inherits the lower units, rescaled; `method.layers` names where units begin, every layer is one when empty."""

    def check(self, network: nn.Module, recipe: MethodRecipe) -> None:
        """See `Method.check`."""
        units(network, recipe)

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`."""
        assert birth.parent is not None, "generation 1 has no parent"
        starts = units(child, birth.recipe)
        first = starts[(birth.number - 1) * len(starts) // birth.generations]
        fresh = [parameter.detach().clone() for parameter in child.parameters()]
        load_whole(child, birth.parent, "the parent's weights")
        origin = birth.build(1)
        with torch.no_grad():
            for index, (parameter, begun) in enumerate(zip(child.parameters(), origin.parameters(), strict=True)):
                parameter.copy_(fresh[index] if index >= first else rescaled(parameter, begun.norm()))

    def hooks(self, network: nn.Module, birth: Birth) -> TrainingHooks:
        """See `Method.hooks`; the parent teaches where the recipe asks for it."""
        return guidance(birth)


def units(network: nn.Module, recipe: MethodRecipe) -> list[int]:
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
