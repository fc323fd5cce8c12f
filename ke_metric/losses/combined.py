"""Losses made of losses: one that compares a batch with earlier ones too, and a weighted sum.

Shapes: B batch, D embedding, N embeddings in the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn

from ke_metric.losses.losses import EmbeddingLoss, tuple_count


class CrossBatchMemory(losses.CrossBatchMemory):  # type: ignore[misc]  # untyped in pytorch-metric-learning
    """A loss of pairs or triplets between a batch and the last N embeddings, the batch's own among them.

    Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020. No gradient flows through the memory. The
    computation is pytorch-metric-learning's; ours is that the state dict holds the whole state (theirs leaves out
    where the queue goes on and whether it is full) and that nothing is remembered in eval mode.

    Args:
        loss: Of pairs or triplets; one of `supported_losses()`.
        embedding_size: D.
        memory_size: N.
        miner: Picks the tuples, anchors in the batch, the others in the memory; all when left out.

    Attributes:
        tuples: How many pairs or triplets were mined from the last batch; None without a miner.

    Raises:
        AssertionError: A batch is larger than the memory.
    """

    embedding_memory: Tensor
    label_memory: Tensor

    def __init__(
        self, loss: nn.Module, embedding_size: int, memory_size: int = 1024, miner: nn.Module | None = None
    ) -> None:
        super().__init__(loss, embedding_size, memory_size, miner)
        self.tuples: int | None = None

    def get_extra_state(self) -> Tensor:
        """Return what belongs into the state dict beside the memories: the next row, and whether all are full."""
        return torch.tensor([self.queue_idx, int(self.has_been_filled)])

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` returned."""
        self.queue_idx, self.has_been_filled = int(state[0]), bool(state[1])

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of embeddings float32 [B, D] and labels [B].

        In eval mode the batch stands in for the last one that was remembered, and is forgotten again: so narrow
        networks are compared with what the whole network was compared with before.
        """
        if self.training:
            return cast(Tensor, super().forward(embeddings, labels))
        kept = self.embedding_memory, self.label_memory, self.queue_idx, self.has_been_filled
        self.embedding_memory, self.label_memory = kept[0].clone(), kept[1].clone()
        if self.has_been_filled or self.queue_idx >= len(labels):
            self.queue_idx = (self.queue_idx - len(labels)) % self.memory_size
        try:
            return cast(Tensor, super().forward(embeddings, labels))
        finally:
            self.embedding_memory, self.label_memory, self.queue_idx, self.has_been_filled = kept

    def create_indices_tuple(self, *arguments: object) -> tuple[Tensor, ...]:
        """Return the tuples that the loss is computed of, counted where they are mined."""
        mined: tuple[Tensor, ...] = super().create_indices_tuple(*arguments)
        self.tuples = None if self.miner is None else tuple_count(mined)
        return mined


class RememberingLoss(EmbeddingLoss):
    """A CrossBatchMemory, computed in float32; its miner is inside."""

    def __init__(self, memory: CrossBatchMemory) -> None:
        super().__init__(memory)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a float32 scalar, of embeddings [B, D] of any floating-point type and labels [B]."""
        value = super().forward(embeddings, labels)
        self.tuples = cast(CrossBatchMemory, self.loss).tuples
        return value


class MultipleLosses(nn.Module):
    """The weighted sum of losses of embeddings, each with a miner of its own or none.

    Args:
        parts: The losses, at least one.
        weights: One for each.

    Attributes:
        tuples: How many pairs or triplets were mined from the last batch, by all together; None without a miner.
    """

    def __init__(self, parts: Sequence[EmbeddingLoss], weights: Sequence[float]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(parts)
        self.weights = tuple(weights)
        self.tuples: int | None = None

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a float32 scalar, of embeddings [B, D] of any floating-point type and labels [B]."""
        values = [weight * loss(embeddings, labels) for weight, loss in zip(self.weights, self.losses, strict=True)]
        counts = [cast(EmbeddingLoss, loss).tuples for loss in self.losses]
        mined = [count for count in counts if count is not None]
        self.tuples = sum(mined) if mined else None
        return torch.stack(values).sum()
