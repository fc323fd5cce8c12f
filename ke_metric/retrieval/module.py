"""Stored networks as plain modules: what other libraries, and exported graphs, take.

Shapes: B batch, D embedding, F feature, C classes, S image size in pixels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ke_metric.networks.classification import Classifier


class PictureModule(nn.Module):
    """Images in [0, 1], float [B, 3, S, S], to embeddings [B, D] or logits [B, C]; standardisation is inside.

    Of an embedder it works as the trunk of pytorch-metric-learning's InferenceModel.

    Args:
        network: Standardised images to embeddings, which are L2-normalised, or to logits.
        mean: Of red, green, blue in [0, 1], subtracted.
        std: Of red, green, blue in [0, 1], divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, *, mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> None:
        super().__init__()
        self.network = network
        device = next(network.parameters()).device
        self.register_buffer("mean", torch.tensor(mean, device=device).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, device=device).view(1, 3, 1, 1), persistent=False)
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network gives for images [B, 3, S, S] in [0, 1]."""
        return cast(Tensor, self.network((images - self.mean) / self.std))


class ClassifierFeatures(nn.Module):
    """Standardised images [B, 3, S, S] to the features that a classifier's head sees, L2-normalised, [B, F].

    Args:
        classifier: Whose features.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images, of length 1."""
        return normalize(self.classifier.features(images).float(), dim=1)


class ScaledLogits(nn.Module):
    """Standardised images [B, 3, S, S] to the cosines of a classifier times the scale of its loss, [B, C].

    Args:
        classifier: Images to cosines.
        scale: What the loss multiplied them by before its softmax.
    """

    def __init__(self, classifier: nn.Module, scale: float) -> None:
        super().__init__()
        self.classifier, self.scale = classifier, scale

    def forward(self, images: Tensor) -> Tensor:
        """Return logits whose softmax gives probabilities."""
        return cast(Tensor, self.classifier(images)) * self.scale
