"""What the explorer shows: networks, the pictures that they were given, and what can be asked of them.

A collection is that of a lineage, with all its generations, or that of an index, with one network.

Shapes: N pictures of a part, Q queries, G gallery, D embedding, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL import Image

from ke_metric.arrays import FloatArray, IntArray, PixelArray
from ke_metric.images.decoding import Decoding
from ke_metric.report.outcomes import Outcomes

Part = Literal["query", "gallery"]
NO_CLASS = -1
"""Number of the class of a picture of which nobody knows one."""
MOST_NUMBERS = 500_000_000
"""Of all vectors, which lie in memory: 2 GB."""


@dataclass(frozen=True)
class ExploredNetwork:
    """One network of a collection.

    Attributes:
        generation: Its number; 0 for the network of an index, which has none.
        name: `dense`, `slim` or `slim 0.25`.
        scores: Score name to its value over all queries.
    """

    generation: int
    name: str
    scores: Mapping[str, float] = field(default_factory=dict, hash=False, compare=False)


def shown_first(networks: Sequence[ExploredNetwork]) -> list[ExploredNetwork]:
    """Return networks in the order in which the page needs them: of the last generation, of the first, the rest."""
    by_generation = sorted(networks, key=lambda network: -network.generation)
    first = next(each for each in by_generation if each.generation == by_generation[-1].generation)
    return list(dict.fromkeys([by_generation[0], first, *by_generation]))


@dataclass(frozen=True, eq=False)
class PictureTable:
    """The pictures of a part.

    Attributes:
        names: [N] keys or ids, for people; pictures are asked for by their position.
        classes: [N] class numbers, `NO_CLASS` where there is none.
    """

    names: Sequence[str]
    classes: IntArray

    def __len__(self) -> int:
        return len(self.names)


class PictureCollection(Protocol):
    """What is explored. `outcomes` and `vectors` are called by one thread, the rest by any.

    Attributes:
        kind: `lineage` or `index`.
        title: What it is called.
        networks: At least one, by generation.
        class_names: Names by class number.
        parts: `gallery`, and `query` where the queries are other pictures.
        decoding: How a picture's file becomes the colours that a network sees.
    """

    kind: Literal["lineage", "index"]
    title: str
    networks: tuple[ExploredNetwork, ...]
    class_names: tuple[str, ...]
    parts: Mapping[Part, PictureTable]
    decoding: Decoding

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know: data that have changed, generations that cannot be shown."""
        ...

    def vectors(self, network: ExploredNetwork) -> tuple[FloatArray, FloatArray]:
        """Return the embeddings of the queries [Q, D] and of the gallery [G, D]; one array for one part."""
        ...

    def outcomes(self, network: ExploredNetwork) -> Outcomes | None:
        """Return what became of every query; None where nobody scored."""
        ...

    def picture(self, part: Part, position: int) -> Image.Image:
        """Return a picture in RGB.

        Raises:
            KeMetricError: DATA: it cannot be read.
        """
        ...

    def prepare(self, picture: Image.Image, max_pixels: int) -> PixelArray:
        """Return what a network sees of a picture, uint8 [S, S, 3].

        Raises:
            KeMetricError: DATA: it cannot be used, or there is no network that pictures could be prepared for.
        """
        ...

    def embed(self, network: ExploredNetwork, pixels: PixelArray) -> FloatArray:
        """Return the embedding [D] of a prepared picture.

        Raises:
            KeMetricError: The network's weights are not there.
        """
        ...
