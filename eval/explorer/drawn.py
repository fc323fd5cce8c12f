"""A collection of drawn pictures and vectors: as many as are asked for, and nothing to be trained or downloaded."""

import numpy as np
from PIL import Image

from ke_metric.arrays import FloatArray, PixelArray
from ke_metric.evaluation.backend import choose_backend
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.explorer.collection import ExploredNetwork, Part, PictureTable
from ke_metric.images.decoding import UPRIGHT_ON_WHITE
from ke_metric.images.preparation import Preparation
from ke_metric.networks.bundle_config import Architecture, NetworkCard
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.report.outcomes import Outcomes, retrieval_outcomes
from ke_metric.retrieval.embedder import Embedder

PER_CLASS = 20
SIDE = 128
RECIPE = {
    "name": "drawn",
    "data": {"image_size": 64, "store_size": 72},
    "network": {"backbone": "resnet18", "stem": "small", "stem_stride": 2, "embedding_size": 128},
    "evaluation": {"resize": 72},
}


class DrawnPictures:
    """A `PictureCollection` of a lineage that never was. New pictures go through a ResNet18 whose weights are drawn.

    Args:
        count: Pictures; each one queries all others.
        generations: Each with a dense and a slim network.
    """

    kind = "lineage"
    title = "drawn"
    notes = ()
    decoding = UPRIGHT_ON_WHITE

    def __init__(self, count: int, generations: int) -> None:
        recipe = Recipe.model_validate(RECIPE)
        network = LineageNetworks(recipe, 0).build(1).eval()
        card = NetworkCard(split=None, normalization=Preparation.of_recipe(recipe))
        self._embedder = Embedder(network, architecture=Architecture.of_recipe(recipe), card=card)
        self._backend = choose_backend("auto")
        self._labels = np.arange(count) // PER_CLASS
        self.class_names = tuple(f"class {number:04d}" for number in range(self._labels.max() + 1))
        names = [f"class {label:04d}/picture {number:06d}.jpg" for number, label in enumerate(self._labels)]
        self.parts: dict[Part, PictureTable] = {"gallery": PictureTable(names, self._labels)}
        self.networks = tuple(
            ExploredNetwork(number, name) for number in range(1, generations + 1) for name in ("dense", "slim")
        )

    def vectors(self, network: ExploredNetwork) -> tuple[FloatArray, FloatArray]:
        """Return vectors that gather about the middles of their classes, the more the later the generation."""
        rng = np.random.default_rng([network.generation, network.name == "slim"])
        dimension = self._embedder.dimension
        middles = np.random.default_rng(0).normal(size=(len(self.class_names), dimension))
        drawn = middles[self._labels] * (0.3 + 0.05 * network.generation)
        drawn += rng.normal(size=(len(self._labels), dimension))
        vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        return vectors, vectors

    def outcomes(self, network: ExploredNetwork) -> Outcomes:
        """Return what became of every query."""
        queries = Embeddings(self.vectors(network)[0], self._labels, tuple(self.parts["gallery"].names))
        return retrieval_outcomes(queries, None, (1, 2, 4, 8), backend=self._backend)

    def picture(self, part: Part, position: int) -> Image.Image:
        """Return a picture of smooth noise, as hard to encode as a photograph."""
        return drawn_picture(position, SIDE)

    def prepare(self, picture: Image.Image, max_pixels: int) -> PixelArray:
        """Return what the network sees."""
        return self._embedder.prepare(picture, max_pixels=max_pixels)

    def embed(self, network: ExploredNetwork, pixels: PixelArray) -> FloatArray:
        """Return the embedding of a prepared picture."""
        found: FloatArray = self._embedder.embed_pixels(pixels[None])[0]
        return found


def drawn_picture(number: int, side: int) -> Image.Image:
    """Return a picture unlike that of any other number."""
    coarse = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
