"""The embedder: pictures to embeddings, computed exactly as when the generation was scored.

Shapes: N pictures, B batch, D embedding, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from torch import nn

from ke_metric.arrays import FloatArray, IntArray, PixelArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.preparation import Picture
from ke_metric.networks.architecture import Architecture
from ke_metric.networks.bundle_config import NetworkCard
from ke_metric.networks.heads import Classifier, ClassifierFeatures
from ke_metric.retrieval.picture_network import BATCH_SIZE, BadPicture, PictureNetwork

__all__ = ["BadPicture", "EmbeddedBatch", "Embedder"]


@dataclass(frozen=True, eq=False)
class EmbeddedBatch:
    """What became of a stretch of the pictures.

    Attributes:
        positions: [B] numbers among the pictures given, from 0, of those that were embedded.
        vectors: [B, D] float32, L2-normalised.
        bad: Those that were left out.
    """

    positions: IntArray
    vectors: FloatArray
    bad: tuple[BadPicture, ...]


class Embedder(PictureNetwork):
    """Turns pictures into the embeddings that a stored network gives them.

    Made by `load`. Of a classifier the embedding of a picture is its feature, what the head sees, L2-normalised: D is
    then F.

    Args:
        network: float32 [B, 3, S, S] to L2-normalised [B, D], or the classifier of a recipe, in eval mode and on its
            device.
        architecture: How its dense network is built.
        card: Its split, and what becomes of a picture before the network sees it.
        batch_size: Pictures per forward pass.
        description: Where it came from, in words.

    Attributes:
        network: Standardised images to embeddings.
        dimension: D.
        digest: SHA-256 of what the vectors depend on: architecture, weights, and the preparation of pictures. Vectors
            of one digest can be compared with each other, others cannot.
        description: Where it came from, in words.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        architecture: Architecture,
        card: NetworkCard,
        batch_size: int = BATCH_SIZE,
        description: str = "a network",
    ) -> None:
        runs, size = network, architecture.embedding_size
        if size is None:
            if not isinstance(network, Classifier):
                raise KeMetricError(
                    f"{description}: a classifier of a library has logits, and does not say which layer gives "
                    "features; an embedder needs a network that a recipe of ke_metric describes",
                    ExitCode.DATA,
                )
            runs, size = ClassifierFeatures(network), network.head.weight.shape[1]
        super().__init__(
            network,
            runs=runs,
            dimension=size,
            architecture=architecture,
            card=card,
            batch_size=batch_size,
            description=description,
        )

    @classmethod
    def _of(
        cls, network: nn.Module, *, architecture: Architecture, card: NetworkCard, batch_size: int, description: str
    ) -> Self:
        return cls(network, architecture=architecture, card=card, batch_size=batch_size, description=description)

    def __call__(
        self, images: Picture | Iterable[Picture], *, on_bad: Callable[[BadPicture], Any] | None = None
    ) -> FloatArray:
        """Return the embeddings of pictures, in order.

        Args:
            images: One picture or any number of them: paths, PIL images, arrays or tensors, see `Picture`; a batch
                array [N, H, W, 3] or tensor [N, 3, H, W] is N of them, and so is an array [N] of paths.
            on_bad: Called for every picture that cannot be used, which is then left out; None: the first one is an
                error.

        Returns:
            float32 [N, D], L2-normalised; N less the bad ones.

        Raises:
            KeMetricError: DATA, naming the first picture that cannot be used.
        """
        parts: list[FloatArray] = []
        for batch in self.stream(images, skip_bad=on_bad is not None):
            parts.append(batch.vectors)
            if on_bad is not None:
                for bad in batch.bad:
                    on_bad(bad)
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    def stream(
        self, images: Picture | Iterable[Picture], *, skip_bad: bool = False, batch_size: int | None = None
    ) -> Iterator[EmbeddedBatch]:
        """Embed pictures batch by batch; decoding runs ahead in threads, and only a few pictures are held at once.

        Args:
            images: As in `__call__`; an iterator is read as far as is needed. PIL images are decoded when they are
                read from it, not in the threads: they may be the frames of one file, or one picture twice.
            skip_bad: Leave pictures out that cannot be used and report them; False: the first one is an error.
            batch_size: Pictures per forward pass; the embedder's own when None. Another one may change the last bits.

        Raises:
            KeMetricError: DATA, naming the first picture that cannot be used. USAGE: the batch size is below 1.
        """
        for batch in self.compute_all(images, self.embed_pixels, skip_bad=skip_bad, batch_size=batch_size):
            yield EmbeddedBatch(batch.positions, batch.outputs, batch.bad)

    def embed_pixels(self, pixels: PixelArray) -> FloatArray:
        """Return the embeddings float32 [B, D] of prepared pictures uint8 [B, S, S, 3], in one forward pass."""
        return self.compute(pixels)
