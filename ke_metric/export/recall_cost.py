"""What Recall@1, or top-1, an exported file loses: the same pictures through the network and through the file.

Shapes: N pictures, B batch, D embedding, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.classification import score_classification
from ke_metric.evaluation.embeddings import Embeddings, FloatArray, IntArray
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.export.record import RecallCost, TopCost
from ke_metric.export.verification import Embed, PixelArray


@dataclass(frozen=True, eq=False)
class LabelledPictures:
    """Prepared pictures with their labels; read once.

    Attributes:
        batches: uint8 [B, S, S, 3], one after the other.
        labels: [N] numbers of their classes.
        keys: N item ids.
    """

    batches: Iterable[PixelArray]
    labels: IntArray
    keys: Sequence[str]


@dataclass(frozen=True, eq=False)
class ScoredPictures:
    """Queries and what they are searched in.

    Attributes:
        query: What is searched with.
        gallery: What is searched in; None: every query searches all others.
        backend: What searches, see `Scoring`.
        classes: Whether classes are predicted for the queries, and nothing is searched.
    """

    query: LabelledPictures
    gallery: LabelledPictures | None = None
    backend: str = "auto"
    classes: bool = False


def recall_cost(network: Embed, exported: Embed, pictures: ScoredPictures) -> RecallCost:
    """Score both on the same pictures, each of which is decoded once.

    Raises:
        KeMetricError: DATA: no query has anything to find, or a picture cannot be decoded.
    """
    query = _embed_both((network, exported), pictures.query)
    gallery = _embed_both((network, exported), pictures.gallery) if pictures.gallery else query
    scores = [_score(*pair, pictures) for pair in zip(query, gallery, strict=True)]
    if "recall@1" not in scores[0]:
        raise KeMetricError("no query has a picture of its class to find: Recall@1 has no meaning", ExitCode.DATA)
    return RecallCost(
        queries=int(scores[0]["queries"]), pytorch=scores[0]["recall@1"], exported=scores[1]["recall@1"]
    )


def top_cost(network: Embed, exported: Embed, pictures: ScoredPictures) -> TopCost:
    """Score both as classifiers on the same pictures, each of which is decoded once.

    Raises:
        KeMetricError: DATA: a picture cannot be decoded, or a label is no class of the network.
    """
    labels = pictures.query.labels
    given = _embed_both((network, exported), pictures.query)
    pytorch, file = (score_classification(logits, labels)["top1"] for logits in given)
    return TopCost(pictures=len(labels), pytorch=pytorch, exported=file)


def _embed_both(networks: tuple[Embed, Embed], pictures: LabelledPictures) -> list[FloatArray]:
    vectors = [[embed(batch) for embed in networks] for batch in pictures.batches]
    return [np.concatenate(parts) for parts in zip(*vectors, strict=True)]


def _score(query: FloatArray, gallery: FloatArray, pictures: ScoredPictures) -> dict[str, float]:
    scoring = Scoring(backend=pictures.backend, kmeans_seeds=())
    asked, searched = pictures.query, pictures.gallery
    if searched is None:
        return score_retrieval(query, asked.labels, (1,), scoring=scoring)
    return score_retrieval(
        query,
        asked.labels,
        (1,),
        gallery=Embeddings(gallery, searched.labels, searched.keys),
        ids=asked.keys,
        scoring=scoring,
    )


def require_cheap(cost: RecallCost | TopCost, max_loss: float) -> None:
    """Check that a file does not lose more Recall@1, or top-1, than is allowed.

    Args:
        cost: What it loses.
        max_loss: Points of a hundred.

    Raises:
        KeMetricError: GATE: it loses more.
    """
    if cost.points > max_loss:
        recall = isinstance(cost, RecallCost)
        counted = f"{cost.queries:,} queries" if isinstance(cost, RecallCost) else f"{cost.pictures:,} pictures"
        raise KeMetricError(
            f"the exported file costs {cost.points:.1f} points of {'Recall@1' if recall else 'top-1'} "
            f"({cost.pytorch:.4f} with PyTorch, {cost.exported:.4f} with the file, {counted}) and is not kept: at "
            f"most {max_loss:g} are allowed (--max-loss)",
            ExitCode.GATE,
        )
