"""A FAISS index is built from a gallery, and extended by its new rows.

Vectors are streamed: beside the index, a block of them is in memory, and a sample for the kinds that are trained.

Shapes: N rows, D numbers in a vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import IntArray
from ke_metric.evaluation.faiss_library import load_faiss
from ke_metric.randomness import numpy_generator
from ke_metric.retrieval.copies import Copies, find_copies
from ke_metric.retrieval.faiss_kinds import is_graph, make_index, training_counts
from ke_metric.retrieval.gallery import Gallery

BLOCK_BYTES = 32 << 20


def build_index(gallery: Gallery, factory: str, *, rows: int, holes: IntArray) -> tuple[Any, Copies]:
    """Return a new index of all items among the first rows, whose ids are rows; and what a graph of them leaves out.

    Args:
        gallery: Whose vectors it gets.
        factory: FAISS's name of its kind.
        rows: Number of rows, N.
        holes: The rows that are no items, ascending.

    Raises:
        KeMetricError: FAISS cannot make such an index of these vectors.
    """
    index = make_index(factory, gallery.dimension)
    try:
        if not index.is_trained:
            _, most = training_counts(index)
            index.train(gallery.vectors(_sample(np.delete(np.arange(rows), holes), most)))
    except RuntimeError as error:
        raise _failed(factory, error) from error
    return index, extend_index(gallery, index, factory, first=0, rows=rows)


def extend_index(gallery: Gallery, index: Any, factory: str, *, first: int, rows: int) -> Copies:
    """Add the items of rows `first` to before `rows` to an index, in place.

    Returns:
        Those of them that a graph does not get, because it has an equal vector already.

    Raises:
        KeMetricError: FAISS cannot add to such an index; what it holds by then is not known.
    """
    holes, copies = gallery.holes, Copies.none()
    if is_graph(index):
        copies = find_copies(gallery, linked_rows(index), np.setdiff1d(np.arange(first, rows), holes))
        holes = np.union1d(holes, copies.rows)
    at_a_time = max(1, BLOCK_BYTES // (4 * gallery.dimension))
    try:
        for start, block in gallery.blocks(first, rows, at_a_time):
            inside = holes[np.searchsorted(holes, start) : np.searchsorted(holes, start + len(block))] - start
            index.add_with_ids(np.delete(block, inside, 0), np.delete(np.arange(start, start + len(block)), inside))
    except RuntimeError as error:
        raise _failed(factory, error) from error
    return copies


def linked_rows(index: Any) -> IntArray:
    """Return the rows that a graph holds, ascending."""
    rows: IntArray = np.sort(load_faiss().vector_to_array(index.id_map))
    return rows


def _sample(rows: IntArray, most: int) -> IntArray:
    """Return at most so many of the rows, drawn without regard to their order, ascending."""
    if len(rows) <= most:
        return rows
    return np.sort(numpy_generator(0, 0, "faiss training").choice(rows, most, replace=False))


def _failed(factory: str, error: RuntimeError) -> KeMetricError:
    return KeMetricError(
        f"factory = {factory!r}: FAISS cannot build it of these vectors: {' '.join(str(error).split())[:300]}; "
        "nothing is lost: they are in the gallery, and are searched exactly",
        ExitCode.USAGE,
    )
