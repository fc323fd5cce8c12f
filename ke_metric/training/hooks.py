"""The hooks of a generation: what a method does while it trains, as the training calls it.

Shapes: B batch, H and W image height and width, D size of an output (embedding or logits).

What a training tells whoever observers it: a display, a log, a store.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from ke_metric.generation import Scorecard, TrainingState, Weights


class TrainingHooks:
    """What a method does while a generation trains: nothing, unless a subclass says otherwise.

    Attributes:
        learning_rate_factor: Learning rate of this generation over the recipe's.
    """

    learning_rate_factor: float = 1.0

    def epoch_begins(self, epoch: int, optimizer: Optimizer) -> None:
        """Hear that epoch `epoch` (from 1) begins; also of the first one after a resume.

        Args:
            epoch: Its number.
            optimizer: Of the generation, whose state may be changed in place.
        """

    def step(self, number: int) -> AbstractContextManager[None]:
        """Return what surrounds the computation of loss and gradient in step `number` (from 0) of a generation."""
        return nullcontext()

    def targets(self, images: Tensor) -> Tensor | None:
        """Return what `added_loss` compares the outputs of these images [B, 3, H, W] with; [B, D], no gradient."""
        return None

    def added_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what is added to the loss, a scalar.

        Args:
            outputs: Of the network, float32 [B, D].
            targets: What `targets` gave for the same images, float32 [B, D].
        """
        raise NotImplementedError

    def before_step(self) -> None:
        """Hear that the gradients of a step are complete."""

    def after_step(self) -> None:
        """Hear that the optimizer has changed the weights."""

    def tensors(self) -> Weights:
        """Return what a resume needs beside the weights; tensors on the CPU."""
        return {}

    def restore(self, tensors: Weights) -> None:
        """Go on from what `tensors` returned."""


@dataclass(frozen=True)
class StepReport:
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


class TrainingObserver:
    """Observes nothing; a subclass overrides what it wants to know. An exception raised here stops the training."""

    def note(self, text: str) -> None:
        """Hear a line that is worth printing."""

    def warn(self, text: str) -> None:
        """Hear of something that is probably wrong."""

    def untrained(self, scorecard: Scorecard) -> None:
        """Hear how the network of generation 1 scores before any training."""

    def step_done(self, step: StepReport) -> None:
        """Hear that an optimizer step is finished."""

    def epoch_done(self, state: TrainingState) -> None:
        """Hear that an epoch is finished; `state` resumes exactly from here."""


class TrainingObservers(TrainingObserver):
    """Passes everything on to several others, in their order.

    Args:
        observers: Who wants to know.
    """

    def __init__(self, *observers: TrainingObserver) -> None:
        self._observers = observers

    def note(self, text: str) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.note(text)

    def warn(self, text: str) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.warn(text)

    def untrained(self, scorecard: Scorecard) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.untrained(scorecard)

    def step_done(self, step: StepReport) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.step_done(step)

    def epoch_done(self, state: TrainingState) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.epoch_done(state)
