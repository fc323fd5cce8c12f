"""The classic ProxyNCA loss, which pytorch-metric-learning lacks.

Shapes: B batch, D embedding, C classes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class ClassicProxyNCALoss(nn.Module):
    """ProxyNCA as published: the positive proxy is not part of the denominator.

    With x an embedding, p_y its class's proxy, both normalised, and s the softmax scale:
    L = s |x - p_y|^2 + ln sum over z != y of exp(-s |x - p_z|^2), averaged over the batch
    (Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017, equation 4). It can be
    negative. The `ProxyNCALoss` of pytorch-metric-learning sums over all classes, as ProxyNCA++ does (Teh et al.,
    ECCV 2020); with p its probability of the right class, L = L_all + ln(1 - p).

    Args:
        num_classes: C, at least 2.
        embedding_size: D.
        softmax_scale: s, positive; 1 as published, 9 in ProxyNCA++.
    """

    def __init__(self, num_classes: int, embedding_size: int, softmax_scale: float = 1.0) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"needs at least 2 classes, not {num_classes}")
        self.softmax_scale = softmax_scale
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_size))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss.

        Args:
            embeddings: float [B, D], of any length.
            labels: int64 [B] in [0, C).

        Returns:
            Scalar.
        """
        cosine = functional.normalize(embeddings) @ functional.normalize(self.proxies).T
        # |x - p|^2 = 2 - 2 cos for unit vectors.
        logits = self.softmax_scale * (2 * cosine - 2)
        own = functional.one_hot(labels, len(self.proxies)).bool()
        others = logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
        return (others - logits[own]).mean()
