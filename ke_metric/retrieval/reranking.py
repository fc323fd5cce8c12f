"""k-reciprocal re-ranking: of a query's candidates, those go first that have the query's neighbours for neighbours.

Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, and the
authors' code, which differs from the paper in squaring the distances and dividing each row by its largest one.

The authors take all queries and the whole gallery as one set and compare everything with everything. Here the set is
one query and its `depth` most similar items: memory does not grow with the gallery, and a query's result does not
depend on which other queries come along with it. Where `depth` covers the gallery, it is the authors' rule for that
one query.

Shapes: B queries at a time, M = 1 + depth members of a query's set (the query first), D embedding, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import FloatArray, row_chunks
from ke_metric.retrieval.self_match import rows_of
from ke_metric.retrieval.vector_store import Hits

MOST_CANDIDATES = 4096
FORM = (
    "must be K1:K2:LAMBDA or K1:K2:LAMBDA:DEPTH, K1 and K2 at least 1, LAMBDA from 0 to 1, and DEPTH from "
    f"max(K1, K2) to {MOST_CANDIDATES:,}, as in 5:3:0.3:100"
)

_CELLS_AT_A_TIME = 2**21
"""Pairs of members whose distances are held at once, in about 60 bytes each; a single query may exceed it."""


@dataclass(frozen=True)
class Reranking:
    """How candidates are put into a new order.

    What is left out are the careful values of docs/ranking.md; the authors take 20:6:0.3, for classes of twenty
    pictures and more.

    Attributes:
        k1: Neighbours that must be mutual, at least 1.
        k2: Neighbours over which a member's encoding is averaged, itself being the first, at least 1; 1: not at all.
            More than the gallery has pictures of a class mixes classes, and costs Recall@1.
        weight: Share of the embeddings' own distance in the new one, 0 to 1; the authors' lambda. 1: the order stays.
        depth: Candidates of each query, max(k1, k2) to 4096. Time and memory grow with its square, or with that of
            the number of items where there are fewer.

    Raises:
        KeMetricError: USAGE for a value out of range.
    """

    k1: int = 5
    k2: int = 3
    weight: float = 0.3
    depth: int = 100

    def __post_init__(self) -> None:
        depth_is_right = max(self.k1, self.k2) <= self.depth <= MOST_CANDIDATES
        if min(self.k1, self.k2) < 1 or not 0 <= self.weight <= 1 or not depth_is_right:
            text = f"{self.k1}:{self.k2}:{self.weight:g}:{self.depth}"
            raise KeMetricError(f"re-ranking = {text}: {FORM}", ExitCode.USAGE)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `K1:K2:LAMBDA` or `K1:K2:LAMBDA:DEPTH`.

        Raises:
            KeMetricError: USAGE: it is neither, or a value is out of range.
        """
        try:
            k1, k2, weight, *depth = text.split(":")
            if len(depth) > 1:
                raise ValueError(f"{len(depth)} depths")
            numbers, share = [int(part) for part in (k1, k2, *depth)], float(weight)
        except ValueError as error:
            raise KeMetricError(f"re-ranking = {text!r}: {FORM}", ExitCode.USAGE) from error
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
    tied = _expanded(_mutual((places <= rule.k1) & pairs), _mutual((places <= round(rule.k1 / 2)) & pairs))
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


def _mutual(near: Tensor) -> Tensor:
    return near & near.transpose(1, 2)


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
