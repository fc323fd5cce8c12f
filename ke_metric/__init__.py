"""Knowledge Evolution for image retrieval on small data sets.

The public names below are imported when they are first used: `import ke_metric` loads neither torch nor FAISS.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ke_metric.evaluation.retrieval import score_retrieval
    from ke_metric.evolution import evolve
    from ke_metric.lineage.store import Lineage
    from ke_metric.networks.bundle import load_network, save_network
    from ke_metric.networks.bundle_config import Architecture, NetworkCard
    from ke_metric.recipe.file import load_recipe
    from ke_metric.retrieval.embedder import Embedder
    from ke_metric.retrieval.index import Index
    from ke_metric.retrieval.predictor import Predictor
    from ke_metric.split.hypotheses import extract_slim, redraw_reset
    from ke_metric.split.planning import plan_split
    from ke_metric.split.repair import estimate_norm_statistics

__all__ = [
    "Architecture",
    "Embedder",
    "Index",
    "Lineage",
    "NetworkCard",
    "Predictor",
    "__version__",
    "estimate_norm_statistics",
    "evolve",
    "extract_slim",
    "load_network",
    "load_recipe",
    "plan_split",
    "redraw_reset",
    "save_network",
    "score_retrieval",
]

__version__ = "0.1.0"  # setup.py reads it here

_HOMES = {
    "Architecture": "ke_metric.networks.bundle_config",
    "Embedder": "ke_metric.retrieval.embedder",
    "Index": "ke_metric.retrieval.index",
    "Lineage": "ke_metric.lineage.store",
    "NetworkCard": "ke_metric.networks.bundle_config",
    "Predictor": "ke_metric.retrieval.predictor",
    "estimate_norm_statistics": "ke_metric.split.repair",
    "evolve": "ke_metric.evolution",
    "extract_slim": "ke_metric.split.hypotheses",
    "load_network": "ke_metric.networks.bundle",
    "load_recipe": "ke_metric.recipe.file",
    "plan_split": "ke_metric.split.planning",
    "redraw_reset": "ke_metric.split.hypotheses",
    "save_network": "ke_metric.networks.bundle",
    "score_retrieval": "ke_metric.evaluation.retrieval",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
