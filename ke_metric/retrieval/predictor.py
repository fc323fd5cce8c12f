"""Pictures to the classes that a stored classifier takes them for, as when its generation was scored.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ke_metric.arrays import FloatArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.preparation import Picture
from ke_metric.networks.bundle_config import ClassifierArchitecture
from ke_metric.networks.dense import ScaledLogits
from ke_metric.retrieval.embedder import BadPicture, PictureNetwork
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


class Predictor(PictureNetwork):
    """Tells which classes pictures are of, by a stored classifier. Made by `load`.

    The probabilities are the softmax of the logits; how far they can be trusted is not measured.
    """

    _unit_length = False

    def _called(self) -> tuple[nn.Module, int]:
        if self._architecture.embedding_size is not None:
            raise KeMetricError(
                f"{self.description}: its network gives embeddings, no classes; a predictor needs one of task = "
                "'classification'. What looks most similar is found by an index (ke-metric index build)",
                ExitCode.DATA,
            )
        return self._with_scale(), self._architecture.class_count or len(self._card.class_names or ())

    def _with_scale(self) -> nn.Module:
        """Return what gives logits whose softmax are probabilities: of cosines it would make all classes alike."""
        architecture, scale = self._architecture, self._card.logit_scale
        if not (isinstance(architecture, ClassifierArchitecture) and architecture.network.head == "cosine"):
            return self._stored
        if scale is None:
            raise KeMetricError(
                f"{self.description}: its head gives cosines, and its config.json does not say by what its loss "
                "multiplied them (logit_scale), without which they are no probabilities; store it again with "
                "ke-metric slim",
                ExitCode.DATA,
            )
        return ScaledLogits(self._stored, scale)

    @property
    def class_names(self) -> tuple[str, ...]:
        """[C] in the order of the logits; numbers where a stored network does not name its classes."""
        return self._card.class_names or tuple(map(str, range(self.dimension)))

    def predict(
        self, images: Picture | Iterable[Picture], k: int = 1, *, on_bad: Callable[[BadPicture], Any] | None = None
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
        return [found for batch in self._stream_telling(images, on_bad) for found in self.likeliest(batch.logits, k)]

    def likeliest(self, logits: FloatArray, k: int) -> list[list[Prediction]]:
        """Return the k likeliest classes of each row of logits [B, C]; of equally likely ones the first comes first.

        Raises:
            KeMetricError: USAGE: k is no whole number, or below 1.
        """
        check_count("k", k)
        names, shares = self.class_names, torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
        order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        return [
            [Prediction(names[number], float(row[number])) for number in numbers]
            for row, numbers in zip(shares, order.tolist(), strict=True)
        ]
