"""Decoding every picture once, to learn which cannot be read, which are the same, and what their files were."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ke_metric.data.decoding import FileTraits, traits_of
from ke_metric.data.images import ImageSource
from ke_metric.errors import KeMetricError

# Pictures wait decoded to a few bytes only, but the queue itself must not grow to the size of the data set.
QUEUED_PER_WORKER = 4
MOST_WORKERS = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Seen:
    """What is kept of a decoded picture.

    Attributes:
        fingerprint: SHA-256 of its width, height and RGB pixels.
        brightest: The largest of its numbers.
        blank: Whether all of it is one colour.
        traits: What it was in its file; None for a picture that was in none.
    """

    fingerprint: str
    brightest: int
    blank: bool
    traits: FileTraits | None

    @property
    def vanished(self) -> bool:
        """Whether it is transparent, and nothing of it can be told from the ground that it is put on."""
        return self.blank and self.traits is not None and self.traits.transparent


@dataclass(frozen=True)
class Fingerprints:
    """What decoding gave.

    Attributes:
        by_key: Item key to the fingerprint of its pixels; those of which nothing is to be seen are not compared.
        unreadable: Item key to the reason why it could not be decoded.
        seen: Item key to what is kept of it.
    """

    by_key: Mapping[str, str]
    unreadable: Mapping[str, str]
    seen: Mapping[str, Seen] = field(default_factory=dict)


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
    seen: dict[str, Seen] = {}
    unreadable: dict[str, str] = {}
    waiting: deque[tuple[str, Future[Seen]]] = deque()

    def collect() -> None:
        key, future = waiting.popleft()
        try:
            seen[key] = future.result()
        except KeMetricError as error:
            unreadable[key] = str(error)
        if progress:
            progress(len(seen) + len(unreadable), len(sources))

    with ThreadPoolExecutor(workers) as pool:
        for key, source in sources.items():
            waiting.append((key, pool.submit(_look, source, key)))
            if len(waiting) >= QUEUED_PER_WORKER * workers:
                collect()
        while waiting:
            collect()
    by_key = {key: picture.fingerprint for key, picture in seen.items() if not picture.vanished}
    return Fingerprints(by_key, unreadable, seen)


def _look(source: ImageSource, key: str) -> Seen:
    image = source.read(key)
    # The size too: a 2x8 and an 8x2 picture can have the same bytes.
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    pixels = np.asarray(image)
    return Seen(
        digest.hexdigest(),
        brightest=int(pixels.max()),
        blank=bool((pixels == pixels[0, 0]).all()),
        traits=traits_of(image),
    )
