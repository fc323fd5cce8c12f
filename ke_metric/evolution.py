"""The conductor: inherit, train, score, yield the generation.

`evolve` knows all rooms and writes nothing: whoever iterates over it stores what it yields.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ke_metric.environment import describe_environment
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import choose_backend
from ke_metric.generation import (
    TIES_BY_MEAN,
    Generation,
    Provenance,
    Scorecard,
    TrainingState,
    epochs_by_engine,
    load_whole,
    weights_digest,
)
from ke_metric.images.batches import Pictures, TrainingEpochs
from ke_metric.images.image_set import Benchmark
from ke_metric.losses.classification import build_classification_loss, require_fit
from ke_metric.losses.embedding import build_loss
from ke_metric.losses.rehearsal import possible_batches
from ke_metric.methods.method import Birth
from ke_metric.methods.table import method_of
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Recipe
from ke_metric.scoring import Scorer, count_parameters
from ke_metric.split.plan import SplitPlan
from ke_metric.split.reset import mean_magnitudes
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver
from ke_metric.training.one_generation import GenerationTraining, mean_gradients

# Share of an epoch's batches that the saliency of weights is measured on, as in the paper that uses it (DNR).
SALIENCY_SHARE = 0.2


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
    observer: TrainingObserver | None = None,
) -> Iterator[Generation]:
    """Train generation after generation and yield each one, scored, when it is complete.

    Args:
        recipe: What to grow.
        benchmark: What to train and score on; decoded first unless it is already.
        start: Where to go on; from the beginning when left out.
        device: A torch device; the process's own when left out.
        observer: Hears of steps and epochs as they finish.

    Yields:
        Generations `start.number` to `recipe.generations`.

    Raises:
        KeMetricError: The recipe does not fit the benchmark or the device, the parent does not fit the recipe, or the
            training diverged.
    """
    observer = observer or TrainingObserver()
    start = start or Start()
    data = recipe.data
    if isinstance(benchmark, Benchmark):
        benchmark = Pictures.decode(benchmark, data.store_size, store_shape=data.store_shape)
    nursery = Nursery(recipe, benchmark, Engine(recipe.training.precision, device))
    parent, state = start.parent, start.state
    for number in range(start.number, recipe.generations + 1):
        parent = nursery.grow(number, parent, state=state, observer=observer)
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
        self, number: int, parent: Generation | None, *, state: TrainingState | None, observer: TrainingObserver
    ) -> Generation:
        """Inherit, train and score generation `number`.

        Args:
            number: Counted from 1.
            parent: The generation before; None exactly for number 1.
            state: Where its training goes on; None to begin it.
            observer: Hears of steps and epochs.
        """
        birth = self.birth(number, parent)
        network = self.build_child(birth)
        # What has taught a generation, or epochs of one, is known to work.
        loss = self.build_loss(number, parent, rehearsed=number == 1 and state is None)
        scorer = Scorer(self.pictures, self.recipe, self.engine)
        if number == 1 and state is None:
            self._introduce(network, scorer, observer)
        training = self.prepare(network, loss, birth)
        if state is not None:
            training.restore(state)
        trained = training.train(observer)
        started = time.perf_counter()
        plan = birth.plan
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
                training={
                    **self.engine.describe(),
                    **self._search(scorer),
                    "epochs": epochs_by_engine(trained.training_log),
                },
                seconds=seconds,
                class_names=self.pictures.benchmark.train.class_names if self._classifies else (),
                data=self.pictures.fingerprint.describe(),
            ),
        )

    @property
    def _classifies(self) -> bool:
        return self.recipe.task == "classification"

    def _search(self, scorer: Scorer) -> dict[str, str]:
        return {} if self._classifies else {"search_backend": scorer.backend, "ties": TIES_BY_MEAN}

    def require_buildable(self) -> tuple[nn.Module, nn.Module]:
        """Build everything that generation 1 needs: what a recipe gets wrong shows before any harm.

        Labels are enough: `Pictures.undecoded`.

        Returns:
            Its network and its loss.

        Raises:
            KeMetricError: Whatever `grow` would raise before its first step.
        """
        birth = self.birth(1, None)
        network, loss = self.build_child(birth), self.build_loss(1, None)
        self.prepare(network, loss, birth)
        if not self._classifies:
            choose_backend(self.recipe.evaluation.backend, self.engine.device)
        return network, loss

    def require_resumable(self, start: Start) -> list[str]:
        """Build what the next generation of a lineage needs, but for what it takes from its parent's weights.

        What the lineage was trained with so far is not refused: its split is the parent's, and its loss has worked.
        Labels are enough, as for `require_buildable`.

        Args:
            start: Where it goes on: after a generation, or after epochs of the first one.

        Returns:
            What a new lineage would be refused for, in words.

        Raises:
            KeMetricError: The parent does not fit the recipe or the data, or the device cannot do the search.
        """
        assert start.parent or start.state, "nothing was trained"
        birth = self.birth(start.number, start.parent)
        network = self._build(birth.number)
        birth.plan.check(network)
        method_of(self.recipe, birth.number).check(network, self.recipe.method)
        loss = self.build_loss(start.number, None, rehearsed=False)
        if start.parent is not None:
            self._require_classes_of(start.parent, loss)
        self._epochs(birth.number)
        if not self._classifies:
            choose_backend(self.recipe.evaluation.backend, self.engine.device)
        try:
            self.build_loss(start.number, None)
        except KeMetricError as error:
            return [str(error)]
        return []

    def _require_classes_of(self, parent: Generation, loss: nn.Module) -> None:
        """Refuse a training part of another number of classes, also where the loss is drawn anew.

        Raises:
            KeMetricError: The parent's loss had a row for each of other classes (exit code 4).
        """
        try:
            load_whole(loss, parent.loss_weights, "the parent's loss parameters")
        except KeMetricError as error:
            classes = len(self.pictures.benchmark.train.class_names)
            raise KeMetricError(
                f"the training part has {classes:,} classes, and generation {parent.number} was not trained on so "
                f"many: {error}",
                ExitCode.DATA,
            ) from error

    def birth(self, number: int, parent: Generation | None) -> Birth:
        """Return what there is to make generation `number` of.

        Raises:
            KeMetricError: The parent is missing or does not fit the recipe, or the network cannot be split.
        """
        recipe = self.recipe
        if (parent.number if parent else 0) != number - 1:
            raise KeMetricError(
                f"generation {number} needs generation {number - 1} as its parent, "
                f"{f'generation {parent.number}' if parent else 'none'} is there",
                ExitCode.LINEAGE,
            )
        return Birth(
            number=number,
            generations=recipe.generations - recipe.method.slim_last,
            seed=recipe.seed,
            task=recipe.task,
            recipe=recipe.method,
            plan=self._plan(number, parent),
            parent=parent.weights if parent else None,
            parent_plan=SplitPlan.from_json(parent.split, parent.split_bits) if parent else None,
            parent_network=lambda: self._network_of(parent),
            build=self._build,
            place=self._place,
            channels=self.networks.channels,
            gradients=lambda: self._gradients(parent),
        )

    @property
    def networks(self) -> LineageNetworks:
        """What builds the lineage's networks."""
        return LineageNetworks(self.recipe, len(self.pictures.benchmark.train.class_names))

    def build_child(self, birth: Birth) -> nn.Module:
        """Return a generation's starting network, placed.

        Raises:
            KeMetricError: The parent does not fit the recipe, or the method does not fit the network.
        """
        recipe = self.recipe
        network, method = self._build(birth.number), method_of(recipe, birth.number)
        birth.plan.check(network)
        method.check(network, recipe.method)
        if birth.parent is not None:
            method.inherit(network, birth)
        return self._place(network)

    def _place(self, network: nn.Module) -> nn.Module:
        return self.engine.place(network, channels_last=self.recipe.training.channels_last)

    def _build(self, number: int) -> nn.Module:
        """Return a network with the weights that generation `number` begins with, but for what it inherits."""
        # A child redraws what is random: pretrained values would be the same ones in every generation.
        return self.networks.build(number, load_pretrained=number == 1)

    def _plan(self, number: int, parent: Generation | None) -> SplitPlan:
        """Return the parent's plan, as masks never change in a lineage; its own for a network of another width."""
        recipe = self.recipe
        if parent is None:
            return self.networks.plan(self.networks.build(number), number)
        plan = SplitPlan.from_json(parent.split, parent.split_bits)
        rate = plan.rate if method_of(recipe, parent.number).changes_architecture else recipe.split.rate
        if (plan.kind, plan.rate) != (recipe.split.kind, rate):
            raise KeMetricError(
                f"split.kind = {recipe.split.kind!r}, split.rate = {recipe.split.rate}: generation "
                f"{parent.number} was split with {plan.kind!r}, {plan.rate}, and a lineage keeps its split",
                ExitCode.LINEAGE,
            )
        if method_of(recipe, number) is not method_of(recipe, parent.number):
            return self.networks.plan(self.networks.build(number), number)
        return plan

    def _network_of(self, parent: Generation | None) -> nn.Module:
        """Return a parent as a network, on the CPU; nothing pretrained is asked for where all weights are loaded."""
        assert parent is not None, "generation 1 has no parent"
        network = self.networks.build(parent.number)
        load_whole(network, parent.weights, "the parent's weights")
        return network

    def _gradients(self, parent: Generation | None) -> dict[str, Tensor]:
        """Return the mean absolute gradients of a parent's weights over an epoch's first batches, 20 % of them."""
        assert parent is not None, "generation 1 has no parent"
        network = self._place(self._network_of(parent))
        loss = self.build_loss(parent.number, None, rehearsed=False)
        load_whole(loss, parent.loss_weights, "the parent's loss parameters")
        epochs = self._epochs(parent.number)
        count = math.ceil(SALIENCY_SHARE * len(epochs))
        # An epoch that was not trained on: the batches are drawn anew.
        batches = itertools.islice(epochs.epoch(self.recipe.training.epochs + 1), count)
        # A miner or a loss may draw.
        with default_streams(self.recipe.seed, parent.number, "saliency"):
            return mean_gradients(network, loss, batches, self.engine)

    def build_loss(self, number: int, parent: Generation | None, *, rehearsed: bool = True) -> nn.Module:
        """Return generation `number`'s loss, placed: its parameters new, or inherited if the recipe says so.

        Args:
            number: Counted from 1.
            parent: The generation before, if the loss may inherit from it.
            rehearsed: Whether a loss is refused that would fail, or teach nothing, in a training that begins.
        """
        recipe, classes = self.recipe, len(self.pictures.benchmark.train.class_names)
        with default_streams(recipe.seed, number, "loss"):
            loss: nn.Module
            if self._classifies:
                loss = build_classification_loss(recipe.loss, classes=classes)
                require_fit(loss, recipe)
            else:
                loss = build_loss(
                    recipe.loss,
                    recipe.miner,
                    classes=classes,
                    embedding_size=recipe.network.embedding_size,
                    batches=possible_batches(recipe.batches, self._class_sizes()),
                    rehearsed=rehearsed,
                )
        if parent is not None and not recipe.method.reset_loss:
            load_whole(loss, parent.loss_weights, "the parent's loss parameters")
        return self.engine.place(loss)

    def _class_sizes(self) -> list[int]:
        """Return the images of every training class that has any."""
        sizes = np.bincount(self.pictures.benchmark.train.labels)
        return [int(size) for size in sizes[sizes > 0]]

    def prepare(self, network: nn.Module, loss: nn.Module, birth: Birth) -> GenerationTraining:
        """Return the training of a generation, ready to begin."""
        return GenerationTraining(
            network,
            loss,
            self._epochs(birth.number),
            recipe=self.recipe,
            engine=self.engine,
            number=birth.number,
            hooks=method_of(self.recipe, birth.number).hooks(network, birth),
        )

    def _epochs(self, number: int) -> TrainingEpochs:
        return TrainingEpochs(
            self.pictures,
            self.recipe,
            generation=number,
            device=self.engine.device,
            rank=self.engine.rank,
            processes=self.engine.processes,
        )

    def _introduce(self, network: nn.Module, scorer: Scorer, observer: TrainingObserver) -> None:
        """Say what a reader compares the first numbers with."""
        scores, spread = scorer.untrained(network)
        count = count_parameters(network)
        observer.untrained(Scorecard(dense=scores, slim=None, dense_parameters=count, slim_parameters=None))
        device = f"{self.engine.describe()['device']}, {self.engine.precision}"
        parameters = f"{count:,} parameters"
        if spread is None:
            observer.note(f"untrained network: top1 {100 * scores['top1']:.1f} %, {parameters}; {device}")
            return
        first = f"recall@{min(self.recipe.evaluation.recall_at)}"
        found = f"{100 * scores[first]:.1f} %" if first in scores else "not defined (no query has anything to find)"
        observer.note(
            f"untrained network: {first} {found}, mean cosine distance of two embeddings {spread:.3f}, {parameters}; "
            f"{device}, neighbours by {scorer.backend}"
        )
