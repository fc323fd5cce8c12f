"""The regime of a generation: what a method does while it trains, as the training calls it.

Shapes: B batch, H and W image height and width, D size of an output (embedding or logits).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.optim import Optimizer

from ke_metric.generation import Weights


class Regime:
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
