"""A search of a FAISS index some of whose items were removed, or that holds its vectors only as short codes.

Shapes: Q queries, D numbers in a vector, K neighbours, N rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ke_metric.evaluation.embeddings import FloatArray, IntArray
from ke_metric.evaluation.faiss_library import load_faiss
from ke_metric.retrieval.copies import BoolArray, Unfolding

Found = tuple[FloatArray, IntArray]
"""Similarities float32 [Q, K], most similar first, and rows int64 [Q, K]; -inf and -1 where there is none."""

CANDIDATES = 4
LEAST_CANDIDATES = 40
"""Of short codes so many times K are found, at least so many, and compared again by their whole vectors."""
SLACK = 8
DEEPER = 4
LEAST_MOST_DEPTH = 1024


class IndexSearch:
    """Searches an index for what is still there.

    Args:
        index: FAISS's object; its ids are rows.
        removed: [N] which of the rows that it covers are gone, or not in it.
        vectors: [N, D] float32, where the index holds short codes of them; None where it holds them whole.
        live: How many items it covers that are not gone.
        unfolding: Finds the items that a row stands for; None where each is one.
        whole: [N, D] float32, where the index compares every vector that it holds, whole; else None.

    Attributes:
        whole: The same.
    """

    def __init__(
        self,
        index: Any,
        *,
        removed: BoolArray,
        vectors: FloatArray | None,
        live: int,
        unfolding: Unfolding | None = None,
        whole: FloatArray | None = None,
    ) -> None:
        self.whole = whole
        self._index, self._vectors, self._live, self._unfolding = index, vectors, live, unfolding
        self._linked = len(removed) - int(removed.sum())
        self._removed = removed if self._linked < index.ntotal else None
        # Asked for once: looking for two of them takes longer than a search.
        self._faiss = load_faiss()

    def search(self, queries: FloatArray, k: int) -> tuple[Found, IntArray]:
        """Find the k most similar items of each query.

        Where removed items crowd out others, those queries are searched again for four times as many, and so on.

        Args:
            queries: [Q, D] float32.
            k: Neighbours per query.

        Returns:
            What was found, and the numbers of the queries for which that is less than k although the index holds
            more: it looked into too few lists, or nearly everything near them was removed.
        """
        similarities, rows = self._once(queries, k, depth := self._first_depth(k))
        wanted = min(k, self._live)
        lacking = np.flatnonzero(np.count_nonzero(rows >= 0, axis=1) < wanted)
        while len(lacking) and self._removed is not None and depth < self._most_depth:
            depth = min(DEEPER * depth, self._most_depth)
            similarities[lacking], rows[lacking] = self._once(queries[lacking], k, depth)
            lacking = lacking[np.count_nonzero(rows[lacking] >= 0, axis=1) < wanted]
        return (similarities, rows), lacking

    def _first_depth(self, k: int) -> int:
        depth = k if self._vectors is None else max(CANDIDATES * k, LEAST_CANDIDATES)
        if self._removed is None:
            return depth
        enough = depth * int(self._index.ntotal) // max(1, self._linked) + SLACK
        return max(depth, min(enough, self._most_depth))

    @property
    def _most_depth(self) -> int:
        """How deep FAISS is asked to look: beyond, an exact search of everything costs less."""
        count = int(self._index.ntotal)
        return min(count, max(LEAST_MOST_DEPTH, count // 16))

    def _once(self, queries: FloatArray, k: int, depth: int) -> Found:
        similarities, rows = self._index.search(queries, depth)
        if self._removed is not None:
            rows[self._removed[rows] & (rows >= 0)] = -1
        if self._vectors is not None:
            similarities, rows = self._compared(self._vectors, queries, rows, k)
        missing = rows < 0
        if missing.any():
            similarities[missing] = -np.inf
        if self._unfolding is not None:
            return self._unfolding.unfold(similarities, rows, k)
        in_order = self._removed is None or self._vectors is not None
        return (similarities, rows) if in_order else best(similarities, rows, k)

    def _compared(self, vectors: FloatArray, queries: FloatArray, candidates: IntArray, k: int) -> Found:
        """Return the k candidates of each query that are most similar by their whole vectors.

        FAISS reads the vectors where they lie: of a file that is mapped into memory, only the pages of candidates.

        Args:
            vectors: [N, D] float32.
            queries: [Q, D] float32.
            candidates: [Q, C] rows of vectors; -1 for none.
            k: How many; where there are fewer, rows are -1 and similarities anything.
        """
        if (candidates < 0).any():
            # FAISS stops at the first that is none.
            there_first = np.argsort(candidates < 0, axis=1, kind="stable")
            candidates = np.take_along_axis(candidates, there_first, 1)
        count, depth = candidates.shape
        similarities, rows = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
        queries, candidates = np.ascontiguousarray(queries), np.ascontiguousarray(candidates)
        pointers = [self._faiss.swig_ptr(array) for array in (queries, vectors, candidates, similarities, rows)]
        sizes = (queries.shape[1], count, len(vectors), depth, k)
        self._faiss.knn_inner_products_by_idx(*pointers[:3], *sizes, *pointers[3:], depth)
        return similarities, rows


def best(similarities: FloatArray, rows: IntArray, k: int) -> Found:
    """Return the k most similar of each query, most similar first.

    Args:
        similarities: [Q, C], in any order.
        rows: [Q, C], C at least k.
        k: How many.
    """
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(rows, order, 1)
