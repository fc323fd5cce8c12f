"""A FAISS store with something in it, and how it is compared with its twin."""

from __future__ import annotations

import numpy as np
from store_twin import Twin, assert_same_answers, some_items, unit_vectors

from ke_metric.stores.contract import Where
from ke_metric.stores.faiss_store import FaissStore

D = 16
KINDS = ("Flat", "HNSW32", "IVF4,Flat", "IVF4,PQ8x4fs")
RARER_KINDS = ("IVF4,PQ8x4", "OPQ8,IVF4,PQ8x4np", "SQ8", "IVF4,PQ8x4,RFlat", "IVF4_HNSW8,Flat")
CENTRES = 20


def vectors_of(count: int, seed: int = 0) -> np.ndarray:
    return unit_vectors(count, D, seed=seed, spread=0.5, centres=CENTRES)


def fill(store: FaissStore, count: int = 1000, *, seed: int = 0, twin: Twin | None = None, first: int = 0) -> Twin:
    twin = Twin() if twin is None else twin
    items, vectors = some_items(count, first=first), vectors_of(count, seed)
    store.add(items, vectors)
    twin.add(items, vectors)
    return twin


def recall(store: FaissStore, twin: Twin, k: int = 10) -> float:
    queries = vectors_of(30, 5)
    found = 0
    for query, items in zip(queries, store.search(queries, k).items(), strict=True):
        expected = twin.similarities(query)
        worst = sorted(expected.values(), reverse=True)[k - 1] - 1e-6
        found += sum(expected[item.id] >= worst for item in items)
    return found / (k * len(queries))


def check(store: FaissStore, twin: Twin, *, exact: bool, k: int = 10, where: Where | None = None) -> None:
    assert_same_answers(store, twin, vectors_of(30, 5), k, where=where, exact=exact)
