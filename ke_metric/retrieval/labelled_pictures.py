"""Scoring a stored network on labelled pictures that no benchmark holds: the numbers of a scorecard, for other data.

Shapes: N pictures, D embedding, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.classification import score_classes, score_classification
from ke_metric.evaluation.embeddings import FloatArray
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.generation import ClassScores
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.picture_list import LeftOut, PictureList
from ke_metric.retrieval.picture_network import ComputedBatch, PictureNetwork
from ke_metric.retrieval.predictor import Predictor
from ke_metric.retrieval.vector_store import Item

PARTS = frozenset({"train", "test", "val", "validation", "query", "gallery"})
Progress = Callable[[int, int], None]
NAMED = 3
"""How many names a message gives of many."""


@dataclass(frozen=True)
class LabelledScores:
    """What a network is worth on labelled pictures.

    Attributes:
        scores: As `score_retrieval` names them, of embeddings or of a classifier's features; of a classifier also as
            `score_classification` names them, over the pictures whose class it knows.
        classes: How each class was recognised; None where nothing was classified.
        pictures: Number of pictures scored.
        unknown: Label to number of pictures, of the labels that a classifier has no class for.
        left_out: Pictures that could not be used.
    """

    scores: dict[str, float]
    classes: ClassScores | None = None
    pictures: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()


def require_labels(pictures: PictureList, *, pairs: bool) -> None:
    """Refuse pictures whose classes are not known, or among which nothing can be found.

    Args:
        pictures: What was named.
        pairs: Whether some class must have two of them.

    Raises:
        KeMetricError: DATA, naming the first ones.
    """
    bare = [item.path for item in pictures.items if not item.label]
    if bare:
        raise KeMetricError(
            f"{len(bare):,} of {len(pictures.items):,} pictures have no label: {_some(bare)}; the class of a picture "
            "is the folder that holds it below the one that is named, or the column `label` of a CSV with path,label",
            ExitCode.DATA,
        )
    counts = Counter(item.label for item in pictures.items)
    parts = {label.partition("/")[0] for label in counts}
    if parts <= PARTS and all("/" in label for label in counts):
        raise KeMetricError(
            f"the classes lie below folders named {' and '.join(sorted(parts))}: name one of these, or the pictures "
            "of one class would be of several",
            ExitCode.DATA,
        )
    if pairs and max(counts.values(), default=1) == 1:
        raise KeMetricError(
            f"none of the {len(counts):,} classes has a second picture to find: {_some(sorted(counts))}",
            ExitCode.DATA,
        )


def score_pictures(
    items: Sequence[Item],
    *,
    embedder: Embedder | None,
    predictor: Predictor | None = None,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    scoring: Scoring | None = None,
    progress: Progress | None = None,
) -> LabelledScores:
    """Score a network on labelled pictures: every picture queries all others, and a classifier names its class.

    Args:
        items: Pictures with labels, see `require_labels`. One that cannot be used is left out.
        embedder: The network; None for a classifier that has no features.
        predictor: The same network as a classifier, where it is one.
        recall_at: The Ks of Recall@K.
        scoring: See `score_retrieval`.
        progress: Called with the number of pictures done and their total.

    Raises:
        KeMetricError: DATA: no picture can be used.
    """
    result = LabelledScores({})
    if embedder is not None:
        vectors, used, left_out = _computed(embedder, items, progress)
        labels = np.unique([item.label for item in used], return_inverse=True)[1].astype(np.int64)
        scores = score_retrieval(vectors, labels, recall_at, scoring=scoring)
        result = LabelledScores(scores, pictures=len(used), left_out=left_out)
    if predictor is None:
        return result
    unknown = Counter(item.label for item in items if item.label not in set(predictor.class_names))
    known = [item for item in items if item.label not in unknown]
    if not known:
        return replace(result, unknown=dict(unknown))
    logits, used, left_out = _computed(predictor, known, progress)
    number_of = {name: number for number, name in enumerate(predictor.class_names)}
    own = np.array([number_of[item.label] for item in used], np.int64)
    return LabelledScores(
        result.scores | score_classification(logits, own),
        score_classes(logits, own, predictor.class_names),
        pictures=max(result.pictures, len(used)),
        unknown=dict(unknown),
        left_out=result.left_out or left_out,
    )


def _computed(
    network: PictureNetwork, items: Sequence[Item], progress: Progress | None
) -> tuple[FloatArray, list[Item], tuple[LeftOut, ...]]:
    """Return what a network gives for the pictures that can be used [N, D], these, and the others."""
    batches: list[ComputedBatch] = []
    done = 0
    for batch in network.compute_all((item.path for item in items), network.compute, skip_bad=True):
        batches.append(batch)
        done += len(batch.positions) + len(batch.bad)
        if progress is not None:
            progress(done, len(items))
    used = [items[position] for batch in batches for position in batch.positions.tolist()]
    left_out = tuple(LeftOut(each.name, each.reason) for batch in batches for each in batch.bad)
    if not used:
        raise KeMetricError(f"none of the {len(items):,} pictures can be used: {left_out[0].reason}", ExitCode.DATA)
    return np.concatenate([batch.outputs for batch in batches]), used, left_out


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
