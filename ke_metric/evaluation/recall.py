"""Scores of neighbour lists: Recall@K, MAP@R and R-precision, one value per query.

R is the number of *other* items of the query's class in the gallery and differs from query to query. A query with
R = 0 has nothing to find and is to be left out of every mean.

Shapes: Q queries, G gallery items, K neighbours.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ke_metric.evaluation.embeddings import IntArray
from ke_metric.evaluation.neighbors import Neighbors

BoolArray = npt.NDArray[np.bool_]
ScoreArray = npt.NDArray[np.float64]


def count_relevant(query_labels: IntArray, gallery_labels: IntArray, self_match: IntArray | None) -> IntArray:
    """Return R of each query: the gallery items of its class, its own picture not counted.

    Args:
        query_labels: [Q] int64.
        gallery_labels: [G] int64.
        self_match: [Q] position of the query's own picture in the gallery, -1 for none; its label there is the
            query's label. None: no query is in the gallery.

    Returns:
        [Q] int64, at least 0.
    """
    classes, sizes = np.unique(gallery_labels, return_counts=True)
    place = np.searchsorted(classes, query_labels).clip(max=len(classes) - 1)
    relevant = np.where(classes[place] == query_labels, sizes[place], 0)
    return relevant if self_match is None else relevant - (self_match >= 0)


def find_hits(neighbors: Neighbors, query_labels: IntArray, gallery_labels: IntArray) -> BoolArray:
    """Return [Q, K] bool: whether the neighbour at each rank is of the query's class; padding never is."""
    found = gallery_labels[neighbors.indices] == query_labels[:, None]
    hits: BoolArray = found & (neighbors.indices >= 0)
    return hits


def recall_at_k(hits: BoolArray, k: int) -> ScoreArray:
    r"""Recall@K as metric learning uses the word: 1 if any of the first K neighbours is a hit, else 0.

    Formula: $\max_{i \le K} \mathrm{hit}_i$. Source: Jegou, Douze, Schmid, "Product quantization for nearest
    neighbor search", TPAMI 2011; for metric learning Oh Song et al., CVPR 2016. In information retrieval, recall at
    K is (hits among the first K) / R, a smaller number wherever R > 1; it is not computed here. Where a query has
    fewer than K neighbours, all of them are looked at.

    Args:
        hits: [Q, K'] bool by rank, with K' >= K or all neighbours there are.
        k: K, at least 1.

    Returns:
        [Q] float64, 0 or 1.
    """
    found: BoolArray = np.any(hits[:, :k], axis=1)
    return found.astype(np.float64)


def map_at_r(hits: BoolArray, relevant: IntArray) -> ScoreArray:
    r"""Average precision over the first R neighbours (its mean over queries is MAP@R).

    Formula: $\frac{1}{R} \sum_{i=1}^{R} P(i)$ with $P(i)$ = precision at $i$ where rank $i$ is a hit, else 0.
    Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020, section 3.2. It differs from
    information retrieval's average precision, which goes on past rank R to the end of the list.

    Args:
        hits: [Q, K] bool by rank, with K >= max R.
        relevant: [Q] R of each query, at least 1.

    Returns:
        [Q] float64 in [0, 1].
    """
    counted = _within_r(hits, relevant)
    ranks = np.arange(1, counted.shape[1] + 1)
    precision = np.cumsum(counted, axis=1) / ranks
    total: ScoreArray = (precision * counted).sum(axis=1) / relevant
    return total


def r_precision(hits: BoolArray, relevant: IntArray) -> ScoreArray:
    r"""Share of hits among the first R neighbours.

    Formula: $\frac{1}{R} \sum_{i=1}^{R} \mathrm{hit}_i$. Source: Musgrave, Belongie, Lim, ECCV 2020, section 3.2.

    Args:
        hits: [Q, K] bool by rank, with K >= max R.
        relevant: [Q] R of each query, at least 1.

    Returns:
        [Q] float64 in [0, 1].
    """
    share: ScoreArray = _within_r(hits, relevant).sum(axis=1) / relevant
    return share


def _within_r(hits: BoolArray, relevant: IntArray) -> BoolArray:
    assert bool((relevant >= 1).all()), "a query with nothing to find"
    assert hits.shape[1] >= relevant.max(initial=0), (hits.shape, relevant.max(initial=0))
    within: BoolArray = hits & (np.arange(hits.shape[1]) < relevant[:, None])
    return within
