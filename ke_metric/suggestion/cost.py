"""What a generation of a recipe takes on this machine, measured on a few real steps; the plan that fits a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import quantiles
from typing import Any

import numpy as np
from torch import nn

from ke_metric.evaluation.embeddings import embed
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.evolution import LineageTraining
from ke_metric.images.batches import evaluation_batches, first_pictures
from ke_metric.images.image_set import Benchmark
from ke_metric.images.pixel_store import Pictures
from ke_metric.recipe.schema import Recipe
from ke_metric.scoring import count_parameters
from ke_metric.slim_repair import MOST_PICTURES
from ke_metric.split.hypotheses import extract_slim
from ke_metric.suggestion.choices import GENERATIONS, STEPS, Plan, fewest_epochs, most_epochs, plan_of
from ke_metric.training.engine import Engine
from ke_metric.training.one_generation import GenerationTraining

WARM_UP = 2
"""Steps before time is taken: the first ones choose algorithms and ask for memory."""
STEPS_TIMED = (4, 16)
"""Steps that are timed, at least and at most."""
SECONDS_TIMED = 3.0
"""Seconds after which no further step is timed."""
MOST_SEARCHED = 2_000
"""Pictures that neighbours and clusters are timed on; the time of more is extrapolated."""
SHARE_PLANNED = 0.9
"""Of the time that is given: the rest is for starting up, and for what a measurement of seconds is off by."""


@dataclass(frozen=True)
class GenerationCost:
    """What a generation takes, measured.

    Attributes:
        step_seconds: Of an optimizer step, its batch made as well.
        batches: Steps of an epoch.
        scoring_seconds: Of scoring a generation, repairs included.
        parameters: Of the whole network, and of the slim one.
        engine: Device and precision.
    """

    step_seconds: float
    batches: int
    scoring_seconds: float
    parameters: tuple[int, int]
    engine: dict[str, Any]

    def seconds(self, epochs: int) -> float:
        """Return the seconds of a generation of so many epochs."""
        return self.step_seconds * self.batches * epochs + self.scoring_seconds

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "seconds_per_step": round(self.step_seconds, 4),
            "batches_per_epoch": self.batches,
            "scoring_seconds": round(self.scoring_seconds, 2),
            "parameters": self.parameters[0],
            "parameters_slim": self.parameters[1],
            **self.engine,
        }


def measure(recipe: Recipe, benchmark: Benchmark, device: str | None = None) -> GenerationCost:
    """Take a few real steps of a recipe and score a batch; nothing is written.

    Args:
        recipe: What is to be trained.
        benchmark: Its benchmark; only the pictures of the first batch are decoded.
        device: A torch device; found by itself when None.

    Raises:
        KeMetricError: Whatever would end a training before or in its first steps.
    """
    engine = Engine(recipe.training.precision, device)
    lineage = LineageTraining(recipe, Pictures.undecoded(benchmark), engine)
    inheritance = lineage.inheritance(1, None)
    training = lineage.assemble(inheritance)
    lineage.search_backend()
    pictures, batches = first_pictures(benchmark, recipe)
    training.epochs = replace(lineage, pictures=pictures).epochs(1)
    step = _step_seconds(training)
    slim = extract_slim(training.network, inheritance.plan)
    return GenerationCost(
        step_seconds=step,
        batches=batches,
        scoring_seconds=_scoring_seconds(recipe, benchmark, pictures, (training.network, slim), engine),
        parameters=(count_parameters(training.network), count_parameters(slim)),
        engine=engine.describe(),
    )


def _step_seconds(training: GenerationTraining) -> float:
    """Return the seconds of a step: the lower quartile, that of a machine which has nothing else to do."""
    taken: list[float] = []
    training.parallel.train()
    fewest, most = STEPS_TIMED
    for number in range(WARM_UP + most):
        seconds = _timed(lambda epoch=number + 1: _step(training, epoch))  # type: ignore[misc]
        taken += [seconds] * (number >= WARM_UP)
        if len(taken) >= fewest and sum(taken) > SECONDS_TIMED:
            break
    return quantiles(taken, n=4)[0]


def _step(training: GenerationTraining, epoch: int) -> None:
    # The last step of a warm-up and the first one after it take as long as each other: which one it is, is no matter.
    training.heard(training.take_step(0, next(training.epochs.epoch(epoch))))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _scoring_seconds(
    recipe: Recipe, benchmark: Benchmark, pictures: Pictures, networks: tuple[nn.Module, nn.Module], engine: Engine
) -> float:
    """Return the seconds of scoring: forward passes of both networks, by that of a batch, and neighbours."""
    tested = len(benchmark.query) + (0 if benchmark.leave_one_out else len(benchmark.gallery))
    repaired = min(len(benchmark.train), MOST_PICTURES)
    dense, slim = (_picture_seconds(recipe, pictures, network, engine) for network in networks)
    # The slim network is scored as it is cut and repaired; a repair looks at the training pictures with both.
    forward = tested * (dense + 2 * slim) + repaired * (dense + 3 * slim)
    return forward + (_search_seconds(recipe, benchmark, engine) if recipe.task == "retrieval" else 0.0)


def _picture_seconds(recipe: Recipe, pictures: Pictures, network: nn.Module, engine: Engine) -> float:
    store = pictures.train

    def score() -> None:
        embed(network.eval(), evaluation_batches(store, range(len(store)), recipe=recipe, device=engine.device))

    score()
    return min(_timed(score) for _ in range(2)) / len(store)


def _search_seconds(recipe: Recipe, benchmark: Benchmark, engine: Engine) -> float:
    """Return the seconds of neighbours and clusters of both networks, by those of vectors that are drawn."""
    query = benchmark.query
    some = query.at(np.arange(min(len(query), MOST_SEARCHED)))
    drawn = np.random.default_rng(0).standard_normal((len(some), recipe.network.embedding_size))
    vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    scoring = Scoring(
        backend=recipe.evaluation.backend,
        device=engine.device,
        kmeans_seeds=tuple(range(recipe.evaluation.kmeans_seeds)),
    )
    seconds = _timed(lambda: score_retrieval(vectors, some.labels, recipe.evaluation.recall_at, scoring=scoring))
    return 2 * seconds * (len(query) / len(some)) ** 2


def fitting_plan(cost: GenerationCost, seconds: float | None) -> tuple[Plan, bool]:
    """Return how long is trained, and whether that fits into a time; the smallest plan where nothing fits.

    Args:
        cost: What a generation takes.
        seconds: What there is; as long as usual when None.
    """
    if seconds is None:
        return plan_of(cost.batches), True
    fewest = fewest_epochs(cost.batches)
    for generations in range(GENERATIONS, 0, -1):
        left = SHARE_PLANNED * seconds / generations - cost.scoring_seconds
        epochs = int(left / (cost.step_seconds * cost.batches))
        if epochs >= fewest:
            return Plan(generations, min(epochs, most_epochs(cost.batches))), True
    return Plan(1, fewest), False


def is_ample(plan: Plan, cost: GenerationCost) -> bool:
    """Whether a plan has half of the steps that are aimed at: else smaller pictures or networks learn more."""
    usual = plan_of(cost.batches)
    enough = min(STEPS, usual.epochs * cost.batches) / 2
    return plan.generations == GENERATIONS and plan.epochs * cost.batches >= enough
