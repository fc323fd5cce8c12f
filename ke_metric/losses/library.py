"""What of pytorch-metric-learning a recipe can name, and why not the rest.

A class that a new version brings can be named at once: `rehearse` judges it by what it does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType

from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import nn

from ke_metric.losses.combined import CrossBatchMemory, MultipleLosses
from ke_metric.losses.losses import ClassicProxyNCALoss

UNFINISHED = "is what other classes are made of, and computes nothing by itself"

REFUSED: Mapping[str, str] = {
    "BaseDistance": UNFINISHED,
    "BaseLossWrapper": UNFINISHED,
    "BaseMetricLossFunction": UNFINISHED,
    "BaseMiner": UNFINISHED,
    "BaseReducer": UNFINISHED,
    "BaseRegularizer": UNFINISHED,
    "BatchedDistance": "hands distances to a function, which a recipe cannot name; name the distance that it wraps",
    "DoNothingReducer": "reduces nothing, and a training needs one number; use MeanReducer",
    "EmbeddingsAlreadyPackagedAsTriplets": "takes three pictures in a row for a triplet, and no sampler draws "
    "triplets; use TripletMarginMiner",
    "GenericPairLoss": UNFINISHED,
    "ManifoldLoss": "takes no labels: it would learn classes drawn at random; use ProxyAnchorLoss",
    "MultipleReducers": "takes reducers by the names of what a loss is summed of; name one reducer, which every "
    "summand has",
    "SelfSupervisedLoss": "takes two views of every picture and no labels; use the loss that it wraps, which learns "
    "from labels (NTXentLoss, SupConLoss)",
    "VICRegLoss": "takes two views of every picture and no labels; use SupConLoss",
}
"""Class name to why a recipe cannot name it, and what to use instead."""

MISCOUNTING: Mapping[str, str] = {
    "InstanceLoss": "takes the k-th picture of a batch for the k-th class (pytorch-metric-learning 2.9), and brings "
    "no class together; use NTXentLoss or NormalizedSoftmaxLoss",
    "SmoothAPLoss": "cuts a batch into as many groups as a class has pictures (pytorch-metric-learning 2.9), and "
    "takes every group for a class: right only with batches.sampler = 'class_balanced' and batches.size = "
    "images_per_class squared, 16 with 4 or 64 with 8; else use FastAPLoss",
}
"""Losses whose numbers are not what they are meant to be: why. No new training begins with them."""

NOT_IN_A_RECIPE: Mapping[str, str] = {
    "aggregation_func": "is a function, which a recipe cannot name",
    "collect_stats": "is of no use: nothing reads the numbers",
    "enqueue_idx": "queues what a second, slowly moving network gave (MoCo), and a generation trains one network",
    "enqueue_mask": "queues what a second, slowly moving network gave (MoCo), and a generation trains one network",
    "is_inverted": "is set by the class itself",
    "mat_based_loss": "is set by the class itself",
    "miner": "is the recipe's section miner: {name: ..., arguments: ...}",
    "weight_init_func": "is a function, which a recipe cannot name",
}
"""Keyword to why `arguments` cannot have it, whatever the class."""


def _classes(module: ModuleType) -> dict[str, type[nn.Module]]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, nn.Module) and name not in REFUSED
    }


_OURS: tuple[type[nn.Module], ...] = (ClassicProxyNCALoss, CrossBatchMemory, MultipleLosses)
EMBEDDING_LOSSES = {**_classes(losses), **{loss.__name__: loss for loss in _OURS}}
MINERS = _classes(miners)
# Of LiftedStructureLoss a number in the memory is compared with one in the batch: its value is another where the
# same embeddings lie elsewhere in the memory.
REMEMBERING = {
    name: EMBEDDING_LOSSES[name] for name in CrossBatchMemory.supported_losses() if name != "LiftedStructureLoss"
}
NESTED: Mapping[str, Mapping[str, type[nn.Module]]] = {
    "distance": _classes(distances),
    "reducer": _classes(reducers),
    "embedding_regularizer": _classes(regularizers),
    "weight_regularizer": _classes(regularizers),
    "loss": REMEMBERING,
}
"""Keywords whose value is a part itself, written {name: ..., keyword: ...}."""
