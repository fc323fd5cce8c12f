"""What the service needs of an index, or of a classifier, and nothing more.

Shapes: B batch, D embedding, C classes, Q queries, S image size in pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from ke_metric.arrays import FloatArray, PixelArray
from ke_metric.errors import KeMetricError
from ke_metric.retrieval.embedder import PictureNetwork
from ke_metric.retrieval.index import Index, Result, results_of
from ke_metric.retrieval.predictor import Prediction, Predictor
from ke_metric.stores.contract import Item
from ke_metric.stores.where import Where

Answer = TypeVar("Answer")

FAST_SECONDS = 0.001
"""A network that takes less than this per picture runs on one thread of the processor."""
TRIED = 8
TRIES = 4


class Answerer(Protocol):
    """A network that answers; called by several threads."""

    @property
    def digest(self) -> str:
        """Of the network."""
        ...

    def prepare(self, picture: Image.Image, max_pixels: int) -> PixelArray:
        """Return what the network sees of a picture, uint8 [S, S, 3]; KeMetricError where it cannot be used."""
        ...

    def embed(self, pixels: PixelArray) -> FloatArray:
        """Return what the network gives for prepared pictures [B, S, S, 3]: embeddings [B, D], or logits [B, C]."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class Searcher(Answerer, Protocol):
    """An embedder and the gallery that it searches."""

    def search(self, queries: FloatArray, k: int, where: Where | None) -> list[list[Result]]:
        """Return the results of each query [Q, D]."""
        ...

    def find(self, item: str) -> Item | None:
        """Return the item of an id, None where there is none."""
        ...


class Labeller(Answerer, Protocol):
    """A classifier."""

    def likeliest(self, logits: FloatArray, k: int) -> list[list[Prediction]]:
        """Return the k likeliest classes of each row of logits [B, C]."""
        ...


class NetworkLabeller:
    """A predictor as the service takes it.

    Args:
        predictor: What predicts.
        threads: Of the processor, for a forward pass; None: chosen by `choose_threads`. Set for the whole process.
    """

    def __init__(self, predictor: Predictor, *, threads: int | None = None) -> None:
        self._predictor = predictor
        torch.set_num_threads(threads or choose_threads(predictor))

    @property
    def digest(self) -> str:
        """Of the network."""
        return self._predictor.digest

    def prepare(self, picture: Image.Image, max_pixels: int) -> PixelArray:
        """Return what the network sees of a picture, uint8 [S, S, 3].

        Raises:
            KeMetricError: DATA: it cannot be used, or would grow to more pixels on the way.
        """
        return self._predictor.prepare(picture, max_pixels=max_pixels)

    def embed(self, pixels: PixelArray) -> FloatArray:
        """Return the logits [B, C] of prepared pictures [B, S, S, 3]."""
        return self._predictor.compute(pixels)

    def likeliest(self, logits: FloatArray, k: int) -> list[list[Prediction]]:
        """Return the k likeliest classes of each row of logits [B, C]."""
        return self._predictor.likeliest(logits, k)

    def close(self) -> None:
        """There is nothing to be released."""


class IndexSearcher:
    """An index on disk, opened for reading.

    Args:
        folder: Of the index.
        device: Where its embedder runs; see `Embedder.load`.
        threads: Of the processor, for a forward pass; None: chosen by `choose_threads`. Set for the whole process.

    Raises:
        KeMetricError: There is none, it is damaged, or it has no embedder.
    """

    def __init__(self, folder: Path, *, device: str | None = None, threads: int | None = None) -> None:
        self._index = Index.open(folder, device=device)
        try:
            self._embedder = self._index.embedder
            torch.set_num_threads(threads or choose_threads(self._embedder))
        except BaseException:
            self._index.close()
            raise
        # Not every kind of store can be asked by two threads at a time.
        self._store = RLock()

    @property
    def digest(self) -> str:
        """Of the network that makes the vectors."""
        return self._embedder.digest

    def prepare(self, picture: Image.Image, max_pixels: int) -> PixelArray:
        """Return what the network sees of a picture, uint8 [S, S, 3].

        Raises:
            KeMetricError: DATA: it cannot be used, or would grow to more pixels on the way.
        """
        return self._embedder.prepare(picture, max_pixels=max_pixels)

    def embed(self, pixels: PixelArray) -> FloatArray:
        """Return the embeddings [B, D] of prepared pictures [B, S, S, 3]."""
        return self._embedder.embed_pixels(pixels)

    def search(self, queries: FloatArray, k: int, where: Where | None) -> list[list[Result]]:
        """Return the results of each query [Q, D]."""
        return self._undisturbed(lambda: results_of(self._index.search(queries, k, digest=self.digest, where=where)))

    def find(self, item: str) -> Item | None:
        """Return the item of an id, None where there is none."""
        store = self._index.store
        return self._undisturbed(lambda: store.get([item])[0] if store.known([item]) else None)

    def _undisturbed(self, ask: Callable[[], Answer]) -> Answer:
        """Ask the store; again where it fails, as another process may have removed just then what was being read."""
        with self._store:
            for _ in range(TRIES - 1):
                with suppress(KeMetricError):
                    return ask()
            return ask()

    def close(self) -> None:
        """Close the index."""
        with self._store:
            self._index.close()


def choose_threads(network: PictureNetwork) -> int:
    """Return how many threads of the processor a forward pass should have while the service answers.

    A small network gains little from several threads, and they wait for each other after every layer, on cores that
    decode and speak HTTP meanwhile: it gets one. A network that takes longer gets all.
    """
    every = torch.get_num_threads()
    size = network.normalization.image_size
    pictures = np.zeros((TRIED, size, size, 3), np.uint8)
    torch.set_num_threads(1)
    try:
        network.compute(pictures)
        # Of this thread's own: what else the machine does at the moment does not count.
        started = time.thread_time()
        network.compute(pictures)
        return 1 if time.thread_time() - started < TRIED * FAST_SECONDS else every
    finally:
        torch.set_num_threads(every)
