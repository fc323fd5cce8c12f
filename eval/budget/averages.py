"""Several generations as one network: the mean of their outputs, or of their weights, scored like any other.

Snapshot ensembles (Huang et al., ICLR 2017) keep the networks that one training passes through: their outputs cost as
many forward passes as there are networks. Averaged weights (Izmailov et al., UAI 2018) cost one; norm statistics are
averaged like weights, without a new pass over the training images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ke_metric import Lineage
from ke_metric.arrays import load_whole
from ke_metric.generation import Scorecard
from ke_metric.images.pixel_store import Pictures
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.scoring import Scorer, count_parameters
from ke_metric.training.engine import Engine

KINDS = ("outputs", "weights")


class Ensemble(nn.Module):
    """The mean output of several networks.

    Args:
        members: Images [B, 3, H, W] to L2-normalised embeddings [B, D] or logits [B, C].
        task: `retrieval`: embeddings [B, n D], in which a similarity is the mean of the members'. `classification`:
            the logarithm of the mean probability [B, C].
    """

    def __init__(self, members: Sequence[nn.Module], task: str) -> None:
        super().__init__()
        self.members, self._task = nn.ModuleList(members), task

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean output."""
        outputs = [member(images) for member in self.members]
        if self._task == "retrieval":
            return normalize(torch.cat(outputs, dim=1), dim=1)
        return torch.stack([each.log_softmax(dim=1) for each in outputs]).logsumexp(dim=0) - math.log(len(outputs))


def score_average(lineage: Lineage, kind: str, pictures: Pictures) -> Scorecard:
    """Score all generations of a lineage as one network.

    Args:
        lineage: One whose weights were all kept.
        kind: `outputs` or `weights`.
        pictures: What it is scored on.

    Raises:
        KeMetricError: Weights were not kept.
    """
    recipe = lineage.recipe
    networks = [_network(lineage, number) for number in lineage.numbers]
    whole = Ensemble(networks, recipe.task) if kind == "outputs" else mean_of_weights(networks)
    scorer = Scorer(pictures, recipe, Engine("fp32"))
    placed = scorer.engine.place(whole, channels_last=recipe.training.channels_last)
    return Scorecard(scorer.score(placed), None, count_parameters(whole), None)


def _network(lineage: Lineage, number: int) -> nn.Module:
    generation = lineage.load(number)
    network = LineageNetworks(lineage.recipe, len(generation.provenance.class_names)).build(number)
    load_whole(network, generation.weights, f"the weights of generation {number}")
    return network


def mean_of_weights(networks: Sequence[nn.Module]) -> nn.Module:
    """Return the first of some networks, with the mean of the weights and statistics of all."""
    first, *others = networks
    states = [network.state_dict() for network in others]
    with torch.no_grad():
        for name, value in first.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.stack([value, *(state[name] for state in states)]).mean(dim=0))
    return first
