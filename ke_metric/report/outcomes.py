"""What became of every query: its neighbours, its scores, and what changed from one network to another.

The scores of a query are those whose mean the scorecard has, so they may be fractions: where equally similar pictures
could come first, Recall@1 is the share of orders in which the right one does. Neighbours are listed in one of these
orders.

Shapes: Q queries, G gallery items, D embedding, K neighbours, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ke_metric.arrays import BoolArray, DoubleArray, FloatArray, IntArray
from ke_metric.evaluation.backend import Backend, find_self_matches, search
from ke_metric.evaluation.classification import top1_of_each
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.evaluation.recall import find_hits
from ke_metric.evaluation.retrieval import Scoring, score_each_query

NEIGHBORS = 10
"""Neighbours that are kept of every query."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What became of the queries of one network.

    Attributes:
        neighbors: [Q, K] int64 positions in the gallery, most similar first, the query's own picture left out; -1
            where there are no more. Of a classification K is 0.
        similarities: [Q, K] float32 cosines; -inf where there are no more.
        right: [Q, K] whether a neighbour is of the query's class.
        predicted: [Q] int64 label of the first neighbour, -1 for none; of a classification the likeliest class.
        scores: Score name to its value for every query, [Q]; NaN where a query has nothing to find.
        decisive: The score that says how good a network is: `recall@K` of the smallest K, or `top1`.
    """

    neighbors: IntArray
    similarities: FloatArray
    right: BoolArray
    predicted: IntArray
    scores: Mapping[str, DoubleArray]
    decisive: str

    def __post_init__(self) -> None:
        assert self.neighbors.shape == self.similarities.shape == self.right.shape, self.neighbors.shape
        assert len(self.predicted) == len(self.neighbors), (len(self.predicted), len(self.neighbors))

    def __len__(self) -> int:
        return len(self.predicted)

    @property
    def decisive_scores(self) -> DoubleArray:
        """The decisive score of every query, [Q]; NaN where it has nothing to find."""
        return self.scores.get(self.decisive, np.full(len(self), np.nan))


def retrieval_outcomes(
    query: Embeddings, gallery: Embeddings | None, recall_at: Sequence[int], *, backend: Backend
) -> Outcomes:
    """Return what became of queries.

    Args:
        query: Embeddings, labels and ids of the queries.
        gallery: Of what is searched in, labels numbered alike; None: every query searches all others.
        recall_at: The Ks of Recall@K, at least one.
        backend: What searches.

    Raises:
        KeMetricError: DATA: queries and gallery do not fit together.
    """
    searched = query if gallery is None else gallery
    apart = {} if gallery is None else {"gallery": gallery, "ids": query.ids}
    how = Scoring(backend=backend.name, device=backend.device, kmeans_seeds=())
    scores = score_each_query(query.vectors, query.labels, recall_at, scoring=how, **apart)  # type: ignore[arg-type]
    own = np.arange(len(query)) if gallery is None else find_self_matches(query.ids, gallery.ids)
    count = min(NEIGHBORS, len(searched))
    found = search(query.vectors, searched.vectors, count, backend=backend, self_match=own)
    first = found.indices[:, 0]
    return Outcomes(
        neighbors=found.indices,
        similarities=found.similarities,
        right=find_hits(found, query.labels, searched.labels),
        predicted=np.where(first >= 0, searched.labels[first], -1),
        scores=scores,
        decisive=f"recall@{min(recall_at)}",
    )


def classification_outcomes(logits: FloatArray, labels: IntArray) -> Outcomes:
    """Return what became of pictures that were classified.

    Args:
        logits: [N, C].
        labels: [N] integers in [0, C).
    """
    none = np.empty((len(labels), 0))
    return Outcomes(
        neighbors=none.astype(np.int64),
        similarities=none.astype(np.float32),
        right=none.astype(np.bool_),
        predicted=logits.argmax(axis=1).astype(np.int64),
        scores={"top1": top1_of_each(logits, labels)},
        decisive="top1",
    )


def mended(before: Outcomes, after: Outcomes) -> IntArray:
    """Return the positions of the queries whose decisive score is higher `after` than `before`, ascending."""
    return _rising(before, after)


def broken(before: Outcomes, after: Outcomes) -> IntArray:
    """Return the positions of the queries whose decisive score is lower `after` than `before`, ascending."""
    return _rising(after, before)


def _rising(low: Outcomes, high: Outcomes) -> IntArray:
    assert len(low) == len(high), "outcomes of other queries"
    # Comparing with NaN is false: a query that has nothing to find is neither.
    return np.flatnonzero(low.decisive_scores < high.decisive_scores)


def worst(outcomes: Outcomes, count: int) -> IntArray:
    """Return the positions of the `count` worst queries that have something to find, the worst first.

    That is by MAP@R, then by how similar the first neighbour is, the most similar first; of a classification those
    that were taken for another class, in the order of the pictures.
    """
    scores = outcomes.scores.get("map@r", outcomes.decisive_scores)
    order = np.argsort(scores, kind="stable")
    if "map@r" in outcomes.scores:
        order = np.lexsort((-outcomes.similarities[:, 0], scores))
    chosen = order[~np.isnan(scores[order])]
    return chosen[scores[chosen] < 1][:count]


def confused(
    outcomes: Outcomes, labels: IntArray, class_names: Sequence[str], count: int
) -> list[tuple[str, str, int, int]]:
    """Return the pairs of classes that are taken for each other most often.

    Args:
        outcomes: Of the queries.
        labels: [Q] their labels.
        class_names: [C] names by label.
        count: Most pairs that are returned.

    Returns:
        Class, the class it was taken for (that of the first neighbour, or the likeliest one), how many of its
        queries were, and how many queries it has; most first, then by name.
    """
    own_sizes = np.bincount(labels, minlength=len(class_names))
    wrong = (outcomes.predicted != labels) & (outcomes.predicted >= 0)
    pairs = Counter(zip(labels[wrong].tolist(), outcomes.predicted[wrong].tolist(), strict=True))
    named = [(class_names[own], class_names[other], n, int(own_sizes[own])) for (own, other), n in pairs.items()]
    return sorted(named, key=lambda each: (-each[2], each[0], each[1]))[:count]
