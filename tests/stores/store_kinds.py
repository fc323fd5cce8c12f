"""Every kind of store that must pass the contract (test_contract.py) and survive being killed (test_kills.py).

A new kind is one line in `STORES`.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ke_metric.stores.contract import VectorStore
from ke_metric.stores.faiss_store import FaissStore
from ke_metric.stores.memmap import MemmapStore
from ke_metric.stores.milvus_store import MilvusStore

sys.path.append(str(Path(__file__).parents[1]))  # milvus_server, postgres_server

import milvus_server
import postgres_server


@dataclass(frozen=True)
class StoreKind:
    """One kind of store.

    Attributes:
        make: (folder, dimension, writing) to the store; made in a folder that is empty or absent when writing.
        recall: The least recall@10 over 3,000 clustered vectors, after a flush; 1 for a store whose search is exact,
            whose ranks are compared with the twin's.
        tolerance: How far a similarity may be from the inner product.
        beside: Whether readers may be open beside the writer.
        locked: Whether a second writer is refused.
        ordered: Whether search(q, k) is the beginning of search(q, K), equally similar items in the order of their
            adding.
        examples: How many random sequences of calls are tried; fewer where opening is slow.
        slow: Whether all of it takes minutes.
        remove: Remove what lies elsewhere than in the folder.
    """

    make: Callable[[Path, int, bool], VectorStore]
    recall: float = 1.0
    tolerance: float = 1e-5
    beside: bool = True
    locked: bool = True
    ordered: bool = False
    examples: int = 15
    slow: bool = False
    remove: Callable[[Path], None] = lambda folder: None

    @property
    def exact(self) -> bool:
        return self.recall == 1


def faiss_kind(factory: str, recall: float = 1.0, **search: int) -> StoreKind:
    return StoreKind(
        lambda folder, dimension, writing: FaissStore(
            folder, dimension, writing=writing, factory=factory, search=search
        ),
        recall=recall,
        ordered=recall == 1,
        examples=15,
    )


def name_of(folder: Path) -> str:
    return f"test_{hashlib.sha1(str(folder).encode()).hexdigest()}"


def milvus_server_kind(index: str, recall: float = 1.0) -> StoreKind:
    """A collection of its own on the server of the tests; five seconds to make one.

    Readers are Strong for as long as they are open: the tests ask what is there, not how soon it is seen.
    """
    return StoreKind(
        lambda folder, dimension, writing: MilvusStore(
            milvus_server.server_uri(),
            dimension,
            writing=writing,
            collection=name_of(folder),
            kind=index,
            token=os.environ.get("KE_METRIC_MILVUS_TOKEN"),
            consistency=None if writing else "Strong",
        ),
        recall=recall,
        locked=False,
        examples=5,
        slow=True,
        remove=lambda folder: milvus_server.drop(name_of(folder)),
    )


GRAPHS_PREFERRED = "?options=-cenable_seqscan%3Doff%20-cenable_sort%3Doff%20-cenable_bitmapscan%3Doff"


def postgres_kind(index: str, recall: float = 1.0) -> StoreKind:
    """A table of its own on the server of the tests; a graph is built and used however few items there are."""
    from ke_metric.stores.postgres_store import PostgresStore

    early = type("EarlyGraph", (PostgresStore,), {"least_for_graph": 1})
    return StoreKind(
        lambda folder, dimension, writing: early(
            postgres_server.server_uri() + (GRAPHS_PREFERRED if recall < 1 else ""),
            dimension,
            writing=writing,
            collection=name_of(folder),
            kind=index,
        ),
        recall=recall,
        ordered=recall == 1,
    )


STORES = {
    "memmap": StoreKind(
        lambda folder, dimension, writing: MemmapStore(folder, dimension, writing=writing), ordered=True
    ),
    "faiss": faiss_kind("Flat"),
    "faiss HNSW": faiss_kind("HNSW32", 0.9),
    "faiss IVF": faiss_kind("IVF16,Flat", 0.9),
    "milvus": StoreKind(
        lambda folder, dimension, writing: MilvusStore(str(folder / "milvus.db"), dimension, writing=writing),
        beside=False,
        examples=5,
    ),
    "faiss IVF-PQ": faiss_kind("IVF4,PQ8x4fs", 0.75, nprobe=4),
}
if milvus_server.URI in os.environ or milvus_server.is_installed():
    STORES["milvus server"] = milvus_server_kind("FLAT")
    STORES["milvus server HNSW"] = milvus_server_kind("HNSW", 0.9)
if postgres_server.is_installed():
    STORES["postgres"] = postgres_kind("FLAT")
    STORES["postgres HNSW"] = postgres_kind("HNSW", 0.9)
EACH = [pytest.param(name, marks=pytest.mark.slow) if kind.slow else name for name, kind in STORES.items()]
"""The names, for tests of all of them."""
