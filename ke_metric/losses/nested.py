"""The loss of nested embeddings: the first numbers of an embedding learn to be an embedding by themselves.

Matryoshka representation learning (Kusupati et al., NeurIPS 2022), for any loss of embeddings and its miner.

Shapes: B batch, D embedding, K size of a nested embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ke_metric.losses.combined import MultipleLosses
from ke_metric.losses.losses import EmbeddingLoss


class NestedLoss(nn.Module):
    """The sum of a loss of the whole embedding and of losses of its first numbers, which are L2-normalised again.

    L = L_D(x) + sum over sizes K of L_K(x[:K] / |x[:K]|), every loss with proxies of its own size. It is the sum, as
    in the paper (weights of 1), and no mean: the whole embedding learns from the very loss that it has without
    nested sizes, and every size from what it would have alone. Optimizers that follow the size of a gradient (sgd)
    take larger steps in the layers that the sizes share.

    Args:
        build: Size to a loss of embeddings of that size.
        size: D.
        nested_sizes: Every K.

    Attributes:
        tuples: How many pairs or triplets were mined from the last batch, in all sizes together; None without a
            miner.
    """

    def __init__(
        self, build: Callable[[int], EmbeddingLoss | MultipleLosses], *, size: int, nested_sizes: Sequence[int]
    ) -> None:
        super().__init__()
        # The whole one first: its proxies are those that it would have alone.
        self.losses = nn.ModuleDict({str(each): build(each) for each in (size, *nested_sizes)})
        self.tuples: int | None = None

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a float32 scalar, of L2-normalised embeddings [B, D] and labels [B]."""
        values: list[Tensor] = []
        tuples: list[int] = []
        for text, module in self.losses.items():
            loss = cast(EmbeddingLoss, module)
            first = embeddings[:, : int(text)].float()
            values.append(loss(first if first.shape[1] == embeddings.shape[1] else normalize(first, dim=1), labels))
            tuples += [] if loss.tuples is None else [loss.tuples]
        self.tuples = sum(tuples) if tuples else None
        return torch.stack(values).sum()
