"""What is answered: the neighbours of a picture, the queries that changed, lists, and where pictures lie on the map.

Everything is in memory, so that an answer takes one matrix product. A query of the collection is answered from the
outcomes that its scores were computed from, so that marks, scores and lists never contradict each other; a picture
that was dropped, or one of the gallery, is searched with.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from threading import Lock
from typing import Any, Literal

import numpy as np
from PIL import Image

from ke_metric.arrays import FloatArray, IntArray, PixelArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.explorer.collection import (
    NO_CLASS,
    ExploredNetwork,
    Part,
    PictureCollection,
    PictureTable,
    shown_first,
)
from ke_metric.explorer.computing import NetworkQueue, view_of
from ke_metric.explorer.layout import PlanarMap, turned_onto
from ke_metric.explorer.thumbnails import Thumbnails, encode_thumbnail
from ke_metric.images.decoding import as_rgb
from ke_metric.report.outcomes import NEIGHBORS, broken, mended

Change = Literal["all", "mended", "broken"]
MOST_UPLOADS = 64
"""Pictures that were dropped and are still known; the oldest is forgotten first."""


@dataclass(frozen=True, eq=False)
class Upload:
    """A picture that was dropped.

    Attributes:
        pixels: What a network sees of it.
        thumbnail: What is shown of it.
        embeddings: By network, as far as it was searched with.
    """

    pixels: PixelArray
    thumbnail: bytes
    embeddings: dict[ExploredNetwork, FloatArray]


@dataclass(frozen=True)
class Listing:
    """Which queries are listed.

    Attributes:
        change: All of them, or those that a generation mended or broke since another one.
        since: The generation before; of no meaning for all.
        label: Only those of this class.
        text: Only those with this in the name of their class or their own, in whatever case.
    """

    change: Change = "all"
    since: int = 0
    label: int | None = None
    text: str = ""


class Exploration:
    """Answers about a collection. Thread-safe.

    Args:
        collection: What is explored.

    Attributes:
        networks: What computes.
        query_part: The part whose pictures are the queries.
    """

    def __init__(self, collection: PictureCollection) -> None:
        self.collection = collection
        self.networks = NetworkQueue(shown_first(collection.networks), lambda network: view_of(collection, network))
        self.query_part: Part = "query" if "query" in collection.parts else "gallery"
        self._thumbnails = Thumbnails()
        self._uploads: OrderedDict[int, Upload] = OrderedDict()
        self._numbers, self._lock = count(1), Lock()
        self._turned: dict[ExploredNetwork, PlanarMap] = {}

    @property
    def uploads(self) -> list[int]:
        """Numbers of the uploads that are still known."""
        with self._lock:
            return list(self._uploads)

    def add_upload(self, picture: Image.Image, max_pixels: int) -> int:
        """Take a picture that was dropped, and return its number.

        Raises:
            KeMetricError: DATA: it cannot be used.
        """
        seen = as_rgb(picture, "the picture", self.collection.decoding)
        upload = Upload(self.collection.prepare(seen, max_pixels), encode_thumbnail(seen), {})
        with self._lock:
            number = next(self._numbers)
            self._uploads[number] = upload
            if len(self._uploads) > MOST_UPLOADS:
                self._uploads.popitem(last=False)
        return number

    def upload(self, number: int) -> Upload:
        """Return an upload.

        Raises:
            KeMetricError: USAGE: it is not known, or not any more.
        """
        with self._lock:
            found = self._uploads.get(number)
        if found is None:
            raise KeMetricError("The picture that was dropped is no longer known here; drop it again", ExitCode.USAGE)
        return found

    def thumbnail(self, part: Part, position: int) -> bytes:
        """Return a picture as WebP.

        Raises:
            KeMetricError: DATA: it cannot be read.
        """
        return self._thumbnails.get((part, position), lambda: self.collection.picture(part, position))

    def describe(self, part: Part, position: int) -> dict[str, Any]:
        """Return what a list shows of a picture."""
        table = self.collection.parts[part]
        return {"position": position, "name": table.names[position], "class": int(table.classes[position])}

    def neighbors(self, network: ExploredNetwork, part: Part, position: int) -> dict[str, Any]:
        """Return the neighbours of a picture of a part, with the scores of a query."""
        view = self.networks.view(network)
        label = int(self.collection.parts[part].classes[position])
        scores: Mapping[str, float] = {}
        if part == self.query_part and view.outcomes is not None:
            found = view.outcomes
            row, similarities = found.neighbors[position], found.similarities[position]
            scores = {name: float(each[position]) for name, each in found.scores.items()}
        else:
            vectors = view.query if part == "query" else view.gallery
            row, similarities = _nearest(view.gallery, vectors[position], position if part == "gallery" else None)
        told = {name: value for name, value in scores.items() if not np.isnan(value)}
        subject = {"part": part, **self.describe(part, position)}
        return {"query": subject, "scores": told, "neighbors": self._told(row, similarities, label)}

    def neighbors_of_upload(self, network: ExploredNetwork, number: int) -> dict[str, Any]:
        """Return the neighbours of an upload; of no class, they are neither right nor wrong.

        Raises:
            KeMetricError: It is not known any more, or the network cannot look at it.
        """
        upload, gallery = self.upload(number), self.networks.view(network).gallery
        embedding = upload.embeddings.get(network)
        if embedding is None:
            embedding = upload.embeddings[network] = self.collection.embed(network, upload.pixels)
        row, similarities = _nearest(gallery, embedding, None)
        subject = {"part": "upload", "position": number, "name": "", "class": NO_CLASS}
        return {"query": subject, "scores": {}, "neighbors": self._told(row, similarities, NO_CLASS)}

    def listed(self, network: ExploredNetwork, listing: Listing) -> IntArray:
        """Return the positions of queries, ascending.

        Raises:
            KeMetricError: USAGE: there is no network of this name in the generation before.
        """
        table = self.collection.parts[self.query_part]
        chosen = np.arange(len(table))
        if listing.change != "all":
            chosen = self._changed(network, listing)
        if listing.label is not None:
            chosen = chosen[table.classes[chosen] == listing.label]
        if text := listing.text.strip().casefold():
            chosen = chosen[[text in self._searchable[position] for position in chosen.tolist()]]
        return chosen

    def networks_of_list(self, network: ExploredNetwork, listing: Listing) -> list[ExploredNetwork]:
        """Return the networks whose views `listed` needs.

        Raises:
            KeMetricError: USAGE: there is no network of this name in the generation before.
        """
        return [] if listing.change == "all" else [network, self.find(listing.since, network.name)]

    def networks_of_map(self, network: ExploredNetwork) -> list[ExploredNetwork]:
        """Return the networks whose views `map` needs: each one's map is turned onto that of the one after it."""
        found, beside = [], network
        while beside not in self._turned:
            found.append(beside)
            later = _beside(self.collection, beside)
            if later is None:
                break
            beside = later
        return found

    def map(self, network: ExploredNetwork) -> PlanarMap:
        """Return where the gallery, and then the queries of another part, lie on the map of a network."""
        for turned in reversed(self.networks_of_map(network)):
            plane, beside = self.networks.view(turned).plane, _beside(self.collection, turned)
            self._turned[turned] = plane if beside is None else turned_onto(plane, self._turned[beside])
        return self._turned[network]

    def find(self, generation: int, name: str) -> ExploredNetwork:
        """Return a network.

        Raises:
            KeMetricError: USAGE, naming those that there are: there is no such network.
        """
        for network in self.collection.networks:
            if (network.generation, network.name) == (generation, name):
                return network
        there = ", ".join(f"generation {each.generation} {each.name}" for each in self.collection.networks)
        raise KeMetricError(f"There is no generation {generation} {name}; there are: {there}", ExitCode.USAGE)

    def _changed(self, network: ExploredNetwork, listing: Listing) -> IntArray:
        after, before = (self.networks.view(each).outcomes for each in self.networks_of_list(network, listing))
        if before is None or after is None:
            raise KeMetricError("An index has no generations, and nothing that was mended or broken", ExitCode.USAGE)
        return mended(before, after) if listing.change == "mended" else broken(before, after)

    def _told(self, row: IntArray, similarities: FloatArray, label: int) -> list[dict[str, Any]]:
        told = []
        for position, similarity in zip(row.tolist(), similarities.tolist(), strict=True):
            if position < 0:
                break
            found = self.describe("gallery", position)
            known = NO_CLASS not in (label, found["class"])
            right = found["class"] == label if known else None
            told.append({**found, "similarity": similarity, "right": right})
        return told

    @cached_property
    def _searchable(self) -> list[str]:
        """Name of the class and name of every query, in one case."""
        return _searchable(self.collection.parts[self.query_part], self.collection.class_names)


def _beside(collection: PictureCollection, network: ExploredNetwork) -> ExploredNetwork | None:
    """Return the network whose map another one's is turned onto: that of the next generation; None for the last."""
    later = [each for each in collection.networks if each.generation > network.generation]
    alike = [each for each in later if each.name == network.name]
    if alike:
        return min(alike, key=lambda each: each.generation)
    last = max(each.generation for each in collection.networks)
    anchor = next(each for each in collection.networks if each.generation == last)
    return None if network == anchor else anchor


def _nearest(gallery: FloatArray, vector: FloatArray, own: int | None) -> tuple[IntArray, FloatArray]:
    """Return positions and similarities of the nearest of a gallery [G, D] to a vector [D], most similar first."""
    similarities = gallery @ vector
    if own is not None:
        similarities[own] = -np.inf
    most = min(NEIGHBORS, len(similarities) - (own is not None))
    nearest = np.argpartition(-similarities, most - 1)[:most] if most else np.empty(0, np.int64)
    nearest = nearest[np.lexsort((nearest, -similarities[nearest]))]
    return nearest, similarities[nearest]


def _searchable(table: PictureTable, class_names: tuple[str, ...]) -> list[str]:
    folded = [*(name.casefold() for name in class_names), ""]  # NO_CLASS is the last one
    return [
        f"{folded[label]}\n{name.casefold()}" for name, label in zip(table.names, table.classes.tolist(), strict=True)
    ]
