"""The service without HTTP: an index, or a classifier, opened in the background, that answers in batches.

Shapes: B batch, Q queries, D embedding or classes, S image size in pixels.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ke_metric.arrays import FloatArray, PixelArray
from ke_metric.errors import KeMetricError
from ke_metric.retrieval.embedder import PictureNetwork
from ke_metric.retrieval.index import Index, Result
from ke_metric.retrieval.predictor import Predictor
from ke_metric.retrieval.query import SearchOptions, answer_queries
from ke_metric.serving.api import (
    ClassQuestion,
    Question,
    State,
    embedding_document,
    prediction_document,
    search_document,
)
from ke_metric.serving.exchange import Limits, Refused, Reply, Uploads, busy
from ke_metric.serving.pictures import STOPPING, Batcher, Job, decode, read_picture
from ke_metric.stores.contract import Item

Found = TypeVar("Found")

FAST_SECONDS = 0.001
"""A network that takes less than this per picture runs on one thread of the processor."""
TRIED = 8
"""Pictures whose time decides."""
TRIES = 4
"""How often a store is asked that another process is writing to."""
READING_THREADS = 2
UPLOAD = Item("")
"""A query that is no item's own picture."""
NOTHING_MEETS = "no {other}item of the gallery meets the condition where"
GREY = Image.new("RGB", (64, 64), (128, 128, 128))
# Of text without escaped names, which every scraper knows; what prometheus_client answers where nothing is asked for.
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServedNetwork:
    """A network that answers; called by several threads.

    Args:
        network: An embedder or a predictor.
        threads: Of the processor, for a forward pass; None: chosen by `choose_threads`. Set for the whole process.
    """

    def __init__(self, network: PictureNetwork, *, threads: int | None = None) -> None:
        self.network = network
        torch.set_num_threads(threads or choose_threads(network))

    def close(self) -> None:
        """Release it."""


class IndexSearcher(ServedNetwork):
    """An index on disk, opened for reading, with its embedder.

    Args:
        folder: Of the index.
        device: Where its embedder runs; see `Embedder.load`.
        threads: As for any network.

    Raises:
        KeMetricError: There is none, it is damaged, or it has no embedder.
    """

    def __init__(self, folder: Path, *, device: str | None = None, threads: int | None = None) -> None:
        self._index = Index.open(folder, device=device)
        try:
            super().__init__(self._index.embedder, threads=threads)
        except BaseException:
            self._index.close()
            raise
        # Not every kind of store can be asked by two threads at a time.
        self._lock = RLock()

    def search(
        self, queries: FloatArray, options: SearchOptions, exclude: Sequence[Sequence[str]] | None = None
    ) -> list[list[Result]]:
        """Return the results of each query [Q, D], without the items that are excluded for it."""
        uploads = [UPLOAD] * len(queries)
        found = self._undisturbed(
            lambda: answer_queries(self._index.store, uploads, queries, options, exclude=exclude, compare=False)
        )
        return [answer.results for answer in found]

    def find(self, item: str) -> Item | None:
        """Return the item of an id, None where there is none."""
        store = self._index.store
        return self._undisturbed(lambda: store.get([item])[0] if store.known([item]) else None)

    def _undisturbed(self, ask: Callable[[], Found]) -> Found:
        """Ask the store; again where it fails, as another process may have removed just then what was being read."""
        with self._lock:
            for _ in range(TRIES - 1):
                with suppress(KeMetricError):
                    return ask()
            return ask()

    def close(self) -> None:
        """Close the index."""
        with self._lock:
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


class Service:
    """An index, or a classifier, that answers; which routes lead to it is the application's affair.

    Args:
        open_network: Opens it; called once, in another thread.
        limits: How much of everything.

    Attributes:
        state: What /health says.
        failure: Why it could not be opened; None as long as nothing is wrong.
        limits: How much of everything.
        metrics: Counters.
        uploads: Reads bodies.
    """

    def __init__(self, open_network: Callable[[], ServedNetwork], limits: Limits) -> None:
        self._open, self.limits = open_network, limits
        self.state: State = "starting"
        self.failure: BaseException | None = None
        self.uploads = Uploads(limits)
        self._served: ServedNetwork | None = None
        self._batcher = Batcher(self._prepare, self._answer, limits=limits)
        self.metrics = Metrics(queue=lambda: self._batcher.waiting, held=lambda: self.uploads.held)
        self._batcher.sizes = self.metrics.count_batch
        self._readers = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="read")
        self._reading = 0

    @property
    def network(self) -> PictureNetwork:
        """What computes, once it is there."""
        assert self._served is not None
        return self._served.network

    def start(self) -> None:
        """Open the index in the background, and start working; on the event loop."""
        loop = asyncio.get_running_loop()
        self._batcher.start(loop)
        self._opening = asyncio.ensure_future(self._open_served(loop))

    async def _open_served(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._served = await loop.run_in_executor(self._readers, self._open_and_try)
        except Exception as error:
            self.failure = error
            return
        if self.state == "starting":
            self.state = "ready"

    def _open_and_try(self) -> ServedNetwork:
        """Open it, and compute a picture: what is built at the first forward pass is built before requests."""
        served = self._open()
        try:
            served.network.compute(np.stack([served.network.prepare(GREY, max_pixels=self.limits.max_pixels)]))
        except BaseException:
            served.close()
            raise
        return served

    def check_ready(self) -> None:
        """Raise Refused (503) where a picture would not be taken now."""
        self._check_open()
        self._batcher.check_room()

    def _check_open(self) -> None:
        if self._served is None or self.state != "ready":
            raise busy(STOPPING if self.state == "stopping" else "the service is starting")

    async def ask(self, body: bytes, kind: str, question: Question | ClassQuestion | None) -> bytes:
        """Return the JSON document of a search or a prediction, or of an embedding where there is no question.

        Raises:
            Refused: The picture cannot be used, or there is too much to do.
        """
        self.check_ready()
        document: bytes = await self._batcher.submit(body, kind, question)
        return document

    async def picture(self, identifier: str) -> Reply:
        """Return the picture of an item of the gallery.

        Raises:
            Refused: There is none, or there is too much to do.
        """
        self._check_open()
        if self._reading >= self.limits.queue:
            raise busy("too many requests are waiting")
        self._reading += 1
        searcher = cast(IndexSearcher, self._served)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._readers, lambda: read_picture(searcher.find(identifier), self.limits.image_bytes)
            )
        finally:
            self._reading -= 1

    def stop(self) -> None:
        """Take nothing more; what is in work is finished, within the time for it."""
        if self.state != "stopping":
            self._end = time.monotonic() + self.limits.stop_seconds
        self.state = "stopping"
        self._batcher.stop()
        self.uploads.stop()

    async def close(self) -> None:
        """Finish what is in work, within the time that is left of that since `stop`, and close the index."""
        self.stop()
        await self._opening
        finished = await asyncio.to_thread(self._batcher.close, max(0.1, self._end - time.monotonic()))
        self._readers.shutdown(wait=finished, cancel_futures=True)
        if self._served is not None and finished:
            self._served.close()

    def _prepare(self, body: bytes, kind: str) -> PixelArray:
        picture = decode(body, kind, self.limits.max_pixels)
        try:
            return self.network.prepare(picture, max_pixels=self.limits.max_pixels)
        except KeMetricError as error:
            raise Refused(422, f"the picture cannot be used: {error}") from error

    def _answer(self, jobs: Sequence[Job]) -> list[bytes | Exception]:
        """Embed a batch, and search for all those that ask the same in one go."""
        vectors = self.network.compute(np.stack([job.pixels for job in jobs]))
        answers: list[bytes | Exception] = [b""] * len(jobs)
        groups: dict[Any, list[int]] = defaultdict(list)
        for position, job in enumerate(jobs):
            groups[job.question.options if isinstance(job.question, Question) else job.question].append(position)
        for positions in groups.values():
            questions = [jobs[position].question for position in positions]
            for position, answer in zip(positions, self._documents(questions, vectors[positions]), strict=True):
                answers[position] = answer
        return answers

    def _documents(self, questions: Sequence[Any], vectors: FloatArray) -> list[bytes | Exception]:
        """Return the documents of pictures that ask the same; those that fail together are tried one by one."""
        digest, first = self.network.digest, questions[0]
        if isinstance(first, ClassQuestion):
            likeliest = cast(Predictor, self.network).likeliest(vectors, first.k)
            return [prediction_document(predictions, digest) for predictions in likeliest]
        if first is None:
            return [embedding_document(vector, digest) for vector in vectors.tolist()]
        try:
            return self._search(questions, vectors)
        except Exception as error:
            if len(vectors) == 1:
                return [error]
            rows = range(len(vectors))
            return [answer for row in rows for answer in self._documents([questions[row]], vectors[row : row + 1])]

    def _search(self, questions: Sequence[Question], vectors: FloatArray) -> list[bytes | Exception]:
        options = questions[0].options
        excluded = [[] if question.exclude is None else [question.exclude] for question in questions]
        searcher = cast(IndexSearcher, self._served)
        found = searcher.search(vectors, options, excluded if any(excluded) else None)
        documents: list[bytes | Exception] = []
        for results, left_out in zip(found, excluded, strict=True):
            says_nothing = results or options.where is None
            note = "" if says_nothing else NOTHING_MEETS.format(other="other " if left_out else "")
            documents.append(search_document(results, self.network.digest, note=note))
        return documents


class Metrics:
    """Counters of one service, in the words of Prometheus; changed on its event loop only.

    Args:
        queue: Tells how many pictures wait or are in work; asked whenever the metrics are.
        held: Tells how many bytes of uploads are in memory.

    Attributes:
        in_flight: Requests that are being answered.
    """

    def __init__(self, *, queue: Callable[[], float], held: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("ke_metric_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "ke_metric_request_seconds",
            "From the end of a request's headers to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "ke_metric_batch_pictures", "Pictures per forward pass.", buckets=SIZES, registry=registry
        )
        self._pictures = Counter("ke_metric_pictures", "Pictures embedded.", registry=registry)
        waiting = Gauge("ke_metric_queue_pictures", "Pictures that wait or are in work.", registry=registry)
        waiting.set_function(queue)
        Gauge("ke_metric_upload_bytes", "Bytes of uploads in memory.", registry=registry).set_function(held)
        self.in_flight = Gauge("ke_metric_requests_in_flight", "Requests being answered.", registry=registry)
        # Both are asked at every request, and prometheus_client looks a child up under a lock.
        self._counter = cache(lambda route, status: self._requests.labels(route, str(status)))
        self._timer = cache(self._seconds.labels)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._counter(route, status).inc()
        self._timer(route).observe(seconds)

    def count_batch(self, size: int) -> None:
        """Count a forward pass."""
        self._batches.observe(size)
        self._pictures.inc(size)

    def text(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self._registry)
