"""The loss of a recipe with its miner: the classes of pytorch-metric-learning by name, and our own.

Shapes: B batch, D embedding, C classes.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.losses.parts import LOSSES, MINERS, build_part
from ke_metric.losses.proxy_nca import ClassicProxyNCALoss
from ke_metric.recipe import Loss, Miner

# What pytorch-metric-learning raises for parts that do not fit together.
_MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class EmbeddingLoss(nn.Module):
    """A loss and its miner, computed in float32 whatever the precision of the network.

    Its parameters are the loss's own (proxies), for an optimizer to train.

    Args:
        loss: Takes embeddings [B, D], labels [B] and, when there is a miner, the mined tuples.
        miner: Takes embeddings and labels; none when left out.

    Attributes:
        tuples: How many pairs or triplets were mined from the last batch; None without a miner. With no tuple at all
            a loss is 0, which looks like success, so this number is worth a line in the log.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner
        self.tuples: int | None = None

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            embeddings: [B, D] of any floating-point type.
            labels: int64 [B] in [0, C).

        Returns:
            float32 scalar.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            mined = () if self.miner is None else (self.miner(embeddings, labels),)
            self.tuples = sum(_tuple_count(tuples) for tuples in mined) if mined else None
            value: torch.Tensor = self.loss(embeddings, labels, *mined)
        return value


def _tuple_count(mined: tuple[torch.Tensor, ...]) -> int:
    """Count triplets (anchors, positives, negatives) or pairs (anchors, positives, anchors, negatives)."""
    return len(mined[0]) if len(mined) == 3 else len(mined[0]) + len(mined[2])


def build_loss(loss: Loss, miner: Miner | None, *, classes: int, embedding_size: int) -> EmbeddingLoss:
    """Build the loss and the miner of a recipe and try them on a small batch.

    Args:
        loss: The recipe's section.
        miner: The recipe's section, if it has one.
        classes: C, of the training part.
        embedding_size: D.

    Returns:
        The loss; its proxies are drawn from torch's default generator.

    Raises:
        KeMetricError: An unknown class or keyword, a value that does not fit, or a loss and a miner that do not go
            together (RECIPE).
    """
    sizes = {"num_classes": classes, "embedding_size": embedding_size, "descriptors_dim": embedding_size}
    built_loss = build_part(LOSSES, loss.name, loss.arguments, field="loss.arguments", sizes=sizes)
    built_miner = None
    if miner is not None:
        built_miner = build_part(MINERS, miner.name, miner.arguments, field="miner.arguments", sizes=sizes)
        if isinstance(built_loss, ClassicProxyNCALoss):
            raise KeMetricError(
                f"miner.name = {miner.name!r}: {loss.name} compares embeddings with proxies and takes no mined "
                "tuples; leave the miner out",
                ExitCode.RECIPE,
            )
    built = EmbeddingLoss(built_loss, built_miner)
    _rehearse(built, loss, miner, classes=classes, embedding_size=embedding_size)
    return built


def _rehearse(built: EmbeddingLoss, loss: Loss, miner: Miner | None, *, classes: int, embedding_size: int) -> None:
    """Compute the loss of a small batch, so that what does not fit together fails now and not in the first epoch."""
    labels = torch.arange(min(classes, 4)).repeat_interleave(2)
    embeddings = torch.randn(len(labels), embedding_size, generator=torch.Generator().manual_seed(0))
    try:
        # A copy, because some losses keep running statistics; a fork, because some miners draw.
        with torch.random.fork_rng(devices=[]):
            copy.deepcopy(built)(embeddings, labels)
    except _MISFITS as error:
        mining = f" with miner.name = {miner.name!r}, miner.arguments = {dict(miner.arguments)}" if miner else ""
        raise KeMetricError(
            f"loss.name = {loss.name!r}, loss.arguments = {dict(loss.arguments)}{mining}: fails on a batch of "
            f"{len(labels)} embeddings: {type(error).__name__}: {error}",
            ExitCode.RECIPE,
        ) from error
