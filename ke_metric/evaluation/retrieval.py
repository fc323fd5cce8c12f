"""All retrieval scores of a set of embeddings, from one call.

Shapes: N items, D embedding, Q queries, G gallery items, K neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import Backend, choose_backend
from ke_metric.evaluation.clustering import score_clusters
from ke_metric.evaluation.embeddings import Embeddings, IntArray
from ke_metric.evaluation.neighbors import find_self_matches, search
from ke_metric.evaluation.recall import (
    BoolArray,
    ScoreArray,
    count_relevant,
    find_hits,
    map_at_r,
    r_precision,
    recall_at_k,
)

CELLS_AT_A_TIME = 2**22
"""Neighbours held at once, over all queries of a block; about 40 bytes each while a block is scored."""


@dataclass(frozen=True)
class Scoring:
    """How scores are computed, as opposed to of what.

    Attributes:
        backend: "auto", "faiss-cpu", "faiss-gpu" or "torch"; see `choose_backend`.
        device: Device for the search; that of the embeddings when left out.
        kmeans_seeds: One k-means for each; NMI and AMI are left out when empty.
    """

    backend: str = "auto"
    device: str | torch.device | None = None
    kmeans_seeds: tuple[int, ...] = (0, 1, 2)


def score_retrieval(
    embeddings: npt.ArrayLike | torch.Tensor,
    labels: npt.ArrayLike | torch.Tensor,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    *,
    gallery: Embeddings | None = None,
    ids: Sequence[str] | Sequence[int] | npt.NDArray[Any] | torch.Tensor | None = None,
    scoring: Scoring | None = None,
) -> dict[str, float]:
    """Score how well nearest neighbours and clusters of embeddings agree with their labels.

    Every item queries all others, or, with a `gallery`, every item queries the gallery without its own picture. The
    embeddings are L2-normalised here. The same input gives the same numbers to the last bit on the same machine.

    Args:
        embeddings: [N, D] real numbers, the queries; array or tensor on any device.
        labels: [N] integers.
        recall_at: The Ks of Recall@K, each at least 1. A K beyond the number of gallery items is defined all the
            same: all neighbours are looked at.
        gallery: What is searched in; the queries themselves when left out.
        ids: N item ids of the queries, str or int. A query and a gallery item with one id are the same picture and
            never each other's neighbour. Needed exactly when the gallery has ids.
        scoring: Backend, device and k-means seeds; the defaults of `Scoring` when left out.

    Returns:
        `recall@K` for each K, `map@r` and `r_precision` (see `evaluation/recall.py`), means over the `queries` that
        have something to find; `queries_without_match` others are left out. `nmi`, `ami` (means over the k-means
        seeds) and `nmi_std`, `ami_std` of clusters of the gallery (see `evaluation/clustering.py`). Shares in
        [0, 1], not percent (`ami` may fall a little below 0). A number that cannot be computed is absent.

    Raises:
        KeMetricError: DATA for embeddings, labels or ids that cannot be scored, naming the item; RECIPE for a bad K,
            seed or backend name; ENVIRONMENT for a backend that is not usable here.
    """
    how = scoring or Scoring()
    require_ranks(recall_at)
    device = how.device or (embeddings.device if isinstance(embeddings, torch.Tensor) else None)
    backend = choose_backend(how.backend, device)
    query = Embeddings(embeddings, labels, ids)
    task = _RetrievalTask.of(query, gallery)
    scores = _score_neighbors(task, tuple(recall_at), backend)
    clusters = score_clusters(task.gallery.vectors, task.gallery.labels, how.kmeans_seeds, backend=backend)
    return scores if clusters is None else scores | clusters.summary()


@dataclass(frozen=True, eq=False)
class _RetrievalTask:
    """Queries and gallery that fit together.

    Attributes:
        query: Q queries.
        gallery: G items; the same object as `query` when every item queries all others.
        self_match: [Q] position of each query's own picture in the gallery, -1 for none; None: no query is there.
    """

    query: Embeddings
    gallery: Embeddings
    self_match: IntArray | None

    @classmethod
    def of(cls, query: Embeddings, gallery: Embeddings | None) -> _RetrievalTask:
        if gallery is None:
            return cls(query, query, np.arange(len(query)))
        return cls(query, gallery, find_self_matches(query.ids, gallery.ids))

    def __post_init__(self) -> None:
        lengths = self.query.vectors.shape[1], self.gallery.vectors.shape[1]
        if lengths[0] != lengths[1]:
            raise KeMetricError(
                f"queries have embeddings of length {lengths[0]}, the gallery of length {lengths[1]}", ExitCode.DATA
            )
        if self.self_match is not None:
            self._refuse_two_labels(np.flatnonzero(self.self_match >= 0), self.self_match)

    def _refuse_two_labels(self, shared: IntArray, self_match: IntArray) -> None:
        differs = shared[self.query.labels[shared] != self.gallery.labels[self_match[shared]]]
        if len(differs):
            item = int(differs[0])
            assert self.query.ids is not None
            raise KeMetricError(
                f"item {self.query.ids[item]!r} has label {self.query.labels[item]} among the queries and "
                f"{self.gallery.labels[self_match[item]]} in the gallery; both sides must number classes alike",
                ExitCode.DATA,
            )


def require_ranks(ranks: Sequence[int]) -> None:
    """Refuse Ks of Recall@K that are no ranks.

    Raises:
        KeMetricError: RECIPE, naming it.
    """
    for rank in ranks:
        if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)) or rank < 1:
            raise KeMetricError(
                f"recall_at = {list(ranks)}: every K must be an integer of at least 1, {rank!r} is not",
                ExitCode.RECIPE,
            )


def _score_neighbors(task: _RetrievalTask, ranks: tuple[int, ...], backend: Backend) -> dict[str, float]:
    def find(block: IntArray, depth: int) -> BoolArray:
        return _find_hits(task, block, depth, backend)

    relevant = count_relevant(task.query.labels, task.gallery.labels, task.self_match)
    return score_lists(relevant, ranks, find, gallery_size=len(task.gallery))


def score_lists(
    relevant: IntArray, ranks: Sequence[int], find: Callable[[IntArray, int], BoolArray], *, gallery_size: int
) -> dict[str, float]:
    """Score neighbour lists, wherever they come from, each as long as its query needs.

    Args:
        relevant: [Q] R of each query; those with R = 0 are left out.
        ranks: The Ks of Recall@K.
        find: Positions of B queries and a depth K to [B, K] bool: whether the neighbour at each rank is a hit.
        gallery_size: Number of items, which no list is longer than.

    Returns:
        `recall@K` for each K, `map@r`, `r_precision`, `queries` and `queries_without_match`, as `score_retrieval`.
    """
    scored = np.flatnonzero(relevant)
    counts: dict[str, float] = {"queries": len(scored), "queries_without_match": len(relevant) - len(scored)}
    if not len(scored):
        return counts
    depth = np.maximum(relevant, max(ranks, default=1)).clip(max=gallery_size)
    per_query: dict[str, ScoreArray] = {}
    for block in blocks_of_queries(scored, depth, CELLS_AT_A_TIME):
        hits = find(block, int(depth[block].max()))
        for name, values in _score_hits(hits, relevant[block], tuple(ranks)).items():
            per_query.setdefault(name, np.empty(len(relevant)))[block] = values
    # fsum rounds only once, so that the order of the queries does not matter.
    return {name: math.fsum(values[scored]) / len(scored) for name, values in per_query.items()} | counts


def blocks_of_queries(queries: IntArray, depth: IntArray, cells: int) -> Iterator[IntArray]:
    """Cut queries into blocks whose neighbour lists, all as long as the longest of the block, fit into memory.

    Queries that need equally long lists share blocks, so that one large class does not lengthen everybody's list.

    Args:
        queries: [S] positions of queries.
        depth: [Q] how many neighbours a query needs.
        cells: Most neighbours in a block, at least 1; a single query may exceed it.
    """
    queries = queries[np.argsort(depth[queries], kind="stable")]
    while len(queries):
        cells_with_this_one = depth[queries] * np.arange(1, len(queries) + 1)
        rows = max(1, int(np.searchsorted(cells_with_this_one, cells, side="right")))
        yield queries[:rows]
        queries = queries[rows:]


def _find_hits(task: _RetrievalTask, block: IntArray, depth: int, backend: Backend) -> BoolArray:
    own = None if task.self_match is None else task.self_match[block]
    neighbors = search(task.query.vectors[block], task.gallery.vectors, depth, backend=backend, self_match=own)
    return find_hits(neighbors, task.query.labels[block], task.gallery.labels)


def _score_hits(hits: BoolArray, relevant: IntArray, ranks: tuple[int, ...]) -> dict[str, ScoreArray]:
    scores = {f"recall@{k}": recall_at_k(hits, k) for k in ranks}
    return scores | {"map@r": map_at_r(hits, relevant), "r_precision": r_precision(hits, relevant)}
