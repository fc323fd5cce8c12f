"""A service on a free port of this machine, over a gallery that is in memory."""

import http.client
import io
import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ke_metric.retrieval.index import Result
from ke_metric.retrieval.query import SearchOptions
from ke_metric.serving.exchange import Limits, ServiceSettings
from ke_metric.serving.server import build_server, listen

LIMITS = Limits(
    max_bytes=200_000,
    max_pixels=100_000,
    max_k=7,
    max_batch=4,
    queue=6,
    header_seconds=0.4,
    header_bytes=8_000,
    upload_seconds=0.4,
    stop_seconds=3,
    connections=40,
)
PNG = "image/png"


def picture_of(number, size=(16, 12)):
    """Return a picture unlike that of any other number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


class FakeSearcher:
    """Embeds a picture as its mean colour, and searches by brute force.

    Attributes:
        gate: Embedding waits until it is set.
        batches: Sizes of what was embedded.
        prepared: Pictures.
    """

    digest = "d" * 64

    def __init__(self, items):
        self.gate = threading.Event()
        self.gate.set()
        self.batches, self.closed, self.prepared = [], 0, 0
        self._items = items
        pictures = [picture_of(number) for number in range(len(items))]
        self._vectors = self._embed(np.stack([self.prepare(picture) for picture in pictures]))

    def prepare(self, picture, max_pixels=10**6):
        pixels = np.asarray(picture.convert("RGB").resize((4, 4)))
        self.prepared += 1
        return pixels

    def _embed(self, pixels):
        flat = pixels.reshape(len(pixels), -1).astype(np.float32) - 127
        return flat / np.linalg.norm(flat + 1e-3, axis=1, keepdims=True)

    @property
    def network(self):
        return self

    def compute(self, pixels):
        assert self.gate.wait(20)
        self.batches.append(len(pixels))
        return self._embed(pixels)

    def search(self, queries, options, exclude=None):
        excluded = exclude or [[]] * len(queries)
        return [self._one(query, options, ids) for query, ids in zip(queries, excluded, strict=True)]

    def _one(self, query, options, excluded):
        order = np.argsort(-(self._vectors @ query), kind="stable")
        found = [
            number
            for number in order
            if (options.where is None or _holds(self._items[number], options.where))
            and self._items[number].id not in excluded
        ][: options.k]
        return [
            Result(rank, self._items[number].id, self._items[number].path, self._items[number].label,
                   float(self._vectors[number] @ query))
            for rank, number in enumerate(found, start=1)
        ]  # fmt: skip

    def find(self, item):
        return next((known for known in self._items if known.id == item), None)

    def close(self):
        self.closed += 1


def _holds(item, where):
    return all((getattr(item, part.field) in part.values) == part.within for part in where.conditions)


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def document(self):
        return json.loads(self.body)


def embedded(searcher, image):
    return searcher._embed(searcher.prepare(image)[None])


def assert_results(answer, searcher, image, k, where=None):
    results = searcher.search(embedded(searcher, image), SearchOptions(k, where))[0]
    assert answer.status == 200, answer
    document = answer.document
    assert document["digest"] == searcher.digest
    found = [(result["rank"], result["id"], result["label"]) for result in document["results"]]
    assert found == [(result.rank, result.id, result.label) for result in results]
    similarities = [result["similarity"] for result in document["results"]]
    np.testing.assert_allclose(similarities, [result.similarity for result in results], atol=1e-6)


class Running:
    """A service that runs in a thread.

    Attributes:
        port: Where.
        searcher: What it serves.
        server: uvicorn's.
    """

    def __init__(self, searcher, settings=None, **limits):
        self.searcher = searcher
        settings = settings or ServiceSettings(port=0)
        settings = replace(settings, port=0, limits=replace(LIMITS, **limits))
        self._listener = listen(settings)
        self.port = self._listener.getsockname()[1]
        opening = searcher if callable(searcher) else lambda: searcher
        self.server = build_server(opening, settings)
        self._thread = threading.Thread(target=self.server.run, args=([self._listener],))

    def start(self, ready=True):
        self._thread.start()
        while ready and self.server.service.state == "starting":
            assert self._thread.is_alive()
            assert self.server.service.failure is None
            time.sleep(0.01)
        return self

    def stop(self):
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def ask(self, method, path, body=None, content_type=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if content_type is not None:
            named["Content-Type"] = content_type
        try:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def search(self, body, path="/search", content_type=PNG, **headers):
        return self.ask("POST", path, body, content_type, **headers)

    def raw(self, data, seconds=5.0):
        """Send bytes and return everything that comes until the connection is closed, or the time is over."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            received = b""
            try:
                connection.sendall(data)
                while part := connection.recv(65536):
                    received += part
            except (TimeoutError, ConnectionError):
                pass
            return received


@contextmanager
def running(searcher, settings=None, **limits):
    service = Running(searcher, settings, **limits).start()
    try:
        yield service
    finally:
        if not callable(searcher):
            searcher.gate.set()
        service.stop()
