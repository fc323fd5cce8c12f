"""What is counted, in the words of Prometheus.

What a request asks for besides its picture: ?k=10&where=label == "crow".

The service without HTTP: an index, or a classifier, opened in the background, that answers in batches.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal, cast
from urllib.parse import parse_qsl, quote

import numpy as np
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ke_metric.arrays import FloatArray, PixelArray
from ke_metric.errors import KeMetricError
from ke_metric.retrieval.index import Result
from ke_metric.retrieval.predictor import Prediction
from ke_metric.serving.batching import STOPPING, Batcher, Job
from ke_metric.serving.exchange import Refused, Reply, Uploads, busy
from ke_metric.serving.pictures import decode, read_picture
from ke_metric.serving.searcher import Answerer, Labeller, Searcher
from ke_metric.serving.settings import Limits
from ke_metric.stores.where import Where

# Of text without escaped names, which every scraper knows; what prometheus_client answers where nothing is asked for.
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one service; changed on its event loop only.

    Attributes:
        in_flight: Requests that are being answered.
    """

    def __init__(self) -> None:
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
        self._queue = Gauge("ke_metric_queue_pictures", "Pictures that wait or are in work.", registry=registry)
        self._held = Gauge("ke_metric_upload_bytes", "Bytes of uploads in memory.", registry=registry)
        self.in_flight = Gauge("ke_metric_requests_in_flight", "Requests being answered.", registry=registry)
        self._routes: dict[str, Histogram] = {}
        self._statuses: dict[tuple[str, int], Counter] = {}

    def watch(self, *, queue: Callable[[], float], held: Callable[[], float]) -> None:
        """Read two numbers whenever the metrics are asked for.

        Args:
            queue: Pictures that wait or are in work.
            held: Bytes of uploads in memory.
        """
        self._queue.set_function(queue)
        self._held.set_function(held)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        key = route, status
        counter = self._statuses.get(key)
        if counter is None:
            counter = self._statuses[key] = self._requests.labels(route, str(status))
        counter.inc()
        histogram = self._routes.get(route)
        if histogram is None:
            histogram = self._routes[route] = self._seconds.labels(route)
        histogram.observe(seconds)

    def count_batch(self, size: int) -> None:
        """Count a forward pass."""
        self._batches.observe(size)
        self._pictures.inc(size)

    def text(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self._registry)


DEFAULT_K = 10
DEFAULT_CLASSES = 5
PARAMETERS = ("k", "where")
# Longer query strings are read anew each time: kept, those that somebody makes up would fill the memory.
LONGEST_KEPT = 256


@dataclass(frozen=True)
class Question:
    """How the gallery is searched.

    Attributes:
        k: Neighbours.
        where: Which items are looked at; None: all.
    """

    k: int
    where: Where | None = None


@dataclass(frozen=True)
class ClassQuestion:
    """Which classes a picture is of.

    Attributes:
        k: How many of them; all where there are fewer.
    """

    k: int


def read_class_question(query: bytes, max_k: int) -> ClassQuestion:
    """Read the query string of a prediction.

    Raises:
        Refused: 400: a parameter is unknown, comes twice, or has a value that is not allowed.
    """
    return ClassQuestion(_read_k(read_parameters(query, ("k",)), min(DEFAULT_CLASSES, max_k), max_k))


def read_question(query: bytes, max_k: int) -> Question:
    """Read the query string of a search.

    Raises:
        Refused: 400: a parameter is unknown, comes twice, or has a value that is not allowed.
    """
    return _read_short(query, max_k) if len(query) <= LONGEST_KEPT else _read(query, max_k)


def _read(query: bytes, max_k: int) -> Question:
    given = read_parameters(query, PARAMETERS)
    k = _read_k(given, min(DEFAULT_K, max_k), max_k)
    return Question(k, _read_where(given["where"]) if "where" in given else None)


def _read_k(given: dict[str, str], default: int, max_k: int) -> int:
    k = given.get("k", str(default))
    if not (k.isascii() and k.isdecimal() and len(k) <= 9 and 1 <= int(k) <= max_k):
        raise Refused(400, f"k = {k[:20]!r}: must be a whole number from 1 to {max_k}")
    return int(k)


_read_short = lru_cache(maxsize=1024)(_read)


def read_parameters(query: bytes, allowed: tuple[str, ...]) -> dict[str, str]:
    """Read a query string.

    Raises:
        Refused: 400: it is none, or a parameter is not among those allowed or comes twice.
    """
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=8,
        )
    except ValueError:
        raise Refused(400, "the query string cannot be read") from None
    given = dict(pairs)
    unknown = [name for name in given if name not in allowed]
    if unknown or len(given) < len(pairs):
        wrong = f"parameter {unknown[0][:40]!r} is unknown" if unknown else "a parameter comes twice"
        raise Refused(400, f"{wrong}; allowed: {', '.join(allowed) or 'none'}")
    return given


def _read_where(text: str) -> Where:
    try:
        where = Where.parse(text)
    except KeMetricError as error:
        raise Refused(400, str(error)) from None
    if any(condition.field == "path" for condition in where.conditions):
        raise Refused(400, "where: paths are not shown here and cannot be asked for; there are id and label")
    return where


State = Literal["starting", "ready", "stopping"]
READING_THREADS = 2
NOTHING_MEETS = "no item of the gallery meets the condition where"
GREY = Image.new("RGB", (64, 64), (128, 128, 128))


class Service:
    """An index, or a classifier, that answers; which routes lead to it is the application's affair.

    Args:
        open_searcher: Opens it; called once, in another thread.
        limits: How much of everything.

    Attributes:
        state: What /health says.
        failure: Why the index could not be opened; None as long as nothing is wrong.
        limits: How much of everything.
        metrics: Counters.
        uploads: Reads bodies.
    """

    def __init__(self, open_searcher: Callable[[], Answerer], limits: Limits) -> None:
        self._open, self.limits = open_searcher, limits
        self.state: State = "starting"
        self.failure: BaseException | None = None
        self.metrics, self.uploads = Metrics(), Uploads(limits)
        self._searcher: Answerer | None = None
        self._batcher = Batcher(self._prepare, self._answer, limits=limits)
        self._batcher.sizes = self.metrics.count_batch
        self.metrics.watch(queue=lambda: self._batcher.waiting, held=lambda: self.uploads.held)
        self._readers = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="read")
        self._reading = 0

    @property
    def searcher(self) -> Answerer:
        """The index.

        Raises:
            Refused: 503: it is not open yet, or not any more.
        """
        if self._searcher is None or self.state != "ready":
            raise busy(STOPPING if self.state == "stopping" else "the service is starting")
        return self._searcher

    def start(self) -> None:
        """Open the index in the background, and start working; on the event loop."""
        loop = asyncio.get_running_loop()
        self._batcher.start(loop)
        self._opening = asyncio.ensure_future(self._open_searcher(loop))

    async def _open_searcher(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._searcher = await loop.run_in_executor(self._readers, self._open_and_try)
        except Exception as error:
            self.failure = error
            return
        if self.state == "starting":
            self.state = "ready"

    def _open_and_try(self) -> Answerer:
        """Open the index, and embed a picture: what is built at the first forward pass is built before requests."""
        searcher = self._open()
        try:
            searcher.embed(np.stack([searcher.prepare(GREY, self.limits.max_pixels)]))
        except BaseException:
            searcher.close()
            raise
        return searcher

    def check_ready(self) -> None:
        """Raise Refused (503) where a picture would not be taken now."""
        _ = self.searcher
        self._batcher.check_room()

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
        searcher = cast(Searcher, self.searcher)
        if self._reading >= self.limits.queue:
            raise busy("too many requests are waiting")
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._readers, read_picture, searcher, identifier, self.limits.image_bytes
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
        if self._searcher is not None and finished:
            self._searcher.close()

    def _prepare(self, body: bytes, kind: str) -> PixelArray:
        picture = decode(body, kind, self.limits.max_pixels)
        assert self._searcher is not None
        try:
            return self._searcher.prepare(picture, self.limits.max_pixels)
        except KeMetricError as error:
            raise Refused(422, f"the picture cannot be used: {error}") from error

    def _answer(self, jobs: Sequence[Job]) -> list[bytes | Exception]:
        """Embed a batch, and search for all those that ask the same in one go."""
        assert self._searcher is not None
        vectors = self._searcher.embed(np.stack([job.pixels for job in jobs]))
        answers: list[bytes | Exception] = [b""] * len(jobs)
        groups: dict[Question | ClassQuestion | None, list[int]] = defaultdict(list)
        for position, job in enumerate(jobs):
            groups[job.question].append(position)
        for question, positions in groups.items():
            for position, answer in zip(positions, self._documents(question, vectors[positions]), strict=True):
                answers[position] = answer
        return answers

    def _documents(self, question: Question | ClassQuestion | None, vectors: FloatArray) -> list[bytes | Exception]:
        """Return the documents of pictures that ask the same; those that fail together are tried one by one."""
        assert self._searcher is not None
        digest = self._searcher.digest
        if isinstance(question, ClassQuestion):
            likeliest = cast(Labeller, self._searcher).likeliest(vectors, question.k)
            return [prediction_document(predictions, digest) for predictions in likeliest]
        if question is None:
            return [embedding_document(vector, digest) for vector in vectors.tolist()]
        try:
            found = cast(Searcher, self._searcher).search(vectors, question.k, question.where)
            note = "" if question.where is None else NOTHING_MEETS
            return [search_document(results, digest, note="" if results else note) for results in found]
        except Exception as error:
            if len(vectors) == 1:
                return [error]
            return [
                answer for row in range(len(vectors)) for answer in self._documents(question, vectors[row : row + 1])
            ]


def search_document(results: Sequence[Result], digest: str, *, note: str = "") -> bytes:
    """Return the answer to a search: no paths of this machine, but where to get each picture from here.

    Args:
        results: Most similar first.
        digest: Of the network.
        note: What is to be said of the answer; empty for nothing.
    """
    found = ", ".join(
        f'{{"rank": {result.rank}, {_item_members(result.id, result.label)}, "similarity": {result.similarity!r}}}'
        for result in results
    )
    said = f', "note": {json.dumps(note)}' if note else ""
    return f'{{"results": [{found}], "digest": "{digest}"{said}}}'.encode()


@lru_cache(maxsize=16_384)
def _item_members(identifier: str, label: str) -> str:
    members = {"id": identifier, "label": label, "image": f"/images/{quote(identifier, safe='')}"}
    return json.dumps(members)[1:-1]


def prediction_document(predictions: Sequence[Prediction], digest: str) -> bytes:
    """Return the answer to a prediction."""
    return json.dumps({"predictions": [asdict(found) for found in predictions], "digest": digest}).encode()


def embedding_document(vector: list[float], digest: str) -> bytes:
    """Return the answer to an embedding, [D] numbers."""
    return json.dumps({"embedding": vector, "digest": digest}).encode()
