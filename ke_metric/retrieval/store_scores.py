"""The scores of a benchmark whose gallery lies in a store, from the neighbours that the store finds.

Shapes: Q queries, G gallery items, D embedding, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import FloatArray, IntArray
from ke_metric.evaluation.neighbors import Neighbors
from ke_metric.evaluation.recall import BoolArray, count_relevant, find_hits
from ke_metric.evaluation.retrieval import require_ranks, score_lists
from ke_metric.retrieval.ranking import Expansion, Reranking, ranked_search
from ke_metric.retrieval.vector_store import Hits, VectorStore, texts_of


def score_through(
    store: VectorStore,
    queries: FloatArray,
    labels: Sequence[str],
    recall_at: Sequence[int] = (1, 2, 4, 8),
    *,
    ids: Sequence[str] | None = None,
    expand: Expansion | None = None,
    rerank: Reranking | None = None,
) -> dict[str, float]:
    """Score how well the neighbours that a store finds agree with their labels.

    With an exact store and neither option the numbers are those of `score_retrieval`, but for equally similar items,
    of which every search chooses for itself.

    Args:
        store: The gallery, every item with its label; what has none is of no query's class.
        queries: [Q, D] float32, L2-normalised.
        labels: Q classes, as the store's items name them.
        recall_at: The Ks of Recall@K, each at least 1.
        ids: Q ids of the queries; a gallery item of a query's id is the same picture and never its neighbour. None:
            no query is in the gallery.
        expand: See `ranked_search`.
        rerank: See `ranked_search`.

    Returns:
        `recall@K` for each K, `map@r`, `r_precision`, `queries` and `queries_without_match`, as `score_retrieval`
        gives them; clusters have nothing to do with a store.

    Raises:
        KeMetricError: DATA for a query without a label, or one whose own item has another label in the store; RECIPE
            for a bad K; USAGE where a class is larger than the re-ranking's depth.
    """
    require_ranks(recall_at)
    for name, texts in (("labels", labels), ("ids", ids)):
        if texts is not None and len(texts_of(texts, name)) != len(queries):
            raise KeMetricError(
                f"{name}: {len(texts)} with {len(queries)} queries, must be one for each", ExitCode.DATA
            )
    gallery = _Gallery.read(store)
    classes = gallery.classes_of(labels)
    own = None if ids is None else gallery.positions_of(ids)
    _refuse_two_labels(gallery, labels, own)

    def find(block: IntArray, depth: int) -> BoolArray:
        exclude = None if ids is None else [ids[query] for query in block.tolist()]
        found = ranked_search(store, queries[block], depth, expand=expand, rerank=rerank, exclude=exclude)
        return find_hits(gallery.neighbors_of(found), classes[block], gallery.classes)

    nothing = not len(gallery.classes)
    relevant = np.zeros_like(classes) if nothing else count_relevant(classes, gallery.classes, own)
    return score_lists(relevant, recall_at, find, gallery_size=len(gallery.classes))


@dataclass(frozen=True, eq=False)
class _Gallery:
    """What is in a store, without the vectors.

    Attributes:
        position: Id of an item to its position, 0 to G - 1, in the order of reading.
        labels: The label of each position.
        number: Label to the number of its class.
        classes: [G] int64 number of each position's class; items without a label are a class that no query is of.
    """

    position: dict[str, int]
    labels: list[str]
    number: dict[str, int]
    classes: IntArray

    @classmethod
    def read(cls, store: VectorStore) -> _Gallery:
        position: dict[str, int] = {}
        labels: list[str] = []
        number: dict[str, int] = {}
        for items, _ in store.read():
            for item in items:
                position[item.id] = len(labels)
                labels.append(item.label)
                number.setdefault(item.label, len(number))
        return cls(position, labels, number, np.array([number[label] for label in labels], np.int64))

    def classes_of(self, labels: Sequence[str]) -> IntArray:
        """Return the number of each query's class; -2 where nothing in the gallery has its label."""
        for query, label in enumerate(labels):
            if not label:
                raise KeMetricError(f"query {query} has no label, and cannot be scored", ExitCode.DATA)
        return np.array([self.number.get(label, -2) for label in labels], np.int64)

    def positions_of(self, ids: Sequence[str]) -> IntArray:
        """Return the position of each id, -1 where it is not in the gallery."""
        return np.array([self.position.get(item, -1) for item in ids], np.int64)

    def neighbors_of(self, hits: Hits) -> Neighbors:
        """Return hits by their positions in the gallery."""
        there = hits.numbers >= 0
        distinct = np.unique(hits.numbers[there])
        positions = self.positions_of([item.id for item in hits.read_items(distinct)])
        indices = np.full(hits.numbers.shape, -1, np.int64)
        indices[there] = positions[np.searchsorted(distinct, hits.numbers[there])]
        return Neighbors(indices, hits.similarities)


def _refuse_two_labels(gallery: _Gallery, labels: Sequence[str], own: IntArray | None) -> None:
    for query, position in enumerate([] if own is None else own.tolist()):
        if position >= 0 and gallery.labels[position] != labels[query]:
            raise KeMetricError(
                f"query {query} has label {labels[query]!r} and its own picture in the store "
                f"{gallery.labels[position]!r}; both sides must name classes alike",
                ExitCode.DATA,
            )
