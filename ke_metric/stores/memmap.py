"""The store that needs nothing but NumPy and torch: exact search of a gallery, streamed from the disk.

Memory is bounded, whatever the number of vectors. What is found does not depend on k, on the other queries or on
which other rows are searched. The similarity of two vectors is their inner product in float64, rounded to float32; of
equal ones the earlier row comes first. Products in float32, of which a library computes the last bits in one way or
another, only propose: a few more rows than are wanted are compared again. Where that leaves it open which are the
best, as with many copies of one vector, that query is searched once more in float64.

The K best of a block of products are found by way of groups of neighbouring rows: all of them lie in the K groups
with the largest maxima, and a maximum per group costs a tenth of what choosing among all rows does. Products are
[rows, queries]: the other way round torch took half as long again on a processor.

Shapes: N rows, Q queries, D embedding, K neighbours, M rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ke_metric.arrays import FloatArray, IntArray, row_chunks
from ke_metric.evaluation.backend import exact_products
from ke_metric.stores.contract import Hits, Where, check_queries, most_found
from ke_metric.stores.gallery import Gallery

BLOCK_BYTES = 8 << 20
"""The most vectors in memory at a time."""
PRODUCTS = 2 << 20
"""Products in memory at a time, 4 bytes each."""
FEWEST_ROWS = 4096
"""Rows of a block, where they are not more than BLOCK_BYTES; more where there are few queries."""
CHOICES = 1 << 18
"""Keys among which is chosen at a time; with what computing them takes about 40 bytes each."""
GROUP = 32
SPARE = 4
"""More rows than are wanted are proposed by products in float32, by so many."""
COMPARED = 1 << 20
"""Numbers of vectors that are compared again at a time, in about 20 bytes each."""
LAST_ROW = (1 << 32) - 1
EPSILON = float(np.finfo(np.float32).epsneg)
Found = tuple[FloatArray, IntArray]
"""Similarities float32 [Q, K], most similar first, and rows int64 [Q, K]; -inf and -1 where there is none."""


def search_rows(
    gallery: Gallery,
    queries: FloatArray,
    k: int,
    *,
    rows: IntArray | None = None,
    first: int = 0,
    device: str | torch.device = "cpu",
    doubly: bool = False,
) -> Found:
    """Find the rows with the largest inner product with each query; of equal products the earlier row is first.

    Memory beside queries and result: about 40 MB, with 2,000 rows or more in a block; every call reads all rows that
    it searches, once or twice.

    Args:
        gallery: Whose rows are searched; holes are not.
        queries: [Q, D] float32, finite.
        k: Neighbours per query, at least 1.
        rows: Search only these, ascending, none of them a hole; None: all.
        first: Search no row before this one.
        device: Where torch computes.
        doubly: Multiply in float64 only: slower, and sure at once.
    """
    assert k >= 1, k
    search = partial(_search, gallery, rows=rows, first=first)
    place = "cpu" if torch.device(device).type == "mps" else device  # which has no float64
    if doubly:
        return search(queries, k, device=place, kind=torch.float64)
    scores, proposed = search(queries, k + SPARE, device=device, kind=torch.float32)
    similarities = similarities_of(gallery.vectors, queries, proposed)
    found, unsure = settle(similarities, scores, proposed, gallery.dimension, k)
    if len(unsure):
        found[0][unsure], found[1][unsure] = search(queries[unsure], k, device=place, kind=torch.float64)
    return found


def settle(
    similarities: FloatArray, scores: FloatArray, rows: IntArray, dimension: int, k: int
) -> tuple[Found, IntArray]:
    """Choose the k best of more rows [Q, C] that were proposed by products in float32, the largest first.

    What was not proposed has no larger product than the last of C rows; where there are fewer, rows are -1.

    Args:
        similarities: [Q, C] of the rows, from products in float64; -inf for row -1.
        scores: [Q, C] products in float32, never rising along a row.
        rows: [Q, C].
        dimension: Numbers of a vector.
        k: At most C.

    Returns:
        The best; and the numbers of the queries for which others than those proposed may be among them.
    """
    order = np.lexsort((rows, -similarities), axis=1)[:, :k]
    each = np.arange(len(rows))[:, None]
    found = similarities[each, order], rows[each, order]
    # The error of an inner product of D numbers, summed up in whatever order, for vectors of length 1.
    error = (dimension + 4) * EPSILON * 1.01
    unsure = (rows[:, -1] >= 0) & (scores[:, -1].astype(np.float64) + error >= found[0][:, -1])
    return found, np.flatnonzero(unsure)


def best(similarities: FloatArray, rows: IntArray, k: int) -> Found:
    """Return the k most similar of each query, of similarities [Q, C] and rows [Q, C] in any order; C >= k."""
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(rows, order, 1)


def similarities_of(vectors: Callable[[IntArray], FloatArray], queries: FloatArray, rows: IntArray) -> FloatArray:
    """Return the similarity [Q, C] of each query and each of its rows [Q, C]; -inf for row -1."""
    similarities = np.full(rows.shape, -np.inf, np.float32)
    for some in row_chunks(len(rows), max(1, COMPARED // max(1, rows.shape[1] * queries.shape[1]))):
        there = rows[some] >= 0
        distinct, place = np.unique(rows[some][there], return_inverse=True)
        similarities[some][there] = products_of(np.repeat(queries[some], there.sum(1), 0), vectors(distinct)[place])
    return similarities


def products_of(queries: FloatArray, vectors: FloatArray) -> FloatArray:
    """Return the similarity [M] of each of M queries [M, D] and the vector beside it, computed in float64."""
    products = queries.astype(np.float64)
    products *= vectors
    similarities: FloatArray = products.sum(1).astype(np.float32)
    return similarities


def _search(
    gallery: Gallery,
    queries: FloatArray,
    k: int,
    *,
    rows: IntArray | None,
    first: int,
    device: str | torch.device,
    kind: torch.dtype,
) -> Found:
    """Find the k largest products, computed in numbers of a kind and rounded to float32."""
    with exact_products(str(device)):
        # A copy, because torch warns of arrays that are read-only.
        on_device = torch.from_numpy(np.array(queries, order="C")).to(device).to(kind)
        best = _Best(len(queries), k, device)
        memory = torch.empty(PRODUCTS, device=device, dtype=kind)
        most = min(max(FEWEST_ROWS, PRODUCTS // max(len(queries), 1)), max(1, BLOCK_BYTES // (4 * gallery.dimension)))
        for numbers, block in _live_blocks(gallery, rows, first, most):
            names, vectors = torch.from_numpy(numbers).to(device), torch.from_numpy(block).to(device).to(kind)
            grouped = _whole_groups(len(names))
            few = max(1, min(PRODUCTS // grouped, CHOICES // (k + min(k * GROUP, grouped))))
            for some in row_chunks(len(queries), few):
                best.improve(some, _products(on_device[some], vectors, memory).float(), names)
        return best.found()


class _Best:
    """The K best of each query so far, as keys, in no order; and the worst of them."""

    def __init__(self, queries: int, k: int, device: str | torch.device) -> None:
        nothing = torch.full((queries, k), -torch.inf, device=device)
        self.keys = _keys(nothing, torch.tensor(LAST_ROW, device=device))
        self.worst = self.keys[:, 0].clone()

    def improve(self, some: slice, scores: Tensor, rows: Tensor) -> None:
        """Let in the scores [M, Q] of some queries, in whole groups of `rows`, which lack those that are padding.

        A group's key is that of its maximum in its first row: no key in the group is larger. Groups are in the order
        of rows, so an item of a group that is not chosen has K others before it.
        """
        rows = functional.pad(rows, (0, len(scores) - len(rows)), value=LAST_ROW).view(-1, GROUP)
        grouped = scores.view(len(rows), GROUP, -1)
        tops = _keys(grouped.amax(1).T.contiguous(), rows[:, 0])
        promising = (tops > self.worst[some, None]).sum(1)
        improved = promising.nonzero()[:, 0]
        if not len(improved):
            return
        groups = min(self.keys.shape[1], int(promising.max()))
        chosen = tops[improved].topk(groups, 1, sorted=False).indices
        found = grouped[chosen, :, improved[:, None]]
        queries = improved + some.start
        both = torch.cat([self.keys[queries], _keys(found, rows[chosen]).flatten(1)], 1)
        self.keys[queries] = best = both.topk(self.keys.shape[1], 1, sorted=False).values
        self.worst[queries] = best.amin(1)

    def found(self) -> Found:
        keys = self.keys.sort(1, descending=True).values
        rising = (keys >> 32).int()
        scores = (rising ^ ((rising >> 31) & 0x7FFFFFFF)).view(torch.float32)
        rows = torch.where(scores.isneginf(), -1, LAST_ROW - (keys & LAST_ROW))
        return scores.cpu().numpy(), rows.cpu().numpy()


def _live_blocks(
    gallery: Gallery, rows: IntArray | None, first: int, at_a_time: int
) -> Iterator[tuple[IntArray, FloatArray]]:
    """Yield numbers of rows, ascending [M], and their vectors [M, D]; never none."""
    if rows is not None:
        rows = rows[np.searchsorted(rows, first) :]
        for some in row_chunks(len(rows), at_a_time):
            numbers = np.array(rows[some])  # torch warns of arrays that are read-only
            yield numbers, gallery.vectors(numbers)
        return
    last, holes = gallery.snapshot()
    for start, block in gallery.blocks(first, last, at_a_time):
        numbers = np.arange(start, start + len(block))
        inside = holes[np.searchsorted(holes, start) : np.searchsorted(holes, start + len(block))]
        if not len(inside):
            yield numbers, block
        elif len(inside) < len(block):
            live = np.delete(numbers, inside - start)
            yield live, block[live - start]


def _whole_groups(rows: int) -> int:
    return -(-rows // GROUP) * GROUP


def _products(queries: Tensor, vectors: Tensor, memory: Tensor) -> Tensor:
    """Return the products [M, Q] of vectors [M, D] and queries [Q, D], and -inf up to whole groups of rows."""
    rows = _whole_groups(len(vectors))
    scores = memory[: rows * len(queries)].view(rows, len(queries))
    torch.mm(vectors, queries.T, out=scores[: len(vectors)])
    scores[len(vectors) :] = -torch.inf
    return scores


def _keys(scores: Tensor, rows: Tensor) -> Tensor:
    """Return int64 keys that are ordered as the scores, and for equal scores as the rows backwards.

    The upper half is the score's bits, those of a negative one turned so that they rise with it.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0 becomes 0
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (rising.long() << 32) + (LAST_ROW - rows)


class MemmapStore(Gallery):
    """A `VectorStore`: exact search through a gallery; see `Gallery` for its files.

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
        super().__init__(folder, dimension, writing=writing)
        self._device = device

    def search(self, queries: FloatArray, k: int, *, where: Where | None = None) -> Hits:
        """Find the items with the largest inner product with each query; see `VectorStore.search`."""
        check_queries(queries, k, self.dimension)
        k = most_found(k, len(self))
        rows = None if where is None else self.rows_matching(where)
        return Hits(*search_rows(self, queries, k, rows=rows, device=self._device), self.items, self.vectors)

    def flush(self) -> None:
        """Do nothing: nothing here only makes searching faster."""

    def describe(self) -> Mapping[str, Any]:
        """Return kind, exactness and sizes as plain JSON values."""
        rows, holes = self.snapshot()
        return {
            "kind": "memmap",
            "exact": True,
            "items": rows - len(holes),
            "removed": len(holes),
            "bytes": self.nbytes,
        }
