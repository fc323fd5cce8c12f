"""What every method is: how a child begins, and what happens while a generation trains.

Any method may have the parent as a teacher: its outputs for the same views of the images are part of the loss.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ke_metric.arrays import Weights, load_whole
from ke_metric.generation import Generation
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.randomness import torch_generator
from ke_metric.recipe.schema import Method, Recipe
from ke_metric.split.plan import SplitPlan
from ke_metric.training.hooks import TrainingHooks
from ke_metric.training.joint import distance_from_teacher


@dataclass(frozen=True)
class Inheritance:
    """What there is to begin generation `number` with.

    Attributes:
        number: Number of the generation, counted from 1.
        networks: Builds the networks of the lineage.
        plan: The split plan of this generation.
        device: Where it is trained.
        parent: Generation number - 1; None for generation 1.
        gradients: Weight name -> mean absolute gradient of the parent's loss over some training images, on the CPU;
            only for a method that `needs_gradients`.
    """

    number: int
    networks: LineageNetworks
    plan: SplitPlan
    device: torch.device
    parent: Generation | None = None
    gradients: Mapping[str, Tensor] | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe of the lineage."""
        return self.networks.recipe

    @property
    def method(self) -> Method:
        """The recipe's section on the method."""
        return self.recipe.method

    @property
    def generations(self) -> int:
        """How many generations the recipe's method grows."""
        return self.recipe.generations - self.method.slim_last

    @property
    def parent_weights(self) -> Weights:
        """State dict of the parent after its last epoch, as a child inherits it."""
        assert self.parent is not None, "generation 1 has no parent"
        return self.parent.inherited

    def load_parent(self, child: nn.Module) -> None:
        """Give a child all of its parent's weights and nothing else.

        Raises:
            KeMetricError: A tensor is missing, left over or of another shape.
        """
        load_whole(child, self.parent_weights, "the parent's weights")

    def generator(self, purpose: str) -> torch.Generator:
        """Return a stream of random numbers of its own for this generation and purpose."""
        return torch_generator(self.recipe.seed, self.number, purpose)

    @property
    def reset(self) -> str:
        """The `init` of `redraw_reset` by which the recipe redraws."""
        return "same_as_init" if self.method.reset == "starting_weights" else self.method.reset

    def fresh(self) -> nn.Module | None:
        """Return a newly built network for rules that take its values, with given weights where these are meant."""
        given = self.method.reset == "starting_weights"
        return self.networks.build(self.number, load_pretrained=given) if self.reset == "same_as_init" else None

    def parent_network(
        self, device: torch.device | str = "cpu", *, as_inherited: bool = False
    ) -> tuple[nn.Module, SplitPlan]:
        """Return the parent as a network of its own, as it was scored or as it is inherited, and its split plan."""
        assert self.parent is not None, "generation 1 has no parent"
        parent = replace(self.parent, weights=self.parent_weights) if as_inherited else self.parent
        return self.networks.restore(parent, device=device, what="the parent's weights")


class LineageMethod:
    """A method: what a child takes from its parent, and the hooks of every generation.

    Attributes:
        needs_gradients: Whether `inherit` reads `Inheritance.gradients`, which are costly.
        redraws_by_plan: Whether `inherit` redraws the reset hypothesis of the split plan.
    """

    needs_gradients: bool = False
    redraws_by_plan: bool = False

    def check(self, network: nn.Module, recipe: Method) -> None:
        """Find out whether the method can be used on a network of the lineage, before hours go by until it is.

        Raises:
            KeMetricError: It cannot, or a field of the recipe's section on the method does not fit the network.
        """

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Make a newly built network, with new random weights, the child of its parent, in place."""
        raise NotImplementedError

    def hooks(self, network: nn.Module, inheritance: Inheritance) -> TrainingHooks:
        """Return what happens while a generation trains: its parent teaches it where the recipe asks for that.

        Args:
            network: The generation's network as it begins, on its device.
            inheritance: As for `inherit`; without a parent for generation 1.
        """
        return taught(inheritance)


def taught(inheritance: Inheritance, *, least: float = 0.0) -> TrainingHooks:
    """Return the hooks of a generation taught by its parent with `method.teacher_weight`, or `least` where that is 0.

    Nobody teaches generation 1, nor with a weight of 0.
    """
    method = inheritance.method
    weight = method.teacher_weight or least
    if inheritance.parent is None or not weight:
        return TrainingHooks()
    teacher = frozen_parent(inheritance)
    return Guided(teacher, inheritance.recipe.task, weight=weight, temperature=method.teacher_temperature)


def frozen_parent(inheritance: Inheritance) -> nn.Module:
    """Return the parent as a network of its own, frozen and in eval mode, where the generation is trained."""
    network, _ = inheritance.parent_network(inheritance.device)
    return network.requires_grad_(False).eval()


class Guided(TrainingHooks):
    """Adds to the loss how far the network's outputs are from the teacher's.

    Args:
        teacher: The parent, frozen and in eval mode.
        task: Of the recipe, as for `distance_from_teacher`.
        weight: Factor of what is added.
        temperature: As for `distance_from_teacher`.
    """

    def __init__(self, teacher: nn.Module, task: str, *, weight: float, temperature: float | None) -> None:
        self._teacher, self._task, self._weight, self._temperature = teacher, task, weight, temperature

    def targets(self, images: Tensor) -> Tensor | None:
        """Return the teacher's outputs."""
        with torch.no_grad():
            outputs: Tensor = self._teacher(images)
        return outputs

    def added_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted divergence."""
        return self._weight * distance_from_teacher(outputs, targets, task=self._task, temperature=self._temperature)
