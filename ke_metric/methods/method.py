"""What every method is: how a child begins, and what happens while a generation trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ke_metric.generation import Weights
from ke_metric.randomness import torch_generator
from ke_metric.recipe.schema import Method as MethodRecipe
from ke_metric.split.graph import ChannelGraph
from ke_metric.split.plan import SplitPlan
from ke_metric.training.hooks import TrainingHooks


@dataclass(frozen=True)
class Birth:
    """What there is to make generation `number` of.

    Attributes:
        number: Number of the generation, counted from 1.
        generations: How many the recipe's method grows.
        seed: Seed of the lineage.
        task: `retrieval` or `classification`.
        recipe: The recipe's section on the method.
        plan: The split plan of this generation.
        parent: State dict of generation number - 1 after its last epoch; None for generation 1.
        parent_plan: The split plan of generation number - 1; None for generation 1.
        parent_network: Builds the parent as a network of its own, on the CPU; only where there is one.
        build: Builds the network of the generation with this number, with the random weights that it begins with, on
            the CPU.
        place: Puts a network where the generation is trained, and lays it out as the generation's.
        channels: Returns the channels of the lineage's networks, and which layers share them.
        gradients: Returns weight name -> mean absolute gradient of the parent's loss over some of the training
            images, on the CPU; costly, and only where there is a parent.
    """

    number: int
    generations: int
    seed: int
    task: str
    recipe: MethodRecipe
    plan: SplitPlan
    parent: Weights | None
    parent_plan: SplitPlan | None
    parent_network: Callable[[], nn.Module]
    build: Callable[[int], nn.Module]
    place: Callable[[nn.Module], nn.Module]
    channels: Callable[[], ChannelGraph]
    gradients: Callable[[], Mapping[str, Tensor]]

    def generator(self, purpose: str) -> torch.Generator:
        """Return a stream of random numbers of its own for this generation and purpose."""
        return torch_generator(self.seed, self.number, purpose)

    def fresh(self) -> nn.Module | None:
        """Return a newly built network for `method.reset: same_as_init`; None for rules that need none."""
        return self.build(self.number) if self.recipe.reset == "same_as_init" else None

    def teacher(self) -> nn.Module:
        """Return the parent as a network of its own, frozen and in eval mode, placed."""
        assert self.parent is not None, "generation 1 has no parent"
        return self.place(self.parent_network()).requires_grad_(False).eval()


class Method:
    """A method: what a child takes from its parent, and the hooks of every generation.

    Attributes:
        changes_architecture: Whether `architecture` gives another network than the recipe's; its own split plan
            keeps all of it.
    """

    changes_architecture: bool = False

    def architecture(self, network: nn.Module, plan: SplitPlan) -> nn.Module:
        """Return the network that is trained, given the recipe's network and its split plan: that network itself."""
        return network

    def check(self, network: nn.Module, recipe: MethodRecipe) -> None:
        """Find out whether the method can be used on a network, before hours go by until it is.

        Args:
            network: Of the lineage's architecture.
            recipe: The recipe's section on the method.

        Raises:
            KeMetricError: It cannot, or a field of the section does not fit the network.
        """

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """Make a newly built network the child of `birth.parent`, in place.

        Args:
            child: A network with new random weights.
            birth: What there is to make it of; it has a parent.
        """
        raise NotImplementedError

    def hooks(self, network: nn.Module, birth: Birth) -> TrainingHooks:
        """Return what happens while a generation trains.

        Args:
            network: The generation's network as it begins, on its device.
            birth: As for `inherit`; without a parent for generation 1.
        """
        return TrainingHooks()
