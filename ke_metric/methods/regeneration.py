"""Dynamic Neural Regeneration: the least salient weights are redrawn, found anew in every generation.

Ramakrishnan and others: Dynamic Neural Regeneration, NeurIPS 2024 (DNR). After each generation every weight gets the
saliency |w * g|, g its gradient accumulated in absolute value over mini-batches, the network in eval mode (SNIP: Lee
et al., ICLR 2019); the `share` of all weights that is least salient, 20 % as in the paper, over all layers together,
is redrawn, the others are inherited.

Their released code cannot run this method (names it uses are defined nowhere), so this follows the paper. Their
threshold also counts norm parameters, which are never redrawn; ours counts the weights that can be redrawn, so that
the share is exact. Shortcut convolutions, which their code skips by name, count as any other.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ke_metric.generation import load_whole
from ke_metric.methods.forgetting import redraw_where
from ke_metric.methods.method import Birth, Method
from ke_metric.methods.teacher import guidance
from ke_metric.recipe.schema import Method as MethodRecipe
from ke_metric.split.wels import multiplicative_weights
from ke_metric.training.hooks import TrainingHooks

SHARE = 0.2


class NeuralRegeneration(Method):
    """Inherits the salient weights and redraws the others by `method.reset`."""

    def check(self, network: nn.Module, recipe: MethodRecipe) -> None:
        """See `Method.check`."""
        multiplicative_weights(network)

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`."""
        assert birth.parent is not None, "generation 1 has no parent"
        load_whole(child, birth.parent, "the parent's weights")
        gradients = birth.gradients()
        weights = multiplicative_weights(child)
        saliency = {name: weight.detach().abs() * gradients[name] for name, weight in weights.items()}
        redraw_where(
            child,
            least_salient(saliency, share_of(birth)),
            rule=birth.recipe.reset,
            generator=birth.generator("reset"),
            fresh=birth.fresh(),
        )

    def hooks(self, network: nn.Module, birth: Birth) -> TrainingHooks:
        """See `Method.hooks`; the parent teaches where the recipe asks for it."""
        return guidance(birth)


def share_of(birth: Birth) -> float:
    """Return the share of weights that a generation redraws; with `final_share` it changes in equal steps."""
    recipe = birth.recipe
    first = SHARE if recipe.share is None else recipe.share
    if recipe.final_share is None:
        return first
    progress = (birth.number - 2) / (birth.generations - 2)
    return first + (recipe.final_share - first) * progress


def least_salient(saliency: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the entries that belong to the least salient ones: exactly round(share x entries) of all together.

    Args:
        saliency: Weight name -> saliency of its entries.
        share: Share of all entries.

    Returns:
        Weight name -> bool tensor of its shape; of equals the earlier ones in the order of names and entries.
    """
    flat = torch.cat([values.flatten() for values in saliency.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[torch.argsort(flat, stable=True)[: round(share * len(flat))]] = True
    parts = torch.split(chosen, [values.numel() for values in saliency.values()])
    return {name: part.view(saliency[name].shape) for name, part in zip(saliency, parts, strict=True)}
