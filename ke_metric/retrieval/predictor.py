"""The predictor: pictures to the classes that a stored classifier takes them for, as when its generation was scored.

Shapes: N pictures, B batch, C classes, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from ke_metric.arrays import FloatArray, IntArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.preparation import Picture
from ke_metric.networks.architecture import Architecture, ClassifierArchitecture
from ke_metric.networks.bundle_config import NetworkCard
from ke_metric.networks.heads import ScaledLogits
from ke_metric.retrieval.picture_network import BATCH_SIZE, BadPicture, PictureNetwork
from ke_metric.stores.contract import check_count


@dataclass(frozen=True)
class Prediction:
    """A class that a picture may be of.

    Attributes:
        label: Name of the class.
        probability: In [0, 1]; over all classes they add up to 1.
    """

    label: str
    probability: float


@dataclass(frozen=True, eq=False)
class PredictedBatch:
    """What became of a stretch of the pictures.

    Attributes:
        positions: [B] numbers among the pictures given, from 0, of those that were looked at.
        logits: [B, C] float32, what `scoring` scores.
        bad: Those that were left out.
    """

    positions: IntArray
    logits: FloatArray
    bad: tuple[BadPicture, ...]


class Predictor(PictureNetwork):
    """Tells which classes pictures are of, by a stored classifier.

    Made by `load`. The probabilities are the softmax of the logits; how far they can be trusted is not measured.

    Args:
        network: float32 [B, 3, S, S] to logits [B, C], in eval mode and on its device.
        architecture: How its dense network is built.
        card: Its classes, and what becomes of a picture before the network sees it.
        batch_size: Pictures per forward pass.
        description: Where it came from, in words.

    Attributes:
        class_names: [C] in the order of the logits; numbers where a stored network does not name its classes.
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
        if architecture.embedding_size is not None:
            raise KeMetricError(
                f"{description}: its network gives embeddings, no classes; a predictor needs one of task = "
                "'classification'. What looks most similar is found by an index (ke-metric index build)",
                ExitCode.DATA,
            )
        super().__init__(
            network,
            runs=_with_scale(network, architecture, card.logit_scale, description),
            dimension=architecture.class_count or len(card.class_names or ()),
            architecture=architecture,
            card=card,
            batch_size=batch_size,
            description=description,
        )
        if not self.dimension:
            size = self.normalization.image_size
            self.dimension = self.compute(np.zeros((1, size, size, 3), np.uint8)).shape[1]
        self.class_names: tuple[str, ...] = card.class_names or tuple(map(str, range(self.dimension)))

    @classmethod
    def _of(
        cls, network: nn.Module, *, architecture: Architecture, card: NetworkCard, batch_size: int, description: str
    ) -> Self:
        return cls(network, architecture=architecture, card=card, batch_size=batch_size, description=description)

    def predict(
        self,
        images: Picture | Iterable[Picture],
        k: int = 1,
        *,
        on_bad: Callable[[BadPicture], Any] | None = None,
    ) -> list[list[Prediction]]:
        """Return the k likeliest classes of pictures, in order, the likeliest first.

        Args:
            images: One picture or any number of them: paths, PIL images, arrays or tensors, see `Picture`.
            k: How many; all where there are fewer.
            on_bad: Called for every picture that cannot be used, which is then left out; None: the first one is an
                error.

        Raises:
            KeMetricError: DATA, naming the first picture that cannot be used. USAGE: k is no whole number of at
                least 1.
        """
        check_count("k", k)
        found: list[list[Prediction]] = []
        for batch in self.stream(images, skip_bad=on_bad is not None):
            found += self.likeliest(batch.logits, k)
            if on_bad is not None:
                for bad in batch.bad:
                    on_bad(bad)
        return found

    def stream(
        self, images: Picture | Iterable[Picture], *, skip_bad: bool = False, batch_size: int | None = None
    ) -> Iterator[PredictedBatch]:
        """Look at pictures batch by batch; decoding runs ahead in threads, and only a few pictures are held at once.

        Args:
            images: As in `predict`; an iterator is read as far as is needed.
            skip_bad: Leave pictures out that cannot be used and report them; False: the first one is an error.
            batch_size: Pictures per forward pass; the predictor's own when None. Another one may change the last
                bits.

        Raises:
            KeMetricError: DATA, naming the first picture that cannot be used. USAGE: the batch size is below 1.
        """
        for batch in self.compute_all(images, self.compute, skip_bad=skip_bad, batch_size=batch_size):
            yield PredictedBatch(batch.positions, batch.outputs, batch.bad)

    def likeliest(self, logits: FloatArray, k: int) -> list[list[Prediction]]:
        """Return the k likeliest classes of each row of logits [B, C]; of equally likely ones the first comes first.

        Raises:
            KeMetricError: USAGE: k is no whole number, or below 1.
        """
        check_count("k", k)
        shares = torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
        order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        return [
            [Prediction(self.class_names[number], float(row[number])) for number in numbers]
            for row, numbers in zip(shares, order.tolist(), strict=True)
        ]


def _with_scale(network: nn.Module, architecture: Architecture, scale: float | None, description: str) -> nn.Module:
    """Return what gives logits whose softmax are probabilities: of cosines alone it would make all classes alike."""
    if not (isinstance(architecture, ClassifierArchitecture) and architecture.network.head == "cosine"):
        return network
    if scale is None:
        raise KeMetricError(
            f"{description}: its head gives cosines, and its config.json does not say by what its loss multiplied "
            "them (logit_scale), without which they are no probabilities; store it again with ke-metric slim",
            ExitCode.DATA,
        )
    return ScaledLogits(network, scale)
