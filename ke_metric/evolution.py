"""The conductor: inherit, train, score, yield the generation.

`evolve` knows all rooms and writes nothing: whoever iterates over it stores what it yields. Whatever else needs a
generation put together (the checks before a training, the dry run) has it from the same `LineageTraining`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from ke_metric.arrays import FloatArray, Weights, load_whole, weights_digest, weights_of
from ke_metric.environment import describe_environment
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import (
    CLUSTERS_DRAWN_IN_BLOCKS,
    TIES_BY_MEAN,
    Generation,
    Provenance,
    TrainingState,
    epochs_by_engine,
    rate_text,
)
from ke_metric.images.batches import TrainingEpochs
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures
from ke_metric.losses.building import build_loss
from ke_metric.methods import method_of
from ke_metric.methods.method import Inheritance
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.networks.starting_weights import require_same
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Recipe
from ke_metric.scoring import Scorer
from ke_metric.split.hypotheses import mean_magnitudes, require_redrawable
from ke_metric.split.plan import SplitPlan
from ke_metric.training.engine import Engine
from ke_metric.training.gradients import mean_gradients
from ke_metric.training.hooks import TrainingObserver
from ke_metric.training.one_generation import GenerationTraining
from ke_metric.training.patience import best_epoch, validating_seconds

# Share of an epoch's batches that the saliency of weights is measured on, as in the paper that uses it (DNR).
SALIENCY_SHARE = 0.2
STARTING_WEIGHTS = "starting_weights"


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
    watch: TrainingObserver | None = None,
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
    data = recipe.data
    if isinstance(benchmark, Benchmark):
        benchmark = Pictures.decode(benchmark, data.store_size, store_shape=data.store_shape)
    training = LineageTraining(recipe, benchmark, Engine(recipe.training.precision, device))
    yield from training.evolve(start or Start(), watch or TrainingObserver())


class PhaseClock:
    """Adds up how long the phases of a generation take.

    Attributes:
        seconds: Name of a phase to its seconds so far, on the clock.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the block."""
        started = time.perf_counter()
        yield
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.perf_counter() - started, 2)


@dataclass(frozen=True)
class LineageTraining:
    """Trains the generations of one lineage.

    Attributes:
        recipe: What to grow.
        pictures: What to train and score on; labels are enough (`Pictures.undecoded`) for what trains nothing.
        engine: Device, precision, processes.
        begun: What generation 1 begins with, where `require_buildable` has built and tried it already.
    """

    recipe: Recipe
    pictures: Pictures
    engine: Engine
    begun: Inheritance | None = None

    @property
    def networks(self) -> LineageNetworks:
        """What builds the lineage's networks."""
        return LineageNetworks(self.recipe, len(self._train.class_names))

    @property
    def scorer(self) -> Scorer:
        """What scores the lineage's networks."""
        return Scorer(self.pictures, self.recipe, self.engine)

    @property
    def _train(self) -> ImageSet:
        return self.pictures.benchmark.train

    def evolve(self, start: Start, observer: TrainingObserver) -> Iterator[Generation]:
        """Train and score the generations that are left, and yield each one when it is complete."""
        parent, state = start.parent, start.state
        for number in range(start.number, self.recipe.generations + 1):
            parent = self.grow(number, parent, state=state, observer=observer)
            state = None
            yield parent

    def grow(
        self, number: int, parent: Generation | None, *, state: TrainingState | None, observer: TrainingObserver
    ) -> Generation:
        """Inherit, train and score generation `number` (from 1), from its beginning or from a state."""
        phases = PhaseClock()
        # What has taught a generation, or epochs of one, is known to work.
        is_new = number == 1 and state is None
        begun_from = self._begun_from(parent, observer if is_new else None)
        with phases("inheriting"):
            begun = self.begun if number == 1 else None
            inheritance = begun or self.inheritance(number, parent)
            training = self.assemble(inheritance, rehearsed=is_new and begun is None)
        plan, scorer = inheritance.plan, replace(self.scorer, tell=observer.note)
        if is_new:
            scorecard, told = scorer.introduction(training.network)
            observer.untrained(scorecard)
            observer.note(told)
        if state is not None:
            training.restore(state)
        trained = training.train(observer)
        weights, log = trained.weights, trained.training_log
        has_patience = self.recipe.training.patience is not None
        # Those of the best epoch were averaged when it was validated.
        if self.recipe.training.averages and not has_patience:
            with phases("averaging"):
                weights = self._averaged(training)
        vectors: dict[str, tuple[FloatArray, FloatArray]] = {}

        def keep(name: str, query: FloatArray, gallery: FloatArray) -> None:
            vectors[name] = query, gallery

        seen = keep if self.recipe.evaluation.keep_vectors else None
        with phases("scoring"):
            with phases("slim"):
                narrow = self.narrow_plans(number, parent)
                repairs = scorer.repairs(training.network, {**narrow, rate_text(plan.rate): plan}, number)
            scorecard = scorer.scorecard(
                training.network, plan, narrow=narrow, repairs=repairs, seen=seen, timed=phases
            )
        seconds = {"training": round(trained.seconds, 1), **phases.seconds}
        if has_patience:
            scorecard = replace(scorecard, best_epoch=best_epoch(log))
            seconds["validating"] = validating_seconds(log)
        return Generation(
            number=number,
            weights=weights,
            loss_weights=trained.loss_weights,
            split=plan.to_json(),
            split_bits=plan.to_tensors(),
            scorecard=scorecard,
            training_log=log,
            magnitudes=mean_magnitudes(training.network, plan),
            provenance=self._provenance(parent, log, seconds, begun_from),
            narrow_splits={rate: each.to_json() for rate, each in narrow.items()},
            repairs=repairs,
            # A slim network that is all of the dense one is not scored again.
            vectors={name: vectors.get(name, vectors["dense"]) for name in scorecard.networks} if vectors else {},
            last_weights={} if self.recipe.method.inherit_average else trained.weights,
        )

    def _averaged(self, training: GenerationTraining) -> Weights:
        """Put the average of its weights into a trained network, and return what it has then."""
        training.average.give()
        self.scorer.measure_norms(training.network, training.number)
        return weights_of(training.network)

    def _provenance(
        self,
        parent: Generation | None,
        training_log: Sequence[Mapping[str, Any]],
        seconds: Mapping[str, float],
        begun_from: Mapping[str, Any],
    ) -> Provenance:
        rules = {"ties": TIES_BY_MEAN, "clusters": CLUSTERS_DRAWN_IN_BLOCKS}
        search = {"search_backend": backend, **rules} if (backend := self.search_backend()) else {}
        return Provenance(
            recipe_digest=self.recipe.digest,
            parent_digest=weights_digest(parent.weights) if parent else None,
            seed=self.recipe.seed,
            environment=describe_environment(),
            training={**self.engine.describe(), **search, **begun_from, "epochs": epochs_by_engine(training_log)},
            seconds=seconds,
            class_names=self._train.class_names if self.recipe.task == "classification" else (),
            data=self.pictures.fingerprint.describe(),
        )

    def _begun_from(self, parent: Generation | None, observer: TrainingObserver | None) -> dict[str, Any]:
        """Return what a provenance record says of the file that the lineage starts from; tell an observer of it.

        Raises:
            KeMetricError: It does not fit; or a later generation is to read another one than the first did.
        """
        recorded = {} if parent is None else parent.provenance.training
        if parent is not None and not (self.recipe.method.looks_back and STARTING_WEIGHTS in recorded):
            return {name: recorded[name] for name in (STARTING_WEIGHTS,) if name in recorded}
        found = self.networks.starting_weights()
        if found is None:
            return {}
        if parent is not None:
            require_same(
                found.file, found.sha256, recorded[STARTING_WEIGHTS]["sha256"], "generation 1 started from it"
            )
        if observer is not None:
            observer.note(found.told)
        return {STARTING_WEIGHTS: found.describe()}

    def inheritance(self, number: int, parent: Generation | None) -> Inheritance:
        """Return what there is to begin generation `number` with, but for gradients.

        Raises:
            KeMetricError: The parent is missing or does not fit the recipe, the network cannot be split, or patience
                has no validation part to go by.
        """
        self.scorer.require_validation()
        if (parent.number if parent else 0) != number - 1:
            raise KeMetricError(
                f"generation {number} needs generation {number - 1} as its parent, "
                f"{f'generation {parent.number}' if parent else 'none'} is there",
                ExitCode.LINEAGE,
            )
        plan = self._plan(number, parent)
        return Inheritance(number, self.networks, plan=plan, device=self.engine.device, parent=parent)

    def _plan(self, number: int, parent: Generation | None) -> SplitPlan:
        """Return the parent's plan, as masks never change in a lineage; its own for a network of another width."""
        recipe = self.recipe
        if parent is not None:
            plan = SplitPlan.from_json(parent.split, parent.split_bits)
            rate = plan.rate if recipe.trains_slim(parent.number) else recipe.split.rate
            if (plan.kind, plan.rate) != (recipe.split.kind, rate):
                raise KeMetricError(
                    f"split.kind = {recipe.split.kind!r}, split.rate = {recipe.split.rate}: generation "
                    f"{parent.number} was split with {plan.kind!r}, {plan.rate}, and a lineage keeps its split",
                    ExitCode.LINEAGE,
                )
            if recipe.trains_slim(number) == recipe.trains_slim(parent.number):
                return plan
        return self.networks.plan(self.networks.build(number), number)

    def narrow_plans(self, number: int, parent: Generation | None) -> dict[str, SplitPlan]:
        """Return the split plans of the narrow networks that generation `number` trains, by rate; the parent's."""
        if not self.recipe.split.rates or self.recipe.trains_slim(number):
            return {}
        stored = parent.narrow_splits if parent is not None else {}
        network = self.networks.build(1)
        return {
            rate_text(rate): SplitPlan.from_json(stored[rate_text(rate)])
            if rate_text(rate) in stored
            else self.networks.plan_at(network, rate)
            for rate in self.recipe.split.rates
        }

    def assemble(self, inheritance: Inheritance, *, rehearsed: bool = True) -> GenerationTraining:
        """Return the training of a generation, ready to begin: its network has inherited, its loss is built.

        Raises:
            KeMetricError: The parent does not fit the recipe, or the recipe the network or the pictures.
        """
        number, parent = inheritance.number, inheritance.parent
        network, method = self._checked_network(inheritance), method_of(self.recipe, number)
        if parent is not None:
            if method.needs_gradients:
                inheritance = replace(inheritance, gradients=self.gradients(parent))
            method.inherit(network, inheritance)
        network = self.engine.place(network, channels_last=self.recipe.training.channels_last)
        training = GenerationTraining(
            network,
            self.loss(number, parent, rehearsed=rehearsed),
            self.epochs(number),
            recipe=self.recipe,
            engine=self.engine,
            number=number,
            hooks=method.hooks(network, inheritance),
        )
        if narrow := self.narrow_plans(number, parent):
            training.train_widths(narrow)
        if self.recipe.training.patience is not None:
            training.validate_by(self.scorer)
        return training

    def _checked_network(self, inheritance: Inheritance) -> nn.Module:
        """Return the network that a generation begins with, but for what it inherits; plan and method fit it."""
        # A child takes its parent's weights; what it begins with beside them is random, new in every generation.
        number = inheritance.number
        network, method = self.networks.build(number, load_pretrained=number == 1), method_of(self.recipe, number)
        inheritance.plan.check(network)
        self.networks.freeze(network)
        method.check(network, self.recipe.method)
        if method.redraws_by_plan:
            require_redrawable(network, inheritance.plan)
        return network

    def gradients(self, parent: Generation) -> dict[str, Tensor]:
        """Return a parent's mean absolute gradients, name -> tensor, over the first 20 % of an epoch's batches."""
        heir = replace(parent, weights=parent.inherited)
        network, _ = self.networks.restore(heir, device=self.engine.device, what="the parent's weights")
        loss = self.loss(parent.number, None, rehearsed=False)
        load_whole(loss, parent.loss_weights, "the parent's loss parameters")
        epochs = self.epochs(parent.number)
        count = math.ceil(SALIENCY_SHARE * len(epochs))
        # An epoch that was not trained on: the batches are drawn anew.
        batches = itertools.islice(epochs.epoch(self.recipe.training.epochs + 1), count)
        # A miner or a loss may draw.
        with default_streams(self.recipe.seed, parent.number, "saliency"):
            return mean_gradients(network, loss, batches, self.engine)

    def loss(self, number: int, parent: Generation | None, *, rehearsed: bool = True) -> nn.Module:
        """Return a generation's loss, placed: its parameters new, or inherited if the recipe says so.

        A loss that would fail, or teach nothing, in a training that begins is refused if it is to be `rehearsed`.
        """
        sizes = np.bincount(self._train.labels, minlength=len(self._train.class_names))
        with default_streams(self.recipe.seed, number, "loss"):
            loss = build_loss(self.recipe, class_sizes=sizes.tolist(), rehearsed=rehearsed)
        if parent is not None and not self.recipe.method.reset_loss:
            load_whole(loss, parent.loss_weights, "the parent's loss parameters")
        return self.engine.place(loss)

    def epochs(self, number: int) -> TrainingEpochs:
        """Return the batches of a generation."""
        return TrainingEpochs(
            self.pictures,
            self.recipe,
            generation=number,
            device=self.engine.device,
            rank=self.engine.rank,
            processes=self.engine.processes,
        )

    def require_buildable(self) -> tuple[Inheritance, GenerationTraining]:
        """Return what generation 1 begins with, for `begun`, and its training: labels are enough.

        Raises:
            KeMetricError: Whatever `grow` would raise before its first step; it shows before any harm.
        """
        inheritance = self.inheritance(1, None)
        training = self.assemble(inheritance)
        self.search_backend()
        return inheritance, training

    def require_resumable(self, start: Start) -> list[str]:
        """Build what the next generation needs, but for what it takes from its parent's weights; labels are enough.

        What the lineage was trained with so far is not refused: its split is the parent's, and its loss has worked.
        What a new lineage would be refused for is returned in words.

        Raises:
            KeMetricError: The parent does not fit the recipe or the data, or the device cannot do the search.
        """
        assert start.parent or start.state, "nothing was trained"
        self._checked_network(self.inheritance(start.number, start.parent))
        loss = self.loss(start.number, None, rehearsed=False)
        if start.parent is not None:
            self._require_classes_of(start.parent, loss)
        self.epochs(start.number)
        self.search_backend()
        try:
            self.loss(start.number, None)
        except KeMetricError as error:
            return [str(error)]
        return []

    def search_backend(self) -> str | None:
        """Return what a retrieval is scored by, never `auto`; None for a classification.

        Raises:
            KeMetricError: The backend that the recipe asks for is not usable here.
        """
        return self.scorer.backend if self.recipe.task == "retrieval" else None

    def _require_classes_of(self, parent: Generation, loss: nn.Module) -> None:
        """Refuse a training part of another number of classes, also where the loss is drawn anew."""
        try:
            load_whole(loss, parent.loss_weights, "the parent's loss parameters")
        except KeMetricError as error:
            raise KeMetricError(
                f"the training part has {len(self._train.class_names):,} classes, and generation {parent.number} was "
                f"not trained on so many: {error}",
                ExitCode.DATA,
            ) from error
