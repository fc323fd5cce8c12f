"""Scoring a generation, dense and slim: the one function that `evolve` and `ke-metric eval` both call.

Shapes: N items, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import nn

from ke_metric.arrays import FloatArray, load_whole
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import choose_backend
from ke_metric.evaluation.classification import score_classes, score_classification
from ke_metric.evaluation.embeddings import Embeddings, embed
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.generation import ClassScores, Scorecard, Scores, SlimRepair, SlimScores, rate_text, slim_name
from ke_metric.images.batches import evaluation_batches
from ke_metric.images.image_set import ImageSet
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.images.preparation import Preparation
from ke_metric.recipe.schema import Recipe
from ke_metric.slim_repair import SlimRepairer, augmented_pictures
from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.plan import SplitPlan
from ke_metric.split.repair import estimate_norm_statistics
from ke_metric.training.engine import Engine
from ke_metric.training.given_weights import moving_norms

EmbeddingsListener = Callable[[str, FloatArray, FloatArray], None]
"""Takes which network, "dense", "slim" or "slim 0.25", and its embeddings of queries [Q, D] and gallery [G, D]."""
Found = TypeVar("Found")


@dataclass(frozen=True)
class Scorer:
    """Scores networks on the query and gallery of a benchmark, or on its test part where classes are predicted.

    Embeddings are computed in fp32 whatever the training's precision, so that a stored network gives them again.
    Networks may be in eval mode or not; they are left as they were.

    Attributes:
        pictures: The benchmark, decoded.
        recipe: Sizes, standardisation, scores asked for.
        engine: Device and processes; the pictures are shared by the processes, the scores computed once.
        tell: Called with a line before a clustering that will take long.
    """

    pictures: Pictures
    recipe: Recipe
    engine: Engine
    tell: Callable[[str], object] | None = None

    @property
    def backend(self) -> str:
        """The search backend in use, never `auto`.

        Raises:
            KeMetricError: The one the recipe asks for is not usable here.
        """
        return choose_backend(self.recipe.evaluation.backend, self.engine.device).name

    def scorecard(
        self,
        network: nn.Module,
        plan: SplitPlan,
        *,
        narrow: Mapping[str, SplitPlan] | None = None,
        repairs: Mapping[str, SlimRepair] | None = None,
        seen: EmbeddingsListener | None = None,
        timed: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ) -> Scorecard:
        """Score a network and, where the recipe asks for them and KELS gives them, its slim networks.

        Args:
            network: The network.
            plan: Its split.
            narrow: Split rate (`rate_text`) to its split there, for further slim networks.
            repairs: Split rate to what is repaired of the slim network there; nothing when left out.
            seen: Called with "dense", "slim" and "slim 0.25" (of `split.rates`) and the embeddings that were scored;
                for a classification with the logits, twice.
            timed: Called with "slim"; what it returns surrounds all that is done for slim networks.
        """
        by_size: dict[str, dict[str, Scores]] = {}

        def listen(name: str, query: FloatArray, gallery: FloatArray) -> None:
            if seen is not None:
                seen(name, query, gallery)
            if name in ("dense", "slim") and self.recipe.network.nested_sizes:
                by_size[name] = self._by_size(query, gallery)

        dense, classes = self._score(network, "dense", listen)
        found = {"dense": classes}
        slim: dict[str, SlimScores] = {}
        own_rate = rate_text(plan.rate)
        plans = {**(narrow or {}), own_rate: plan}
        with timed("slim"):
            for rate, split in plans.items() if plan.kind == "kels" and self.recipe.has_slim else ():
                name = "slim" if rate == own_rate else slim_name(rate)
                cut, repair, as_cut = extract_slim(network, split), (repairs or {}).get(rate), None
                if repair is not None and repair.tensors:
                    as_cut = self._score(cut, name, None)[0]
                    load_whole(cut, {**cut.state_dict(), **repair.tensors}, "the repair of the slim network")
                # All of it is kept, as in a last generation that is slim already: the same network.
                if split.reset_count:
                    scores, found[name] = self._score(cut, name, listen)
                else:
                    scores, found[name] = dense, classes
                    by_size |= {name: by_size["dense"]} if by_size and rate == own_rate else {}
                slim[rate] = SlimScores(scores, count_parameters(cut), as_cut, repair.kind if repair else None)
        own = slim.pop(own_rate, None)
        return Scorecard(
            dense=dense,
            slim=own.scores if own else None,
            dense_parameters=count_parameters(network),
            slim_parameters=own.parameters if own else None,
            classes={name: scores for name, scores in found.items() if scores is not None} or None,
            slim_as_cut=own.as_cut if own else None,
            slim_repair=own.repair if own else None,
            narrow=slim or None,
            sizes=by_size or None,
        )

    def repairs(self, network: nn.Module, plans: Mapping[str, SplitPlan], number: int) -> dict[str, SlimRepair]:
        """Find out what is to be repaired of the slim networks of generation `number` (`evaluation.slim_repair`).

        Args:
            network: Its dense network.
            plans: Split rate to its split; where all is kept, there is nothing to repair.
            number: Of the generation.
        """
        if not self.recipe.has_slim or self.recipe.evaluation.slim_repair == "none":
            return {}

        def found() -> dict[str, SlimRepair]:
            repairer = SlimRepairer(self.pictures, self.recipe, device=self.engine.device, number=number)
            with _evaluating(network):
                return {
                    rate: repairer.repair(network, extract_slim(network, plan))
                    for rate, plan in plans.items()
                    if plan.reset_count
                }

        return self._by_the_first(found)

    def measure_norms(self, network: nn.Module, number: int) -> None:
        """Measure the norm statistics of averaged weights anew, in place, of the layers where they followed batches.

        By training pictures that generation `number` draws, the same ones in all processes.
        """
        norms = moving_norms(network, self.recipe)
        if norms:
            pictures = augmented_pictures(self.pictures, self.recipe, self.engine.device, number)
            estimate_norm_statistics(network, pictures, norms=norms)
        # Kernels of several processes may round otherwise.
        self.engine.share_buffers(network)

    def score(self, network: nn.Module) -> Scores:
        """Return the scores of a network.

        Those of a classification are what `score_classification` gives on the test part and, where the benchmark has
        a validation part, the same on that, as `validation_top1` and so on. Of a retrieval that is Recall@K of the
        smallest K alone, `validation_recall@1`.
        """
        return self._score(network, "dense", None)[0]

    def _score(
        self, network: nn.Module, name: str, seen: EmbeddingsListener | None
    ) -> tuple[Scores, ClassScores | None]:
        """Return the scores of a network, and of a classifier how it recognised each class."""
        if self.recipe.task == "classification":
            return self._classify(network, name, seen)
        query, gallery = self.vectors(network)
        if seen is not None:
            seen(name, query, gallery)
        scores = self._compare(query, gallery, clusters=True)
        if self.pictures.validation is not None:
            scores = {**scores, f"validation_{self.recipe.decisive_score}": self.validate(network)}
        return scores, None

    def require_validation(self) -> None:
        """Refuse a recipe whose patience has no validation part to go by: the test part never decides.

        Raises:
            KeMetricError: RECIPE.
        """
        benchmark, training = self.pictures.benchmark, self.recipe.training
        if training.patience is not None and benchmark.validation is None:
            is_joined = self.recipe.data.train_on == "trainval"
            way = (
                "data.train_on = 'train' keeps" if is_joined else "data.validation_fraction = 0.1, for example, holds"
            )
            raise KeMetricError(
                f"training.patience = {training.patience}: the benchmark {benchmark.name!r} has no validation part "
                f"here, and the test part decides nothing; {way} one out of the training part",
                ExitCode.RECIPE,
            )

    def validate(self, network: nn.Module) -> float:
        """Return the score of a network on the validation part that decides: `Recipe.decisive_score`."""
        images, store, name = self.pictures.benchmark.validation, self.pictures.validation, self.recipe.decisive_score
        assert images is not None, "no validation part"
        assert store is not None, "not decoded"
        with _evaluating(network):
            vectors = self._embed(network, store)
        if self.recipe.task == "classification":
            return self._accuracies(vectors, images)[0][name]
        depths = (min(self.recipe.evaluation.recall_at),)
        scoring = Scoring(backend=self.recipe.evaluation.backend, device=self.engine.device, kmeans_seeds=())
        return self._by_the_first(lambda: score_retrieval(vectors, images.labels, depths, scoring=scoring))[name]

    def introduction(self, network: nn.Module) -> tuple[Scorecard, str]:
        """Return the scores of a network before any training, and what a reader compares the first numbers with."""
        scores, spread = self.untrained(network)
        count = count_parameters(network)
        scorecard = Scorecard(dense=scores, slim=None, dense_parameters=count, slim_parameters=None)
        device = f"{self.engine.describe()['device']}, {self.engine.precision}"
        parameters, first = f"{count:,} parameters", self.recipe.decisive_score
        if spread is None:
            return scorecard, f"untrained network: top1 {100 * scores[first]:.1f} %, {parameters}; {device}"
        found = f"{100 * scores[first]:.1f} %" if first in scores else "not defined (no query has anything to find)"
        return scorecard, (
            f"untrained network: {first} {found}, mean cosine distance of two embeddings {spread:.3f}, {parameters}; "
            f"{device}, neighbours by {self.backend}"
        )

    def untrained(self, network: nn.Module) -> tuple[Scores, float | None]:
        """Return scores without clusters, and embedding spread, of a network before any training.

        The spread is the mean cosine distance of two different queries; None for a classification.
        """
        if self.recipe.task == "classification":
            return self._classify(network)[0], None
        query, gallery = self.vectors(network)
        vectors = query.astype(np.float64)
        count = len(vectors)
        total = float(np.square(vectors.sum(axis=0)).sum())
        spread = 1 - (total - count) / max(1, count * (count - 1))
        return self._compare(query, gallery, clusters=False), spread

    def vectors(self, network: nn.Module) -> tuple[FloatArray, FloatArray]:
        """Return what is scored: embeddings [Q, D] and [G, D], one and the same array where query and gallery are.

        Of a classification these are the logits [N, C] of the test part, twice.
        """
        with _evaluating(network):
            query = self._embed(network, self.pictures.query)
            if self.recipe.task == "classification" or self.pictures.benchmark.leave_one_out:
                return query, query
            return query, self._embed(network, self.pictures.gallery)

    def _classify(
        self, network: nn.Module, name: str = "dense", seen: EmbeddingsListener | None = None
    ) -> tuple[Scores, ClassScores]:
        benchmark, pictures = self.pictures.benchmark, self.pictures
        with _evaluating(network):
            logits = self._embed(network, pictures.query)
            if seen is not None:
                seen(name, logits, logits)
            scores, classes = self._accuracies(logits, benchmark.query)
            if benchmark.validation is not None and pictures.validation is not None:
                held_out, _ = self._accuracies(self._embed(network, pictures.validation), benchmark.validation)
                scores |= {f"validation_{name}": value for name, value in held_out.items()}
        return scores, classes

    def _accuracies(self, logits: FloatArray, images: ImageSet) -> tuple[dict[str, float], ClassScores]:
        """Return the scores of logits [N, C]."""

        def scored() -> tuple[dict[str, float], ClassScores]:
            classes = score_classes(logits, images.labels, images.class_names)
            return score_classification(logits, images.labels), classes

        return self._by_the_first(scored)

    def _embed(self, network: nn.Module, store: PixelStore) -> FloatArray:
        """Return embeddings [N, D], or logits [N, C], of all pictures, each process having done its share."""
        share = range(self.engine.rank, len(store), self.engine.processes)
        how = Preparation.of_recipe(self.recipe)
        called = how.in_views(network, unit_length=self.recipe.task == "retrieval")
        batches = evaluation_batches(store, share, recipe=self.recipe, device=self.engine.device)
        vectors = embed(called, batches)
        if self.engine.processes == 1:
            return vectors
        # With more processes than pictures some have no vector, and do not know how long one is.
        parts = [part for part in self.engine.gather_records([(share, vectors)]) if len(part[0])]
        if not parts:
            return vectors
        whole = np.empty((len(store), parts[0][1].shape[1]), np.float32)
        for positions, part in parts:
            whole[positions] = part
        return whole

    def _compare(self, query: FloatArray, gallery: FloatArray, *, clusters: bool) -> Scores:
        """Return the scores of embeddings [Q, D] and [G, D]."""
        benchmark, evaluation = self.pictures.benchmark, self.recipe.evaluation
        scoring = Scoring(
            backend=evaluation.backend,
            device=self.engine.device,
            kmeans_seeds=tuple(range(evaluation.kmeans_seeds)) if clusters else (),
            tell=self.tell,
        )
        separate: dict[str, Any] = {}
        if not benchmark.leave_one_out:
            embeddings = Embeddings(gallery, benchmark.gallery.labels, benchmark.gallery.keys)
            separate = {"gallery": embeddings, "ids": benchmark.query.keys}
        labels, depths = benchmark.query.labels, evaluation.recall_at
        return self._by_the_first(lambda: score_retrieval(query, labels, depths, scoring=scoring, **separate))

    def _by_size(self, query: FloatArray, gallery: FloatArray) -> dict[str, Scores]:
        """Return every one of `network.nested_sizes`, as text, to the scores of embeddings cut to that size."""
        # They are normalised where they are scored.
        return {
            str(size): self._compare(query[:, :size], gallery[:, :size], clusters=False)
            for size in self.recipe.network.nested_sizes
        }

    def _by_the_first(self, compute: Callable[[], Found]) -> Found:
        """Return what the first process computes, in all of them."""
        return self.engine.gather_records([compute()] if self.engine.is_main else [])[0]


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode inside the block, and every module of it back into the mode it was in."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
