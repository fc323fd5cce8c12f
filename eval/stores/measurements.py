"""What stores cost: each function runs in a process of its own, so that memory does not mix."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eval.stores.servers import Server, Work, bare_client, folder_bytes, in_turns, requests_of, wait_until_indexed
from ke_metric.arrays import FloatArray, IntArray
from ke_metric.evaluation.backend import load_faiss
from ke_metric.retrieval.index import StoreSettings, open_store
from ke_metric.stores.contract import Condition, Hits, Item, VectorStore, Where
from ke_metric.stores.milvus_store import SECONDS_STRONG

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
SHARES = {"all": None, "10 %": CLASSES // 10, "0.1 %": CLASSES // 1000}
"""What is searched to how many of the classes it has: all, or those that a condition names."""
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        store: Kind of store and of index, such as `faiss HNSW32`, `memmap`, `milvus FLAT` or `postgres HNSW`.
        folder: Where the store lies.
        count: Number of vectors, N.
        dimension: Numbers in each, D.
        queries: Number of queries.
        rounds: How often the store and what is bare search in turns.
        server: Where the store lies, if not in the folder.
    """

    store: str
    folder: Path
    count: int
    dimension: int
    queries: int
    rounds: int
    server: Server | None = None

    @property
    def kind(self) -> str:
        """Kind of store: faiss, memmap, milvus (a file), milvus-server or postgres."""
        return self.store.split()[0]

    @property
    def bare(self) -> str | None:
        """FAISS's name of the index that the store is compared with; None where there is none."""
        if self.kind not in ("memmap", "faiss"):
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


def where_of(share: str) -> Where | None:
    """Return the condition that leaves a share of the items; None for all of them."""
    classes = SHARES[share]
    if classes is None:
        return None
    return Where((Condition("label", True, tuple(f"class {n}" for n in range(classes))),))


def opened(task: Task, *, writing: bool) -> VectorStore:
    """Open the store of a task as an index does."""
    detail = task.store.partition(" ")[2]
    fields = {"faiss": {"factory": detail}, "memmap": {}}.get(task.kind, {"index": detail})
    if task.server:
        fields["uri"] = task.server.uri
    settings = StoreSettings.of(kind=task.kind.partition("-")[0], **fields)
    return open_store(task.folder, task.dimension, settings, writing=writing)


def peak_megabytes() -> float | None:
    """Return the most memory that this process ever had, in MB; None where the system does not tell.

    Not `ru_maxrss`: a process has that of the one that started it, if it is more.
    """
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def torch_alone() -> float | None:
    """Return the peak memory of a process that imported torch, and this script, and did nothing, in MB.

    Every process that is measured has that: reading this function imports the package's stores, torchvision too.
    """
    import torch  # noqa: F401

    return peak_megabytes()


def build(task: Task) -> dict[str, Any]:
    """Add everything, block by block, and bring the index up to date; making the vectors is not counted."""
    seconds, store = clocked(partial(opened, task, writing=True))
    for first, vectors in blocks(task):
        items = items_from(first, len(vectors))
        seconds += clocked(partial(store.add, items, vectors))[0]
    indexing, _ = clocked(partial(_indexed, task, store))
    size = store.describe().get("bytes") if task.server else folder_bytes(task.folder)
    store.close()
    found = {"add": seconds, "flush": indexing, "bytes": size, "build_peak": peak_megabytes()}
    if task.server:
        found["server_bytes"] = folder_bytes(task.server.folder)
        found["bytes"] = size or found["server_bytes"]
    return found


def _indexed(task: Task, store: VectorStore) -> None:
    store.flush()
    if task.kind == "milvus-server":
        wait_until_indexed(store)


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


def truth(task: Task) -> dict[str, IntArray]:
    """Return the numbers of the `K` vectors most similar to each query, by bare FAISS, exactly, of each share.

    -1 where there are fewer.
    """
    vectors = np.concatenate([block for _, block in blocks(task)])
    found = {}
    for share, classes in SHARES.items():
        rows = np.flatnonzero(np.arange(task.count) % CLASSES < (classes or CLASSES))
        index = load_faiss().IndexFlatIP(task.dimension)
        index.add(vectors[rows] if classes else vectors)
        places = index.search(queries_of(task), K)[1]
        found[share] = np.where(places < 0, -1, rows[places])
    return found


Bare = Callable[[Sequence[FloatArray]], Work]
"""Parts of the queries to what searches with one after another."""


def compare(task: Task, expected: Mapping[str, IntArray]) -> dict[str, Any]:
    """Search the store, everything and under each condition, and bare FAISS or a bare client in turns.

    Args:
        task: What is measured.
        expected: From `truth`.
    """
    queries = queries_of(task)
    store = opened(task, writing=False)
    if task.kind == "milvus-server":
        time.sleep(SECONDS_STRONG)  # in which a new reader's answers wait for the server's tick
    facts = dict(store.describe())
    found: dict[str, Any] = {"reason": facts.get("reason"), "settings": facts.get("search", {}), "where": {}}
    if task.bare is None:
        found |= _searched(task, store, queries, "all", expected["all"])
    else:
        bare, found["bare_build"] = _bare_index(task.bare, task, facts.get("search", {}))
        found["bare_recall"] = recall_of(bare.search(queries, K)[1], expected["all"])
        found["codes_recall"], found["codes_batched"] = _codes_alone(bare, queries, expected["all"])
        found |= _searched(
            task,
            store,
            queries,
            "all",
            expected["all"],
            lambda parts: lambda: [bare.search(part, K) for part in parts],
        )
        del bare
    for share in list(SHARES)[1:]:
        found["where"][share] = _searched(task, store, queries[:ALONE], share, expected[share][:ALONE])
    store.close()
    return found


def _searched(  # the store, what is searched, what for, and what is right
    task: Task,
    store: VectorStore,
    queries: FloatArray,
    share: str,
    expected: IntArray,
    bare: Bare | None = None,
) -> dict[str, Any]:
    """Return recall, and seconds of one search with all queries and of one for each of them, beside what is bare."""
    where = where_of(share)
    search = partial(store.search, k=K, where=where)
    found: dict[str, Any] = {"recall": recall_of(_numbers(search(queries)), expected)}
    with _bare_requests(task, lambda parts: [search(part) for part in parts], store) as requests:
        bare = bare or requests
        for name, parts in (("batched", [queries]), ("alone", [query[None] for query in queries[:ALONE]])):
            ways: dict[str, Work] = {
                name: lambda parts=parts: [search(part) for part in parts],  # type: ignore[misc]
                f"{name}_items": lambda parts=parts: [search(part).items() for part in parts],  # type: ignore[misc]
            }
            if bare is not None:
                ways[f"bare_{name}"] = bare(parts)
            for way, costs in in_turns(ways, task.rounds, task.server).items():
                found |= costs.named(way)
    found["with_items"] = statistics.median(found["batched_items"])
    found["alone_with_items"] = statistics.median(found["alone_items"])
    return found


@contextmanager
def _bare_requests(
    task: Task, search: Callable[[Sequence[FloatArray]], object], store: VectorStore
) -> Iterator[Bare | None]:
    """Give what makes the requests that the store makes in a search by a bare client; None without a server."""
    if task.server is None:
        yield None
        return
    with bare_client(task.kind, task.server) as ask:

        def bare(parts: Sequence[FloatArray]) -> Work:
            search(parts)
            requests = requests_of(store, lambda: search(parts))
            return lambda: [ask(request) for request in requests]

        yield bare


def _numbers(hits: Hits) -> list[list[int]]:
    return [[int(item.id) for item in row] for row in hits.items()]


def recall_of(numbers: Iterable[Iterable[int]], expected: IntArray) -> float:
    """Return how many of the expected numbers were found, as a share; -1 is none."""
    pairs = zip(numbers, expected.tolist(), strict=True)
    return sum(len(set(row) & set(best) - {-1}) for row, best in pairs) / int((expected >= 0).sum())


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
