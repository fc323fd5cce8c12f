"""Exact search through the vectors of a gallery, streamed from the disk: memory is bounded, whatever their number.

Shapes: N rows, Q queries, D embedding, K neighbours, M rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ke_metric.evaluation.backend import exact_products
from ke_metric.evaluation.embeddings import FloatArray, IntArray, row_chunks
from ke_metric.retrieval.gallery import Gallery

BLOCK_BYTES = 8 << 20


def search_rows(
    gallery: Gallery,
    queries: FloatArray,
    k: int,
    *,
    rows: IntArray | None = None,
    first: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[FloatArray, IntArray]:
    """Find the rows with the largest inner product with each query.

    Args:
        gallery: Whose rows are searched; holes are not.
        queries: [Q, D] float32.
        k: Neighbours per query, at least 1.
        rows: Search only these, ascending, no holes; None: all from `first` on.
        first: Number of the first row that is searched.
        device: Where torch computes.

    Returns:
        Similarities [Q, K] float32, most similar first, -inf where there are fewer than K; rows [Q, K] int64, -1
        there.
    """
    assert k >= 1, k
    best = torch.full((len(queries), k), -torch.inf, device=device)
    found = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    with exact_products(str(device)):
        on_device = torch.from_numpy(queries).to(device)
        for numbers, vectors in _live_blocks(gallery, rows, first):
            block, names = torch.from_numpy(vectors).to(device), torch.from_numpy(numbers).to(device)
            for some in row_chunks(len(queries), 1024):
                scores = on_device[some] @ block.T
                both = torch.cat([best[some], scores], 1)
                both_names = torch.cat([found[some], names.expand(len(scores), -1)], 1)
                best[some], places = both.topk(k, 1)
                found[some] = both_names.gather(1, places)
    return best.cpu().numpy(), found.cpu().numpy()


def _live_blocks(gallery: Gallery, rows: IntArray | None, first: int) -> Iterator[tuple[IntArray, FloatArray]]:
    at_a_time = max(1, BLOCK_BYTES // (4 * gallery.dimension))
    if rows is not None:
        for some in row_chunks(len(rows), at_a_time):
            yield rows[some], gallery.vectors(rows[some])
        return
    last, holes = gallery.snapshot()
    for start, block in gallery.blocks(first, last, at_a_time):
        numbers = np.arange(start, start + len(block))
        inside = holes[np.searchsorted(holes, start) : np.searchsorted(holes, start + len(block))]
        if len(inside):
            live = np.delete(numbers, inside - start)
            yield live, block[live - start]
        else:
            yield numbers, block
