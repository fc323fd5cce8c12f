"""What stores cost: each function runs in a process of its own, so that memory does not mix."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ke_metric.arrays import FloatArray, IntArray
from ke_metric.evaluation.backend import load_faiss
from ke_metric.retrieval.index import StoreSettings, open_store
from ke_metric.stores.contract import Hits, Item, VectorStore

K = 10
BLOCK = 10_000
"""Vectors that are made, and added, at a time; as many are added more, and removed, at the end."""
INTRINSIC = 10
"""Independent numbers behind a vector."""
SEED = 20260101
MORE, QUERIES = 1_000_000_001, 1_000_000_002
"""Blocks of the vectors that are added more, and of the queries."""
CANDIDATES = 4
CLASSES = 1000
ALONE = 200
"""Queries that are asked one at a time."""
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        store: Kind of store and of index, such as `faiss HNSW32`, `memmap` or `milvus FLAT`.
        folder: Where the store lies.
        count: Number of vectors, N.
        dimension: Numbers in each, D.
        queries: Number of queries.
        rounds: How often the store and bare FAISS search in turns.
    """

    store: str
    folder: Path
    count: int
    dimension: int
    queries: int
    rounds: int

    @property
    def kind(self) -> str:
        """Kind of store: faiss, memmap or milvus."""
        return self.store.split()[0]

    @property
    def bare(self) -> str | None:
        """FAISS's name of the index that the store is compared with; None where there is none."""
        if self.kind == "milvus":
            return None
        return "Flat" if self.kind == "memmap" else self.store.split()[1]


def synthetic(block: int, count: int, dimension: int) -> FloatArray:
    """Return vectors of length 1 that lie near a surface of `INTRINSIC` dimensions, as FAISS's SyntheticDataset does.

    Args:
        block: Number of the block; equal for equal vectors.
        count: Number of vectors, at most `BLOCK`.
        dimension: Numbers in each.
    """
    fixed = np.random.default_rng(SEED)
    spread = fixed.random((INTRINSIC, dimension))
    scale = fixed.random(dimension) * 4 + 0.1
    draw = np.random.default_rng([SEED, block])
    vectors = np.sin(draw.standard_normal((BLOCK, INTRINSIC))[:count] @ spread * scale)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def blocks(task: Task) -> Iterator[tuple[int, FloatArray]]:
    """Yield the vectors of a gallery, and the number of the first of each block."""
    for first in range(0, task.count, BLOCK):
        yield first, synthetic(first // BLOCK, min(BLOCK, task.count - first), task.dimension)


def queries_of(task: Task) -> FloatArray:
    """Return the queries [Q, D], of the same distribution."""
    parts = [
        synthetic(QUERIES + first, min(BLOCK, task.queries - first), task.dimension)
        for first in range(0, task.queries, BLOCK)
    ]
    return np.concatenate(parts)


def items_from(first: int, count: int) -> list[Item]:
    """Return items with paths and labels of usual lengths; an id is the number of its vector."""
    return [
        Item(str(n), f"pictures/{n % CLASSES:04d}/{n:08d}.jpg", f"class {n % CLASSES}")
        for n in range(first, first + count)
    ]


def opened(task: Task, *, writing: bool) -> VectorStore:
    """Open the store of a task as an index does."""
    detail = task.store.partition(" ")[2]
    fields = {"faiss": {"factory": detail}, "milvus": {"index": detail}, "memmap": {}}[task.kind]
    return open_store(task.folder, task.dimension, StoreSettings.of(kind=task.kind, **fields), writing=writing)


def peak_megabytes() -> float | None:
    """Return the most memory that this process ever had, in MB; None where the system does not tell.

    Not `ru_maxrss`: a process has that of the one that started it, if it is more.
    """
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def torch_alone() -> float | None:
    """Return the peak memory of a process that imported torch and did nothing, in MB."""
    import torch  # noqa: F401

    return peak_megabytes()


def build(task: Task) -> dict[str, Any]:
    """Add everything, block by block, and bring the index up to date; making the vectors is not counted."""
    seconds, store = clocked(partial(opened, task, writing=True))
    for first, vectors in blocks(task):
        items = items_from(first, len(vectors))
        seconds += clocked(partial(store.add, items, vectors))[0]
    indexing, _ = clocked(store.flush)
    store.close()
    size = sum(path.stat().st_size for path in task.folder.rglob("*") if path.is_file())
    return {"add": seconds, "flush": indexing, "bytes": size, "build_peak": peak_megabytes()}


def open_and_search(task: Task) -> dict[str, Any]:
    """Open the store and do nothing but search: that takes so much memory."""
    queries = queries_of(task)
    seconds, store = clocked(partial(_opened_and_used, task, queries[:1]))
    store.search(queries, K)
    for query in queries[:ALONE]:
        store.search(query[None], K)
    store.close()
    return {"open": seconds, "search_peak": peak_megabytes()}


def _opened_and_used(task: Task, query: FloatArray) -> VectorStore:
    store = opened(task, writing=False)
    store.search(query, K)
    return store


def truth(task: Task) -> IntArray:
    """Return the numbers of the `K` vectors that are most similar to each query, by bare FAISS, exactly."""
    return _bare_index("Flat", task)[0].search(queries_of(task), K)[1]


def compare(task: Task, expected: IntArray) -> dict[str, Any]:
    """Search the store and bare FAISS in turns.

    Args:
        task: What is measured.
        expected: From `truth`.
    """
    queries = queries_of(task)
    store = opened(task, writing=False)
    facts = dict(store.describe())
    alone = queries[:ALONE]
    found = {
        "reason": facts.get("reason"),
        "settings": facts.get("search", {}),
        "recall": recall_of(_numbers(store.search(queries, K)), expected),
        "with_items": statistics.median(
            clocked(lambda: store.search(queries, K).items())[0] for _ in range(task.rounds)
        ),
    }
    search = partial(store.search, queries, K)
    one_by_one = partial(_one_by_one, lambda query: store.search(query, K), alone)
    with_items = partial(_one_by_one, lambda query: store.search(query, K).items(), alone)
    found["alone_with_items"] = clocked(with_items)[0]
    if task.bare is None:
        found["batched"] = [clocked(search)[0] for _ in range(task.rounds)]
        found["alone"] = [clocked(one_by_one)[0] for _ in range(task.rounds)]
    else:
        bare, found["bare_build"] = _bare_index(task.bare, task, facts.get("search", {}))
        found["bare_recall"] = recall_of(bare.search(queries, K)[1], expected)
        found["codes_recall"], found["codes_batched"] = _codes_alone(bare, queries, expected)
        found["batched"], found["bare_batched"] = in_turns(search, lambda: bare.search(queries, K), task.rounds)
        bare_alone = partial(_one_by_one, lambda query: bare.search(query, K), alone)
        found["alone"], found["bare_alone"] = in_turns(one_by_one, bare_alone, task.rounds)
    store.close()
    return found


def _one_by_one(search: Callable[[FloatArray], object], queries: FloatArray) -> None:
    for query in queries:
        search(query[None])


def _numbers(hits: Hits) -> IntArray:
    return np.array([[int(item.id) for item in row] for row in hits.items()])


def recall_of(numbers: IntArray, expected: IntArray) -> float:
    """Return how many of the expected numbers were found, as a share."""
    pairs = zip(numbers.tolist(), expected.tolist(), strict=True)
    return sum(len(set(row) & set(best)) for row, best in pairs) / expected.size


def _bare_index(factory: str, task: Task, settings: dict[str, int] | None = None) -> tuple[Any, float]:
    """Build FAISS's own index from an array in memory, set as the store's; and the seconds that took.

    Short codes are followed by FAISS's own comparison of so many times more candidates with whole vectors, as the
    store does it.
    """
    faiss = load_faiss()
    vectors = np.concatenate([block for _, block in blocks(task)])
    started = time.perf_counter()
    index = faiss.index_factory(task.dimension, factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        sample = np.random.default_rng(SEED).choice(
            len(vectors), min(len(vectors), max(64 * faiss.extract_index_ivf(index).nlist, 65_536)), replace=False
        )
        index.train(vectors[np.sort(sample)])
    index.add(vectors)
    seconds = time.perf_counter() - started
    for name, value in (settings or {}).items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    if "PQ" in factory or "SQ" in factory:
        index = faiss.IndexRefineFlat(index, faiss.swig_ptr(vectors))
        index.k_factor = CANDIDATES
    del vectors
    gc.collect()
    return index, seconds


def _codes_alone(bare: Any, queries: FloatArray, expected: IntArray) -> tuple[float | None, float | None]:
    """Return recall and seconds of short codes without comparing again; None where there are none."""
    if not isinstance(bare, load_faiss().IndexRefine):
        return None, None
    index = load_faiss().downcast_index(bare.base_index)
    recall = recall_of(index.search(queries, K)[1], expected)
    return recall, statistics.median(clocked(lambda: index.search(queries, K))[0] for _ in range(3))


def in_turns(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of two calls in each round; they take turns in being first, after one call not counted."""
    one(), other()
    seconds: tuple[list[float], list[float]] = [], []
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            seconds[which].append(clocked((one, other)[which])[0])
    return seconds


def change(task: Task) -> dict[str, Any]:
    """Add `BLOCK` vectors more and remove as many of the first ones; then search while the index is behind."""
    store = opened(task, writing=True)
    queries = queries_of(task)
    store.search(queries[:1], K)
    items, vectors = items_from(task.count, BLOCK), synthetic(MORE, BLOCK, task.dimension)
    gone = [str(n) for n in range(0, task.count, max(1, task.count // BLOCK))][:BLOCK]
    found: dict[str, Any] = {"add_more": clocked(partial(store.add, items, vectors))[0]}
    found["remove"] = clocked(partial(store.remove, gone))[0] * BLOCK / len(gone)
    store.search(queries, K)
    found["behind"] = statistics.median(clocked(lambda: store.search(queries, K))[0] for _ in range(task.rounds))
    found["flush_more"] = clocked(store.flush)[0]
    store.close()
    return found


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how many seconds a call takes, and what it returns."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
