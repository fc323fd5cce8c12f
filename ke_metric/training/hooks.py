"""Who has a say while a generation trains, and who is told: the hooks of a method, the observer of a training.

Shapes: B batch, H and W image height and width, D size of an output (embedding or logits).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from ke_metric.arrays import Weights
from ke_metric.generation import Scorecard, TrainingState


class TrainingHooks:
    """What a method does while a generation trains: nothing, unless a subclass says otherwise.

    Attributes:
        learning_rate_factor: Learning rate of this generation over the recipe's.
    """

    learning_rate_factor: float = 1.0

    def epoch_begins(self, epoch: int, optimizer: Optimizer) -> None:
        """Hear that epoch `epoch` (from 1) begins, also the first one after a resume; may change the optimizer."""

    def step(self, number: int) -> AbstractContextManager[None]:
        """Return what surrounds the computation of loss and gradient in step `number` (from 0) of a generation."""
        return nullcontext()

    def targets(self, images: Tensor) -> Tensor | None:
        """Return what `added_loss` compares the outputs of these images [B, 3, H, W] with; [B, D], no gradient."""
        return None

    def added_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what is added to the loss, a scalar, given outputs and what `targets` gave, both float32 [B, D]."""
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
        learning_rate: The network's.
    """

    generation: int
    epoch: int
    step: int
    steps: int
    images: int
    loss: float
    learning_rate: float


class TrainingObserver:
    """Hears of a training; a subclass overrides what it wants to know. What it raises stops the training."""

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
    """Several observers as one: each hears of everything, in their order."""

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
