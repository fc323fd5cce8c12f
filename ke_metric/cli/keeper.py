"""Keeps what a training says: resume states, log.jsonl, TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from ke_metric.cli.display import say
from ke_metric.errors import KeMetricError
from ke_metric.generation import Generation, Scorecard, TrainingState
from ke_metric.lineage import Lineage
from ke_metric.lineage_folder import TENSORBOARD
from ke_metric.training.one_generation import SIGNS
from ke_metric.training.watch import Watch

# A state that takes longer than this many seconds to write is not written after every epoch, but
SLOW_SECONDS = 2.0
# only so often that writing takes at most this share of the time.
WRITING_SHARE = 0.1


class Keeper(Watch):
    """Writes into a lineage while its generations are trained.

    The state to resume from is written after every epoch, or, where that takes long beside the epochs, less often;
    what is not written when a training stops is written then, unless it is killed.

    Args:
        lineage: The lineage, held for writing.
    """

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage
        self._epochs = lineage.recipe.training.epochs
        self._unwritten: TrainingState | None = None
        self._writing_seconds = 0.0
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
        for name in ("loss", *SIGNS.values(), "learning_rate", "tuples", "idle_steps"):
            if name in record:
                self._scalar(f"training/{name}", record[name], step)

    def _write(self, state: TrainingState) -> None:
        started = time.perf_counter()
        self._lineage.save_state(state)
        self._unwritten, self._written_at = None, time.perf_counter()
        self._writing_seconds = self._written_at - started

    def generation_done(self, generation: Generation) -> None:
        """Add a stored generation's scores and mean weights to TensorBoard."""
        # The generation is stored: there is nothing left to go on with.
        self._unwritten = None
        networks = {"dense": generation.scorecard.dense, "slim": generation.scorecard.slim or {}}
        for network, scores in networks.items():
            for name, value in scores.items():
                self._scalar(f"{network}/{name}", value, generation.number)
        for name, parts in generation.magnitudes.items():
            for part, mean in zip(("fit", "reset"), parts, strict=True):
                if mean is not None:
                    self._scalar(f"mean_weight_{part}/{name}", mean, generation.number)
        if self._board is not None:
            with self._harmless():
                self._board.flush()

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._board is not None:
            with self._harmless():
                self._board.add_scalar(name, value, step)
