"""Data on which search is hard, a search in plain loops, and a comparison that knows about ties."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ke_metric.evaluation import backend as faiss_library
from ke_metric.evaluation.backend import Backend, Neighbors, choose_backend


def draw_hard_vectors(count: int, seed: int = 0, *, dimension: int = 32, intrinsic: int = 6) -> np.ndarray:
    """[count, dimension] float32 unit vectors on a curved surface of few dimensions (faiss contrib/datasets.py)."""
    surface = np.random.default_rng(123)
    first, second = surface.normal(size=(intrinsic, dimension)), surface.normal(size=(dimension, dimension))
    vectors = np.random.default_rng(seed).normal(size=(count, intrinsic)) @ first
    vectors = np.sin((vectors * surface.uniform(0.1, 1, size=dimension)) @ second)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def search_in_loops(query, gallery, k, self_match=None) -> Neighbors:
    """The neighbours as anybody would write them down: all inner products, one sort per query."""
    indices = np.full((len(query), k), -1, dtype=np.int64)
    similarities = np.full((len(query), k), -np.inf, dtype=np.float32)
    for row in range(len(query)):
        found = []
        for position in range(len(gallery)):
            if self_match is not None and self_match[row] == position:
                continue
            found.append((-float(np.dot(query[row].astype(float), gallery[position].astype(float))), position))
        for rank, (negative, position) in enumerate(sorted(found)[:k]):
            indices[row, rank], similarities[row, rank] = position, -negative
    return Neighbors(indices, similarities)


def assert_same_neighbors(found: Neighbors, expected: Neighbors, tolerance: float = 1e-5) -> None:
    """Equal similarities rank by rank, and equal sets of items wherever similarities are tied.

    The last tie of a row may go on beyond rank K, so there only its similarities can be compared.
    """
    assert found.indices.shape == expected.indices.shape
    padding = expected.indices == -1
    np.testing.assert_array_equal(found.indices == -1, padding)
    np.testing.assert_allclose(found.similarities[~padding], expected.similarities[~padding], atol=tolerance)
    for row in range(len(found.indices)):
        count = int((~padding[row]).sum())
        falls = np.flatnonzero(-np.diff(expected.similarities[row, :count]) > tolerance) + 1
        whole = count < found.indices.shape[1]
        for start, stop in zip([0, *falls], [*falls, count] if whole else falls, strict=False):
            assert set(found.indices[row, start:stop]) == set(expected.indices[row, start:stop]), (row, start, stop)
        assert len(set(found.indices[row, :count])) == count, "an item is found twice"


@pytest.fixture(scope="session")
def hard_vectors() -> Callable[..., np.ndarray]:
    """`hard_vectors(count, seed=0)`: unit vectors of low intrinsic dimension."""
    return draw_hard_vectors


@pytest.fixture(scope="session")
def slow_search() -> Callable[..., Neighbors]:
    """`slow_search(query, gallery, k, self_match=None)`: the twin of `search` in plain loops."""
    return search_in_loops


@pytest.fixture(scope="session")
def same_neighbors() -> Callable[..., None]:
    """`same_neighbors(found, expected)`: fails unless both are equal, ties aside."""
    return assert_same_neighbors


@pytest.fixture(scope="session", params=["faiss-cpu", "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend that needs no GPU."""
    if request.param == "faiss-cpu" and not faiss_library.is_installed():
        pytest.skip("FAISS is not installed")
    return choose_backend(request.param)
