"""Better ranking over any store: the query's own picture left out, query expansion before, re-ranking after a search.

Alpha query expansion: a query moves towards what it finds, and searches again. Radenovic, Tolias, Chum, "Fine-tuning
CNN Image Retrieval with No Human Annotation", TPAMI 2019, section 3.4; with alpha = 0 the average query expansion of
Chum et al., "Total Recall", ICCV 2007.

k-reciprocal re-ranking: of a query's candidates, those go first that have the query's neighbours for neighbours.
Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, and the authors'
code, which differs from the paper in squaring the distances and dividing each row by its largest one. The authors
compare all queries and the whole gallery with each other. Here the set is one query and its `depth` most similar
items: memory does not grow with the gallery, and a query's result does not depend on which other queries come along.
Where `depth` covers the gallery, it is the authors' rule for that one query.

Shapes: Q queries, D embedding, K neighbours, B queries at a time, M = 1 + depth members of a query's set (the query
first).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence, Sized
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ke_metric.arrays import FloatArray, IntArray, row_chunks
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import without_self
from ke_metric.stores.contract import Hits, VectorStore, Where, check_count, texts_of

__all__ = ["Expansion", "Reranking", "ranked_search"]

MOST_NEIGHBORS = 1024
EXPANSION_FORM = (
    f"must be N or N:ALPHA, N from 1 to {MOST_NEIGHBORS:,} neighbours and ALPHA a number of at least 0, as in 4:3"
)

_VALUES_AT_A_TIME = 2**24
"""Entries of neighbours' vectors held at once: 64 MB, and twice that while they are added up."""

MOST_CANDIDATES = 4096
RERANKING_FORM = (
    "must be K1:K2:LAMBDA or K1:K2:LAMBDA:DEPTH, K1 and K2 at least 1, LAMBDA from 0 to 1, and DEPTH from "
    f"max(K1, K2) to {MOST_CANDIDATES:,}, as in 5:3:0.3:100"
)

_CELLS_AT_A_TIME = 2**21
"""Pairs of members whose distances are held at once, in about 60 bytes each; a single query may exceed it."""


def search_others(
    store: VectorStore,
    queries: FloatArray,
    k: int,
    *,
    exclude: Sequence[str | Collection[str]] | None = None,
    where: Where | None = None,
) -> Hits:
    """Search a store, each query's own picture left out wherever it ranks.

    Another picture that looks the same stays in.

    Args:
        store: What is searched.
        queries: [Q, D] float32, L2-normalised.
        k: Neighbours per query, at least 1.
        exclude: Q ids, one for each query, of the item that is never a hit of it, or Q collections of such ids; an
            id that is not in the store leaves nothing out. None: every item may be a hit.
        where: Search only items for which this holds.

    Returns:
        [Q, K] hits, K the smaller one of k and the items of the store, and at least 1.

    Raises:
        KeMetricError: DATA: `exclude` is one text, or not of one entry for each query; and as `VectorStore.search`.
    """
    check_count("k", k)
    if exclude is None:
        return store.search(queries, k, where=where)
    own = _own_ids(exclude, len(queries))
    known = store.known(set().union(*own))
    own = [ids & known for ids in own]
    if not known:
        return store.search(queries, k, where=where)
    hits = store.search(queries, k + max(map(len, own)), where=where)
    similarities, numbers = _without(hits, own)
    return Hits(similarities[:, :k], numbers[:, :k], hits.read_items, hits.read_vectors)


def _own_ids(exclude: Sequence[str | Collection[str]], queries: int) -> list[set[str]]:
    one = isinstance(exclude, str | bytes) or not isinstance(exclude, Sized)
    if one or len(exclude) != queries:
        what = f"{exclude!r:.80} is one {type(exclude).__name__}" if one else f"{len(exclude)} entries"
        raise KeMetricError(
            f"exclude: {what}, must be an id, or a collection of ids, for each of the {queries} queries",
            ExitCode.DATA,
        )
    return [{entry} if isinstance(entry, str) else set(texts_of(entry, "exclude")) for entry in exclude]


def _without(hits: Hits, own: Sequence[set[str]]) -> tuple[FloatArray, IntArray]:
    """Move each query's own items to the end of its row and turn them into padding."""
    distinct = np.unique(hits.numbers[hits.numbers >= 0])
    number_of = {item.id: number for item, number in zip(hits.read_items(distinct), distinct.tolist(), strict=True)}
    similarities, numbers = hits.similarities, hits.numbers
    for place in range(max(map(len, own))):
        # The ids of a query in any one order; -1 where it has fewer, or one is nobody's hit.
        ids = [sorted(some)[place] if place < len(some) else "" for some in own]
        position = np.array([number_of.get(name, -1) for name in ids], np.int64)
        similarities, numbers = without_self(similarities, numbers, position)
    return similarities, numbers


def rows_of(hits: Hits, rows: slice) -> Hits:
    """Return the hits of some of the queries."""
    return Hits(hits.similarities[rows], hits.numbers[rows], hits.read_items, hits.read_vectors)


@dataclass(frozen=True)
class Expansion:
    """How queries are expanded; USAGE for a value out of range.

    Attributes:
        neighbors: Neighbours that a query is moved towards, 1 to 1024.
        alpha: Exponent of their similarities, at least 0: the higher, the more the nearest ones count. 0: all alike.
    """

    neighbors: int
    alpha: float = 3.0

    def __post_init__(self) -> None:
        if not 1 <= self.neighbors <= MOST_NEIGHBORS or not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise KeMetricError(
                f"query expansion = {self.neighbors}:{self.alpha:g}: {EXPANSION_FORM}", ExitCode.USAGE
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `N` or `N:ALPHA`; USAGE where it is neither, or a value is out of range."""
        neighbors, *alpha = text.split(":")
        try:
            if len(alpha) > 1:
                raise ValueError(f"{len(alpha)} exponents")
            count, exponents = int(neighbors), [float(part) for part in alpha]
        except ValueError as error:
            raise KeMetricError(f"query expansion = {text!r}: {EXPANSION_FORM}", ExitCode.USAGE) from error
        return cls(count, *exponents)


def expand_queries(
    store: VectorStore,
    queries: FloatArray,
    expansion: Expansion,
    *,
    exclude: Sequence[str | Collection[str]] | None = None,
    where: Where | None = None,
) -> FloatArray:
    r"""Return each query moved towards its nearest neighbours in a store.

    Formula: $q' \propto q + \sum_{i=1}^{n} \max(s_i, 0)^\alpha v_i$, of length 1, with $v_i$ the i-th neighbour and
    $s_i$ its similarity. A query whose sum is zero stays as it is. One search; `exclude` and `where` as in
    `search_others`, for neighbours. Queries and result are float32 [Q, D], L2-normalised.
    """
    hits = search_others(store, queries, expansion.neighbors, exclude=exclude, where=where)
    expanded = np.empty_like(queries)
    rows = max(1, _VALUES_AT_A_TIME // (expansion.neighbors * max(1, queries.shape[1])))
    for part in row_chunks(len(queries), rows):
        expanded[part] = _moved(queries[part], rows_of(hits, part), expansion.alpha)
    return expanded


def _moved(queries: FloatArray, hits: Hits, alpha: float) -> FloatArray:
    # 0 to the power of 0 is 1: without an exponent every neighbour counts alike. Padding has a vector of zeros.
    weights = hits.similarities.clip(min=0).astype(np.float64) ** alpha
    # A product of matrices for each query, [1, K] x [K, D].
    total = queries + (weights[:, None, :] @ hits.vectors().astype(np.float64))[:, 0]
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    moved: FloatArray = np.where(lengths > 1e-6, total / np.maximum(lengths, 1e-6), queries).astype(np.float32)
    return moved


@dataclass(frozen=True)
class Reranking:
    """How candidates are put into a new order; USAGE for a value out of range.

    What is left out are the careful values of docs/ranking.md; the authors take 20:6:0.3, for classes of twenty
    pictures and more.

    Attributes:
        k1: Neighbours that must be mutual, at least 1.
        k2: Neighbours over which a member's encoding is averaged, itself being the first, at least 1; 1: not at all.
            More than the gallery has pictures of a class mixes classes, and costs Recall@1.
        weight: Share of the embeddings' own distance in the new one, 0 to 1; the authors' lambda. 1: the order stays.
        depth: Candidates of each query, max(k1, k2) to 4096. Time and memory grow with its square, or with that of
            the number of items where there are fewer.
    """

    k1: int = 5
    k2: int = 3
    weight: float = 0.3
    depth: int = 100

    def __post_init__(self) -> None:
        depth_is_right = max(self.k1, self.k2) <= self.depth <= MOST_CANDIDATES
        if min(self.k1, self.k2) < 1 or not 0 <= self.weight <= 1 or not depth_is_right:
            text = f"{self.k1}:{self.k2}:{self.weight:g}:{self.depth}"
            raise KeMetricError(f"re-ranking = {text}: {RERANKING_FORM}", ExitCode.USAGE)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `K1:K2:LAMBDA` or `K1:K2:LAMBDA:DEPTH`; USAGE where it is neither, or a value is out of range."""
        try:
            k1, k2, weight, *depth = text.split(":")
            if len(depth) > 1:
                raise ValueError(f"{len(depth)} depths")
            numbers, share = [int(part) for part in (k1, k2, *depth)], float(weight)
        except ValueError as error:
            raise KeMetricError(f"re-ranking = {text!r}: {RERANKING_FORM}", ExitCode.USAGE) from error
        return cls(numbers[0], numbers[1], share, *numbers[2:])


def rerank_hits(queries: FloatArray, hits: Hits, k: int, reranking: Reranking) -> Hits:
    """Put the candidates of queries into the order of k-reciprocal re-ranking and return the first ones.

    Args:
        queries: [Q, D] float32, L2-normalised.
        hits: [Q, depth] their candidates.
        k: How many of them are returned, 1 to depth; no more than there are candidates.
        reranking: The rule.

    Returns:
        [Q, k] hits, best first. Their similarity is 1 - the authors' final distance, which is (1 - weight) x Jaccard
        distance + weight x squared Euclidean distance / the largest one that the query has in its set. It lies in
        [0, 1], higher is better; it is no cosine, compares candidates of one query, and those of two queries not.
    """
    k = min(k, hits.numbers.shape[1])
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    numbers = np.full((len(queries), k), -1, np.int64)
    hits = _without_padding(hits)
    members = 1 + hits.numbers.shape[1]
    for rows in row_chunks(len(queries), max(1, _CELLS_AT_A_TIME // (members * max(members, queries.shape[1])))):
        part = rows_of(hits, rows)
        found = _similarities(queries[rows], part, reranking)
        order = np.argsort(-found, axis=1, kind="stable")[:, :k]
        similarities[rows, : order.shape[1]] = np.take_along_axis(found, order, axis=1)
        numbers[rows, : order.shape[1]] = np.take_along_axis(part.numbers, order, axis=1)
    return Hits(similarities, numbers, hits.read_items, hits.read_vectors)


def _without_padding(hits: Hits) -> Hits:
    """Return hits without the columns in which no query has any: a depth beyond the gallery costs nothing."""
    found = (hits.numbers >= 0).any(axis=0)
    return Hits(hits.similarities[:, found], hits.numbers[:, found], hits.read_items, hits.read_vectors)


def _similarities(queries: FloatArray, hits: Hits, rule: Reranking) -> FloatArray:
    """Return the new similarity of each candidate, [B, depth] float32, -inf for padding."""
    candidates = hits.numbers >= 0
    vectors = torch.from_numpy(np.concatenate([queries[:, None], hits.vectors()], axis=1))  # [B, M, D]
    there = torch.from_numpy(np.pad(candidates, ((0, 0), (1, 0)), constant_values=True))  # [B, M]
    distances = _distances(vectors, there)
    encodings = _encodings(distances, there, rule)
    shared = torch.minimum(encodings[:, :1], encodings).sum(dim=2)  # [B, M]
    jaccard = 1 - shared / (2 - shared)
    final = (1 - rule.weight) * jaccard + rule.weight * distances[:, 0].float()
    similarities: FloatArray = np.where(candidates, (1 - final)[:, 1:].numpy(), np.float32(-np.inf))
    return similarities


def _distances(vectors: Tensor, there: Tensor) -> Tensor:
    """Return squared distances of members, each row divided by its largest, [B, M, M] float64; inf to padding."""
    wide = vectors.double()
    lengths = wide.square().sum(dim=2)
    squared = (lengths[:, :, None] + lengths[:, None, :] - 2 * wide @ wide.transpose(1, 2)).clamp_(min=0)
    pairs = there[:, :, None] & there[:, None, :]
    largest = squared.masked_fill(~pairs, 0).amax(dim=2, keepdim=True)
    # Where all members are one point there is no largest distance to divide by.
    return (squared / largest.clamp_(min=torch.finfo(squared.dtype).tiny)).masked_fill_(~pairs, torch.inf)


def _encodings(distances: Tensor, there: Tensor, rule: Reranking) -> Tensor:
    """Return how strongly each member is tied to each other one, [B, M, M] float32; rows add up to 1."""
    places = _places(distances)
    pairs = there[:, :, None] & there[:, None, :]
    near, nearer = ((places <= k) & pairs for k in (rule.k1, round(rule.k1 / 2)))
    tied = _expanded(near & near.transpose(1, 2), nearer & nearer.transpose(1, 2))
    weights = torch.exp(-distances).float() * tied
    weights /= weights.sum(dim=2, keepdim=True).clamp_(min=torch.finfo(weights.dtype).tiny)
    if rule.k2 == 1:
        return weights
    nearest = ((places < rule.k2) & pairs).float()
    return nearest @ weights / nearest.sum(dim=2, keepdim=True).clamp_(min=1)


def _places(distances: Tensor) -> Tensor:
    """Return the place of each member in each other's list of neighbours, [B, M, M]; its own is 0."""
    ranked = distances.clone()
    # Before any duplicate of it.
    ranked.diagonal(dim1=1, dim2=2).fill_(-1)
    order = ranked.argsort(dim=2, stable=True)
    places = torch.arange(order.shape[2]).expand_as(order)
    return torch.empty_like(order).scatter_(2, order, places)


def _expanded(mutual: Tensor, mutual_of_half: Tensor) -> Tensor:
    """Return [B, M, M] bool: the members tied to each member.

    To its k1-reciprocal neighbours are added the (k1/2)-reciprocal ones of each of them, where more than two thirds
    of these are among the former already.
    """
    half = mutual_of_half.float()
    shared = mutual.float() @ half.transpose(1, 2)
    sizes = half.sum(dim=2)[:, None, :]
    # Whole numbers below 2**24 are exact in float32, and thrice one is compared with twice another.
    adopted = mutual & (3 * shared > 2 * sizes)
    return mutual | (adopted.float() @ half > 0)


def require_candidates(k: int, rerank: Reranking | None) -> None:
    """Refuse, with USAGE, a re-ranking that looks at fewer candidates than are asked for."""
    if rerank is not None and k > rerank.depth:
        raise KeMetricError(
            f"{k} neighbours are asked for and re-ranking looks at {rerank.depth} candidates of each query (depth), "
            f"must be at least as many; K1:K2:LAMBDA:DEPTH sets them",
            ExitCode.USAGE,
        )


def ranked_search(
    store: VectorStore,
    queries: FloatArray,
    k: int,
    *,
    where: Where | None = None,
    expand: Expansion | None = None,
    rerank: Reranking | None = None,
    exclude: Sequence[str | Collection[str]] | None = None,
) -> Hits:
    """Search a store with expanded queries, re-rank what it finds, or both, or neither.

    Args:
        store: What is searched: once, and once more for the expansion.
        queries: [Q, D] float32, L2-normalised.
        k: Neighbours per query, at least 1; see `VectorStore.search`.
        where: Search only items for which this holds, as if there were no others.
        expand: Move the queries towards their nearest neighbours first.
        rerank: Put the `depth` most similar items into a new order; k can be no larger.
        exclude: Q ids, or collections of ids, of what is never a hit of a query, its own picture: see
            `search_others`.

    Returns:
        [Q, K] hits, K the smaller one of k and the items of the store, best first. The similarity is the cosine with
        the query; with `expand`, with the expanded query; with `rerank`, see `rerank_hits`. Higher is better, always.

    Raises:
        KeMetricError: USAGE where k is larger than the re-ranking's depth; DATA for queries of another shape or type.
    """
    check_count("k", k)
    require_candidates(k, rerank)
    if expand is not None:
        queries = expand_queries(store, queries, expand, exclude=exclude, where=where)
    hits = search_others(store, queries, rerank.depth if rerank else k, exclude=exclude, where=where)
    return hits if rerank is None else rerank_hits(queries, hits, k, rerank)
