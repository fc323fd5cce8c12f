"""Which kind of FAISS index is right for how many vectors.

Shapes: N vectors of D numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Numbers N x D up to which a kind is chosen, as N at D = 128; measured on two cores (eval/results/stores.md).
# Flat: an exact search for one query takes a few milliseconds.
FLAT_NUMBERS = 100_000 * 128
# A graph needs no training and takes new vectors as they come, but is built at a few thousand vectors a second, and
# takes a quarter of a kilobyte per vector beside the vectors.
HNSW_NUMBERS = 500_000 * 128
# Lists of whole vectors are built several times as fast, but are all in memory: up to 1 GB.
IVF_NUMBERS = 2_000_000 * 128
# The most lists: training them takes hours beyond.
MOST_LISTS = 65_536
PER_LIST = 64
# A kind that is there is kept until a gallery shrinks to half of what it is chosen for: around a limit, an index is
# not built anew with every change.
SHRINKING = (1.25, 1.5, 1.75, 2.0)


@dataclass(frozen=True)
class Choice:
    """A kind of index.

    Attributes:
        factory: FAISS's name of it, for `faiss.index_factory`.
        reason: Why, in one sentence.
    """

    factory: str
    reason: str


def choose_kind(count: int, dimension: int, present: str | None = None) -> Choice:
    """Choose the kind of index for a number of vectors.

    Args:
        count: Number of vectors, N.
        dimension: Their length, D.
        present: The kind that is there; it stays while it is right for up to twice as many.
    """
    choice = _of_size(count, dimension)
    larger = {_of_size(round(count * step), dimension).factory for step in SHRINKING}
    if present is not None and present != choice.factory and present in larger:
        return Choice(present, f"{present}: {count:,} vectors are fewer than it is chosen for, but not by half")
    return choice


def _of_size(count: int, dimension: int) -> Choice:
    numbers = count * dimension
    what = f"{count:,} vectors of {dimension} numbers take {_size(4 * numbers)}"
    if numbers <= FLAT_NUMBERS:
        return Choice("Flat", f"Flat: {what} and are searched exactly")
    if numbers <= HNSW_NUMBERS:
        return Choice("HNSW32", f"HNSW32: {what}, much to read for every query; a graph of neighbours reads little")
    lists = f"IVF{list_count(count)}"
    if numbers <= IVF_NUMBERS:
        return Choice(f"{lists},Flat", f"{lists},Flat: {what}; lists are built much faster than a graph")
    codes = f"PQ{dimension // 2}x4fs" if dimension % 2 == 0 else "SQ8"
    short = dimension // 4 if dimension % 2 == 0 else dimension
    return Choice(
        f"{lists},{codes}",
        f"{lists},{codes}: {what}, much to hold in memory; codes take {_size(count * (short + 8))}, and what they "
        "find is compared again with the vectors on the disk",
    )


def list_count(count: int) -> int:
    """Return the number of lists for N vectors: a power of 4, at most 8 √N, and at least 64 vectors for each."""
    right = min(count / PER_LIST, 8 * math.sqrt(count), MOST_LISTS)
    return int(4 ** max(1, math.floor(math.log(max(right, 1), 4))))


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
