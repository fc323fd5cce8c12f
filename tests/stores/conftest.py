"""Stores in the folder of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ke_metric.stores.faiss_store import FaissStore

sys.path.append(str(Path(__file__).parent))  # store_kinds, store_twin, faiss_filled


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., FaissStore]]:
    """Open a FAISS store in the test's folder; it is closed when the test ends."""
    from faiss_filled import D  # beside this file

    stores: list[FaissStore] = []

    def make(factory: str = "Flat", *, writing: bool = True, **settings: Any) -> FaissStore:
        stores.append(FaissStore(tmp_path / "store", D, writing=writing, factory=factory, **settings))
        return stores[-1]

    yield make
    for store in reversed(stores):
        store.close()
