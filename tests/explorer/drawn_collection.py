"""A collection whose pictures and vectors are drawn, and an explorer of it on a free port of this machine."""

import http.client
import io
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import Backend
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.explorer.application import LIMITS, build_explorer
from ke_metric.explorer.collection import ExploredNetwork, PictureTable
from ke_metric.explorer.exploration import Exploration
from ke_metric.images.decoding import UPRIGHT_ON_WHITE
from ke_metric.report.outcomes import retrieval_outcomes
from ke_metric.serving.exchange import ServiceSettings
from ke_metric.serving.server import listen

HOSTILE = "</script><img src=x onerror=alert(1)>"
CLASSES = (HOSTILE, "crow", "jay & <b>magpie</b>", "owl\u202e", "Ünknown")
SIZE = 8
TINY_LIMITS = {"header_seconds": 0.5, "upload_seconds": 0.5, "max_bytes": 200_000, "held_bytes": 400_000}


def picture_of(number, size=(24, 20)):
    """Return a picture unlike that of any other number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


class DrawnCollection:
    """Three generations, dense and slim, of a gallery of forty pictures in five classes.

    Args:
        apart: Give it ten queries that are other pictures.
        generations: How many.
        per_class: Pictures of a class in the gallery.
        unreadable: Position of a picture of the gallery that cannot be read.
    """

    kind = "lineage"
    decoding = UPRIGHT_ON_WHITE

    def __init__(self, *, apart=False, generations=3, per_class=8, unreadable=None):
        self.title, self.notes, self.class_names = HOSTILE, (f"Data have changed: {HOSTILE}",), CLASSES
        self.unreadable, self.apart, self.computed = unreadable, apart, []
        self.parts = {"gallery": table(per_class, "gallery")}
        if apart:
            self.parts["query"] = table(2, "query")
        self.networks = tuple(
            ExploredNetwork(number, name, {"recall@1": number / 4})
            for number in range(1, generations + 1)
            for name in ("dense", "slim")
        )

    def vectors(self, network):
        """Return vectors that lie closer to their class from generation to generation."""
        self.computed.append(network)
        gallery = self._drawn("gallery", network)
        return (self._drawn("query", network), gallery) if self.apart else (gallery, gallery)

    def _drawn(self, part, network):
        rng = np.random.default_rng([network.generation, network.name == "slim", part == "query"])
        classes = self.parts[part].classes
        centers = np.random.default_rng(5).normal(size=(len(CLASSES), SIZE))
        return unit(centers[classes] * 0.3 * network.generation + rng.normal(size=(len(classes), SIZE)))

    def outcomes(self, network):
        query, gallery = (
            Embeddings(vectors, self.parts[part].classes, tuple(self.parts[part].names))
            for vectors, part in zip(
                self.vectors(network), ("query" if self.apart else "gallery", "gallery"), strict=True
            )
        )
        return retrieval_outcomes(query, gallery if self.apart else None, (1, 2, 4), backend=Backend("torch"))

    def picture(self, part, position):
        if (part, position) == ("gallery", self.unreadable):
            raise KeMetricError("picture 3: cannot be read", ExitCode.DATA)
        return picture_of(position + 1000 * (part == "query"))

    def prepare(self, picture, max_pixels):
        return np.asarray(picture.convert("RGB").resize((4, 4)))

    def embed(self, network, pixels):
        return unit(pixels.reshape(1, -1).astype(np.float64)[:, :SIZE] - 127)[0]


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def table(per_class, part):
    classes = np.repeat(np.arange(len(CLASSES)), per_class)
    return PictureTable([f"{part}/{number}{HOSTILE}.png" for number in range(len(classes))], classes)


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def document(self):
        return json.loads(self.body)


class RunningExplorer:
    """An explorer in a thread.

    Attributes:
        port: Where.
        exploration: What answers.
    """

    def __init__(self, collection, settings=None, **limits):
        settings = settings or ServiceSettings(port=0)
        settings = replace(settings, port=0, limits=replace(LIMITS, **limits))
        self._listener = listen(settings)
        self.port = self._listener.getsockname()[1]
        self.exploration = Exploration(collection)
        self.server = build_explorer(self.exploration, replace(settings, port=self.port))
        self._thread = threading.Thread(target=self.server.run, args=([self._listener],))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self._thread.start()
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

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def upload(self, body, content_type="image/png", **headers):
        return self.ask("POST", "/api/uploads", body, content_type, **headers)


@contextmanager
def running_explorer(collection, settings=None, **limits):
    found = RunningExplorer(collection, settings, **limits).start()
    try:
        yield found
    finally:
        found.stop()
