"""Scores of neighbour lists: Recall@K, MAP@R and R-precision, one value per query, ties and all.

R is the number of *other* items of the query's class in the gallery and differs from query to query. A query with
R = 0 has nothing to find and is to be left out of every mean.

Nothing tells which of several equally similar items comes first, so each score is its mean over all orders of them:
it depends neither on the order of the rows, nor on the backend, nor on how long a list was asked for. Items are tied
where their embeddings are equal, number for number, and where their similarities are equal in float64 too. Those that
differ by less than float32 can tell are no tie: they come in the order in which the search finds them.

Shapes: Q queries, G gallery items, D embedding, K neighbours, P places, W ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ke_metric.arrays import BoolArray, DoubleArray, FloatArray, IntArray, row_chunks
from ke_metric.evaluation.backend import Neighbors

PAIRS_AT_A_TIME = 2**16
CELLS_AT_A_TIME = 2**20
"""Neighbours held at once, over all queries of a block; about 60 bytes each while a block is scored."""
QUERIES_AT_A_TIME = 1024
"""Large blocks are a multiple of it, as long as what a `Backend` searches with at once: a short rest takes longer."""
FLOAT64_NOISE = 1e-12
"""Difference of two equal similarities that float64 may show: a few roundings of numbers up to 1."""


def count_relevant(query_labels: IntArray, gallery_labels: IntArray, self_match: IntArray | None) -> IntArray:
    """Return R of each query, [Q] int64: the gallery items [G] of its class, its own picture not counted.

    Args:
        query_labels: [Q] int64.
        gallery_labels: [G] int64.
        self_match: [Q] position of the query's own picture in the gallery, -1 for none; its label there is the
            query's label. None: no query is in the gallery.
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


def recall_at_k(hits: BoolArray, k: int) -> DoubleArray:
    r"""Recall@K as metric learning uses the word: 1 if any of the first K neighbours is a hit, else 0.

    Formula: $\max_{i \le K} \mathrm{hit}_i$. Source: Jegou, Douze, Schmid, "Product quantization for nearest
    neighbor search", TPAMI 2011; for metric learning Oh Song et al., CVPR 2016. In information retrieval, recall at
    K is (hits among the first K) / R, a smaller number wherever R > 1; it is not computed here. Where a query has
    fewer than K neighbours, all of them are looked at.

    Args:
        hits: [Q, K'] bool by rank, with K' >= K or all neighbours there are.
        k: K, at least 1.
    """
    found: BoolArray = np.any(hits[:, :k], axis=1)
    return found.astype(np.float64)


def map_at_r(hits: BoolArray, relevant: IntArray) -> DoubleArray:
    r"""Average precision over the first R neighbours (its mean over queries is MAP@R).

    Formula: $\frac{1}{R} \sum_{i=1}^{R} P(i)$ with $P(i)$ = precision at $i$ where rank $i$ is a hit, else 0.
    Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020, section 3.2. It differs from
    information retrieval's average precision, which goes on past rank R to the end of the list.

    Args:
        hits: [Q, K] bool by rank, with K >= max R.
        relevant: [Q] R of each query, at least 1.
    """
    counted = _within_r(hits, relevant)
    ranks = np.arange(1, counted.shape[1] + 1)
    precision = np.cumsum(counted, axis=1) / ranks
    total: DoubleArray = (precision * counted).sum(axis=1) / relevant
    return total


def r_precision(hits: BoolArray, relevant: IntArray) -> DoubleArray:
    r"""Share of hits among the first R neighbours; arguments as `map_at_r`.

    Formula: $\frac{1}{R} \sum_{i=1}^{R} \mathrm{hit}_i$. Source: Musgrave, Belongie, Lim, ECCV 2020, section 3.2.
    """
    share: DoubleArray = _within_r(hits, relevant).sum(axis=1) / relevant
    return share


def _within_r(hits: BoolArray, relevant: IntArray) -> BoolArray:
    assert bool((relevant >= 1).all()), "a query with nothing to find"
    assert hits.shape[1] >= relevant.max(initial=0), (hits.shape, relevant.max(initial=0))
    # Nothing is counted beyond the largest R, however long the lists are.
    most = int(relevant.max(initial=0))
    within: BoolArray = hits[:, :most] & (np.arange(most) < relevant[:, None])
    return within


def level(similarities: FloatArray, rows: IntArray) -> FloatArray:
    """Give items with equal rows, of which backends compute the last bit differently, one similarity.

    It is the highest that one of the query's items with the row has; perhaps rising along a row.

    Args:
        similarities: [Q, K] float32, never rising along a row; -inf for padding.
        rows: [Q, K] the number of each item's row (see `embeddings.number_rows`), at least 0 but for padding.
    """
    keys = np.arange(len(rows))[:, None] * (rows.max(initial=0) + 1) + rows
    keys = np.where(np.isneginf(similarities), -1, keys)
    distinct, places = np.unique(keys, return_inverse=True)
    highest = np.full(len(distinct), -np.inf, np.float32)
    np.maximum.at(highest, places.ravel(), similarities.ravel())
    return highest[places.reshape(keys.shape)]


def equally_similar(
    similarities: FloatArray, indices: IntArray, queries: FloatArray, vectors: Callable[[IntArray], FloatArray]
) -> BoolArray:
    """Return [Q, K] whether an item and the one before it are equally similar to the query, in float64 too.

    Args:
        similarities: [Q, K] float32, never rising along a row; -inf for padding.
        indices: [Q, K] the items.
        queries: [Q, D] float32.
        vectors: Items [any] to their embeddings float32 [any, D].
    """
    equal = np.zeros(similarities.shape, np.bool_)
    np.equal(similarities[:, 1:], similarities[:, :-1], out=equal[:, 1:])
    equal &= indices >= 0
    rows, columns = np.nonzero(equal)
    for part in row_chunks(len(rows), PAIRS_AT_A_TIME):
        row, column = rows[part], columns[part]
        one, other = (vectors(indices[row, place]).astype(np.float64) for place in (column, column - 1))
        differences = np.einsum("nd,nd->n", queries[row].astype(np.float64), one - other)
        equal[row, column] = np.abs(differences) <= FLOAT64_NOISE
    return equal


@dataclass(frozen=True, eq=False)
class Places:
    """What a search found for each query, most similar first, in places of one or several items.

    Attributes:
        sizes: [Q, P] int64 number of items at each place, 0 where there are no more.
        hits: [Q, P] int64 how many of them are of the query's class.
        tied: [Q, P] whether the items are as similar as those at the place before.
    """

    sizes: IntArray
    hits: IntArray
    tied: BoolArray

    def __post_init__(self) -> None:
        assert self.sizes.shape == self.hits.shape == self.tied.shape, (self.sizes.shape, self.hits.shape)
        assert not self.tied[:, 0].any(), "nothing is before the first place"
        assert not (self.tied & (self.sizes == 0)).any(), "padding is tied"

    def at(self, queries: BoolArray | IntArray) -> Places:
        """Return the places of some queries."""
        return Places(self.sizes[queries], self.hits[queries], self.tied[queries])

    def plain(self) -> BoolArray:
        """Return [Q] whether each place of a query has one item, and none is tied."""
        return np.asarray(~np.any(self.tied | (self.sizes > 1), axis=1))

    def settled(self, depth: int) -> BoolArray:
        """Return [Q] whether all items that are as similar as that of rank `depth` have been found."""
        settled: BoolArray = (self.sizes[:, -1] == 0) | (self.sizes.shape[1] > depth)
        several = np.flatnonzero(~self.plain())
        if len(several):
            settled[several] = self.at(several)._settled_with_ties(depth)
        return settled

    def _settled_with_ties(self, depth: int) -> BoolArray:
        reached = self.sizes.cumsum(axis=1) >= depth
        place = np.where(reached.any(axis=1), reached.argmax(axis=1), self.sizes.shape[1] - 1)
        similarity = (~self.tied).cumsum(axis=1)
        of_rank = np.take_along_axis(similarity, place[:, None], axis=1)[:, 0]
        return np.asarray((self.sizes[:, -1] == 0) | (of_rank < similarity[:, -1]))

    def joined(self) -> Places:
        """Return the same with one place for items that are tied, and 0 for the places that are left."""
        if not self.tied.any():
            return self
        place = (~self.tied).cumsum(axis=1) - 1
        flat = (np.arange(len(place))[:, None] * place.shape[1] + place).ravel()
        sizes, hits = (
            np.bincount(flat, weights=values.ravel(), minlength=flat.size).astype(np.int64).reshape(place.shape)
            for values in (self.sizes, self.hits)
        )
        return Places(sizes, hits, np.zeros_like(self.tied))


def score_places(places: Places, relevant: IntArray, ranks: Sequence[int], depth: int) -> dict[str, DoubleArray]:
    """Return `recall@K` for each K, `map@r` and `r_precision` of each query, [Q] each.

    Args:
        places: What was found, settled at `depth`.
        relevant: [Q] R of each query, 1 to depth.
        ranks: The Ks; the first `depth` items are looked at where one is larger.
        depth: Ranks that are looked at, at least 1.
    """
    several = np.flatnonzero(~places.plain())
    joined = places.at(several).joined()
    starts = joined.sizes.cumsum(axis=1) - joined.sizes
    shared: BoolArray = np.any((joined.sizes > 1) & (starts < depth), axis=1)
    tied, untied = several[shared], np.delete(np.arange(len(relevant)), several[shared])
    # Items that are tied beyond the depth leave the places before it as they were.
    hits, r = (places.hits if not len(tied) else places.hits[untied])[:, :depth] > 0, relevant[untied]
    alone = {f"recall@{k}": recall_at_k(hits, k) for k in ranks}
    alone |= {"map@r": map_at_r(hits, r), "r_precision": r_precision(hits, r)}
    parts = ((untied, alone), (tied, _mean_scores(joined.at(shared), relevant[tied], ranks, depth)))
    scores: dict[str, DoubleArray] = {}
    for queries, found in parts:
        for name, values in found.items():
            scores.setdefault(name, np.empty(len(relevant)))[queries] = values
    return scores


def _mean_scores(places: Places, relevant: IntArray, ranks: Sequence[int], depth: int) -> dict[str, DoubleArray]:
    r"""Return the scores' means over all orders of the items that share a place.

    At a rank whose place has t items, h of them hits, with j items of the place before the rank and b hits before the
    place, the chance of a hit is h/t, and the mean of hit times precision at the rank r is
    $\frac{h}{t} \cdot \frac{b + 1 + j (h - 1) / (t - 1)}{r}$: of the other h - 1 hits, each of the other t - 1 items
    is as likely to be one. The first m of the place hold no hit with the chance
    $\prod_{i < m} \frac{t - h - i}{t - i}$.
    """
    at = _Ranks.of(places, depth)
    chance = at.hits / at.sizes
    fellows = at.nth * (at.hits - 1) / np.maximum(at.sizes - 1, 1)
    precise = chance * (at.before + 1 + fellows) / np.arange(1, depth + 1)
    within = np.arange(depth) < relevant[:, None]
    scores: dict[str, DoubleArray] = {f"recall@{k}": at.any_hit(min(k, depth) - 1) for k in ranks}
    scores["map@r"] = (precise * within).sum(axis=1) / relevant
    scores["r_precision"] = (chance * within).sum(axis=1) / relevant
    return scores


@dataclass(frozen=True, eq=False)
class _Ranks:
    """The place of each rank, all [Q, W] int64; past the end of a list a place of one item that is no hit.

    Of a rank's place: its items, the hits among them and at the places `before` it; which of its items the rank is.
    """

    sizes: IntArray
    hits: IntArray
    before: IntArray
    nth: IntArray

    @classmethod
    def of(cls, places: Places, depth: int) -> _Ranks:
        queries, count = places.sizes.shape
        ends = places.sizes.cumsum(axis=1)
        # One search for all queries: what is above every end of a query is below every end of the next one.
        step = ends.max(initial=0) + depth + 1
        above = np.arange(queries)[:, None] * step
        place = np.searchsorted((ends + above).ravel(), (np.arange(depth) + above).ravel(), side="right")
        place = place.reshape(queries, depth) - np.arange(queries)[:, None] * count
        there = place < count
        place = place.clip(max=count - 1)

        def pick(values: IntArray, elsewhere: int | IntArray) -> IntArray:
            return np.where(there, np.take_along_axis(values, place, axis=1), elsewhere)

        hits = places.hits.cumsum(axis=1)
        starts = pick(ends - places.sizes, np.arange(depth)[None])
        return cls(
            sizes=pick(places.sizes, 1),
            hits=pick(places.hits, 0),
            before=pick(hits - places.hits, hits[:, -1:]),
            nth=np.arange(depth) - starts,
        )

    def any_hit(self, rank: int) -> DoubleArray:
        """Return [Q] the chance of a hit at the ranks up to `rank`, from 0."""
        sizes, hits, drawn = self.sizes[:, rank], self.hits[:, rank], self.nth[:, rank] + 1
        none = (self.before[:, rank] == 0).astype(np.float64)
        for item in range(int(drawn.max(initial=0))):
            left = np.maximum(sizes - item, 1)
            none *= np.where(item < drawn, np.clip((sizes - hits - item) / left, 0, None), 1)
        chance: DoubleArray = 1 - none
        return chance


Find = Callable[[IntArray, int], Places]
"""Positions of B queries and a number of neighbours K to the places [B, K] that they take."""


def score_lists(
    relevant: IntArray, ranks: Sequence[int], find: Find, *, gallery_size: int, longest: int
) -> dict[str, float]:
    """Score neighbour lists, wherever they come from, each as long as its query needs.

    Args:
        relevant: [Q] R of each query; those with R = 0 are left out.
        ranks: The Ks of Recall@K.
        find: What searches.
        gallery_size: Number of items, which no list is longer than.
        longest: Most neighbours that are asked for to see the end of a tie.

    Returns:
        `recall@K` for each K, `map@r`, `r_precision`, `queries` and `queries_without_match`, as `score_retrieval`.
    """
    scored = np.flatnonzero(relevant)
    counts: dict[str, float] = {"queries": len(scored), "queries_without_match": len(relevant) - len(scored)}
    per_query = score_queries(relevant, ranks, find, gallery_size=gallery_size, longest=longest)
    # fsum rounds only once, so that the order of the queries does not matter.
    return {name: math.fsum(values[scored]) / len(scored) for name, values in per_query.items()} | counts


def score_queries(
    relevant: IntArray, ranks: Sequence[int], find: Find, *, gallery_size: int, longest: int
) -> dict[str, DoubleArray]:
    """Return the scores of each query, `recall@K` for each K, `map@r` and `r_precision`: [Q], NaN where R = 0.

    Arguments as `score_lists`, whose scores are the means of these; nothing where no query has anything to find.
    """
    scored = np.flatnonzero(relevant)
    per_query: dict[str, DoubleArray] = {}
    if not len(scored):
        return per_query
    depth = lengths_of_lists(relevant, ranks, gallery_size=gallery_size)
    for block in blocks_of_queries(scored, depth, CELLS_AT_A_TIME):
        deepest = int(depth[block].max())
        for queries, places in _settled(block, deepest, find, longest):
            for name, values in score_places(places, relevant[queries], tuple(ranks), deepest).items():
                per_query.setdefault(name, np.full(len(relevant), np.nan))[queries] = values
    return per_query


def lengths_of_lists(relevant: IntArray, ranks: Sequence[int], *, gallery_size: int) -> IntArray:
    """Return [Q] how many neighbours the scores of each query need: R or the largest K; none where R = 0."""
    lengths = np.maximum(relevant, max(ranks, default=1)).clip(max=gallery_size)
    return np.where(relevant > 0, lengths, 0)


def _settled(block: IntArray, depth: int, find: Find, longest: int) -> Iterator[tuple[IntArray, Places]]:
    """Yield queries and what they find, far enough to see the end of the tie, if any, at rank `depth`."""
    # One place more than the list has: whether the last of a list is tied shows only at the place after it.
    rest, count = block, max(depth, min(depth + 1, longest))
    while len(rest):
        unsettled = []
        for part in blocks_of_queries(rest, np.full(int(rest.max()) + 1, count), CELLS_AT_A_TIME):
            places = find(part, count)
            settled = places.settled(depth) | (count >= longest)
            yield part[settled], places.at(settled)
            unsettled.append(part[~settled])
        rest, count = np.concatenate(unsettled), max(depth, min(2 * count, longest))


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
        rows -= rows % QUERIES_AT_A_TIME if QUERIES_AT_A_TIME < rows < len(queries) else 0
        yield queries[:rows]
        queries = queries[rows:]
