"""What is repaired of a slim network after it is cut out of a generation (`evaluation.slim_repair`).

The repairs themselves are in `split.repair`; here they are made from the training pictures of a lineage, and where
the recipe says `auto`, the one is chosen that recognises the training pictures best. No test picture is looked at.

Shapes: N pictures, F features, D numbers of an embedding or C logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ke_metric.arrays import FloatArray, IntArray
from ke_metric.evaluation.embeddings import embed
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.generation import SlimRepair
from ke_metric.images.batches import TrainingEpochs, evaluation_batches
from ke_metric.images.pixel_store import Pictures
from ke_metric.randomness import numpy_generator
from ke_metric.recipe.schema import Recipe
from ke_metric.split.repair import estimate_norm_statistics, refitted_layer, whitened_layer

MOST_PICTURES = 4096
"""Training pictures that a last layer is repaired by and repairs are compared on: whole classes, drawn."""
MOST_IN_MEMORY = 1024
"""Augmented training pictures that norm statistics are measured on, all at once; fewer where they are large."""
MOST_PIXELS = 2**23
"""Pixels of the pictures that norm statistics are measured on: 167 pictures of 224 x 224."""


@dataclass(frozen=True)
class _Candidate:
    """A repair that can be made.

    Attributes:
        repair: What it replaces.
        outputs: float32 [N, D] or [N, C]: what the repaired network gives for the training pictures.
    """

    repair: SlimRepair
    outputs: FloatArray


class SlimRepairer:
    """Repairs the slim networks of one generation.

    Args:
        pictures: The benchmark; its training part is used and nothing else.
        recipe: Of the lineage.
        device: Where the networks are.
        number: Of the generation, which draws the pictures.
    """

    def __init__(self, pictures: Pictures, recipe: Recipe, *, device: torch.device, number: int) -> None:
        self._pictures, self._recipe, self._device, self._number = pictures, recipe, device, number
        self._train = pictures.benchmark.train
        self._positions = self._drawn()

    def repair(self, dense: nn.Module, slim: nn.Module) -> SlimRepair:
        """Return what is to be repaired of a slim network that was just cut out of a dense one, both in eval mode.

        Of kind `none`, without tensors, where there is nothing to repair: statistics of a network without batch norm,
        the last layer of a classifier by cosines.
        """
        wanted = self._recipe.evaluation.slim_repair
        found = {candidate.repair.kind: candidate for candidate in self._candidates(dense, slim)}
        if wanted != "auto":
            # Of both repairs, one may have nothing to do.
            kinds = {"both": ("both", "statistics", self._of_layer)}.get(wanted, (wanted,))
            return next((found[kind].repair for kind in kinds if kind in found), SlimRepair("none"))
        return max(found.values(), key=lambda candidate: self._worth(candidate.outputs)).repair

    @property
    def _of_layer(self) -> str:
        return "whiten" if self._recipe.task == "retrieval" else "refit"

    def _candidates(self, dense: nn.Module, slim: nn.Module) -> Iterator[_Candidate]:
        """Yield the network as it was cut, and every repair of it that there is."""
        targets = None if self._recipe.task == "retrieval" else self._embed(dense)
        yield from self._with_layer(slim, "none", {}, targets)
        measured = deepcopy(slim)
        statistics = estimate_norm_statistics(
            measured, augmented_pictures(self._pictures, self._recipe, self._device, self._number)
        )
        if statistics:
            copies = {name: value.cpu().clone() for name, value in statistics.items()}
            yield from self._with_layer(measured, "statistics", copies, targets)

    def _with_layer(
        self, slim: nn.Module, kind: str, tensors: dict[str, Tensor], targets: FloatArray | None
    ) -> Iterator[_Candidate]:
        """Yield a network, and the same one with its last layer repaired."""
        if not isinstance(slim.head, nn.Linear):
            yield _Candidate(SlimRepair(kind, tensors), self._embed(slim))
            return
        assert isinstance(slim.backbone, nn.Module)
        features = self._embed(slim.backbone)
        weight, bias = (value.detach().float().cpu().numpy() for value in (slim.head.weight, slim.head.bias))
        yield _Candidate(SlimRepair(kind, tensors), features @ weight.T + bias)
        changed = whitened_layer(weight, bias, features) if targets is None else refitted_layer(features, targets)
        layer = dict(zip(("head.weight", "head.bias"), map(torch.from_numpy, changed), strict=True))
        name = self._of_layer if kind == "none" else "both"
        yield _Candidate(SlimRepair(name, tensors | layer), features @ changed[0].T + changed[1])

    def _worth(self, outputs: FloatArray) -> tuple[float, float]:
        """Return how well outputs tell the training pictures apart, and what decides between equals."""
        labels = self._train.labels[self._positions]
        if self._recipe.task == "retrieval":
            lengths = np.linalg.norm(outputs, axis=1, keepdims=True)
            embeddings = (outputs / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
            scoring = Scoring(backend=self._recipe.evaluation.backend, device=self._device, kmeans_seeds=())
            scores = score_retrieval(embeddings, labels, (1,), scoring=scoring)
            return scores["recall@1"], scores["map@r"]
        logits, truth = torch.from_numpy(outputs), torch.from_numpy(labels)
        return float((logits.argmax(dim=1) == truth).double().mean()), -float(cross_entropy(logits, truth))

    def _embed(self, network: nn.Module) -> FloatArray:
        """Return what a network gives for the drawn training pictures, as they are when they are scored."""
        batches = evaluation_batches(
            self._pictures.train, self._positions.tolist(), recipe=self._recipe, device=self._device
        )
        return embed(network, batches)

    def _drawn(self) -> IntArray:
        """Return the numbers of training pictures, those of whole classes in random order until there are enough."""
        labels = self._train.labels
        if len(labels) <= MOST_PICTURES:
            return np.arange(len(labels))
        generator = numpy_generator(self._recipe.seed, self._number, "repair")
        classes = generator.permutation(len(self._train.class_names))
        counts = np.bincount(labels, minlength=len(classes))[classes]
        enough = 1 + int(np.searchsorted(np.cumsum(counts), MOST_PICTURES))
        return np.flatnonzero(np.isin(labels, classes[:enough]))[:MOST_PICTURES]


def augmented_pictures(pictures: Pictures, recipe: Recipe, device: torch.device, number: int) -> Tensor:
    """Return augmented pictures [N, 3, S, S] of epochs that generation `number` was not trained on.

    For slim networks, statistics of pictures as they are scored were as good: 0.4 points worse on glyphs, 0.6 better
    on emoji.
    """
    epochs = TrainingEpochs(pictures, recipe, generation=number, device=device)
    most = max(recipe.batches.size, min(MOST_IN_MEMORY, MOST_PIXELS // recipe.data.image_size**2))
    images: list[Tensor] = []
    epoch = recipe.training.epochs
    while sum(map(len, images)) < most:
        epoch += 1
        for batch in epochs.epoch(epoch):
            images.append(batch.images)
            if sum(map(len, images)) >= most:
                break
    return torch.cat(images)[:most]
