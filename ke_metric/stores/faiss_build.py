"""Items with equal vectors in an index that is a graph: one of them is linked, and stands for all.

A graph of neighbours links each vector to the nearest ones. Linked one by one, equal vectors are each other's nearest
and leave no room for links to anything else: the graph falls apart, and what lies behind is not found however
thoroughly is searched.

Shapes: N rows, M copies, Q queries, C candidates, K neighbours, D numbers in a vector.

A FAISS index is built from a gallery, and extended by its new rows.

Vectors are streamed: beside the index, a block of them is in memory, and a sample for the kinds that are trained.

Shapes: N rows, D numbers in a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ke_metric.arrays import BoolArray, FloatArray, IntArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import load_faiss
from ke_metric.evaluation.embeddings import row_chunks
from ke_metric.randomness import numpy_generator
from ke_metric.stores.faiss_kinds import is_graph, make_index, training_counts
from ke_metric.stores.gallery import Gallery

BLOCK_BYTES = 32 << 20
CELLS = 1 << 20
"""Items that candidates stand for, held at a time in about 60 bytes each."""


@dataclass(frozen=True, eq=False)
class Copies:
    """Rows that are not in an index, because another row with an equal vector is.

    Attributes:
        rows: [M] int64, ascending.
        linked: [M] the row in the index that stands for each.
    """

    rows: IntArray
    linked: IntArray

    @classmethod
    def none(cls) -> Copies:
        """Return no copies."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: Copies) -> Copies:
        rows = np.concatenate([self.rows, other.rows])
        order = np.argsort(rows)
        return Copies(rows[order], np.concatenate([self.linked, other.linked])[order])

    def to_bytes(self) -> bytes:
        """Return them as bytes for `from_bytes`."""
        return np.stack([self.rows, self.linked]).astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, text: bytes) -> Copies:
        """Return what `to_bytes` made bytes of."""
        rows, linked = np.frombuffer(text, "<i8").astype(np.int64).reshape(2, -1)
        return cls(rows, linked)


def find_copies(gallery: Gallery, linked: IntArray, new: IntArray) -> Copies:
    """Find the rows whose vector an earlier row has.

    Args:
        gallery: Whose vectors are compared.
        linked: Rows that are in the index, ascending, no two of them equal.
        new: Rows that are to be added, ascending, after those.
    """
    rows = np.concatenate([linked, new])
    hashes = _hashes(gallery, rows)
    order = np.argsort(hashes, kind="stable")
    begins = np.flatnonzero(np.diff(hashes[order], prepend=~hashes[order[:1]]))
    first = rows[order[np.repeat(begins, np.diff(begins, append=len(order)))]]
    different = rows[order] != first
    pairs = np.stack([rows[order][different], first[different]])
    # Vectors with one hash are most likely, not surely, equal. One of a few that are not is linked by itself.
    equal = [
        (gallery.vectors(some[0]) == gallery.vectors(some[1])).all(1)
        for some in (pairs[:, part] for part in row_chunks(pairs.shape[1], _at_a_time(gallery)))
    ]
    pairs = pairs[:, np.concatenate([np.empty(0, np.bool_), *equal])]
    pairs = pairs[:, np.argsort(pairs[0])]
    return Copies(pairs[0], pairs[1])


def _hashes(gallery: Gallery, rows: IntArray) -> npt.NDArray[np.uint64]:
    """Return [N] a number for each row, the same for equal vectors."""
    generator = numpy_generator(0, 0, "hashes of vectors")
    weights = generator.integers(1 << 64, size=gallery.dimension, dtype=np.uint64) | np.uint64(1)
    found = [np.empty(0, np.uint64)]
    for some in row_chunks(len(rows), _at_a_time(gallery)):
        # Added to 0, -0 becomes 0: numbers that are equal then have equal bits.
        bits = (gallery.vectors(rows[some]) + np.float32(0)).view(np.uint32)
        found.append(np.einsum("nd,d->n", bits.astype(np.uint64), weights))
    return np.concatenate(found)


def _at_a_time(gallery: Gallery) -> int:
    return max(1, BLOCK_BYTES // (4 * gallery.dimension))


class Unfolding:
    """Puts in place of a row that was found all items that it stands for.

    Args:
        copies: Which rows stand for which.
        removed: [N] which of the rows that the index covers are gone.
    """

    def __init__(self, copies: Copies, removed: BoolArray) -> None:
        linked = np.unique(copies.linked)
        rows = np.concatenate([linked, copies.rows])
        of = np.concatenate([linked, copies.linked])
        there = ~removed[rows]
        rows, of = rows[there], of[there]
        order = np.lexsort((rows, of))
        self._rows = np.append(rows[order], -1)  # read where nothing stands for another
        self._begin = np.full(len(removed), -1, np.int64)
        self._size = (~removed).astype(np.int64)
        self._begin[linked] = np.searchsorted(of[order], linked)
        self._size[linked] = np.searchsorted(of[order], linked, side="right") - self._begin[linked]
        self._size[copies.rows] = 0

    @property
    def size(self) -> IntArray:
        """[N] how many items each row stands for; 0: it is not in the index, or gone with all its copies."""
        return self._size

    def unfold(self, similarities: FloatArray, rows: IntArray, k: int) -> tuple[FloatArray, IntArray]:
        """Return the k most similar items, of equally similar ones the earlier row first.

        Args:
            similarities: [Q, C] float32, in any order.
            rows: [Q, C] rows of the index, no two of a query equal; -1 for none.
            k: How many; -inf and -1 where there are fewer.
        """
        best = np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, np.int64)
        for some in row_chunks(len(rows), max(1, CELLS // (k + rows.shape[1]))):
            self._unfold(similarities[some], rows[some], best[0][some], best[1][some])
        return best

    def _unfold(
        self, similarities: FloatArray, rows: IntArray, best_similarities: FloatArray, best_rows: IntArray
    ) -> None:
        k = best_rows.shape[1]
        order = np.argsort(-similarities, axis=1, kind="stable")
        similarities, rows = np.take_along_axis(similarities, order, 1), np.take_along_axis(rows, order, 1)
        counts = np.where(rows >= 0, np.minimum(self._size[rows], k), 0)
        before = counts.cumsum(1) - counts
        # What comes after k others that are more similar is not among the best.
        last = np.take_along_axis(similarities, (before < k).sum(1, keepdims=True) - 1, 1)
        counts[(before >= k) & (similarities < last)] = 0
        place = np.repeat(np.arange(rows.size), counts.ravel())
        nth = np.arange(len(place)) - np.repeat(counts.cumsum() - counts.ravel(), counts.ravel())
        linked, query = rows.ravel()[place], place // rows.shape[1]
        begin = self._begin[linked]
        found = np.where(begin < 0, linked, self._rows[np.where(begin < 0, -1, begin + nth)])
        similarity = similarities.ravel()[place]
        order = np.lexsort((found, -similarity, query))
        ends = counts.sum(1).cumsum()
        rank = np.arange(len(place)) - np.repeat(ends - counts.sum(1), counts.sum(1))
        kept = rank < k
        best_similarities[query[kept], rank[kept]] = similarity[order][kept]
        best_rows[query[kept], rank[kept]] = found[order][kept]


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
