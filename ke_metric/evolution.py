"""The conductor: inherit, train, score, yield the generation.

`evolve` knows all rooms and writes nothing: whoever iterates over it stores what it yields.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ke_metric.data.images import Benchmark
from ke_metric.data.pictures import Pictures, TrainingEpochs
from ke_metric.environment import describe_environment
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import choose_backend
from ke_metric.generation import Generation, Provenance, TrainingState, weights_digest
from ke_metric.losses.embedding import build_loss
from ke_metric.methods.knowledge_evolution import inherit, load_whole
from ke_metric.networks.embedding import build_network
from ke_metric.randomness import default_streams, derive_seed, torch_generator
from ke_metric.recipe import Recipe
from ke_metric.scoring import Scorer, count_parameters
from ke_metric.split.magnitudes import mean_magnitudes
from ke_metric.split.plan import SplitPlan
from ke_metric.split.planning import plan_split
from ke_metric.training.engine import Engine
from ke_metric.training.one_generation import GenerationTraining
from ke_metric.training.watch import Watch


@dataclass(frozen=True)
class Start:
    """Where an evolution goes on.

    Attributes:
        parent: The last complete generation; None to begin with generation 1.
        state: The next generation after its last finished epoch; None to begin it.
    """

    parent: Generation | None = None
    state: TrainingState | None = None

    def __post_init__(self) -> None:
        assert self.state is None or self.state.number == self.number, "state of another generation"

    @property
    def number(self) -> int:
        """Number of the generation to train next."""
        return 1 if self.parent is None else self.parent.number + 1


def evolve(
    recipe: Recipe,
    benchmark: Benchmark | Pictures,
    *,
    start: Start | None = None,
    device: str | None = None,
    watch: Watch | None = None,
) -> Iterator[Generation]:
    """Train generation after generation and yield each one, scored, when it is complete.

    Args:
        recipe: What to grow.
        benchmark: What to train and score on; decoded first unless it is already.
        start: Where to go on; from the beginning when left out.
        device: A torch device; the process's own when left out.
        watch: Hears of steps and epochs as they finish.

    Yields:
        Generations `start.number` to `recipe.generations`.

    Raises:
        KeMetricError: The recipe does not fit the benchmark or the device, the parent does not fit the recipe, or the
            training diverged.
    """
    watch = watch or Watch()
    start = start or Start()
    pictures = benchmark if isinstance(benchmark, Pictures) else Pictures.decode(benchmark, recipe.data.store_size)
    nursery = Nursery(recipe, pictures, Engine(recipe.training.precision, device))
    parent, state = start.parent, start.state
    for number in range(start.number, recipe.generations + 1):
        parent = nursery.grow(number, parent, state=state, watch=watch)
        state = None
        yield parent


@dataclass(frozen=True)
class Nursery:
    """Everything the generations of one lineage have in common.

    Attributes:
        recipe: What to grow.
        pictures: What to train and score on.
        engine: Device, precision, processes.
    """

    recipe: Recipe
    pictures: Pictures
    engine: Engine

    def grow(
        self, number: int, parent: Generation | None, *, state: TrainingState | None, watch: Watch
    ) -> Generation:
        """Inherit, train and score generation `number`.

        Args:
            number: Counted from 1.
            parent: The generation before; None exactly for number 1.
            state: Where its training goes on; None to begin it.
            watch: Hears of steps and epochs.
        """
        network, plan = self.build_child(number, parent)
        loss = self.build_loss(number, parent)
        scorer = Scorer(self.pictures, self.recipe, self.engine)
        if number == 1 and state is None:
            self._introduce(network, scorer, watch)
        training = self.prepare(network, loss, number)
        if state is not None:
            training.restore(state)
        trained = training.train(watch)
        started = time.perf_counter()
        scorecard = scorer.scorecard(network, plan)
        seconds = {"training": round(trained.seconds, 1), "scoring": round(time.perf_counter() - started, 1)}
        return Generation(
            number=number,
            weights=trained.weights,
            loss_weights=trained.loss_weights,
            split=plan.to_json(),
            split_bits=plan.to_tensors(),
            scorecard=scorecard,
            training_log=trained.training_log,
            magnitudes=mean_magnitudes(network, plan),
            provenance=Provenance(
                recipe_digest=self.recipe.digest,
                parent_digest=weights_digest(parent.weights) if parent else None,
                seed=self.recipe.seed,
                environment=describe_environment(),
                training={**self.engine.describe(), "search_backend": scorer.backend},
                seconds=seconds,
            ),
        )

    def require_buildable(self) -> None:
        """Build everything that generation 1 needs, and drop it: what a recipe gets wrong shows before any harm.

        Raises:
            KeMetricError: Whatever `grow` would raise before its first step.
        """
        network, _ = self.build_child(1, None)
        self.prepare(network, self.build_loss(1, None), 1)
        choose_backend(self.recipe.evaluation.backend, self.engine.device)

    def build_child(self, number: int, parent: Generation | None) -> tuple[nn.Module, SplitPlan]:
        """Return generation `number`'s starting network, placed, and the lineage's split plan.

        Raises:
            KeMetricError: The parent is missing or does not fit the recipe.
        """
        recipe = self.recipe
        if (parent.number if parent else 0) != number - 1:
            raise KeMetricError(
                f"generation {number} needs generation {number - 1} as its parent, "
                f"{f'generation {parent.number}' if parent else 'none'} is there",
                ExitCode.LINEAGE,
            )
        with default_streams(recipe.seed, number, "network"):
            # A child redraws what is random: pretrained values would be the same ones in every generation.
            network: nn.Module = build_network(recipe.network, recipe.data.image_size, load_pretrained=parent is None)
        plan = self._plan(network, parent)
        if parent is not None:
            generator = torch_generator(recipe.seed, number, "reset")
            inherit(network, parent.weights, plan, reset=recipe.method.reset, generator=generator)
        return self.engine.place(network, channels_last=recipe.training.channels_last), plan

    def _plan(self, network: nn.Module, parent: Generation | None) -> SplitPlan:
        """Return the parent's plan, or the first generation's own: the masks never change in a lineage."""
        recipe = self.recipe
        if parent is not None:
            plan = SplitPlan.from_json(parent.split, parent.split_bits)
            if (plan.kind, plan.rate) != (recipe.split.kind, recipe.split.rate):
                raise KeMetricError(
                    f"split.kind = {recipe.split.kind!r}, split.rate = {recipe.split.rate}: generation "
                    f"{parent.number} was split with {plan.kind!r}, {plan.rate}, and a lineage keeps its split",
                    ExitCode.LINEAGE,
                )
            plan.check(network)
            return plan
        size = recipe.data.image_size
        return plan_split(
            network,
            torch.zeros(1, 3, size, size),
            rate=recipe.split.rate,
            kind=recipe.split.kind,
            keep_whole=recipe.split.keep_whole,
            seed=derive_seed(recipe.seed, 1, "split"),
            channel_multiple=recipe.split.channel_multiple,
        )

    def build_loss(self, number: int, parent: Generation | None) -> nn.Module:
        """Return generation `number`'s loss, placed: its parameters new, or inherited if the recipe says so."""
        recipe = self.recipe
        with default_streams(recipe.seed, number, "loss"):
            loss: nn.Module = build_loss(
                recipe.loss,
                recipe.miner,
                classes=len(self.pictures.benchmark.train.class_names),
                embedding_size=recipe.network.embedding_size,
            )
        if parent is not None and not recipe.method.reset_loss:
            load_whole(loss, parent.loss_weights, "the parent's loss parameters")
        return self.engine.place(loss)

    def prepare(self, network: nn.Module, loss: nn.Module, number: int) -> GenerationTraining:
        """Return the training of generation `number`, ready to begin."""
        epochs = TrainingEpochs(
            self.pictures,
            self.recipe,
            generation=number,
            device=self.engine.device,
            rank=self.engine.rank,
            processes=self.engine.processes,
        )
        return GenerationTraining(network, loss, epochs, recipe=self.recipe, engine=self.engine, number=number)

    def _introduce(self, network: nn.Module, scorer: Scorer, watch: Watch) -> None:
        """Say what a reader compares the first numbers with."""
        scores, spread = scorer.untrained(network)
        first = f"recall@{min(self.recipe.evaluation.recall_at)}"
        found = f"{100 * scores[first]:.1f} %" if first in scores else "not defined (no query has anything to find)"
        watch.note(
            f"untrained network: {first} {found}, mean cosine distance of two embeddings {spread:.3f}, "
            f"{count_parameters(network):,} parameters; {self.engine.describe()['device']}, {self.engine.precision}, "
            f"neighbours by {scorer.backend}"
        )
