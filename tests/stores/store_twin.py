"""What a store does, as anybody would write it down: a dict, all inner products, one sort; and how both compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.stores.contract import Item, VectorStore, Where


def refused(words: str, exit_code: ExitCode = ExitCode.DATA) -> pytest.RaisesExc[KeMetricError]:
    """Expect an error of this exit code, in which the pattern is found."""
    return pytest.raises(KeMetricError, match=words, check=lambda error: error.exit_code == exit_code)


def unit_vectors(count: int, dimension: int, *, seed: int, spread: float = 1.0, centres: int = 0) -> np.ndarray:
    """Draw vectors of length 1, float32 [count, dimension]; around so many centres, or everywhere."""
    draw = np.random.default_rng(seed)
    vectors = spread * draw.normal(size=(count, dimension))
    if centres:
        vectors += draw.normal(size=(centres, dimension))[draw.integers(centres, size=count)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def some_items(count: int, *, first: int = 0, classes: int = 7) -> list[Item]:
    return [Item(f"id-{n}", f"folder/{n}.jpg", f"class-{n % classes}") for n in range(first, first + count)]


class Twin:
    """Items by id, in the order in which they were added."""

    def __init__(self) -> None:
        self.content: dict[str, tuple[Item, np.ndarray]] = {}

    def add(self, items: Iterable[Item], vectors: np.ndarray) -> None:
        for item, vector in zip(items, vectors, strict=True):
            self.content.pop(item.id, None)
            self.content[item.id] = (item, vector.copy())

    def remove(self, ids: Iterable[str]) -> None:
        for name in set(ids):
            del self.content[name]

    def matching(self, where: Where | None) -> dict[str, tuple[Item, np.ndarray]]:
        return {name: both for name, both in self.content.items() if where is None or holds(where, both[0])}

    def similarities(self, query: np.ndarray, where: Where | None = None) -> dict[str, float]:
        """Return the inner product with every item for which `where` holds, by id."""
        wide = query.astype(np.float64)
        return {name: float(wide @ vector.astype(np.float64)) for name, (_, vector) in self.matching(where).items()}


def filled(store: VectorStore, count: int = 60) -> Twin:
    """Put items into a store; return its twin."""
    twin = Twin()
    items, vectors = some_items(count), unit_vectors(count, store.dimension, seed=count)
    store.add(items, vectors)
    twin.add(items, vectors)
    return twin


def holds(where: Where, item: Item) -> bool:
    return all((getattr(item, part.field) in part.values) == part.within for part in where.conditions)


def assert_same_content(store: VectorStore, twin: Twin, batch_size: int = 7) -> None:
    assert len(store) == len(twin.content)
    found = {}
    for items, vectors in store.read(batch_size):
        assert 0 < len(items) <= batch_size
        assert vectors.shape == (len(items), store.dimension)
        assert vectors.dtype == np.float32
        found.update(zip((item.id for item in items), zip(items, vectors, strict=True), strict=True))
    assert set(found) == set(twin.content)
    for name, (item, vector) in twin.content.items():
        assert found[name][0] == item
        np.testing.assert_array_equal(found[name][1], vector)
    names = list(twin.content)
    assert store.get(names) == [twin.content[name][0] for name in names]
    assert store.known([*names, "never added"]) == set(names)


def assert_same_answers(
    store: VectorStore,
    twin: Twin,
    queries: np.ndarray,
    k: int,
    *,
    where: Where | None = None,
    exact: bool = True,
    ordered: bool = False,
    tolerance: float = 1e-5,
) -> None:
    """Compare one search: its ranks; of an approximate store only whether what it found is right.

    Where the store is ordered, similarities are those of float64 rounded to float32, and of equal ones the item that
    was added first comes first; otherwise ties are left aside.
    """
    hits = store.search(queries, k, where=where)
    most = max(1, min(k, len(store)))
    assert hits.similarities.shape == hits.numbers.shape == (len(queries), most)
    assert hits.vectors().shape == (len(queries), most, store.dimension)
    rows = zip(queries, hits.similarities, hits.items(), hits.vectors(), strict=True)
    for query, similarities, items, vectors in rows:
        expected = twin.similarities(query, where)
        _assert_true_hits(items, vectors, similarities, twin, expected, tolerance)
        if exact:
            best = sorted(expected.values(), reverse=True)[:k]
            assert len(items) == len(best)
            np.testing.assert_allclose(similarities[: len(best)], best, atol=tolerance)
        if ordered:
            rounded = {name: np.float32(similarity) for name, similarity in expected.items()}
            order = sorted(rounded, key=lambda name: -rounded[name])[:k]
            assert [item.id for item in items] == order
            np.testing.assert_array_equal(similarities[: len(order)], [rounded[name] for name in order])


def _assert_true_hits(
    items: Sequence[Item],
    vectors: np.ndarray,
    similarities: np.ndarray,
    twin: Twin,
    expected: dict[str, float],
    tolerance: float,
) -> None:
    assert len({item.id for item in items}) == len(items)
    for place, item in enumerate(items):
        assert item.id in expected, f"{item} was removed, replaced or should not match"
        assert item == twin.content[item.id][0]
        np.testing.assert_array_equal(vectors[place], twin.content[item.id][1])
        assert abs(similarities[place] - expected[item.id]) <= tolerance
    assert np.isneginf(similarities[len(items) :]).all()
    assert not vectors[len(items) :].any()
