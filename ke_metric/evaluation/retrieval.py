"""All retrieval scores of a set of embeddings, from one call: of neighbour lists, and NMI and AMI of clusters.

Clusters are found by a k-means that gives the same ones for the same seed, as many as there are classes.

Shapes: N items, D embedding, Q queries, G gallery items, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ke_metric.arrays import DoubleArray, FloatArray, IntArray, row_chunks
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import (
    FAISS_GPU_MAX_NEIGHBORS,
    Backend,
    choose_backend,
    find_self_matches,
    search,
)
from ke_metric.evaluation.clusters import score_clusters
from ke_metric.evaluation.embeddings import ROWS_AT_A_TIME, Embeddings, number_rows, stacked
from ke_metric.evaluation.recall import Places, count_relevant, equally_similar, score_lists, score_queries

LONGEST_TIE = 2**12
"""Neighbours that are asked for to see the end of a tie of different embeddings; one that goes on beyond is taken as
far as it was seen. Equal embeddings are one neighbour, however many there are."""
Scored = TypeVar("Scored")


@dataclass(frozen=True)
class Scoring:
    """How scores are computed, as opposed to of what.

    Attributes:
        backend: "auto", "faiss-cpu", "faiss-gpu" or "torch"; see `choose_backend`.
        device: Device for the search; that of the embeddings when left out.
        kmeans_seeds: One k-means for each; NMI and AMI are left out when empty.
        tell: Called with a line before a clustering that will take long.
    """

    backend: str = "auto"
    device: str | torch.device | None = None
    kmeans_seeds: tuple[int, ...] = (0, 1, 2)
    tell: Callable[[str], object] | None = None


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

    Where items are equally similar to a query, copies above all, each score is its mean over all orders of them (see
    `evaluation/recall.py`): neither the order of the rows, nor the backend, nor the other Ks matter. Similarities
    that differ in the seventh digit are no tie, and backends may round them differently.

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
        seeds) and `nmi_std`, `ami_std` of clusters of the gallery (see `score_clusters`). Shares in
        [0, 1], not percent (`ami` may fall a little below 0). A number that cannot be computed is absent.

    Raises:
        KeMetricError: DATA for embeddings, labels or ids that cannot be scored, naming the item; RECIPE for a bad K,
            seed or backend name; ENVIRONMENT for a backend that is not usable here.
    """
    how = scoring or Scoring()
    asked = _Asked.of(embeddings, labels, recall_at, gallery=gallery, ids=ids, scoring=how)
    scores = asked.each(score_lists)
    searched, seeds = asked.gallery, how.kmeans_seeds
    clusters = score_clusters(searched.vectors, searched.labels, seeds, backend=asked.backend, tell=how.tell)
    return scores if clusters is None else scores | clusters.summary()


def score_each_query(
    embeddings: npt.ArrayLike | torch.Tensor,
    labels: npt.ArrayLike | torch.Tensor,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    *,
    gallery: Embeddings | None = None,
    ids: Sequence[str] | Sequence[int] | npt.NDArray[Any] | torch.Tensor | None = None,
    scoring: Scoring | None = None,
) -> dict[str, DoubleArray]:
    """Return the scores of neighbour lists of each query, [N], of which `score_retrieval` gives the means.

    Arguments and errors as `score_retrieval`. NaN where a query has nothing to find; nothing where none has.
    """
    asked = _Asked.of(embeddings, labels, recall_at, gallery=gallery, ids=ids, scoring=scoring or Scoring())
    return asked.each(score_queries)


def _own_pictures(query: Embeddings, gallery: Embeddings) -> IntArray | None:
    """Return [Q] where in the gallery each query's own picture is, -1 for none; None: no query is there.

    Refuses queries and a gallery that do not fit together.
    """
    own = find_self_matches(query.ids, gallery.ids)
    lengths = query.vectors.shape[1], gallery.vectors.shape[1]
    if lengths[0] != lengths[1]:
        raise KeMetricError(
            f"queries have embeddings of length {lengths[0]}, the gallery of length {lengths[1]}", ExitCode.DATA
        )
    if own is None or query.ids is None:
        return None
    shared = np.flatnonzero(own >= 0)
    differs = shared[query.labels[shared] != gallery.labels[own[shared]]]
    if len(differs):
        item = int(differs[0])
        raise KeMetricError(
            f"item {query.ids[item]!r} has label {query.labels[item]} among the queries and "
            f"{gallery.labels[own[item]]} in the gallery; both sides must number classes alike",
            ExitCode.DATA,
        )
    return own


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


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is to be scored, checked, and what searches.

    `own` [Q] is where in the gallery each query's own picture is, -1 for none; None: no query is there.
    """

    query: Embeddings
    gallery: Embeddings
    own: IntArray | None
    ranks: tuple[int, ...]
    backend: Backend

    @classmethod
    def of(cls, embeddings: Any, labels: Any, recall_at: Sequence[int], **rest: Any) -> _Asked:
        """Check the arguments of `score_retrieval`."""
        how, gallery = rest["scoring"], rest["gallery"]
        require_ranks(recall_at)
        device = how.device or (embeddings.device if isinstance(embeddings, torch.Tensor) else None)
        backend = choose_backend(how.backend, device)
        query = Embeddings(embeddings, labels, rest["ids"])
        searched = query if gallery is None else gallery
        own = np.arange(len(query)) if gallery is None else _own_pictures(query, gallery)
        return cls(query, searched, own, tuple(recall_at), backend)

    def each(self, score: Callable[..., Scored]) -> Scored:
        """Return what `score_lists` or `score_queries` makes of the neighbours."""
        query, distinct = self.query, _DistinctGallery.of(self.gallery)

        def find(block: IntArray, count: int) -> Places:
            mine = None if self.own is None else self.own[block]
            return distinct.places(query.vectors[block], query.labels[block], count, backend=self.backend, own=mine)

        relevant = count_relevant(query.labels, self.gallery.labels, self.own)
        longest = FAISS_GPU_MAX_NEIGHBORS - 1 if self.backend.name == "faiss-gpu" else LONGEST_TIE
        longest = min(longest, len(distinct.vectors))
        return score(relevant, self.ranks, find, gallery_size=len(self.gallery), longest=longest)


@dataclass(frozen=True, eq=False)
class _DistinctGallery:
    """A gallery in which equal embeddings are one: `vectors` [U, D], of `sizes` [U] items; items are at `row` [G].

    `labels` are sorted, and `label` [U] is the position among them of a row's only item, -1 where a row has several.
    `pairs` are sorted, too: row x number of labels + position of the label, of all items; `counts` is how many items
    each of them has.
    """

    vectors: FloatArray
    row: IntArray
    sizes: IntArray
    labels: IntArray
    label: IntArray
    pairs: IntArray
    counts: IntArray

    @classmethod
    def of(cls, gallery: Embeddings) -> _DistinctGallery:
        row = number_rows(gallery.vectors[rows] for rows in row_chunks(len(gallery), ROWS_AT_A_TIME))
        _, first, sizes = np.unique(row, return_index=True, return_counts=True)
        labels, label = np.unique(gallery.labels, return_inverse=True)
        pairs, counts = np.unique(row * len(labels) + label, return_counts=True)
        vectors = gallery.vectors
        if len(first) < len(row):
            vectors = stacked(vectors[first[part]] for part in row_chunks(len(first), ROWS_AT_A_TIME))
        return cls(vectors, row, sizes, labels, np.where(sizes == 1, label[first], -1), pairs, counts)

    def places(
        self, query: FloatArray, labels: IntArray, count: int, *, backend: Backend, own: IntArray | None
    ) -> Places:
        """Return the places [Q, count] of the items that are most similar to queries [Q, D] with labels [Q].

        Each query's own picture is left out: `own` [Q] is its position in the gallery, -1 for none; None: for all.
        """
        own_row = np.full(len(query), -1, np.int64) if own is None else np.where(own < 0, -1, self.row[own])
        alone = self.sizes[own_row] == 1
        left_out = None if own is None else np.where(alone, own_row, -1)
        found = search(query, self.vectors, count, backend=backend, self_match=left_out)
        sizes = self.sizes[found.indices]
        hits = self._count(found.indices, labels)
        padding = found.indices < 0
        if padding.any():
            sizes[padding] = hits[padding] = 0
        # A query's own picture was found among others that look the same.
        if not alone.all():
            is_own = (found.indices == own_row[:, None]) & ~padding
            sizes -= is_own
            hits -= is_own
        tied = equally_similar(found.similarities, found.indices, query, self.vectors.__getitem__)
        return Places(sizes, hits, tied)

    def _count(self, rows: IntArray, labels: IntArray) -> IntArray:
        """Return [Q, K] how many items of the rows [Q, K] have the query's label."""
        place = np.searchsorted(self.labels, labels).clip(max=len(self.labels) - 1)
        wanted = np.where(self.labels[place] == labels, place, len(self.labels))
        label = self.label[rows]
        hits: IntArray = (label == wanted[:, None]).astype(np.int64)
        query, column = np.nonzero(label < 0)
        pair = rows[query, column] * len(self.labels) + wanted[query]
        place = np.searchsorted(self.pairs, pair).clip(max=len(self.pairs) - 1)
        known = (self.pairs[place] == pair) & (wanted[query] < len(self.labels))
        hits[query, column] = np.where(known, self.counts[place], 0)
        return hits
