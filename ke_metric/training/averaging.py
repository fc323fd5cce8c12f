"""Averaged weights: what a generation is scored with where its recipe asks for more than its last step.

An exponential moving average over steps (`training.average`), or the mean over the ends of the last epochs
(`training.average_last`: stochastic weight averaging, Izmailov et al., UAI 2018). Both are computed by torch's own
functions for averaged models. The parameters that train are averaged; buffers are not: norm statistics belong to the
weights that they were measured with, and are measured anew with the average (`scoring`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from ke_metric.arrays import Weights
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Training

Averaging = Callable[[Sequence[Tensor], Sequence[Tensor], int], None]
"""Takes averages, changed in place, what comes to them, and of how many they are the average so far."""


def warmed_decay(decay: float, steps: int) -> float:
    """Return how much a moving average keeps where a step follows on `steps` others: min(decay, (1 + n) / (10 + n)).

    The `num_updates` of TensorFlow's ExponentialMovingAverage. As long as the second term is the smaller one, the
    average is over about the last ninth of the steps, so that a short training is not scored by its beginning: a
    decay of 0.99 is reached after 890 steps, one of 0.999 after 8,990.
    """
    return min(decay, (1 + steps) / (10 + steps))


class AveragedWeights:
    """The average of the weights that a network has while it trains; one more copy of what trains, where that lies.

    Nothing is averaged, and nothing held, where the recipe does not ask for it. An fp16 step that the loss scaler
    leaves out counts with the weights that it left.

    Args:
        network: The network, placed; what is frozen is left out.
        training: The recipe's section.
    """

    def __init__(self, network: nn.Module, training: Training) -> None:
        self._training = training
        self._parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self._averages: dict[str, Tensor] = {}

    def step_done(self, step: int) -> None:
        """Take in the weights after step `step` (from 0) of the generation."""
        if self._training.average is not None:
            decay = warmed_decay(self._training.average, step)
            self._take(step, get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]  # untyped in torch

    def epoch_done(self, epoch: int) -> None:
        """Take in the weights after epoch `epoch` (from 1)."""
        if (before := self._epochs_before(epoch)) is not None:
            self._take(before, get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]  # untyped in torch

    def _epochs_before(self, epoch: int) -> int | None:
        """Return how many epochs before this one belong to the mean; None where it does not itself."""
        last = self._training.average_last
        before = -1 if last is None else epoch - 1 - (self._training.epochs - last)
        return before if before >= 0 else None

    def _take(self, count: int, average: Averaging) -> None:
        if count == 0:
            self._averages = {name: value.detach().clone() for name, value in self._parameters.items()}
            return
        average(list(self._averages.values()), list(self._parameters.values()), count)

    def tensors(self) -> Weights:
        """Return the averages so far, name of a parameter to a copy on the CPU, contiguous."""
        return {
            name: value.to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, value in self._averages.items()
        }

    def restore(self, tensors: Weights, epoch: int) -> None:
        """Go on from what `tensors` returned after epoch `epoch`.

        Raises:
            KeMetricError: They are not those of this network, or there are none where there must be (LINEAGE).
        """
        is_due = self._training.average is not None or self._epochs_before(epoch) is not None
        expected = {name: value.shape for name, value in self._parameters.items()} if is_due else {}
        if {name: value.shape for name, value in tensors.items()} != expected:
            raise KeMetricError(
                f"the averaged weights to go on with ({len(tensors)} tensors) do not fit the network, of which "
                f"{len(expected)} are averaged after epoch {epoch} ({self._training.averages or 'nothing'})",
                ExitCode.LINEAGE,
            )
        # Laid out in memory as the parameters are, which the kernels for many tensors at once need.
        self._averages = {name: torch.empty_like(self._parameters[name]).copy_(tensors[name]) for name in expected}

    @torch.no_grad()
    def give(self) -> None:
        """Put the averages in the place of the weights, at the end of the training."""
        for name, value in self._averages.items():
            self._parameters[name].copy_(value)
