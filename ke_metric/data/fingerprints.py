"""Decoding every picture once, to learn which cannot be read and which are the same."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ke_metric.data.images import ImageSource
from ke_metric.errors import KeMetricError

# Pictures wait decoded to a few bytes only, but the queue itself must not grow to the size of the data set.
QUEUED_PER_WORKER = 4
MOST_WORKERS = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fingerprints:
    """What decoding gave.

    Attributes:
        by_key: Item key to the sha256 of its width, height and decoded RGB pixels.
        unreadable: Item key to the reason why it could not be decoded.
    """

    by_key: Mapping[str, str]
    unreadable: Mapping[str, str]


def take_fingerprints(
    sources: Mapping[str, ImageSource], *, workers: int | None = None, progress: Progress | None = None
) -> Fingerprints:
    """Decode pictures completely, one after the other in each of several threads, and forget them again.

    Args:
        sources: Item key to the source that decodes it.
        workers: Threads, at least 1; the number of processors, at most 8, when left out.
        progress: Called with the number of pictures done and their total after each, from the calling thread.
    """
    workers = workers or min(os.cpu_count() or 1, MOST_WORKERS)
    by_key: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    waiting: deque[tuple[str, Future[str]]] = deque()

    def collect() -> None:
        key, future = waiting.popleft()
        try:
            by_key[key] = future.result()
        except KeMetricError as error:
            unreadable[key] = str(error)
        if progress:
            progress(len(by_key) + len(unreadable), len(sources))

    with ThreadPoolExecutor(workers) as pool:
        for key, source in sources.items():
            waiting.append((key, pool.submit(_fingerprint, source, key)))
            if len(waiting) >= QUEUED_PER_WORKER * workers:
                collect()
        while waiting:
            collect()
    return Fingerprints(by_key, unreadable)


def _fingerprint(source: ImageSource, key: str) -> str:
    image = source.read(key)
    # The size too: a 2x8 and an 8x2 picture can have the same bytes.
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
