"""Knowledge Evolution, and its controls: no reset, no parent, a weaker reset, and slim networks.

Taha, Shrivastava, Davis: Knowledge Evolution in Neural Networks, CVPR 2021 (arXiv 2103.05152). For every layer,
W <- M * W + (1 - M) * R with the split mask M and R drawn anew in each generation: the child inherits its parent's
fit hypothesis and draws a new reset hypothesis; norm layers (affine and running statistics) and biases are inherited
whole.

The long baseline, one training with as many epochs as all generations together, needs no method: it is a recipe with
`generations: 1` and `training.epochs` multiplied.
"""

from __future__ import annotations

import torch
from torch import nn

from ke_metric.methods.method import Inheritance, LineageMethod, taught
from ke_metric.recipe.schema import Method
from ke_metric.split.hypotheses import extract_slim, redraw_reset
from ke_metric.split.wels import multiplicative_weights
from ke_metric.training.hooks import TrainingHooks


class KnowledgeEvolution(LineageMethod):
    """Inherits the fit hypothesis of the lineage's split plan and redraws the reset hypothesis by `method.reset`."""

    redraws_by_plan = True

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Load the parent and redraw the reset hypothesis."""
        inheritance.load_parent(child)
        redraw_reset(
            child,
            inheritance.plan,
            generator=inheritance.generator("reset"),
            init=inheritance.reset,
            fresh=inheritance.fresh(),
        )


class Restarts(LineageMethod):
    """Inherits everything: the learning rate starts again, no weight of the network is redrawn.

    Separates what a reset does from what restarting the schedule does (warm restarts: Loshchilov and Hutter, ICLR
    2017; the control `--no_reset` of Zhou et al., ICLR 2022). A loss's own parameters begin anew, as in the methods
    that it is compared with, unless `method.reset_loss` is false.
    """

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Load the parent."""
        inheritance.load_parent(child)


class Repeats(LineageMethod):
    """Inherits nothing: every generation is a training from new random weights. Their spread is that of the seed."""

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Leave the child as it was built."""


class ShrinkAndPerturb(LineageMethod):
    """Inherits every weight shrunk, and noise added: W <- shrink * W + perturb * R.

    Ash and Adams: On Warm-Starting Neural Network Training, NeurIPS 2020. R are the weights of a newly built network,
    so that noise has each layer's own scale. Norm layers and biases are inherited as they are. Defaults, 0.4 and 0.1,
    are ours: the paper tunes the shrinking and finds a small perturbation enough.
    """

    def check(self, network: nn.Module, recipe: Method) -> None:
        """Refuse a network with a weight that no rule covers."""
        multiplicative_weights(network)

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Load the parent, shrink it and add the child's own weights."""
        noise = {name: weight.detach().clone() for name, weight in multiplicative_weights(child).items()}
        inheritance.load_parent(child)
        method = inheritance.method
        with torch.no_grad():
            for name, weight in multiplicative_weights(child).items():
                weight.mul_(method.shrink).add_(noise[name], alpha=method.perturb)


class SlimAlone(Restarts):
    """Trains the slim network's architecture alone, from the slim part of the dense network's first weights.

    What a fit hypothesis must beat: a small network trained plainly. With one generation and the epochs of all; more
    generations are restarts. That its network is the slim one is a rule of the recipe (`Recipe.trains_slim`).
    """


class SlimLast(LineageMethod):
    """Inherits the fit hypothesis and is nothing else, its parent the teacher (`method.slim_last`).

    It stands in for the recipe's method in the last generation. What pruning calls fine-tuning (Han et al., NeurIPS
    2015), with the teacher of Hinton, Vinyals, Dean (2015); for retrieval with the similarities of `Guided`.
    Ours. `extract_slim` throws the reset hypothesis away, and with it what the dense network knew through it; here
    the slim network learns it before it goes.
    """

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Load the parent's slim network into the child, which is as wide."""
        slim = extract_slim(*inheritance.parent_network(as_inherited=True))
        child.load_state_dict(slim.state_dict(), strict=True)

    def hooks(self, network: nn.Module, inheritance: Inheritance) -> TrainingHooks:
        """Return the teacher; its weight is 1 unless the recipe names another."""
        return taught(inheritance, least=1.0)
