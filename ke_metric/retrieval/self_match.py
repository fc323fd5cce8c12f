"""Searching a store for other pictures than the query's own, which is left out by its id.

Shapes: Q queries, D embedding, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ke_metric.evaluation.embeddings import FloatArray, IntArray
from ke_metric.evaluation.neighbors import without_self
from ke_metric.retrieval.vector_store import Hits, VectorStore
from ke_metric.retrieval.where import Where


def search_others(
    store: VectorStore,
    queries: FloatArray,
    k: int,
    *,
    exclude: Sequence[str] | None = None,
    where: Where | None = None,
) -> Hits:
    """Search a store, each query's own picture left out wherever it ranks.

    Another picture that looks the same stays in.

    Args:
        store: What is searched.
        queries: [Q, D] float32, L2-normalised.
        k: Neighbours per query, at least 1.
        exclude: Q ids, one for each query, of the item that is never a hit of it; an id that is not in the store
            leaves nothing out. None: every item may be a hit.
        where: Search only items for which this holds.

    Returns:
        [Q, k] hits.
    """
    if exclude is None:
        return store.search(queries, k, where=where)
    assert len(exclude) == len(queries), (len(exclude), len(queries))
    if not store.known(set(exclude)):
        return store.search(queries, k, where=where)
    hits = store.search(queries, k + 1, where=where)
    similarities, numbers = without_self(hits.similarities, hits.numbers, _own_numbers(hits, exclude))
    return Hits(similarities[:, :k], numbers[:, :k], hits.read_items, hits.read_vectors)


def _own_numbers(hits: Hits, exclude: Sequence[str]) -> IntArray:
    """Return the store's number of each query's own item, -1 where it is nobody's hit."""
    distinct = np.unique(hits.numbers[hits.numbers >= 0])
    number_of = {item.id: number for item, number in zip(hits.read_items(distinct), distinct.tolist(), strict=True)}
    return np.array([number_of.get(item, -1) for item in exclude], np.int64)


def rows_of(hits: Hits, rows: slice) -> Hits:
    """Return the hits of some of the queries."""
    return Hits(hits.similarities[rows], hits.numbers[rows], hits.read_items, hits.read_vectors)
