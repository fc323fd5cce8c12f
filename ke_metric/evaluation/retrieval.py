"""All retrieval scores of a set of embeddings, from one call: of neighbour lists, and NMI and AMI of clusters.

Clusters are found by a k-means that gives the same ones for the same seed, as many as there are classes. NMI depends
on the k-means by about a point, so ours is written down here.

Shapes: N items, D embedding, Q queries, G gallery items, K neighbours, C classes, and clusters.
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
    exact_products,
    find_self_matches,
    load_faiss,
    search,
)
from ke_metric.evaluation.embeddings import ROWS_AT_A_TIME, Embeddings, number_rows
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
    asked = _Asked.of(embeddings, labels, recall_at, gallery=gallery, ids=ids, scoring=scoring or Scoring())
    scores = asked.each(score_lists)
    searched = asked.gallery
    clusters = score_clusters(searched.vectors, searched.labels, asked.kmeans_seeds, backend=asked.backend)
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
    kmeans_seeds: tuple[int, ...]

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
        return cls(query, searched, own, tuple(recall_at), backend, how.kmeans_seeds)

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

    `labels` are sorted. `pairs` are sorted, too: row x number of labels + position of the label, of all items;
    `counts` is how many items each of them has.
    """

    vectors: FloatArray
    row: IntArray
    sizes: IntArray
    labels: IntArray
    pairs: IntArray
    counts: IntArray

    @classmethod
    def of(cls, gallery: Embeddings) -> _DistinctGallery:
        row = number_rows(gallery.vectors[rows] for rows in row_chunks(len(gallery), ROWS_AT_A_TIME))
        _, first, sizes = np.unique(row, return_index=True, return_counts=True)
        labels, label = np.unique(gallery.labels, return_inverse=True)
        pairs, counts = np.unique(row * len(labels) + label, return_counts=True)
        vectors = gallery.vectors if len(first) == len(row) else gallery.vectors[first]
        return cls(vectors, row, sizes, labels, pairs, counts)

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
        there = found.indices >= 0
        is_own = (found.indices == own_row[:, None]) & there
        sizes = np.where(there, self.sizes[found.indices], 0) - is_own
        hits = np.where(there, self._count(found.indices, labels), 0) - is_own
        tied = equally_similar(found.similarities, found.indices, query, self.vectors.__getitem__)
        return Places(sizes, hits, tied)

    def _count(self, rows: IntArray, labels: IntArray) -> IntArray:
        """Return [Q, K] how many items of the rows [Q, K] have the query's label."""
        label = np.searchsorted(self.labels, labels).clip(max=len(self.labels) - 1)
        wanted = rows * len(self.labels) + label[:, None]
        place = np.searchsorted(self.pairs, wanted).clip(max=len(self.pairs) - 1)
        known = self.labels[label] == labels
        return np.where((self.pairs[place] == wanted) & known[:, None], self.counts[place], 0)


ITERATIONS = 25
"""Lloyd iterations of one k-means, the default of FAISS."""


def assign_clusters(vectors: FloatArray, clusters: int, seed: int, *, backend: Backend) -> IntArray:
    """Run k-means with Euclidean distances and return the cluster of each item.

    The start is k-means++ (Arthur, Vassilvitskii, SODA 2007), the same for every backend. 25 Lloyd iterations follow:
    in FAISS on the processor for the FAISS backends, whose GPU assignments depend on the batch
    (facebookresearch/faiss#3818); in torch on the backend's device for torch.

    Args:
        vectors: [N, D] float32, L2-normalised.
        clusters: Number of clusters C, at least 2 and below N.
        seed: Seed of the start, at least 0.
        backend: What clusters. Memory beside the inputs: O(N x D) for FAISS, O(N x D + chunk x C) for torch.

    Returns:
        [N] int64 in 0 .. C - 1.

    Raises:
        KeMetricError: RECIPE for a negative seed; ENVIRONMENT for FAISS missing or broken.
    """
    assert 2 <= clusters < len(vectors), (clusters, len(vectors))
    if seed < 0:
        raise KeMetricError(f"k-means seed = {seed}, must be at least 0", ExitCode.RECIPE)
    start = vectors[draw_start(vectors, clusters, seed, device="cpu" if backend.name != "torch" else backend.device)]
    return _torch_clusters(vectors, start, backend) if backend.name == "torch" else _faiss_clusters(vectors, start)


def draw_start(vectors: FloatArray, clusters: int, seed: int, *, device: str) -> IntArray:
    """Draw the [C] items k-means++ starts from: each with probability in proportion to its squared distance from the
    nearest one drawn before. Distances are computed on `device`.
    """
    generator = np.random.default_rng(seed)
    drawn = [int(generator.integers(len(vectors)))]
    with exact_products(device):
        resident = torch.from_numpy(vectors).to(device)
        nearest = torch.full((len(vectors),), torch.inf, device=device)
        for share in generator.random(clusters - 1):
            # |a - b|² = 2 - 2 a·b on the unit sphere; rounding may take it below 0.
            squared = (2 - 2 * (resident @ resident[drawn[-1]])).clamp(min=0)
            nearest = torch.minimum(nearest, squared)
            # Summed on the processor: GPUs add up in a different order each time.
            reached = np.cumsum(nearest.cpu().numpy(), dtype=np.float64)
            drawn.append(min(int(np.searchsorted(reached, share * reached[-1], side="right")), len(vectors) - 1))
    return np.array(drawn, dtype=np.int64)


def _faiss_clusters(vectors: FloatArray, start: FloatArray) -> IntArray:
    kmeans = load_faiss().Kmeans(
        vectors.shape[1],
        len(start),
        niter=ITERATIONS,
        spherical=False,
        # All items count, in classes of any size; FAISS would sample above 256 per cluster and warn below 39.
        max_points_per_centroid=len(vectors),
        min_points_per_centroid=1,
    )
    kmeans.train(vectors, init_centroids=start)
    _, found = kmeans.assign(vectors)
    clusters: IntArray = found
    return clusters


def _torch_clusters(vectors: FloatArray, start: FloatArray, backend: Backend) -> IntArray:
    centroids = start
    clusters = _nearest(vectors, centroids, backend)
    for _ in range(ITERATIONS):
        centroids = _means(vectors, clusters, centroids)
        previous, clusters = clusters, _nearest(vectors, centroids, backend)
        if np.array_equal(previous, clusters):
            break
    return clusters


def _nearest(vectors: FloatArray, centroids: FloatArray, backend: Backend) -> IntArray:
    """Return the nearest centroid of each item: smallest |v - c|², that is largest v·c - |c|²/2."""
    nearest = np.empty(len(vectors), dtype=np.int64)
    with exact_products(backend.device):
        places = torch.from_numpy(centroids).to(backend.device)  # [C, D]
        half_squares = places.square().sum(dim=1) / 2
        for rows in row_chunks(len(vectors), backend.chunk):
            products = torch.from_numpy(vectors[rows]).to(backend.device) @ places.T  # [chunk, C]
            nearest[rows] = (products - half_squares).argmax(dim=1).cpu().numpy()
    return nearest


def _means(vectors: FloatArray, clusters: IntArray, previous: FloatArray) -> FloatArray:
    """Return the mean of each cluster; an empty one keeps its centroid.

    Sums are taken on the processor in item order: on a GPU they would be added up in a different order each time.
    """
    by_cluster = np.argsort(clusters, kind="stable")
    present, first, sizes = np.unique(clusters[by_cluster], return_index=True, return_counts=True)
    sums: FloatArray = np.add.reduceat(vectors[by_cluster], first, axis=0)
    means = previous.copy()
    means[present] = sums / sizes[:, None].astype(np.float32)
    return means


@dataclass(frozen=True)
class ClusterScores:
    """NMI and AMI of one k-means per seed.

    Attributes:
        nmi: Normalised mutual information per seed, in [0, 1].
        ami: Mutual information adjusted for chance per seed, at most 1 and about 0 (a little below, too) for clusters
            that know nothing of the classes.
        library: What ran the Lloyd iterations: "faiss" or "torch".
    """

    nmi: tuple[float, ...]
    ami: tuple[float, ...]
    library: str

    def summary(self) -> dict[str, float]:
        """Return the means as `nmi` and `ami`, and with two or more seeds the sample deviations as `*_std`."""
        scores = {"nmi": float(np.mean(self.nmi)), "ami": float(np.mean(self.ami))}
        if len(self.nmi) > 1:
            scores["nmi_std"] = float(np.std(self.nmi, ddof=1))
            scores["ami_std"] = float(np.std(self.ami, ddof=1))
        return scores


def score_clusters(
    vectors: FloatArray, labels: IntArray, seeds: Sequence[int], *, backend: Backend
) -> ClusterScores | None:
    """Cluster with k-means, once per seed, and compare the clusters with the classes.

    Formulas, with mutual information I and entropy H of clusters U and classes V, and M = (H(U) + H(V)) / 2:
    NMI = I(U, V) / M (scikit-learn's default since 0.22; some older papers divide by the geometric mean) and
    AMI = (I - E[I]) / (M - E[I]), E[I] being the mean over random clusters of these sizes (Vinh, Epps, Bailey, JMLR
    2010).

    Args:
        vectors: [N, D] float32, L2-normalised.
        labels: [N] int64.
        seeds: One k-means for each; equal seeds give equal scores.
        backend: What clusters.

    Returns:
        The scores, or None when there are no seeds or nothing to compare: one class only, or a class per item.

    Raises:
        KeMetricError: As `assign_clusters`.
    """
    classes = len(np.unique(labels))
    if not seeds or classes < 2 or classes == len(labels):
        return None
    found = [assign_clusters(vectors, classes, seed, backend=backend) for seed in seeds]
    # scikit-learn takes a second to import.
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    return ClusterScores(
        nmi=tuple(float(normalized_mutual_info_score(labels, clusters)) for clusters in found),
        ami=tuple(float(adjusted_mutual_info_score(labels, clusters)) for clusters in found),
        library="torch" if backend.name == "torch" else "faiss",
    )
