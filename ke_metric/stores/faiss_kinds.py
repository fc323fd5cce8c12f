"""Kinds of FAISS index by their factory string: which is right for how many vectors, made, set, and told apart.

Shapes: N vectors of D numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.evaluation.backend import load_faiss

AUTO = "auto"
EXAMPLES = "Flat, HNSW32, IVF1024,Flat, IVF4096,PQ64x4fs or OPQ32,IVF4096,PQ32x8np"
SETTINGS = ("nprobe", "efSearch")
EF_SEARCH = 64
"""Places a search of a graph keeps in mind."""
MOST_SETTING = 1_000_000
LONGEST_NUMBER = 6
# Under so many vectors for each centroid FAISS warns; more than the other made searching no better.
LEAST_PER_CENTROID = 39
PER_CENTROID = 64
LEAST_SAMPLE = 65_536
# Numbers N x D up to which a kind is chosen, as N at D = 128; measured on two cores (eval/stores/results.md).
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


def check_factory(factory: str, dimension: int, search: Mapping[str, int]) -> None:
    """Refuse, as USAGE, what is neither `auto` nor an index of FAISS, and settings that this kind does not read."""
    if factory == AUTO:
        return
    used = apply_settings(make_index(factory, dimension), search)
    if unread := sorted(search.keys() - used.keys()):
        raise KeMetricError(
            f"search: {unread[0]} = {search[unread[0]]}: an index of kind {factory!r} does not read it; it reads "
            f"{', '.join(used) or 'no setting'}",
            ExitCode.USAGE,
        )


def make_index(factory: str, dimension: int) -> Any:
    """Return an empty FAISS index of inner products that takes vectors with their ids.

    Raises:
        KeMetricError: USAGE: FAISS has no such index for vectors of this length.
    """
    faiss = load_faiss()
    try:
        _check_words(factory)
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise KeMetricError(
            f"factory = {factory[:200]!r}: FAISS has no such index for vectors of {dimension} numbers: "
            f"{_reason(error)}; must be 'auto', or for example {EXAMPLES}",
            ExitCode.USAGE,
        ) from error
    transformed = isinstance(index, faiss.IndexPreTransform) and faiss.try_extract_index_ivf(index) is not None
    return index if isinstance(index, faiss.IndexIVF) or transformed else faiss.IndexIDMap(index)


def _check_words(factory: str) -> None:
    if "IDMap" in factory:
        raise ValueError("the ids are the store's own, without IDMap")
    if re.search(rf"\d{{{LONGEST_NUMBER + 1}}}", factory):
        raise ValueError(f"a number of more than {LONGEST_NUMBER} digits")
    # FAISS takes these, and fails when it adds or searches.
    if "NSG" in factory:
        raise ValueError("to an NSG that was built nothing can be added")
    if re.search(r"(IVF0|HNSW[01])(?!\d)", factory):
        raise ValueError("it needs at least 1 list, or 2 links of a graph")


def _reason(error: Exception) -> str:
    """Return what FAISS says, without the place in its source."""
    text = " ".join(str(error).split())
    return re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", text)[:200] or type(error).__name__


def _parts(index: Any, inside: Sequence[str] = ("index", "base_index", "quantizer")) -> Iterator[Any]:
    """Yield an index and those inside it, each as what it is, from the outside in."""
    faiss = load_faiss()
    part = faiss.downcast_index(index)
    yield part
    for name in inside:
        inner = getattr(part, name, None)
        if isinstance(inner, faiss.Index):
            yield from _parts(inner, inside)


def training_counts(index: Any) -> tuple[int, int]:
    """Return how many vectors the training of an index needs, and how many it is given; 0 where it needs none."""
    if index.is_trained:
        return 0, 0
    lists = [int(part.nlist) for part in _parts(index) if hasattr(part, "nlist")]
    codebooks = [int(part.pq.ksub) for part in _parts(index) if hasattr(part, "pq")]
    most = max([1, *lists, *codebooks])
    return LEAST_PER_CENTROID * most, max(PER_CENTROID * most, LEAST_SAMPLE)


def is_exact(index: Any) -> bool:
    """Return whether every vector is compared, whole, with every query."""
    return isinstance(_searched(index), load_faiss().IndexFlat)


def is_whole(index: Any) -> bool:
    """Return whether the index holds whole vectors, so that the similarities it finds are true ones."""
    faiss = load_faiss()
    return isinstance(_searched(index), faiss.IndexFlat | faiss.IndexHNSWFlat | faiss.IndexIVFFlat)


def is_graph(index: Any) -> bool:
    """Return whether the vectors themselves, and not only the centroids of lists, are linked to their neighbours."""
    return any(hasattr(part, "hnsw") for part in _parts(index, ("index", "base_index")))


def _searched(index: Any) -> Any:
    faiss = load_faiss()
    return next(part for part in _parts(index) if not isinstance(part, faiss.IndexIDMap))


def check_settings(search: Mapping[str, int]) -> dict[str, int]:
    """Return settings of a search; refuse another name, or no positive whole number, as USAGE."""
    for name, value in search.items():
        if name not in SETTINGS:
            raise KeMetricError(
                f"search: unknown setting {name!r}{closest(name, SETTINGS)}; there are {', '.join(SETTINGS)}",
                ExitCode.USAGE,
            )
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SETTING:
            raise KeMetricError(
                f"search: {name} = {value!r}, must be a whole number from 1 to {MOST_SETTING:,}", ExitCode.USAGE
            )
    return dict(search)


def apply_settings(index: Any, search: Mapping[str, int]) -> dict[str, int]:
    """Set how thoroughly an index is searched, and return what was set.

    It is set on the index itself: importing pytorch_metric_learning replaces FAISS's `Index.search` by one that takes
    no parameters. Where `search` does not say, `nprobe` is the root of the number of lists, `efSearch` `EF_SEARCH`.
    """
    used: dict[str, int] = {}
    for part in _parts(index):
        if hasattr(part, "nprobe"):
            used["nprobe"] = min(search.get("nprobe", math.isqrt(int(part.nlist))), int(part.nlist))
            part.nprobe = used["nprobe"]
        if hasattr(part, "hnsw"):
            used["efSearch"] = search.get("efSearch", EF_SEARCH)
            part.hnsw.efSearch = used["efSearch"]
    return used


@dataclass(frozen=True)
class Choice:
    """A kind of index by FAISS's name of it, and the reason for it in one sentence."""

    factory: str
    reason: str


def choose_kind(count: int, dimension: int, present: str | None = None) -> Choice:
    """Choose the kind of index for N vectors of length D.

    The kind that is `present` stays while it is right for up to twice as many.
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
