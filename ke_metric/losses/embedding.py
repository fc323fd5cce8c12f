"""Losses of embeddings: those of pytorch-metric-learning by class name, what it lacks, and a loss with its miner.

Shapes: B batch, D embedding, C classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType

import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import Tensor, nn
from torch.nn import functional

# Not for one batch of embeddings and labels: unfinished classes, wrappers of others, those that take a second batch
# or no labels, those that give more than one number.
_UNUSABLE = frozenset(
    {
        "BaseDistance", "BaseLossWrapper", "BaseMetricLossFunction", "BaseMiner", "BaseReducer", "BaseRegularizer",
        "BatchedDistance", "CrossBatchMemory", "DoNothingReducer", "EmbeddingsAlreadyPackagedAsTriplets",
        "GenericPairLoss", "ManifoldLoss", "MultipleLosses", "MultipleReducers", "SelfSupervisedLoss", "VICRegLoss",
    }
)  # fmt: skip


class EmbeddingLoss(nn.Module):
    """A loss and its miner, computed in float32 whatever the precision of the network.

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

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a float32 scalar, of embeddings [B, D] of any floating-point type and labels [B]."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            mined = () if self.miner is None else (self.miner(embeddings, labels),)
            self.tuples = sum(_tuple_count(tuples) for tuples in mined) if mined else None
            value: Tensor = self.loss(embeddings, labels, *mined)
        return value


def _tuple_count(mined: tuple[Tensor, ...]) -> int:
    """Count triplets (anchors, positives, negatives) or pairs (anchors, positives, anchors, negatives)."""
    return len(mined[0]) if len(mined) == 3 else len(mined[0]) + len(mined[2])


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

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of embeddings [B, D] of any length and labels, int64 [B] in [0, C)."""
        cosine = functional.normalize(embeddings) @ functional.normalize(self.proxies).T
        # |x - p|^2 = 2 - 2 cos for unit vectors.
        logits = self.softmax_scale * (2 * cosine - 2)
        own = functional.one_hot(labels, len(self.proxies)).bool()
        others = logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
        return (others - logits[own]).mean()


def _classes(module: ModuleType) -> dict[str, type[nn.Module]]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, nn.Module) and name not in _UNUSABLE
    }


LOSSES = {**_classes(losses), ClassicProxyNCALoss.__name__: ClassicProxyNCALoss}
MINERS = _classes(miners)
NESTED: Mapping[str, Mapping[str, type[nn.Module]]] = {
    "distance": _classes(distances),
    "reducer": _classes(reducers),
    "embedding_regularizer": _classes(regularizers),
    "weight_regularizer": _classes(regularizers),
}
"""Keywords whose value is a part itself, written {name: ..., keyword: ...}."""
