"""Knowledge Evolution, and its controls: no reset, no parent, a weaker reset, and slim networks.

Taha, Shrivastava, Davis: Knowledge Evolution in Neural Networks, CVPR 2021 (arXiv 2103.05152). For every layer,
W <- M * W + (1 - M) * R with the split mask M and R drawn anew in each generation: the child inherits its parent's
fit hypothesis and draws a new reset hypothesis; norm layers (affine and running statistics) and biases are inherited
whole. While it trains, the fit hypothesis may compute alone in some steps.

The long baseline, one training with as many epochs as all generations together, needs no method: it is a recipe with
`generations: 1` and `training.epochs` multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ke_metric.arrays import Weights
from ke_metric.methods.method import Inheritance, LineageMethod, taught
from ke_metric.recipe.schema import Method
from ke_metric.split.hypotheses import extract_slim, redraw_reset
from ke_metric.split.plan import SplitPlan
from ke_metric.split.wels import multiplicative_weights
from ke_metric.training.hooks import TrainingHooks

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class KnowledgeEvolution(LineageMethod):
    """Inherits the fit hypothesis of the lineage's split plan and redraws the reset hypothesis by `method.reset`."""

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Load the parent and redraw the reset hypothesis."""
        inheritance.load_parent(child)
        redraw_reset(
            child,
            inheritance.plan,
            generator=inheritance.generator("reset"),
            init=inheritance.method.reset,
            fresh=inheritance.fresh(),
        )

    def hooks(self, network: nn.Module, inheritance: Inheritance) -> TrainingHooks:
        """Return a teacher, and steps of the fit hypothesis alone, where the recipe asks for them."""
        return with_fit_steps(taught(inheritance), network, inheritance)


def with_fit_steps(inner: TrainingHooks, network: nn.Module, inheritance: Inheritance) -> TrainingHooks:
    """Return hooks with the steps of the fit hypothesis that the recipe asks for (`method.fit_steps`)."""
    share = inheritance.method.fit_steps
    return FitSteps(inner, network, inheritance.plan, share) if share else inner


class FitSteps(TrainingHooks):
    """Lets the fit hypothesis compute alone in some steps, spread evenly over the generation.

    In those steps the reset hypothesis is 0 while the loss and its gradient are computed, and norm layers use their
    running statistics, as `extract_slim` inherits them; so they train just what the slim network computes, but for
    statistics over channels (`SplitPlan.norms`), which the slim network takes over fewer. The gradient of the reset
    hypothesis is dropped, and its weights are back before the optimizer moves; momentum and weight decay move them
    on, as in any other step.

    The idea is that of slimmable networks (Yu et al., ICLR 2019), which give every width norm statistics of its own;
    here there is one set of them, the dense network's, because the slim network is to be cut out of it as it is.
    Ours.

    Args:
        inner: What else happens while the generation trains.
        network: The network.
        plan: Its split plan.
        share: Share of the steps, in (0, 1): floor(share * n) of the first n.
    """

    def __init__(self, inner: TrainingHooks, network: nn.Module, plan: SplitPlan, share: float) -> None:
        self._inner, self._network, self._share = inner, network, share
        self.learning_rate_factor = inner.learning_rate_factor
        self._reset = {
            name: ~mask.expand().to(network.get_parameter(name).device) for name, mask in plan.weights.items()
        }
        self._is_fit = False

    def epoch_begins(self, epoch: int, optimizer: Optimizer) -> None:
        """Pass it on."""
        self._inner.epoch_begins(epoch, optimizer)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Take the reset hypothesis away while a step's loss and gradient are computed, if it is one of those."""
        self._is_fit = math.floor((number + 1) * self._share) > math.floor(number * self._share)
        with self._inner.step(number):
            if not self._is_fit:
                yield
                return
            whole = {name: self._network.get_parameter(name).detach().clone() for name in self._reset}
            norms = [each for each in self._network.modules() if isinstance(each, NORMS) and each.training]
            try:
                with torch.no_grad():
                    for name, reset in self._reset.items():
                        self._network.get_parameter(name).masked_fill_(reset, 0)
                for norm in norms:
                    norm.eval()
                yield
            finally:
                for norm in norms:
                    norm.train()
                with torch.no_grad():
                    for name, weight in whole.items():
                        self._network.get_parameter(name).copy_(weight)

    def targets(self, images: Tensor) -> Tensor | None:
        """Return those of the inner hooks."""
        return self._inner.targets(images)

    def added_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return that of the inner hooks."""
        return self._inner.added_loss(outputs, targets)

    def before_step(self) -> None:
        """Drop the gradient of the reset hypothesis, which was computed where it is not."""
        self._inner.before_step()
        for name, reset in self._reset.items() if self._is_fit else ():
            gradient = self._network.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(reset, 0)

    def after_step(self) -> None:
        """Pass it on."""
        self._inner.after_step()

    def tensors(self) -> Weights:
        """Return those of the inner hooks."""
        return self._inner.tensors()

    def restore(self, tensors: Weights) -> None:
        """Pass it on."""
        self._inner.restore(tensors)


class Restarts(LineageMethod):
    """Inherits everything: the learning rate starts again, no weight of the network is redrawn.

    Separates what a reset does from what restarting the schedule does (warm restarts: Loshchilov and Hutter, ICLR
    2017; the control `--no_reset` of Zhou et al., ICLR 2022). A loss's own parameters begin anew, as in the methods
    that it is compared with, unless `method.reset_loss` is false.
    """

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Load the parent."""
        inheritance.load_parent(child)

    def hooks(self, network: nn.Module, inheritance: Inheritance) -> TrainingHooks:
        """Return a teacher, and steps of the fit hypothesis alone, where the recipe asks for them."""
        return with_fit_steps(taught(inheritance), network, inheritance)


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
        slim = extract_slim(*inheritance.parent_network())
        child.load_state_dict(slim.state_dict(), strict=True)

    def hooks(self, network: nn.Module, inheritance: Inheritance) -> TrainingHooks:
        """Return the teacher; its weight is 1 unless the recipe names another."""
        return taught(inheritance, least=1.0)
