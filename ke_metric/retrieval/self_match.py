"""Searching a store for other pictures than the query's own, which is left out by its id.

Shapes: Q queries, D embedding, K neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Sized

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import FloatArray, IntArray
from ke_metric.evaluation.neighbors import without_self
from ke_metric.retrieval.vector_store import Hits, VectorStore, check_count, texts_of
from ke_metric.retrieval.where import Where


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
        k: Neighbours per query, at least 1; see `VectorStore.search`.
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
