"""The loss of a recipe with its miner: the classes of pytorch-metric-learning by name, and our own.

Shapes: B batch, D embedding, C classes.
"""

from __future__ import annotations

import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.losses.classification import LOSSES as CLASSIFICATION_LOSSES
from ke_metric.losses.parts import LOSSES, MINERS, ClassicProxyNCALoss, build_part, require_task
from ke_metric.losses.rehearsal import MOST, PossibleBatches, rehearse
from ke_metric.recipe.schema import Loss, Miner

# Keywords that follow from data and network: the classes, the length of an embedding, and that by another name.
SIZES = ("num_classes", "embedding_size", "descriptors_dim")


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


def build_loss(
    loss: Loss,
    miner: Miner | None,
    *,
    classes: int,
    embedding_size: int,
    batches: PossibleBatches | None = None,
    rehearsed: bool = True,
) -> EmbeddingLoss:
    """Build the loss and the miner of a recipe, and try a small twin of them on small batches.

    Args:
        loss: The recipe's section.
        miner: The recipe's section, if it has one.
        classes: C, of the training part.
        embedding_size: D.
        batches: What the loss will see; whether it can learn from that is not asked when left out.
        rehearsed: Whether the twin is tried.

    Returns:
        The loss; its proxies are drawn from torch's default generator.

    Raises:
        KeMetricError: An unknown class or keyword, a value that does not fit, a loss and a miner that do not go
            together, or one that `rehearse` refuses (RECIPE).
    """
    built = _build(loss, miner, classes=classes, embedding_size=embedding_size)
    if not rehearsed:
        return built

    def twin(of: Loss) -> EmbeddingLoss:
        # The sizes were found to be right; a copy of a million proxies would only cost memory.
        arguments = {key: value for key, value in of.arguments.items() if key not in SIZES}
        small = of.model_copy(update={"arguments": arguments})
        return _build(small, miner, classes=MOST, embedding_size=embedding_size)

    # Twins draw proxies too, and must not move the stream on.
    with torch.random.fork_rng(devices=[]):
        rehearse(twin, loss, miner, embedding_size=embedding_size, batches=batches)
    return built


def _build(loss: Loss, miner: Miner | None, *, classes: int, embedding_size: int) -> EmbeddingLoss:
    require_task(loss.name, "retrieval", own=LOSSES, others=CLASSIFICATION_LOSSES)
    sizes = dict(zip(SIZES, (classes, embedding_size, embedding_size), strict=True))
    built_loss = build_part(LOSSES, loss.name, loss.arguments, field="loss.arguments", sizes=sizes)
    if miner is None:
        return EmbeddingLoss(built_loss)
    built_miner = build_part(MINERS, miner.name, miner.arguments, field="miner.arguments", sizes=sizes)
    if isinstance(built_loss, ClassicProxyNCALoss):
        raise KeMetricError(
            f"miner.name = {miner.name!r}: {loss.name} compares embeddings with proxies and takes no mined tuples; "
            "leave the miner out",
            ExitCode.RECIPE,
        )
    return EmbeddingLoss(built_loss, built_miner)
