"""k-means with Euclidean distances on the unit sphere: the same clusters for the same seed.

How near an item v is to a centroid c is written v·c - |c|²/2, which is (1 - |v - c|²) / 2: larger is nearer.

Shapes: N items, D embedding, C clusters, P items proposed for a start, M centroids that moved.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ke_metric.arrays import BoolArray, FloatArray, IntArray, row_chunks
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import Backend, exact_products

ITERATIONS = 25
"""Lloyd iterations of one k-means, the default of FAISS."""
PROPOSALS = 256
"""Items that are proposed at once as further centroids of a start."""
SAMPLED = 2048
"""Items, and as many centroids, by which the time of more is measured."""
SUMMED = 2**12
"""Items that are summed up at once."""
UNNOTICED = 2**37
"""Multiplications that take any machine but a few seconds."""


def assign_clusters(vectors: FloatArray, clusters: int, seed: int, *, backend: Backend) -> IntArray:
    """Run k-means with Euclidean distances and return the cluster of each item.

    The start is k-means++ (Arthur, Vassilvitskii, SODA 2007); at most 25 Lloyd iterations follow, fewer where nothing
    changes any more. A cluster that loses all its items keeps its centroid. Every backend runs the same in torch: for
    the FAISS backends on the processor, for torch on its device. Clusters are the same up to items that are equally
    near to two centroids within float32's rounding, which depends on device, library and number of threads.

    Args:
        vectors: [N, D] float32, L2-normalised.
        clusters: Number of clusters C, at least 2 and below N.
        seed: Seed of the start, at least 0.
        backend: What clusters. Memory beside the inputs: O(N + C x D + chunk x (C + D)), on a GPU O(N x D)
            more.

    Returns:
        [N] int64 in 0 .. C - 1.

    Raises:
        KeMetricError: RECIPE for a negative seed.
    """
    assert 2 <= clusters < len(vectors), (clusters, len(vectors))
    if seed < 0:
        raise KeMetricError(f"k-means seed = {seed}, must be at least 0", ExitCode.RECIPE)
    device = backend.device if backend.name == "torch" else "cpu"
    with exact_products(device):
        items = Items(vectors, torch.from_numpy(vectors).to(device), backend.chunk)
        start, nearest = draw_start(items, clusters, seed)
        return _lloyd(items, vectors[start], nearest)


def nearness_seconds(vectors: FloatArray, clusters: int, *, backend: Backend) -> float:
    """Return about how long it takes to compare all items [N, D] with so many centroids; 0 where that is nothing."""
    count, some = len(vectors), min(len(vectors), SAMPLED, clusters)
    pairs = count * clusters
    if pairs * vectors.shape[1] < UNNOTICED:
        return 0.0
    device = backend.device if backend.name == "torch" else "cpu"
    with exact_products(device):
        items = Items(vectors[:some], torch.from_numpy(vectors[:some]).to(device), backend.chunk)
        started = time.perf_counter()
        for _ in items.compared(vectors[:some]):
            pass
    return (time.perf_counter() - started) * pairs / some**2


@dataclass(frozen=True, eq=False)
class Items:
    """What is clustered: `vectors` [N, D], the same as a tensor where products are computed, and rows at a time."""

    vectors: FloatArray
    resident: Tensor
    chunk: int

    def compared(self, centroids: FloatArray, rows: IntArray | None = None) -> Iterator[tuple[slice, Best]]:
        """Yield slices of the items, or of some `rows` of them, and which of the centroids is nearest to each."""
        places = torch.from_numpy(centroids).to(self.resident.device)
        half_squares = places.square().sum(dim=1) / 2
        chosen = None if rows is None else torch.from_numpy(rows).to(self.resident.device)
        for part in row_chunks(len(self.vectors) if rows is None else len(rows), self.chunk):
            some = self.resident[part if chosen is None else chosen[part]]
            yield part, Best.of(torch.addmm(half_squares, some, places.T, beta=-1))


@dataclass(frozen=True, eq=False)
class Best:
    """The nearest of some centroids to each of B items: its `place` [B] int64, how near it and the `second` are."""

    place: IntArray
    first: FloatArray
    second: FloatArray

    @classmethod
    def of(cls, nearness: Tensor) -> Best:
        """Find it in [B, M], which is used up."""
        place = nearness.argmax(dim=1, keepdim=True)
        first = nearness.gather(1, place)[:, 0]
        second = nearness.scatter_(1, place, -torch.inf).amax(dim=1)
        return cls(place[:, 0].cpu().numpy(), first.cpu().numpy(), second.cpu().numpy())


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest centroid of each item, all [N], changed in place.

    Attributes:
        cluster: Which centroid it is, int64.
        own: How near it is, float32.
        others: How near any other centroid is at most, float32; never above `own`.
    """

    cluster: IntArray
    own: FloatArray
    others: FloatArray

    @classmethod
    def unknown(cls, count: int) -> Nearest:
        """Return that of items which have been compared with no centroid."""
        return cls(np.zeros(count, np.int64), *(np.full(count, -np.inf, np.float32) for _ in range(2)))

    def take(self, rows: slice | IntArray, best: Best, numbers: IntArray, kept: BoolArray) -> None:
        """Take what was found for some rows: the best of centroids with these numbers.

        Args:
            rows: R items.
            best: Of those items.
            numbers: [M] which centroids they were compared with.
            kept: [R] whether an item's own centroid is where it was, and not among them.
        """
        own = np.where(kept, self.own[rows], -np.inf)
        stays = own >= best.first
        self.others[rows] = np.maximum(self.others[rows], np.where(stays, best.first, np.maximum(own, best.second)))
        self.own[rows] = np.where(stays, own, best.first)
        self.cluster[rows] = np.where(stays, self.cluster[rows], numbers[best.place])


def draw_start(items: Items, clusters: int, seed: int) -> tuple[IntArray, Nearest]:
    """Draw the [C] items k-means++ starts from, and return them with the nearest of them to each item.

    Each is drawn with probability in proportion to its squared distance from the nearest one drawn before. That
    distance is computed anew for all items only after a block of proposals. Within a block an item is proposed by its
    distance before the block, which is never smaller, and taken with the probability that its distance now has of
    that one: what is taken has the very distribution of k-means++ (rejection sampling).
    """
    generator, count = np.random.default_rng(seed), len(items.vectors)
    drawn, nearest = generator.integers(count, size=1), Nearest.unknown(count)
    new = drawn
    while True:
        numbers = np.arange(len(drawn) - len(new), len(drawn))
        for rows, best in items.compared(items.vectors[new]):
            nearest.take(rows, best, numbers, kept=np.ones(len(best.place), np.bool_))
        if len(drawn) == clusters:
            return drawn, nearest
        squared = (1 - 2 * nearest.own).clip(min=0)
        squared[drawn] = 0
        new = _further(items.vectors, squared, min(PROPOSALS, clusters - len(drawn)), generator)
        drawn = np.concatenate([drawn, new])


def _further(vectors: FloatArray, squared: FloatArray, most: int, generator: np.random.Generator) -> IntArray:
    """Draw at least one and at most `most` further items of a start, where items have these squared distances [N]."""
    # Summed on the processor: GPUs add up in a different order each time.
    reached = np.cumsum(squared, dtype=np.float64)
    if reached[-1] == 0:
        return generator.integers(len(vectors), size=most)
    proposed = np.searchsorted(reached, generator.random(most) * reached[-1], side="right").clip(max=len(vectors) - 1)
    distance, limit = squared[proposed], generator.random(most) * squared[proposed]
    between = (2 - 2 * (vectors[proposed] @ vectors[proposed].T)).clip(min=0)
    between[proposed[:, None] == proposed] = 0
    taken: list[int] = []
    for place, item in enumerate(proposed.tolist()):
        if distance[place] > limit[place]:
            taken.append(item)
            distance = np.minimum(distance, between[place])
    return np.array(taken, np.int64)


def _lloyd(items: Items, centroids: FloatArray, nearest: Nearest) -> IntArray:
    """Run Lloyd iterations from centroids [C, D], which are changed, and return the cluster of each item."""
    changed = np.arange(len(centroids))
    for _ in range(ITERATIONS):
        moved = move(centroids, items.vectors, nearest.cluster, changed)
        if not len(moved):
            break
        before = nearest.cluster.copy()
        _compare(items, centroids, moved, nearest)
        differs = before != nearest.cluster
        changed = np.unique([before[differs], nearest.cluster[differs]])
    return nearest.cluster


def move(centroids: FloatArray, vectors: FloatArray, cluster: IntArray, changed: IntArray) -> IntArray:
    """Move the centroids of clusters whose items changed to the means of their items; an empty one stays.

    Sums are taken on the processor in item order: on a GPU they would be added up in a different order each time.

    Returns:
        [M] the centroids that are elsewhere now.
    """
    affected = np.zeros(len(centroids), np.bool_)
    affected[changed] = True
    rows = np.flatnonzero(affected[cluster])
    rows = rows[np.argsort(cluster[rows], kind="stable")]
    present, first, sizes = np.unique(cluster[rows], return_index=True, return_counts=True)
    means = _sums(vectors, rows, first) / sizes[:, None].astype(np.float32)
    elsewhere: BoolArray = np.any(means != centroids[present], axis=1)
    centroids[present] = means
    return present[elsewhere]


def _sums(vectors: FloatArray, rows: IntArray, first: IntArray) -> FloatArray:
    """Return the sums [M, D] of the rows of clusters, which begin at `first` [M]; about SUMMED rows are looked up.

    Every sum is one call's: in parts it would be rounded otherwise. Of a cluster with more rows it is taken of a few
    columns at a time.
    """
    columns, ends = vectors.shape[1], np.append(first[1:], len(rows))
    sums = np.empty((len(first), columns), np.float32)
    start = 0
    while start < len(first):
        stop = max(start + 1, int(np.searchsorted(ends, first[start] + SUMMED, side="right")))
        some = rows[first[start] : ends[stop - 1]]
        for part in row_chunks(columns, max(1, columns * SUMMED // max(SUMMED, len(some)))):
            np.add.reduceat(
                vectors[:, part][some], first[start:stop] - first[start], axis=0, out=sums[start:stop, part]
            )
        start = stop
    return sums


def _compare(items: Items, centroids: FloatArray, moved: IntArray, nearest: Nearest) -> None:
    """Find the nearest centroids anew, after some of them moved.

    An item whose own centroid is where it was can only change to one that moved. Where its own moved, too, the others
    are no nearer than they were known to be, and only an item which is now farther than that is compared with all.
    """
    everything = np.arange(len(centroids))
    is_moved = np.zeros(len(centroids), np.bool_)
    is_moved[moved] = True
    again = []
    for rows, best in items.compared(centroids[moved]):
        own_moved = is_moved[nearest.cluster[rows]]
        again.append(rows.start + np.flatnonzero(own_moved & (best.first < nearest.others[rows])))
        nearest.take(rows, best, moved, kept=~own_moved)
    far = np.concatenate(again)
    nearest.others[far] = -np.inf
    for part, best in items.compared(centroids, far):
        nearest.take(far[part], best, everything, kept=np.zeros(len(best.place), np.bool_))
