"""Methods: what a child takes from its parent, and what else happens while it trains; one table names them all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ke_metric.methods.forgetting import LaterLayerForgetting, NeuralRegeneration
from ke_metric.methods.generations import BornAgain, DenseSparseDense, LayerWise
from ke_metric.methods.knowledge_evolution import (
    KnowledgeEvolution,
    Repeats,
    Restarts,
    ShrinkAndPerturb,
    SlimAlone,
    SlimLast,
)
from ke_metric.methods.method import LineageMethod
from ke_metric.methods.repr import RePr
from ke_metric.recipe.schema import Recipe

METHODS: Mapping[str, LineageMethod] = MappingProxyType(
    {
        "knowledge_evolution": KnowledgeEvolution(),
        "born_again": BornAgain(),
        "dense_sparse_dense": DenseSparseDense(),
        "repr": RePr(),
        "later_layer_forgetting": LaterLayerForgetting(),
        "layer_wise": LayerWise(),
        "neural_regeneration": NeuralRegeneration(),
        "restarts": Restarts(),
        "repeats": Repeats(),
        "shrink_and_perturb": ShrinkAndPerturb(),
        "slim_alone": SlimAlone(),
    }
)
"""Name in a recipe to the method; they hold no state."""

_SLIM_LAST = SlimLast()


def method_of(recipe: Recipe, number: int) -> LineageMethod:
    """Return the method that generation `number` (from 1) of a lineage is grown by."""
    is_slim = recipe.method.slim_last and number == recipe.generations
    return _SLIM_LAST if is_slim else METHODS[recipe.method.name]
