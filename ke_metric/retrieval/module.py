"""The embedder as a plain module: what other libraries, and exported graphs, take.

Shapes: B batch, D embedding, S image size in pixels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class EmbedderModule(nn.Module):
    """Images in [0, 1], float [B, 3, S, S], to L2-normalised embeddings [B, D]; standardisation is inside.

    Works as the trunk of pytorch-metric-learning's InferenceModel.

    Args:
        network: Standardised images to embeddings.
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
        """Embed images [B, 3, S, S] in [0, 1] as [B, D]."""
        return cast(Tensor, self.network((images - self.mean) / self.std))
