"""Keeps what a training says: resume states, log.jsonl, TensorBoard events.

Ctrl-C and SIGTERM: the first one lets the step finish, a second one stops at once.

How a training goes on: with which command, and with what not as it was before.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from ke_metric.cli.display import resume_command, say
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evolution import Start
from ke_metric.generation import Generation, Scorecard, TrainingState
from ke_metric.lineage.folder import TENSORBOARD
from ke_metric.lineage.store import Lineage
from ke_metric.recipe.schema import Recipe
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import StepReport, TrainingObserver
from ke_metric.training.patience import VALIDATION
from ke_metric.training.steps import SIGNS

# A state that takes longer than this many seconds to write is not written after every epoch, but
SLOW_SECONDS = 0.2
# only so often that writing takes at most this share of the time: a killed training repeats some seventy times
# what a write takes. Of trainings of small pictures, whose epochs are short, it would else be what costs most.
WRITING_SHARE = 0.015


class LineageRecorder(TrainingObserver):
    """Writes into a lineage while its generations are trained.

    The state to resume from is written after every epoch, or, where that takes long beside the epochs, less often;
    what is not written when a training stops is written then, unless it is killed.

    Args:
        lineage: The lineage, held for writing.

    Attributes:
        saving_seconds: How long all that was stored so far took to write.
    """

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage
        self._epochs = lineage.recipe.training.epochs
        self._unwritten: TrainingState | None = None
        self._writing_seconds, self._last_writing = 0.0, math.inf
        self.saving_seconds = 0.0
        self._written_at = time.perf_counter()
        self._board: SummaryWriter | None = None
        with self._harmless():
            self._board = SummaryWriter(str(lineage.folder / TENSORBOARD))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unwritten is not None and not isinstance(error, KeyboardInterrupt):
            try:
                self._write(self._unwritten)
            except (KeMetricError, OSError) as failure:
                # What stopped the training is the news; that this failed as well comes second.
                say(f"warning: the state after epoch {self._unwritten.epoch} is lost: {failure}", style="yellow")
        if self._board is not None:
            with self._harmless():
                self._board.close()

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Go on without TensorBoard when its files cannot be written: the lineage's own are what counts."""
        try:
            yield
        except OSError as error:
            self._board = None
            say(f"warning: no more TensorBoard events: {error}", style="yellow")

    def note(self, text: str) -> None:
        """Log a line."""
        self._lineage.log("note", text=text)

    def warn(self, text: str) -> None:
        """Log a warning."""
        self._lineage.log("warning", text=text)

    def untrained(self, scorecard: Scorecard) -> None:
        """Store what the generations are to be held against."""
        self._lineage.record_untrained(scorecard)

    def epoch_done(self, state: TrainingState) -> None:
        """Save the state to resume from, unless that would take too much of the time, then log the epoch."""
        since = time.perf_counter() - self._written_at
        is_slow = self._writing_seconds > SLOW_SECONDS
        if is_slow and self._writing_seconds > WRITING_SHARE * (since + self._writing_seconds):
            self._unwritten = state
        else:
            self._write(state)
        record = dict(state.training_log[-1])
        self._lineage.log("epoch", **record)
        step = (state.number - 1) * self._epochs + state.epoch
        for name in ("loss", *SIGNS.values(), "learning_rate", "tuples", "idle_steps", VALIDATION):
            if name in record:
                self._scalar(f"training/{name}", record[name], step)

    def _write(self, state: TrainingState) -> None:
        started = time.perf_counter()
        self._lineage.save_state(state)
        self._unwritten, self._written_at = None, time.perf_counter()
        took = self._written_at - started
        # The quicker of two: a disk that was busy once does not put the next state off for minutes.
        self._writing_seconds, self._last_writing = min(took, self._last_writing), took
        self.saving_seconds += took

    def store(self, generation: Generation) -> None:
        """Store a complete generation in the lineage, and its scores and mean weights for TensorBoard."""
        started = time.perf_counter()
        self._lineage.append(generation)
        # There is nothing left to go on with.
        self._unwritten = None
        for network, scores in generation.scorecard.networks.items():
            for name, value in scores.items():
                self._scalar(f"{network.replace(' ', '_')}/{name}", value, generation.number)
        for name, parts in generation.magnitudes.items():
            for part, mean in zip(("fit", "reset"), parts, strict=True):
                if mean is not None:
                    self._scalar(f"mean_weight_{part}/{name}", mean, generation.number)
        if self._board is not None:
            with self._harmless():
                self._board.flush()
        self.saving_seconds += time.perf_counter() - started

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._board is not None:
            with self._harmless():
                self._board.add_scalar(name, value, step)


class Interrupts(TrainingObserver):
    """Stops a training when a signal has come; all its processes after the same step.

    Args:
        engine: Tells the processes' signals to each other.
        epochs: Epochs of a generation.
        resume: The command that goes on.
    """

    def __init__(self, engine: Engine, epochs: int, resume: str) -> None:
        self._engine, self._epochs, self._resume = engine, epochs, resume
        self._received = False
        self._stopping = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._received:
            raise KeyboardInterrupt
        self._received = True
        say(f"{signal.Signals(number).name}: finishing the step; once more stops at once")

    def step_done(self, step: StepReport) -> None:
        """Stop if a signal has come, but for the last step of an epoch, whose state is about to be saved."""
        self._stopping = self._engine.any(self._received)
        steps_per_epoch = step.steps // self._epochs
        if self._stopping and step.step % steps_per_epoch:
            raise self._interrupted(step.generation, step.epoch)

    def epoch_done(self, state: TrainingState) -> None:
        """Stop if a signal came in the last step; the epoch's state is saved."""
        if self._stopping:
            raise self._interrupted(state.number, state.epoch)

    def _interrupted(self, generation: int, epoch: int) -> KeMetricError:
        return KeMetricError(
            f"interrupted in generation {generation}, epoch {epoch}; all up to the last finished epoch is saved. "
            f"Go on with: {self._resume}",
            ExitCode.INTERRUPTED,
        )


@contextmanager
def interruptible(interrupts: Interrupts) -> Iterator[None]:
    """Take SIGINT and SIGTERM for the time of a training."""
    before = {number: signal.signal(number, interrupts.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def warn_of_changes(start: Start, engine: Engine, *, lineage: Lineage, device: str | None) -> None:
    """Say, and log, where a training does not go on as it was trained before: processes, precision.

    Args:
        start: Where it goes on.
        engine: What it goes on with.
        lineage: The lineage, held for writing.
        device: The torch device that was asked for.
    """
    before = _last_engine(start)
    warnings = []
    if before.get("precision", engine.precision) != engine.precision:
        warnings.append(f"trained in {before['precision']} so far, goes on in {engine.precision}")
    processes = before.get("processes", engine.processes)
    if processes != engine.processes:
        again = resume_command(lineage.folder, device, processes=processes)
        warnings.append(
            f"trained by {_counted(processes)} so far, goes on with {_counted(engine.processes)}: "
            f"{_norms(lineage.recipe, processes, engine.processes)}. The numbers become others than those of a "
            f"training by {_counted(processes)} throughout, which goes on with: {again}"
        )
    for text in warnings:
        say(f"warning: {text}", style="yellow")
        lineage.log("warning", text=text)


def _last_engine(start: Start) -> Mapping[str, Any]:
    """Return what the last epoch was trained with; a record of before this was kept says nothing."""
    if start.state is not None and "processes" in start.state.training_log[-1]:
        return start.state.training_log[-1]
    if start.parent is None:
        return {}
    log = start.parent.training_log
    return log[-1] if log and "processes" in log[-1] else start.parent.provenance.training


def _counted(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _norms(recipe: Recipe, before: int, now: int) -> str:
    size = recipe.batches.size
    return (
        f"a batch of {size} pictures is shared otherwise, so that batch norm, where the network has it, goes by "
        f"{size // now} pictures instead of {size // before}, and dropout is drawn otherwise"
    )
