"""Ctrl-C and SIGTERM: the first one lets the step finish, a second one stops at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ke_metric.cli.display import say
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import TrainingState
from ke_metric.training.engine import Engine
from ke_metric.training.watch import Step, Watch


class Interrupts(Watch):
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

    def step_done(self, step: Step) -> None:
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
