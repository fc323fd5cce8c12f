"""The classifier: backbone and head, images to logits.

Shapes: B batch, F feature, C classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.backbones import build_backbone, feature_size
from ke_metric.recipe import Network

SHORTEST_LENGTH = 1e-12
"""A class weight shorter than this is divided by it instead of by its length, as `normalize` does with features."""


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
    """Images [B, 3, H, W] to float32 logits [B, C].

    Args:
        backbone: Images to features [B, F].
        head: Features to logits [B, C].
    """

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
    """Build the classifier of a recipe.

    The linear head is initialised by torch's own rule, weight and bias from U(±1/sqrt(F)), which is also how
    torchvision leaves the last layer of its ResNets and how `method.reset: official` redraws it. The authors' code
    draws the weight from N(0, 2/F) for ResNets, sqrt(6) times as wide.

    Args:
        network: The recipe's section.
        image_size: Height and width of the images in pixels.
        classes: C.
        load_pretrained: Whether a recipe that asks for pretrained weights gets them, see `build_backbone`.

    Returns:
        The network, its random weights drawn from torch's default generator (see `randomness.default_streams`).

    Raises:
        KeMetricError: There are fewer than 2 classes, the backbone cannot be built, or it cannot take images of this
            size.
    """
    if classes < 2:
        raise KeMetricError(f"a classifier needs 2 classes or more to tell apart, not {classes}", ExitCode.DATA)
    backbone = build_backbone(network, load_pretrained=load_pretrained)
    features = feature_size(backbone, image_size, network.backbone)
    head = CosineHead(features, classes) if network.head == "cosine" else nn.Linear(features, classes)
    return Classifier(backbone, head)
