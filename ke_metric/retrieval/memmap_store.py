"""The store that needs nothing but NumPy and torch: exact search streamed from the file of vectors, on any device.

Shapes: B batch, Q queries, K neighbours, D embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ke_metric.evaluation.embeddings import FloatArray
from ke_metric.retrieval.exact_search import search_rows
from ke_metric.retrieval.gallery import Gallery
from ke_metric.retrieval.vector_store import Hits, Item, check_queries, most_found
from ke_metric.retrieval.where import Where


class MemmapStore:
    """Exact search through a gallery; see `VectorStore` for the methods and `Gallery` for the files.

    Every search reads the vectors of all items from the disk (or from what the system has cached of it): 4 N D bytes
    and 2 Q N D operations, so a hundred queries at once are far cheaper than one a hundred times. Memory is about
    40 MB beside queries and hits, however many items there are. Nothing is built: what was added is found at once.

    Args:
        folder: Where the files lie; made when writing and absent.
        dimension: Length D of the vectors.
        writing: Be the one process that may change the store.
        device: Where torch computes.

    Raises:
        KeMetricError: As `Gallery`.
    """

    def __init__(self, folder: Path, dimension: int, *, writing: bool, device: str | torch.device = "cpu") -> None:
        self._gallery = Gallery(folder, dimension, writing=writing)
        self._device = device

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return self._gallery.dimension

    def __len__(self) -> int:
        return len(self._gallery)

    def add(self, items: Sequence[Item], vectors: FloatArray, *, replace: bool = False) -> None:
        """Add items, all of them or none; see `VectorStore.add`."""
        self._gallery.add(items, vectors, replace=replace)

    def remove(self, ids: Collection[str]) -> None:
        """Remove items, all of them or none; see `VectorStore.remove`."""
        self._gallery.remove(ids)

    def search(self, queries: FloatArray, k: int, *, where: Where | None = None) -> Hits:
        """Find the items with the largest inner product with each query; see `VectorStore.search`."""
        check_queries(queries, k, self.dimension)
        k = most_found(k, len(self))
        rows = None if where is None else self._gallery.matching(where)
        found = search_rows(self._gallery, queries, k, rows=rows, device=self._device)
        return Hits(*found, self._gallery.items, self._gallery.vectors)

    def matching(self, where: Where) -> list[Item]:
        """Return all items for which `where` holds, in the order of `read`."""
        return self._gallery.items_matching(where)

    def known(self, ids: Collection[str]) -> set[str]:
        """Return those of the ids that are in the store."""
        return self._gallery.known(ids)

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Return the items of ids, in order; see `VectorStore.get`."""
        return self._gallery.get(ids)

    def read(self, batch_size: int = 8192) -> Iterator[tuple[list[Item], FloatArray]]:
        """Yield everything, at most batch_size items at a time: B items and their vectors float32 [B, D]."""
        return self._gallery.read(batch_size)

    def flush(self) -> None:
        """Do nothing: nothing here only makes searching faster."""

    def describe(self) -> Mapping[str, Any]:
        """Return kind, exactness and sizes as plain JSON values."""
        rows, holes = self._gallery.snapshot()
        return {
            "kind": "memmap",
            "exact": True,
            "items": rows - len(holes),
            "removed": len(holes),
            "bytes": self._gallery.nbytes,
        }

    def close(self) -> None:
        """Release files and lock; once is enough."""
        self._gallery.close()
