"""Better ranking over any store: query expansion before a search, re-ranking after it.

Shapes: Q queries, D embedding, K neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import FloatArray
from ke_metric.retrieval.query_expansion import Expansion, expand_queries
from ke_metric.retrieval.reranking import Reranking, rerank_hits
from ke_metric.retrieval.self_match import search_others
from ke_metric.retrieval.vector_store import Hits, VectorStore, check_count
from ke_metric.retrieval.where import Where

__all__ = ["Expansion", "Reranking", "ranked_search"]


def require_candidates(k: int, rerank: Reranking | None) -> None:
    """Refuse a re-ranking that looks at fewer candidates than are asked for.

    Raises:
        KeMetricError: USAGE.
    """
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
