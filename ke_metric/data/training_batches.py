"""The augmented pictures of every training batch, the same ones whatever the number of worker processes.

Shapes: N pictures, B images of this process in a batch, S the size of a picture, U numbers per picture.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ke_metric.data.augmentation import COLOUR_DRAWS, Augmenter, DrawArray
from ke_metric.data.batches import IndexBatches
from ke_metric.data.images import IntArray
from ke_metric.data.pixels import PixelStore
from ke_metric.randomness import numpy_generator


class Batch(NamedTuple):
    """The augmented pictures of one step.

    Attributes:
        indices: int64 [B] picture numbers.
        pixels: uint8 [B, S, S, 3].
        labels: int64 [B] class numbers.
        colour_draws: float32 [B, COLOUR_DRAWS] uniform in [0, 1], for `Augmenter.colour` on the device.
    """

    indices: torch.Tensor
    pixels: torch.Tensor
    labels: torch.Tensor
    colour_draws: torch.Tensor


class _Request(NamedTuple):
    """What a worker process is told: picture numbers [B] and their draws [B, U + COLOUR_DRAWS]."""

    indices: IntArray
    draws: DrawArray


@dataclass(frozen=True)
class _Workshop(Dataset[Batch]):
    """Makes the batch of a request; the data set of torch's DataLoader, in this process or in a worker."""

    store: PixelStore
    labels: IntArray
    augmenter: Augmenter

    def __getitem__(self, request: _Request) -> Batch:
        columns = self.augmenter.geometry_draws
        pictures = [
            self.augmenter(self.store.picture(index), draws)
            for index, draws in zip(request.indices.tolist(), request.draws[:, :columns], strict=True)
        ]
        return Batch(
            indices=torch.from_numpy(request.indices.copy()),
            pixels=torch.from_numpy(np.stack(pictures)),
            labels=torch.from_numpy(self.labels[request.indices]),
            colour_draws=torch.from_numpy(request.draws[:, columns:].astype(np.float32)),
        )


class TrainingBatches:
    """The augmented batches of every epoch, the same ones whatever the number of worker processes.

    Args:
        store: N decoded pictures.
        labels: [N] class numbers.
        batches: Which pictures share a batch; its seed and generation also give the augmentation's draws.
        augmenter: What happens to a picture.
        workers: Processes that augment ahead, kept over the epochs; 0: a thread of this process, one batch ahead.
    """

    def __init__(
        self, store: PixelStore, labels: IntArray, *, batches: IndexBatches, augmenter: Augmenter, workers: int = 0
    ) -> None:
        assert len(store) == len(labels), (len(store), len(labels))
        self._batches = batches
        self._columns = augmenter.geometry_draws + COLOUR_DRAWS
        self._workshop = _Workshop(store, labels, augmenter)
        self._requests: list[_Request] = []
        self._loader = self._started(workers) if workers else None

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch, counted from 0."""
        self._batches.set_epoch(epoch)
        if self._loader is None:
            yield from _one_ahead(self._workshop, self._epoch_requests(epoch))
        else:
            # Filled in place: the DataLoader holds this very list as its sampler.
            self._requests[:] = self._epoch_requests(epoch)
            yield from self._loader

    def _epoch_requests(self, epoch: int) -> Iterator[_Request]:
        """Yield the requests of an epoch; a picture's draws are found by its place among those of all processes."""
        batches = self._batches
        generator = numpy_generator(batches.seed, batches.generation, f"augmentation-{epoch}")
        draws = generator.random((len(batches) * batches.batch_size, self._columns))
        for step, indices in enumerate(batches):
            share = len(indices) // batches.parts
            # A part holds the shares of all processes, one after another.
            starts = (np.arange(batches.parts) * batches.processes + batches.rank) * share
            places = step * batches.batch_size + starts[:, None] + np.arange(share)
            yield _Request(indices, draws[places.ravel()])

    def _started(self, workers: int) -> DataLoader[Batch]:
        return DataLoader(
            self._workshop,
            sampler=self._requests,
            batch_size=None,
            num_workers=workers,
            persistent_workers=True,
            # Forked workers share the store's memory. Not on macOS, whose system libraries do not survive a fork.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            # Its only use is to seed workers, which draw nothing; without it torch's global stream would move on.
            generator=torch.Generator(),
        )


def _one_ahead(workshop: _Workshop, requests: Iterator[_Request]) -> Iterator[Batch]:
    """Make the next batch in a thread while the caller trains on this one: Pillow and torch both release the GIL."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(workshop.__getitem__, next(requests))
        for request in requests:
            ready, upcoming = upcoming, thread.submit(workshop.__getitem__, request)
            yield ready.result()
        yield upcoming.result()
