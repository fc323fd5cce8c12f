"""The networks of a lineage, and their split plan, built from the recipe alone.

Training, scoring again and cutting out all build them here, so that they are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ke_metric.arrays import load_whole
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.generation import Generation, rate_text
from ke_metric.networks.dense import build_classifier, build_network, match_starting_weights
from ke_metric.networks.starting_weights import StartingWeights
from ke_metric.randomness import default_streams, derive_seed
from ke_metric.recipe.schema import Recipe
from ke_metric.split.following import follow_channels
from ke_metric.split.graph import ChannelGraph
from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.plan import SplitPlan
from ke_metric.split.planning import plan_split


@dataclass(frozen=True)
class LineageNetworks:
    """Builds the networks of a lineage.

    Attributes:
        recipe: The recipe of the lineage.
        classes: Number of training classes; retrieval does not ask for it.
    """

    recipe: Recipe
    classes: int

    def build(self, number: int, *, load_pretrained: bool = False) -> nn.Module:
        """Return a network with the random weights that generation `number` (from 1) begins with, on the CPU.

        Args:
            number: Of the generation, which may be one that trains the slim network.
            load_pretrained: Whether a recipe that asks for given weights gets them.

        Raises:
            KeMetricError: The recipe's network cannot be built or split.
        """
        with default_streams(self.recipe.seed, number, "network"):
            network = self._dense(load_pretrained)
        if not self.recipe.trains_slim(number):
            return network
        return extract_slim(network, self.plan_at(network, self.recipe.split.rate))

    def starting_weights(self) -> StartingWeights | None:
        """Return what the file that generation 1 starts from holds for the backbone; None where there is none.

        Raises:
            KeMetricError: It cannot be read, or does not fit.
        """
        with default_streams(self.recipe.seed, 1, "network"):
            return match_starting_weights(self.recipe.network)

    def freeze(self, network: nn.Module) -> None:
        """Take what the recipe freezes out of the training of a network that `build` returned, in place.

        Raises:
            KeMetricError: RECIPE: there is no such module, or it has no parameters.
        """
        for name in self.recipe.network.freeze:
            modules = dict(network.named_modules())
            if name not in modules or not any(True for _ in modules[name].parameters()):
                known = [each for each, module in modules.items() if any(True for _ in module.parameters())]
                raise KeMetricError(
                    f"network.freeze: the network has no module {name!r} with parameters{closest(name, known)}",
                    ExitCode.RECIPE,
                )
            modules[name].requires_grad_(False)

    def channels(self) -> ChannelGraph:
        """Return the channels of the lineage's networks, which layers share them and where they meet.

        Raises:
            KeMetricError: They cannot be followed.
        """
        return follow_channels(self.build(1), self._example)

    def plan(self, network: nn.Module, number: int) -> SplitPlan:
        """Return the split plan of the network that `build` returned for generation `number`.

        The masks never change in a lineage; a network that is slim already is kept whole.

        Raises:
            KeMetricError: The network cannot be split.
        """
        return self.plan_at(network, 1.0 if self.recipe.trains_slim(number) else self.recipe.split.rate)

    def restore(
        self, generation: Generation, *, device: torch.device | str = "cpu", what: str = "the stored weights"
    ) -> tuple[nn.Module, SplitPlan]:
        """Return the dense network of a generation, laid out in memory as it was scored, and its split plan.

        Args:
            generation: A generation of the lineage.
            device: Where the network goes.
            what: What an error calls its weights.

        Raises:
            KeMetricError: The weights or the plan do not fit the recipe's network.
        """
        network = self.build(generation.number)
        load_whole(network, generation.weights, what)
        plan = SplitPlan.from_json(generation.split, generation.split_bits)
        plan.check(network)
        network.to(device)
        if self.recipe.training.channels_last:
            network.to(memory_format=torch.channels_last)
        return network, plan

    def slim(self, dense: nn.Module, generation: Generation, rate: float | None = None) -> nn.Module:
        """Return the slim network of a generation as it was scored: cut out of its dense network, and repaired.

        Args:
            dense: What `restore` returned for it.
            generation: A generation of the lineage whose split is kels.
            rate: One of `split.rates`; `split.rate` when None.

        Raises:
            KeMetricError: The generation has no slim network of this rate, or its repair does not fit the recipe.
        """
        plan = SplitPlan.from_json(generation.split, generation.split_bits)
        wanted = rate_text(plan.rate if rate is None else rate)
        plans = {**generation.narrow_splits, rate_text(plan.rate): generation.split}
        if wanted not in plans:
            raise KeMetricError(
                f"rate = {wanted}: generation {generation.number} has slim networks of rate "
                f"{', '.join(sorted(plans))} (split.rate and split.rates of its recipe)",
                ExitCode.USAGE,
            )
        slim = extract_slim(dense, SplitPlan.from_json(plans[wanted]))
        if repair := generation.repairs.get(wanted):
            load_whole(slim, {**slim.state_dict(), **repair.tensors}, "the repair of the slim network")
        return slim

    def _dense(self, load_pretrained: bool) -> nn.Module:
        recipe, size = self.recipe, self.recipe.data.image_size
        if recipe.task == "classification":
            return build_classifier(recipe.network, size, self.classes, load_pretrained=load_pretrained)
        return build_network(recipe.network, size, load_pretrained=load_pretrained)

    @property
    def _example(self) -> Tensor:
        size = self.recipe.data.image_size
        return torch.zeros(1, 3, size, size)

    def plan_at(self, network: nn.Module, rate: float) -> SplitPlan:
        """Return the split plan of a network of the lineage at a rate, by the other rules of the recipe's split."""
        recipe = self.recipe
        return plan_split(
            network,
            self._example,
            rate=rate,
            kind=recipe.split.kind,
            keep_whole=recipe.split.keep_whole,
            seed=derive_seed(recipe.seed, 1, "split"),
            channel_multiple=recipe.split.channel_multiple,
        )
