"""Scoring a generation, dense and slim: the one function that `evolve` and `ke-metric eval` both call.

Shapes: N items, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ke_metric.data.pictures import Pictures, evaluation_batches
from ke_metric.data.pixels import PixelStore
from ke_metric.evaluation.embed import embed
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.generation import Scorecard, Scores
from ke_metric.recipe import Recipe
from ke_metric.split.plan import SplitPlan
from ke_metric.split.slim import extract_slim
from ke_metric.training.engine import Engine


@dataclass(frozen=True)
class Scorer:
    """Scores networks on the query and gallery of a benchmark.

    Embeddings are computed in fp32 whatever the training's precision, so that a stored network gives them again.

    Attributes:
        pictures: The benchmark, decoded.
        recipe: Sizes, standardisation, scores asked for.
        engine: Device and processes; the pictures are shared by the processes, the scores computed once.
    """

    pictures: Pictures
    recipe: Recipe
    engine: Engine

    def scorecard(self, network: nn.Module, plan: SplitPlan) -> Scorecard:
        """Score a network and, where the recipe asks for it and KELS gives one, its slim network."""
        dense = self.score(network)
        if plan.kind != "kels" or not self.recipe.evaluation.slim:
            return Scorecard(dense=dense, slim=None, dense_parameters=count_parameters(network), slim_parameters=None)
        slim = extract_slim(network, plan)
        return Scorecard(
            dense=dense,
            slim=self.score(slim),
            dense_parameters=count_parameters(network),
            slim_parameters=count_parameters(slim),
        )

    def score(self, network: nn.Module, *, clusters: bool = True) -> Scores:
        """Return the scores of a network; `clusters=False` leaves NMI and AMI out."""
        benchmark = self.pictures.benchmark
        query = self._embed(network, self.pictures.query)
        gallery = query if benchmark.leave_one_out else self._embed(network, self.pictures.gallery)
        scores: list[dict[str, float]] = []
        if self.engine.is_main:
            evaluation = self.recipe.evaluation
            scoring = Scoring(
                backend=evaluation.backend,
                device=self.engine.device,
                kmeans_seeds=tuple(range(evaluation.kmeans_seeds)) if clusters else (),
            )
            scores.append(self._compare(query, gallery, scoring))
        return self.engine.gather_records(scores)[0]  # type: ignore[no-any-return]

    def _compare(self, query: Any, gallery: Any, scoring: Scoring) -> dict[str, float]:
        benchmark, recall_at = self.pictures.benchmark, self.recipe.evaluation.recall_at
        if benchmark.leave_one_out:
            return score_retrieval(query, benchmark.query.labels, recall_at, scoring=scoring)
        searched = Embeddings(gallery, benchmark.gallery.labels, benchmark.gallery.keys)
        return score_retrieval(
            query, benchmark.query.labels, recall_at, gallery=searched, ids=benchmark.query.keys, scoring=scoring
        )

    def _embed(self, network: nn.Module, store: PixelStore) -> npt.NDArray[np.float32]:
        """Return embeddings [N, D] of all pictures, each process having done its share."""
        share = range(self.engine.rank, len(store), self.engine.processes)
        was_training = network.training
        batches = evaluation_batches(store, share, recipe=self.recipe, device=self.engine.device)
        vectors = embed(network.eval(), batches)
        network.train(was_training)
        if self.engine.processes == 1:
            return vectors
        whole = np.empty((len(store), vectors.shape[1]), np.float32)
        for positions, part in self.engine.gather_records([(share, vectors)]):
            whole[positions] = part
        return whole

    def untrained(self, network: nn.Module) -> tuple[Scores, float]:
        """Return scores and embedding spread (mean cosine distance of two items) before any training."""
        vectors = torch.from_numpy(self._embed(network, self.pictures.query)).double()
        count = len(vectors)
        spread = 1 - (float(vectors.sum(0).square().sum()) - count) / max(1, count * (count - 1))
        return self.score(network, clusters=False), spread


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
