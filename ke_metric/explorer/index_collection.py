"""An index as a collection: one network, its gallery, and every picture of it by its position.

An index that is changed while it is explored is shown as it was when the explorer began.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from PIL import Image

from ke_metric.arrays import FloatArray, PixelArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.explorer.collection import MOST_NUMBERS, NO_CLASS, ExploredNetwork, Part, PictureTable
from ke_metric.images.decoding import MAX_PIXELS, UPRIGHT_ON_WHITE, as_rgb
from ke_metric.report.outcomes import Outcomes
from ke_metric.retrieval.index import Index
from ke_metric.serving.exchange import Limits, Refused
from ke_metric.serving.pictures import DECODERS, read_picture
from ke_metric.stores.contract import Item

VECTORS_ALONE = "The index is made of vectors alone, without their network: it cannot look at a new picture"


class IndexCollection:
    """See `PictureCollection`.

    Args:
        folder: Of the index.
        device: Where its embedder runs; see `Embedder.load`.

    Raises:
        KeMetricError: There is no index, it is damaged, empty, or too large to be held in memory.
    """

    kind: Literal["lineage", "index"] = "index"

    def __init__(self, folder: Path, *, device: str | None = None) -> None:
        with Index.open(folder, device=device) as index:
            _require_size(index)
            items, vectors = _read(index)
            self._embedder = index.embedder if index.has_embedder else None
            self.decoding = self._embedder.normalization.decoding if self._embedder else UPRIGHT_ON_WHITE
            description = index.manifest.description
        self._items, self._vectors, self._lock = items, vectors, Lock()
        self.title = folder.absolute().name
        self.networks: tuple[ExploredNetwork, ...] = (ExploredNetwork(0, description),)
        self.notes: tuple[str, ...] = () if self._embedder is not None else (VECTORS_ALONE,)
        labels = sorted({item.label for item in items} - {""})
        numbers = {label: number for number, label in enumerate(labels)}
        classes = np.array([numbers.get(item.label, NO_CLASS) for item in items], np.int64)
        self.class_names = tuple(labels)
        self.parts: Mapping[Part, PictureTable] = {"gallery": PictureTable([item.id for item in items], classes)}

    def vectors(self, network: ExploredNetwork) -> tuple[FloatArray, FloatArray]:
        """See `PictureCollection`."""
        return self._vectors, self._vectors

    def outcomes(self, network: ExploredNetwork) -> Outcomes | None:
        """Return None: an index has items, and nobody scored them."""
        return None

    def picture(self, part: Part, position: int) -> Image.Image:
        """See `PictureCollection`."""
        item = self._items[position]
        try:
            body = read_picture(item, Limits().image_bytes).body
            with Image.open(io.BytesIO(body), formats=DECODERS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise KeMetricError(f"{item.id}: has more than {MAX_PIXELS:,} pixels", ExitCode.DATA)
                return as_rgb(image, item.id, self.decoding)
        except (Refused, OSError, Image.DecompressionBombError) as error:
            raise KeMetricError(f"{item.id}: there is no picture that can be read", ExitCode.DATA) from error

    def prepare(self, picture: Image.Image, max_pixels: int) -> PixelArray:
        """See `PictureCollection`."""
        if self._embedder is None:
            raise KeMetricError(VECTORS_ALONE, ExitCode.DATA)
        return self._embedder.prepare(picture, "the picture", max_pixels)

    def embed(self, network: ExploredNetwork, pixels: PixelArray) -> FloatArray:
        """See `PictureCollection`."""
        assert self._embedder is not None, "a picture was prepared for it"
        with self._lock:
            found: FloatArray = self._embedder.embed_pixels(pixels[None])[0]
            return found


def _require_size(index: Index) -> None:
    if not len(index):
        raise KeMetricError(f"{index.folder}: holds no items; add some with ke-metric index add", ExitCode.DATA)
    if len(index) * index.dimension > MOST_NUMBERS:
        raise KeMetricError(
            f"{index.folder}: {len(index):,} vectors of {index.dimension} numbers; the explorer holds at most "
            f"{MOST_NUMBERS:,} numbers in memory. Search it with ke-metric search or ke-metric serve",
            ExitCode.DATA,
        )


def _read(index: Index) -> tuple[list[Item], FloatArray]:
    items: list[Item] = []
    vectors: list[FloatArray] = []
    for batch, numbers in index.store.read():
        items += batch
        vectors.append(numbers)
    return items, np.concatenate(vectors)
