"""What a training tells whoever watches it: a display, a log, a store."""

from __future__ import annotations

from dataclasses import dataclass

from ke_metric.generation import Scorecard, TrainingState


@dataclass(frozen=True)
class Step:
    """One finished optimizer step.

    Attributes:
        generation: Number of the generation, from 1.
        epoch: Epoch under way, from 1.
        step: Steps finished in this generation.
        steps: Steps of a whole generation.
        images: Images of this step, over all processes.
        loss: Its loss.
        learning_rate: The network's learning rate.
    """

    generation: int
    epoch: int
    step: int
    steps: int
    images: int
    loss: float
    learning_rate: float


class Watch:
    """Watches nothing; a subclass overrides what it wants to know. An exception raised here stops the training."""

    def note(self, text: str) -> None:
        """Hear a line that is worth printing."""

    def warn(self, text: str) -> None:
        """Hear of something that is probably wrong."""

    def untrained(self, scorecard: Scorecard) -> None:
        """Hear how the network of generation 1 scores before any training."""

    def step_done(self, step: Step) -> None:
        """Hear that an optimizer step is finished."""

    def epoch_done(self, state: TrainingState) -> None:
        """Hear that an epoch is finished; `state` resumes exactly from here."""


class Watches(Watch):
    """Passes everything on to several others, in their order.

    Args:
        watches: Who wants to know.
    """

    def __init__(self, *watches: Watch) -> None:
        self._watches = watches

    def note(self, text: str) -> None:
        """Pass it on."""
        for watch in self._watches:
            watch.note(text)

    def warn(self, text: str) -> None:
        """Pass it on."""
        for watch in self._watches:
            watch.warn(text)

    def untrained(self, scorecard: Scorecard) -> None:
        """Pass it on."""
        for watch in self._watches:
            watch.untrained(scorecard)

    def step_done(self, step: Step) -> None:
        """Pass it on."""
        for watch in self._watches:
            watch.step_done(step)

    def epoch_done(self, state: TrainingState) -> None:
        """Pass it on."""
        for watch in self._watches:
            watch.epoch_done(state)
