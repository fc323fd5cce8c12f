"""The embedding network: backbone, linear head, L2 normalisation.

Shapes: B batch, F feature, D embedding.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn.functional import normalize

from ke_metric.networks.backbones import build_backbone, feature_size
from ke_metric.recipe import Network


class EmbeddingNetwork(nn.Module):
    """Images [B, 3, H, W] to L2-normalised float32 embeddings [B, D].

    Args:
        backbone: Images to features [B, F].
        head: Features to unnormalised embeddings [B, D].
    """

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
    """Build the embedding network of a recipe.

    Args:
        network: The recipe's section.
        image_size: Height and width of the images in pixels.
        load_pretrained: Whether a recipe that asks for pretrained weights gets them, see `build_backbone`.

    Returns:
        The network, its random weights drawn from torch's default generator (see `randomness.default_streams`).

    Raises:
        KeMetricError: The backbone cannot be built, or cannot take images of this size.
    """
    backbone = build_backbone(network, load_pretrained=load_pretrained)
    features = feature_size(backbone, image_size, network.backbone)
    return EmbeddingNetwork(backbone, nn.Linear(features, network.embedding_size))
