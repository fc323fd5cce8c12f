"""An index some of whose items were removed, that holds short codes, or in which equal vectors are linked once."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_twin import Twin, some_items, unit_vectors

from ke_metric.evaluation.backend import load_faiss
from ke_metric.stores import faiss_index
from ke_metric.stores.faiss_index import FACT, NAME, Copies, IndexSearch, Unfolding, find_copies, read_records
from ke_metric.stores.faiss_kinds import make_index
from ke_metric.stores.faiss_store import FaissStore
from ke_metric.stores.gallery import Gallery
from ke_metric.stores.memmap import best

D = 64
INNER = 8


def surface(count, seed=0, dimension=D):
    """Vectors near a surface of few dimensions, as embeddings are; a graph alone finds all their neighbours."""
    turn = np.random.default_rng(99).normal(size=(INNER, dimension))
    vectors = np.tanh(np.random.default_rng(seed).normal(size=(count, INNER)) @ turn)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def with_copies(count, copies, seed=0):
    """Distinct vectors, and after them copies of the first."""
    vectors = surface(count, seed)
    return np.concatenate([vectors, np.repeat(vectors[:1], copies, 0)])


def recall_and_lost(store, vectors, queries, k=10):
    """Return recall@k, ties counted, and how many of the vectors are not among their own hits."""
    similarities = store.search(queries, k).similarities
    best = np.sort(queries.astype(np.float64) @ vectors.T.astype(np.float64), axis=1)[:, -k]
    lost = store.search(vectors[:: max(1, len(vectors) // 500)], 1).similarities[:, 0] < 1 - 1e-5
    return float((similarities >= best[:, None] - 1e-6).mean()), int(lost.sum())


def built(folder, vectors, factory):
    store = FaissStore(folder, vectors.shape[1], writing=True, factory=factory)
    store.add(some_items(len(vectors)), vectors)
    store.flush()
    return store


def assert_whole(store, vectors, least=0.99):
    queries = np.concatenate([vectors[:: max(1, len(vectors) // 200)], surface(100, seed=5)])
    recall, lost = recall_and_lost(store, vectors, queries)
    assert recall >= least
    assert lost == 0


@pytest.mark.parametrize("factory", ["HNSW8", "HNSW8_SQ8"])
def test_copies_of_one_vector_do_not_cut_a_graph_apart(tmp_path, factory):
    vectors = with_copies(1500, 300)
    store = built(tmp_path / "s", vectors, factory)
    assert_whole(store, vectors)
    # All copies come back, in the order of their rows.
    hits = store.search(vectors[:1], 310)
    assert [item.id for item in hits.items()[0]][:301] == ["id-0", *(f"id-{n}" for n in range(1500, 1800))]
    assert store.describe()["copies"] == 300
    store.close()
    reader = FaissStore(tmp_path / "s", D, writing=False, factory=factory)
    np.testing.assert_array_equal(reader.search(vectors[:1], 310).similarities, hits.similarities)
    reader.close()


def test_many_vectors_many_times_each(tmp_path):
    vectors = np.tile(surface(60), (40, 1))
    store = built(tmp_path / "s", vectors, "HNSW8")
    assert_whole(store, vectors, least=1.0)
    (hits,) = store.search(vectors[:1], 100).items()
    assert [item.id for item in hits[:40]] == [f"id-{n}" for n in range(0, 2400, 60)]
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["auto", "HNSW32"])
@pytest.mark.parametrize("kind", ["copies of one", "many times each"])
def test_large_galleries_with_copies(tmp_path, factory, kind):
    vectors = with_copies(20_000, 1000) if kind == "copies of one" else np.tile(surface(400), (100, 1))
    store = built(tmp_path / "s", vectors, factory)
    assert_whole(store, vectors)
    store.close()


def test_copies_that_come_later_and_originals_that_go(tmp_path):
    """Every order of adding, removing, replacing and flushing finds what is there, and nothing else."""
    draw, twin = np.random.default_rng(3), Twin()
    pool = surface(40, dimension=16)
    store = FaissStore(tmp_path / "s", 16, writing=True, factory="HNSW8")
    for step in range(16):
        items, vectors = some_items(20, first=20 * step), pool[draw.integers(40, size=20)]
        if step % 4 == 3 and twin.content:
            items = [items[0], *(twin.content[name][0] for name in draw.permutation(sorted(twin.content))[:19])]
            items, vectors = items[:20], vectors[: len(items)]
        store.add(items, vectors, replace=True)
        twin.add(items, vectors)
        gone = draw.permutation(sorted(twin.content))[: draw.integers(25)].tolist()
        store.remove(gone)
        twin.remove(gone)
        if step % 3 == 0:
            store.flush()
        if step % 5 == 4:
            store.close()
            store = FaissStore(tmp_path / "s", 16, writing=True, factory="HNSW8")
        for k in (1, 5, 30):
            hits = store.search(pool[:5], k)
            for query, row, found in zip(pool[:5], hits.similarities, hits.items(), strict=True):
                similarities = twin.similarities(query)
                np.testing.assert_allclose(row[: len(found)], sorted(similarities.values())[::-1][:k], atol=1e-5)
                assert len({item.id for item in found}) == len(found) == min(k, len(similarities))
                for item, similarity in zip(found, row, strict=False):
                    assert abs(similarities[item.id] - similarity) < 1e-5
    store.close()


@pytest.mark.parametrize("copies", [0, 200])
def test_a_graph_of_before_opens_and_is_built_anew_where_it_holds_copies(tmp_path, copies):
    vectors = with_copies(1000, copies)
    store = built(tmp_path / "s", vectors, "HNSW8")
    store.close()
    with_before = _written_before(tmp_path / "s", vectors)
    reader = FaissStore(tmp_path / "s", D, writing=False, factory="HNSW8")
    hits = reader.search(vectors[5:6], 10)
    # What FAISS itself finds in the old graph, and no less: faiss-cpu 1.10 had cut item 5 off, 1.15.1 had not.
    old = load_faiss().read_index(str(tmp_path / "s" / NAME)).search(vectors[5:6], 10)[1][0]
    assert {item.id for item in hits.items()[0]} == {f"id-{row}" for row in old}
    assert copies or hits.items()[0][0].id == "id-5"
    np.testing.assert_allclose(hits.similarities[0], (hits.vectors() @ vectors[5])[0], atol=1e-5)
    assert reader.describe()["indexed"] == len(vectors)
    reader.close()
    store = FaissStore(tmp_path / "s", D, writing=True, factory="HNSW8")
    store.flush()
    (record,) = read_records(store)
    assert record.copies == copies
    # Where there is no copy, the file stays.
    assert (record.sha256 == with_before) is (copies == 0)
    assert_whole(store, vectors)
    store.close()


def _written_before(folder, vectors):
    """Put the index of all vectors, and the record of it, as they were written before; return its hash."""
    import hashlib

    index = make_index("HNSW8", D)
    index.add_with_ids(vectors, np.arange(len(vectors)))
    load_faiss().write_index(index, str(folder / NAME))
    content = (folder / NAME).read_bytes()
    gallery = Gallery(folder, D, writing=True)
    fields = asdict(read_records(gallery)[0]) | {
        "nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    del fields["copies"]
    gallery.set_fact(FACT, json.dumps([fields]))
    gallery.close()
    return fields["sha256"]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.sets(st.integers(0, 11)), st.integers(1, 15))
@settings(deadline=None, max_examples=40)
def test_unfolding_beside_a_sort(vectors, gone, k):
    """Rows of few different vectors; the first of each is linked."""
    first = {}
    linked = [first.setdefault(vector, row) for row, vector in enumerate(vectors)]
    copies = [row for row, stands in enumerate(linked) if stands != row]
    found = Copies(np.array(copies, np.int64), np.array([linked[row] for row in copies], np.int64))
    removed = np.isin(np.arange(len(vectors)), list(gone))
    unfolding = Unfolding(found, removed)
    alive = [
        row for row in sorted(first.values()) if any(linked[r] == row and not removed[r] for r in range(len(linked)))
    ]
    assert np.flatnonzero(unfolding.size).tolist() == alive
    similarity = {row: np.float32(1 / (1 + vectors[row] // 2)) for row in alive}  # some are equal
    rows = np.array([[*alive[::-1], -1, -1]], np.int64)
    similarities = np.array([[*(similarity[row] for row in alive[::-1]), -np.inf, -np.inf]], np.float32)
    got = unfolding.unfold(similarities, rows, k)
    wanted = sorted((-float(similarity[linked[row]]), row) for row in range(len(vectors)) if not removed[row])[:k]
    assert got[1][0].tolist() == [row for _, row in wanted] + [-1] * (k - len(wanted))
    np.testing.assert_array_equal(got[0][0][: len(wanted)], [-negative for negative, _ in wanted])
    assert np.isneginf(got[0][0][len(wanted) :]).all()


def test_minus_zero_is_zero_and_a_shared_hash_is_not_enough(tmp_path, monkeypatch):
    gallery = Gallery(tmp_path / "g", 4, writing=True)
    vectors = np.array([[1, 0, 0, 0], [1, -0.0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], np.float32)
    gallery.add(some_items(5), vectors)
    for patched in (False, True):
        if patched:
            monkeypatch.setattr(faiss_index, "_hashes", lambda vectors: np.zeros(len(vectors), np.uint64))
        found = find_copies(gallery, np.array([0]), np.arange(1, 5))
        # With one hash for all, only what is compared with the first is known to be equal.
        assert found.rows.tolist() == ([1] if patched else [1, 3])
        assert found.linked.tolist() == ([0] if patched else [0, 2])
    assert len(Copies.from_bytes(found.to_bytes())) == 1
    gallery.close()


LENGTH = 16
VECTORS = unit_vectors(800, LENGTH, seed=1)
QUERIES = unit_vectors(12, LENGTH, seed=2)


def searched(factory, removed=None):
    index = make_index(factory, LENGTH)
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
    index = make_index("IVF16,Flat", LENGTH)
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
