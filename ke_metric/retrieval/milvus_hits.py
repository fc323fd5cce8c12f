"""The hits of a search in Milvus, as they come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ke_metric.evaluation.embeddings import IntArray
from ke_metric.retrieval.milvus_collection import Row
from ke_metric.retrieval.vector_store import Item


class Found:
    """The hits of a search; its different items are numbered as they come.

    Args:
        queries: How many there are, Q.
        k: Neighbours of each.

    Attributes:
        similarities: [Q, K] float32, -inf where there is no hit yet.
        numbers: [Q, K] int64, -1 where there is no hit yet.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.similarities = np.full((queries, k), -np.inf, np.float32)
        self.numbers = np.full((queries, k), -1, np.int64)
        self._number_of: dict[str, int] = {}
        self._items: list[Item] = []

    def enter(self, start: int, answer: Sequence[Sequence[Row]]) -> None:
        """Enter the hits of the queries from `start` on."""
        for query, hits in enumerate(answer, start):
            self.numbers[query, : len(hits)] = [self._number(hit) for hit in hits]
            self.similarities[query, : len(hits)] = [hit["distance"] for hit in hits]

    def items_of(self, numbers: IntArray) -> list[Item]:
        """Return the items of numbers."""
        return [self._items[number] for number in numbers.tolist()]

    def _number(self, hit: Row) -> int:
        number = self._number_of.setdefault(hit["id"], len(self._items))
        if number == len(self._items):
            self._items.append(Item(hit["id"], hit["entity"]["path"], hit["entity"]["label"]))
        return number
