"""An exact search of the rows of a collection, for queries of which an index of Milvus found too little.

Shapes: Q queries, D embedding, K neighbours, M rows of a page.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ke_metric.evaluation.embeddings import FloatArray, IntArray, row_chunks
from ke_metric.retrieval.faiss_search import best
from ke_metric.retrieval.milvus_collection import Row

QUERIES_AT_A_TIME = 256


def search_pages(pages: Iterable[list[Row]], queries: FloatArray, k: int) -> list[list[Row]]:
    """Return the k most similar rows of each query in the form of Milvus's hits; memory is that of one page.

    Args:
        pages: All rows, with id, path, label and vector.
        queries: [Q, D] float32.
        k: Neighbours per query; fewer where there are fewer rows.
    """
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    places = np.full((len(queries), k), -1, np.int64)
    kept: list[Row] = []
    for page in pages:
        vectors = np.array([row["vector"] for row in page], np.float32)
        numbers = np.arange(len(kept), len(kept) + len(page))
        for some in row_chunks(len(queries), QUERIES_AT_A_TIME):
            products = queries[some] @ vectors.T
            similarities[some], places[some] = best(
                np.hstack([similarities[some], products]),
                np.hstack([places[some], np.broadcast_to(numbers, products.shape)]),
                k,
            )
        kept, places = _those_needed([*kept, *page], places)
    return [
        [_hit(kept[place], float(similarity)) for similarity, place in zip(*row, strict=True) if place >= 0]
        for row in zip(similarities, places.tolist(), strict=True)
    ]


def _those_needed(rows: list[Row], places: IntArray) -> tuple[list[Row], IntArray]:
    """Return the rows that have a place, and their places among themselves."""
    needed = np.unique(places[places >= 0])
    return [rows[place] for place in needed], np.where(places >= 0, np.searchsorted(needed, places), -1)


def _hit(row: Row, similarity: float) -> Row:
    return {"id": row["id"], "distance": similarity, "entity": {"path": row["path"], "label": row["label"]}}
