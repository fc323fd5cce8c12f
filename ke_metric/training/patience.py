"""Patience: which epoch's weights count where a validation part decides, and when a generation ends by itself.

Early stopping as it is usual (Prechelt: Early Stopping - But When?, 1998): after every epoch a score is computed of
pictures that are neither learnt from nor tested on, and what counts is the first epoch with the highest one. All that
is decided is a function of the log, so that a resume decides as if there had been none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from ke_metric.arrays import Weights, load_whole, weights_of
from ke_metric.generation import BestEpoch, TrainingState
from ke_metric.training.averaging import AveragedWeights
from ke_metric.training.hooks import TrainingObserver

VALIDATION, VALIDATION_SECONDS = "validation", "validation_seconds"
"""Fields of a training log: the score after an epoch, and how long it took."""


class Validator(Protocol):
    """Scores networks on a validation part, alike in all processes."""

    def validate(self, network: nn.Module) -> float:
        """Return the score that decides, in [0, 1]; the network is left as it is."""
        ...

    def measure_norms(self, network: nn.Module, number: int) -> None:
        """Measure the norm statistics of averaged weights of generation `number`, in place."""
        ...


def best_epoch(log: Sequence[Mapping[str, Any]]) -> BestEpoch:
    """Return which epoch of a log has the highest validation score, the first of equals."""
    best = max(log, key=lambda record: float(record[VALIDATION]))
    return BestEpoch(best["epoch"], len(log))


def validating_seconds(log: Sequence[Mapping[str, Any]]) -> float:
    """Return how long it took to score the epochs of a log."""
    return round(math.fsum(float(record[VALIDATION_SECONDS]) for record in log), 2)


class Patience:
    """Keeps the weights of the best epoch so far, on the CPU.

    Args:
        network: The network that trains, placed.
        average: Its averaged weights: what is validated, and counts, where there are any.
        validator: Scores it.
        epochs: After how many epochs without a higher score a generation ends.
    """

    def __init__(self, network: nn.Module, average: AveragedWeights, validator: Validator, epochs: int) -> None:
        self._network, self._average, self._validator, self._epochs = network, average, validator, epochs
        self._best: tuple[Weights, Weights] = {}, {}

    def is_over(self, log: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a generation ends after the epochs of a log, the same answer in all processes."""
        return bool(log) and len(log) - best_epoch(log).epoch >= self._epochs

    def judge(self, state: TrainingState) -> TrainingState:
        """Score the network, whose state after an epoch is given; return the state with what was found.

        Args:
            state: After the epoch. Weights that are averaged take the network's place for as long as this takes.
        """
        started = time.perf_counter()
        weights, score = self._scored(state)
        *before, record = state.training_log
        took = round(time.perf_counter() - started, 3)
        log = (*before, {**record, VALIDATION: score, VALIDATION_SECONDS: took})
        if best_epoch(log).epoch == state.epoch:
            self._best = weights, state.loss_weights
        best, best_loss = ({}, {}) if self._best[0] is state.weights else self._best
        return replace(state, training_log=log, best=best, best_loss=best_loss)

    def _scored(self, state: TrainingState) -> tuple[Weights, float]:
        """Return the weights that are looked at after an epoch, and their score."""
        if not state.average:
            return state.weights, self._validator.validate(self._network)
        self._average.give()
        self._validator.measure_norms(self._network, state.number)
        score, weights = self._validator.validate(self._network), weights_of(self._network)
        load_whole(self._network, state.weights, "the weights to go on with")
        return weights, score

    def restore(self, state: TrainingState, loss: nn.Module) -> None:
        """Take the weights of the best epoch from what `judge` returned; network and loss have them afterwards.

        Raises:
            KeMetricError: They are another network's (LINEAGE).
        """
        self._best = (state.best, state.best_loss) if state.best else (state.weights, state.loss_weights)
        self._load_best(loss)

    def chosen(self, state: TrainingState, loss: nn.Module, observer: TrainingObserver) -> TrainingState:
        """Put the weights of the best epoch into network and loss; return a generation's last state with them.

        The observer is told which epoch it is.
        """
        best = best_epoch(state.training_log)
        score = float(state.training_log[best.epoch - 1][VALIDATION])
        observer.note(
            f"generation {state.number}: {best.trained} epochs trained; its weights are those of epoch {best.epoch}, "
            f"the best one on the validation part ({100 * score:.1f} %)"
        )
        if score >= 1.0:
            observer.warn(
                f"generation {state.number}: every picture of the validation part was right after epoch "
                f"{best.epoch}; later epochs cannot be told apart by it, and a larger data.validation_fraction may"
            )
        self._load_best(loss)
        weights, loss_weights = self._best
        return replace(state, weights=weights, loss_weights=loss_weights)

    def _load_best(self, loss: nn.Module) -> None:
        load_whole(self._network, self._best[0], "the weights of the best epoch")
        load_whole(loss, self._best[1], "the parameters of the loss after the best epoch")
