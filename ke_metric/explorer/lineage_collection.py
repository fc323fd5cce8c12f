"""A lineage as a collection: every network whose vectors can be had, its queries and its gallery."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Literal, Self

from PIL import Image

from ke_metric.arrays import FloatArray, PixelArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.explorer.collection import MOST_NUMBERS, ExploredNetwork, Part, PictureTable, shown_first
from ke_metric.images.decoding import Progress
from ke_metric.images.image_set import ImageSet
from ke_metric.images.preparation import Preparation
from ke_metric.lineage.store import Lineage
from ke_metric.report.outcomes import Outcomes
from ke_metric.report.vectors import LineageVectors
from ke_metric.retrieval.embedder import Embedder

MOST_EMBEDDERS = 4
"""Networks that are held to embed uploads; a larger one takes hundreds of megabytes."""


class LineageCollection:
    """See `PictureCollection`. Made by `open`.

    Args:
        vectors: Of the lineage.
        device: Where uploads are embedded; see `Embedder.load`.
    """

    kind: Literal["lineage", "index"] = "lineage"

    def __init__(self, vectors: LineageVectors, *, device: str | None = None) -> None:
        self._vectors, self._device = vectors, device
        lineage, benchmark = vectors.lineage, vectors.benchmark
        self.title = lineage.folder.absolute().name
        found = [
            ExploredNetwork(number, name, _scores_of(lineage, number, name)) for number, name in vectors.networks
        ]
        if not found:
            raise KeMetricError(f"{lineage.folder}: nothing can be shown. {_not_kept(lineage)}", ExitCode.LINEAGE)
        self._notes = (*vectors.changes, *_notes_of(lineage, {network.generation for network in found}))
        self.networks = _that_fit(found, vectors)
        if len(self.networks) < len(found):
            self._notes += (
                f"The vectors of {len(self.networks)} of {len(found)} networks fit into memory (2 GB): the last and "
                "the first generation, and the generations before the last",
            )
        self.class_names = tuple(benchmark.gallery.class_names)
        parts: dict[Part, PictureTable] = {"gallery": _table_of(benchmark.gallery)}
        if not benchmark.leave_one_out:
            parts["query"] = _table_of(benchmark.query)
        self.parts: Mapping[Part, PictureTable] = parts
        self._preparation = Preparation.of_recipe(lineage.recipe)
        self.decoding = self._preparation.decoding
        self._embedders: OrderedDict[ExploredNetwork, Embedder] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def open(cls, lineage: Lineage, *, device: str | None = None, progress: Progress | None = None) -> Self:
        """Read the pictures of a lineage.

        Args:
            lineage: Of a retrieval.
            device: Where vectors are computed that are not there, and uploads embedded.
            progress: Called with the pictures decoded and all of them.

        Raises:
            KeMetricError: It is a classification, no vectors of it can be had, or its data are missing.
        """
        if lineage.recipe.task == "classification":
            raise KeMetricError(
                f"{lineage.folder}: is of task = 'classification', whose pictures have classes and find no "
                f"neighbours; look at it with ke-metric report {lineage.folder}",
                ExitCode.LINEAGE,
            )
        lineage.number_of("last")
        return cls(LineageVectors.open(lineage, device=device, progress=progress), device=device)

    @property
    def notes(self) -> tuple[str, ...]:
        """See `PictureCollection`; vectors that could not be stored are computed again the next time."""
        unwritten = self._vectors.unwritten
        return self._notes if unwritten is None else (*self._notes, f"Vectors could not be stored: {unwritten}")

    def vectors(self, network: ExploredNetwork) -> tuple[FloatArray, FloatArray]:
        """See `PictureCollection`."""
        return self._vectors.vectors(network.generation, network.name)

    def outcomes(self, network: ExploredNetwork) -> Outcomes | None:
        """See `PictureCollection`."""
        return self._vectors.outcomes(network.generation, network.name)

    def picture(self, part: Part, position: int) -> Image.Image:
        """See `PictureCollection`."""
        return self._vectors.picture(part, position)

    def prepare(self, picture: Image.Image, max_pixels: int) -> PixelArray:
        """See `PictureCollection`."""
        return self._preparation.pixels(picture, "the picture", max_pixels)

    def embed(self, network: ExploredNetwork, pixels: PixelArray) -> FloatArray:
        """See `PictureCollection`."""
        with self._lock:
            embedder = self._embedders.pop(network, None) or self._load(network)
            self._embedders[network] = embedder
            if len(self._embedders) > MOST_EMBEDDERS:
                self._embedders.popitem(last=False)
            found: FloatArray = embedder.embed_pixels(pixels[None])[0]
            return found

    def _load(self, network: ExploredNetwork) -> Embedder:
        lineage, number = self._vectors.lineage, network.generation
        if not lineage.has_weights(number):
            raise KeMetricError(
                f"The weights of generation {number} were not kept, only its vectors: it cannot look at a new "
                "picture. A recipe with keep: all keeps them",
                ExitCode.LINEAGE,
            )
        kind, _, rate = network.name.partition(" ")
        found = Embedder.load(lineage.folder, number, kind, rate=float(rate) if rate else None, device=self._device)
        # What the network of another training sees must not be searched with among these vectors.
        self._vectors.require_same(number)
        return found


def _that_fit(networks: list[ExploredNetwork], vectors: LineageVectors) -> tuple[ExploredNetwork, ...]:
    """Return the networks whose vectors fit into memory together, those that the page shows first before others."""
    benchmark, size = vectors.benchmark, vectors.lineage.recipe.network.embedding_size
    items = len(benchmark.gallery) + (0 if benchmark.leave_one_out else len(benchmark.query))
    many = MOST_NUMBERS // max(1, items * size)
    if not many:
        raise KeMetricError(
            f"{vectors.lineage.folder}: {items:,} vectors of {size} numbers for each network; the explorer holds at "
            f"most {MOST_NUMBERS:,} numbers in memory. Look at it with ke-metric report",
            ExitCode.LINEAGE,
        )
    chosen = set(shown_first(networks)[:many])
    return tuple(network for network in networks if network in chosen)


def _table_of(images: ImageSet) -> PictureTable:
    return PictureTable(images.keys, images.labels)


def _scores_of(lineage: Lineage, number: int, name: str) -> dict[str, float]:
    shown = {lineage.decisive_score, "map@r"}
    return {score: value for score, value in lineage.scorecard(number).networks[name].items() if score in shown}


def _notes_of(lineage: Lineage, shown: set[int]) -> list[str]:
    missing = [number for number in lineage.numbers if number not in shown]
    if not missing:
        return []
    return [f"Generations that can be shown: {_listed(sorted(shown))}. {_not_kept(lineage)}"]


def _not_kept(lineage: Lineage) -> str:
    numbers = [number for number in lineage.numbers if not lineage.has_weights(number)]
    return (
        f"The weights of generation{'s' * (len(numbers) > 1)} {_listed(numbers)} were not kept (the recipe has keep: "
        f"{lineage.recipe.keep}): train with keep: all, or with evaluation.keep_vectors: true, and every generation "
        "can be shown"
    )


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
