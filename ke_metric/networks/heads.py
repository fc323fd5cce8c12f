"""Networks of a recipe: backbone and head, images to embeddings or logits; and what others need around them.

Shapes: B batch, F feature, D embedding, C classes, H and W image height and width, S image size, in pixels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.backbones import build_backbone, feature_size
from ke_metric.schema import Network

# A class weight shorter than this is divided by it instead of by its length, as `normalize` does with features.
SHORTEST_LENGTH = 1e-12


class EmbeddingNetwork(nn.Module):
    """Images [B, 3, H, W] to L2-normalised float32 embeddings [B, D]: backbone [B, F], linear head."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch of normalised images [B, 3, H, W] as [B, D]."""
        embedding = cast(Tensor, self.head(self.backbone(images)))
        # Half precision would leave lengths up to 1 % from 1.
        return normalize(embedding.float(), dim=1)


def build_network(network: Network, image_size: int, *, load_pretrained: bool = True) -> EmbeddingNetwork:
    """Build the embedding network of a recipe; weights as in `build_backbone`.

    Raises:
        KeMetricError: The backbone cannot be built, or cannot take images of this size in pixels.
    """
    backbone = build_backbone(network, load_pretrained=load_pretrained)
    features = feature_size(backbone, image_size, network.backbone)
    return EmbeddingNetwork(backbone, nn.Linear(features, network.embedding_size))


class CosineHead(nn.Conv1d):
    """Features [B, F] to their cosines with the weight of every class [B, C], in [-1, 1] up to rounding.

    cos_k = <x, w_k> / (|x| |w_k|) (Zhang et al., "AdaCos", CVPR 2019). Autocast does not reach it: cosines are
    computed in the precision of the weights. The highest cosine decides the class; for a softmax cosines are too
    close to each other, and AdaCosLoss scales them.

    A kind of torch's convolution, of which it has the initialisation and nothing else, because the split room follows
    what is computed from the weight of a convolution and would keep the features of any other cosine whole. The
    length of a feature is a norm over channels: the slim network takes it over the fit ones (`SplitPlan.norms`).

    Args:
        features: F.
        classes: C.

    Attributes:
        weight: [C, F], drawn from U(±1/sqrt(F)) as a linear layer's; there is no bias.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes, kernel_size=1, bias=False)
        self.weight = nn.Parameter(self.weight.detach().squeeze(-1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the cosines [B, C] of features [B, F]."""
        with torch.autocast(features.device.type, enabled=False):
            directions = normalize(features.to(self.weight.dtype), dim=1)
            lengths = torch.linalg.vector_norm(self.weight, dim=1).clamp_min(SHORTEST_LENGTH)
            cosines: Tensor = linear(directions, self.weight) / lengths
        return cosines


class Classifier(nn.Module):
    """Images [B, 3, H, W] to float32 logits [B, C]: backbone [B, F], head."""

    def __init__(self, backbone: nn.Module, head: nn.Linear | CosineHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, C] of normalised images [B, 3, H, W]; cosines where the head is a cosine head."""
        return cast(Tensor, self.head(self.features(images))).float()

    def features(self, images: Tensor) -> Tensor:
        """Return the features [B, F] of normalised images [B, 3, H, W], before the head."""
        return cast(Tensor, self.backbone(images))


def build_classifier(network: Network, image_size: int, classes: int, *, load_pretrained: bool = True) -> Classifier:
    """Build the classifier of a recipe; weights as in `build_backbone`.

    The linear head is initialised by torch's own rule, weight and bias from U(±1/sqrt(F)), which is also how
    torchvision leaves the last layer of its ResNets and how `method.reset: official` redraws it. The authors' code
    draws the weight from N(0, 2/F) for ResNets, sqrt(6) times as wide.

    Raises:
        KeMetricError: There are fewer than 2 classes, the backbone cannot be built, or it cannot take images of this
            size in pixels.
    """
    if classes < 2:
        raise KeMetricError(f"a classifier needs 2 classes or more to tell apart, not {classes}", ExitCode.DATA)
    backbone = build_backbone(network, load_pretrained=load_pretrained)
    features = feature_size(backbone, image_size, network.backbone)
    head = CosineHead(features, classes) if network.head == "cosine" else nn.Linear(features, classes)
    return Classifier(backbone, head)


class PictureModule(nn.Module):
    """Pictures in [0, 1], [B, 3, S, S], to embeddings [B, D] or logits [B, C]; standardisation is inside.

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
    """Standardised images [B, 3, S, S] to the features that a classifier's head sees, L2-normalised, [B, F]."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images, of length 1."""
        return normalize(self.classifier.features(images).float(), dim=1)


class ScaledLogits(nn.Module):
    """Standardised images [B, 3, S, S] to a classifier's cosines times the scale of its loss, [B, C]."""

    def __init__(self, classifier: nn.Module, scale: float) -> None:
        super().__init__()
        self.classifier, self.scale = classifier, scale

    def forward(self, images: Tensor) -> Tensor:
        """Return logits whose softmax gives probabilities."""
        return cast(Tensor, self.classifier(images)) * self.scale
