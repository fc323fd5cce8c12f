"""A search of an index some of whose items were removed, or that holds short codes, beside all inner products."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_twin import unit_vectors

from ke_metric.stores.faiss_index import IndexSearch
from ke_metric.stores.faiss_kinds import make_index
from ke_metric.stores.memmap import best

D = 16
VECTORS = unit_vectors(800, D, seed=1)
QUERIES = unit_vectors(12, D, seed=2)


def searched(factory, removed=None):
    index = make_index(factory, D)
    if not index.is_trained:
        index.train(VECTORS)
    index.add_with_ids(VECTORS, np.arange(len(VECTORS)))
    removed = np.zeros(len(VECTORS), np.bool_) if removed is None else removed
    live = len(VECTORS) - int(removed.sum())
    return IndexSearch(index, removed=removed, vectors=None if factory == "Flat" else VECTORS, live=live)


def twin(k, removed=None):
    products = QUERIES @ VECTORS.T
    if removed is not None:
        products[:, removed] = -np.inf
    return np.sort(products, axis=1)[:, ::-1][:, :k]


def some_removed(share, seed):
    return np.random.default_rng(seed).random(len(VECTORS)) < share


@pytest.mark.parametrize("factory", ["Flat", "SQ8"])
@given(k=st.integers(1, 900), share=st.sampled_from([0.0, 0.01, 0.2, 0.9, 1.0]), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_what_is_left_is_found(factory, k, share, seed):
    removed = some_removed(share, seed)
    (similarities, rows), lacking = searched(factory, removed).search(QUERIES, k)
    expected = twin(min(k, len(VECTORS)), removed)
    assert not len(lacking)
    assert similarities.shape == rows.shape == (12, k)
    np.testing.assert_allclose(similarities[:, : expected.shape[1]], expected, atol=1e-6)
    assert ((rows == -1) == np.isneginf(similarities)).all()
    there = rows >= 0
    assert not removed[rows[there]].any()
    products = np.take_along_axis(QUERIES @ VECTORS.T, np.maximum(rows, 0), 1)
    np.testing.assert_allclose(similarities[there], products[there], atol=1e-6)


def test_queries_whose_neighbours_were_removed_are_searched_deeper():
    near = np.argsort(-QUERIES @ VECTORS.T, axis=1)[:2, :150]
    removed = np.isin(np.arange(len(VECTORS)), near)
    asked = []
    search = searched("Flat", removed)
    bare = search._index

    class Watched:
        ntotal = bare.ntotal

        def search(self, queries, depth):
            asked.append((len(queries), depth))
            return bare.search(queries, depth)

    search._index = Watched()
    (similarities, _), lacking = search.search(QUERIES, 5)
    assert not len(lacking)
    np.testing.assert_allclose(similarities, twin(5, removed), atol=1e-6)
    assert asked[0][0] == 12
    assert [count for count, _ in asked[1:]] == sorted((count for count, _ in asked[1:]), reverse=True)
    assert 2 <= asked[1][0] < 12
    assert asked[1][1] == 4 * asked[0][1]
    asked.clear()
    search._removed = None
    search.search(QUERIES, 5)
    assert asked == [(12, 5)]


def test_queries_for_which_too_few_lists_are_searched_are_named():
    index = make_index("IVF16,Flat", D)
    index.train(VECTORS)
    index.add_with_ids(VECTORS, np.arange(len(VECTORS)))
    (similarities, rows), lacking = IndexSearch(
        index, removed=np.zeros(800, np.bool_), vectors=None, live=800
    ).search(QUERIES, 60)
    found = (rows >= 0).sum(1)
    assert lacking.tolist() == np.flatnonzero(found < 60).tolist()
    assert len(lacking)
    assert ((rows == -1) == np.isneginf(similarities)).all()


def test_short_codes_are_compared_by_whole_vectors():
    search = searched("PQ4x4")
    (similarities, rows), _ = search.search(QUERIES, 5)
    np.testing.assert_allclose(similarities, np.take_along_axis(QUERIES @ VECTORS.T, rows, 1), atol=1e-6)
    _, by_codes = search._index.search(QUERIES, 5)
    exact = np.argsort(-QUERIES @ VECTORS.T, axis=1)[:, :5]
    shares = [
        np.mean([len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)]) for found in (rows, by_codes)
    ]
    assert shares[0] > shares[1]


def test_the_best_of_both():
    similarities = np.array([[0.5, 0.25, -np.inf, 0.75, 0.25]], np.float32)
    found = best(similarities, np.array([[4, 3, -1, 9, 8]]), 3)
    assert found[0].tolist() == [[0.75, 0.5, 0.25]]
    assert found[1].tolist() == [[9, 4, 3]]


def test_of_a_large_index_only_so_much_is_asked(monkeypatch):
    monkeypatch.setattr("ke_metric.stores.faiss_index.LEAST_MOST_DEPTH", 60)
    removed = np.ones(len(VECTORS), np.bool_)
    removed[:200] = False
    found, lacking = searched("Flat", removed).search(QUERIES, 30)
    assert len(lacking)
    assert ((found[1] >= 0).sum(1) < 30).nonzero()[0].tolist() == lacking.tolist()


def test_queries_in_another_order_of_memory():
    queries = np.asfortranarray(QUERIES)
    (similarities, _), _ = searched("SQ8").search(queries, 5)
    np.testing.assert_allclose(similarities, twin(5), atol=1e-6)
