"""Controls: what generations give without a reset, without a parent, and with a weaker reset.

The long baseline, one training with as many epochs as all generations together, needs no method: it is a recipe with
`generations: 1` and `training.epochs` multiplied.

The last generation as a slim network: cut out of its parent, trained on, its parent the teacher.

What pruning calls fine-tuning (Han et al., NeurIPS 2015), with the teacher of Hinton, Vinyals, Dean (2015); for
retrieval with the similarities of `teacher.py`. Ours. `extract_slim` throws the reset hypothesis away, and with it
what the dense network knew through it; here the slim network learns it before it goes.
"""

from __future__ import annotations

import torch
from torch import nn

from ke_metric.generation import load_whole
from ke_metric.methods.knowledge_evolution import with_fit_steps
from ke_metric.methods.method import Birth, Method
from ke_metric.methods.teacher import guidance, taught_by_parent
from ke_metric.recipe.schema import Method as MethodRecipe
from ke_metric.split.plan import SplitPlan
from ke_metric.split.slim import extract_slim
from ke_metric.split.wels import multiplicative_weights
from ke_metric.training.hooks import TrainingHooks


class Restarts(Method):
    """Inherits everything: the learning rate starts again, no weight of the network is redrawn.

    Separates what a reset does from what restarting the schedule does (warm restarts: Loshchilov and Hutter, ICLR
    2017; the control `--no_reset` of Zhou et al., ICLR 2022). A loss's own parameters begin anew, as in the methods
    that it is compared with, unless `method.reset_loss` is false.
    """

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`."""
        assert birth.parent is not None, "generation 1 has no parent"
        load_whole(child, birth.parent, "the parent's weights")

    def hooks(self, network: nn.Module, birth: Birth) -> TrainingHooks:
        """See `Method.hooks`; a teacher and steps of the fit hypothesis alone where the recipe asks for them."""
        return with_fit_steps(guidance(birth), network, birth)


class Repeats(Method):
    """Inherits nothing: every generation is a training from new random weights. Their spread is that of the seed."""

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`."""


class ShrinkAndPerturb(Method):
    """Inherits every weight shrunk, and noise added: W <- shrink * W + perturb * R.

    Ash and Adams: On Warm-Starting Neural Network Training, NeurIPS 2020. R are the weights of a newly built network,
    so that noise has each layer's own scale. Norm layers and biases are inherited as they are. Defaults, 0.4 and 0.1,
    are ours: the paper tunes the shrinking and finds a small perturbation enough.
    """

    def check(self, network: nn.Module, recipe: MethodRecipe) -> None:
        """See `Method.check`."""
        multiplicative_weights(network)

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`."""
        assert birth.parent is not None, "generation 1 has no parent"
        noise = {name: weight.detach().clone() for name, weight in multiplicative_weights(child).items()}
        load_whole(child, birth.parent, "the parent's weights")
        with torch.no_grad():
            for name, weight in multiplicative_weights(child).items():
                weight.mul_(birth.recipe.shrink).add_(noise[name], alpha=birth.recipe.perturb)

    def hooks(self, network: nn.Module, birth: Birth) -> TrainingHooks:
        """See `Method.hooks`; the parent teaches where the recipe asks for it."""
        return guidance(birth)


class SlimAlone(Restarts):
    """Trains the slim network's architecture alone, from the slim part of the dense network's first weights.

    What a fit hypothesis must beat: a small network trained plainly. With one generation and the epochs of all; more
    generations are restarts.
    """

    changes_architecture = True

    def architecture(self, network: nn.Module, plan: SplitPlan) -> nn.Module:
        """Return the slim network.

        Raises:
            KeMetricError: The plan is one of single weights.
        """
        return extract_slim(network, plan)


class SlimLast(Method):
    """Inherits the fit hypothesis and is nothing else; stands in for a recipe's method in the last generation.

    With `method.slim_last`; its parent is the generation before, grown by the recipe's method.
    """

    changes_architecture = True

    def architecture(self, network: nn.Module, plan: SplitPlan) -> nn.Module:
        """Return the slim network.

        Raises:
            KeMetricError: The plan is one of single weights.
        """
        return extract_slim(network, plan)

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`; the child is as wide as the slim network."""
        assert birth.parent_plan is not None, "generation 1 has no parent"
        slim = extract_slim(birth.parent_network(), birth.parent_plan)
        child.load_state_dict(slim.state_dict(), strict=True)

    def hooks(self, network: nn.Module, birth: Birth) -> TrainingHooks:
        """Return the teacher's hooks; a weight of 1 unless the recipe names another."""
        return taught_by_parent(birth)
