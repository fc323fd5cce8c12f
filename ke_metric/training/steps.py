"""What the steps of an epoch say: it stays on the device, and is read one step later, so that nobody waits for it.

A loss as a Python number makes the host wait until the device has computed it, and the device then waits for the
host. What a step says goes to the host as one small tensor, while the next step is computed already.

Shapes: B batch, D size of an output (embedding or logits), V values of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# What the log says of an epoch beside its loss, by the recipe's task.
SIGNS = {"retrieval": "spread", "classification": "top1"}


@dataclass(frozen=True)
class StepFacts:
    """What a step said, as numbers.

    Attributes:
        loss: Of the whole network.
        sign: Embedding spread (retrieval) or top-1 accuracy in the batch (classification).
        rate_losses: Split rate to the loss of the narrow network there, of those that were trained.
        tuples: How many pairs or triplets were mined; None without a miner.
    """

    loss: float
    sign: float
    rate_losses: Mapping[str, float]
    tuples: int | None

    @property
    def is_idle(self) -> bool:
        """Whether it taught nothing: a pair or triplet loss without tuples is 0."""
        return self.loss == 0 or self.tuples == 0

    @property
    def strange_loss(self) -> float | None:
        """The first of its losses that is not finite; None where all are."""
        return next((loss for loss in (self.loss, *self.rate_losses.values()) if not math.isfinite(loss)), None)


class TakenStep:
    """An optimizer step that was begun, and what it says as soon as the device has it.

    Args:
        number: Of the step in its generation, from 0.
        keys: Keys of the B pictures, for an error message.
        learning_rate: The network's.
        loss: Scalar tensor, no gradient needed.
        sign: What `sign_of` gave.
        rate_losses: Split rate to a scalar tensor.
        tuples: See `StepFacts`; the host knows it, as it decides the shapes that a loss computes with.
    """

    def __init__(
        self,
        number: int,
        keys: tuple[str, ...],
        *,
        learning_rate: float,
        loss: Tensor,
        sign: BatchSign,
        rate_losses: Mapping[str, Tensor],
        tuples: int | None,
    ) -> None:
        self.number, self.keys, self.learning_rate = number, keys, learning_rate
        self._sign, self._rates, self._tuples = sign, tuple(rate_losses), tuples
        found = (loss, sign.value, *rate_losses.values())
        values = torch.stack([value.detach().float() for value in found])
        # To pinned memory, where it may arrive whenever it is ready.
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        self._arrived = torch.cuda.Event() if values.is_cuda else None  # type: ignore[no-untyped-call]  # untyped in torch
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> StepFacts:
        """Wait until the device has computed the step, and return what it said."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, sign, *rate_losses = self._values.tolist()
        rates = dict(zip(self._rates, rate_losses, strict=True))
        return StepFacts(loss, self._sign.of(sign), rates, self._tuples)


@dataclass(frozen=True)
class BatchSign:
    """A sign of learning in a batch, computed on the device but for its last arithmetic.

    Attributes:
        value: Scalar tensor: |sum of embeddings|^2, or the top-1 accuracy.
        spread_of: B for the spread of embeddings; None for an accuracy, which is what the sign says.
    """

    value: Tensor
    spread_of: int | None

    def of(self, value: float) -> float:
        """Return the sign, given what the device computed."""
        count = self.spread_of
        if count is None:
            return value
        return 1.0 - (value - count) / (count * (count - 1)) if count > 1 else 0.0


def sign_of(outputs: Tensor, labels: Tensor, task: str) -> BatchSign:
    """Return the sign of learning of outputs [B, D], L2-normalised if they are embeddings, and labels [B].

    It is the top-1 accuracy (classification), or the embedding spread: the mean cosine distance between two different
    items, 0 for a single one. Of labels that are shares of classes [B, D], the class with the largest one is right.
    """
    if task == "classification":
        labels = labels.argmax(dim=1) if labels.ndim == 2 else labels
        return BatchSign((outputs.argmax(dim=1) == labels).float().mean(), None)
    return BatchSign(outputs.sum(0).square().sum(), len(outputs))


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinity; None where all are finite. Waits once."""
    floating = [(name, value) for name, value in named if value.is_floating_point() and value.numel()]
    # Both ends of a tensor with a NaN are NaN. Every value as a truth of its own takes nine times as long.
    ends = torch.stack([end for _, value in floating for end in value.detach().aminmax()])
    finite = ends.isfinite().view(-1, 2).all(dim=1).tolist()
    return next((name for (name, _), is_finite in zip(floating, finite, strict=True) if not is_finite), None)


@dataclass
class EpochFacts:
    """What the log says of an epoch, gathered from its steps.

    Attributes:
        steps: What they said, in order.
        images: Of all of them, over all processes.
    """

    steps: list[StepFacts] = field(default_factory=list)
    images: int = 0

    def record(self, task: str, learning_rate: float) -> dict[str, Any]:
        """Return means over steps, the counts of an epoch, and its last learning rate."""
        tuples = [step.tuples for step in self.steps if step.tuples is not None]
        idle = sum(step.is_idle for step in self.steps)
        rates = sorted({rate for step in self.steps for rate in step.rate_losses})
        return {
            "loss": _mean([step.loss for step in self.steps]),
            **{f"loss_{rate}": _mean(self._rate_losses(rate)) for rate in rates},
            SIGNS[task]: _mean([step.sign for step in self.steps]),
            "learning_rate": learning_rate,
            **({"tuples": _mean(tuples)} if tuples else {}),
            **({"idle_steps": idle, "steps": len(self.steps)} if idle else {}),
            "images": self.images,
        }

    def _rate_losses(self, rate: str) -> list[float]:
        return [step.rate_losses[rate] for step in self.steps if rate in step.rate_losses]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
