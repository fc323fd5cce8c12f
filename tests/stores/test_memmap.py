"""Exact search against all inner products and one sort, wherever its blocks and groups are cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_twin import some_items, unit_vectors

from ke_metric.stores import memmap as exact_search
from ke_metric.stores.contract import Where
from ke_metric.stores.gallery import Gallery
from ke_metric.stores.memmap import MemmapStore, search_rows

D = 4
# Products of these are exact in float32 in any order of addition, so that ties are ties.
GRID = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0.5, 0.5], [-1, 0, 0, 0], [0.5, -0.5, 0.5, -0.5]], np.float32)


def expected(vectors, queries, k, live):
    """Sort all live rows by similarity, the largest first, then by row."""
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for place, query in enumerate(queries):
        products = {row: np.float32(query @ vectors[row]) for row in live}
        best = sorted(products, key=lambda row: (-products[row], row))[:k]
        rows[place, : len(best)] = best
        similarities[place, : len(best)] = [products[row] for row in best]
    return similarities, rows


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """300 rows of five different vectors, and holes: some alone, some side by side, a whole block."""
    gallery = Gallery(tmp_path_factory.mktemp("gallery"), D, writing=True)
    gallery.add(some_items(300), GRID[np.random.default_rng(0).integers(5, size=300)])
    gallery.remove([f"id-{n}" for n in [0, 5, 6, 7, *range(64, 160), 200, 299]])
    yield gallery
    gallery.close()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_all_ranks_are_the_twins_ties_too(gallery, data):
    """Among five different vectors nearly everything is a tie: the earlier row comes first."""
    vectors = gallery.vectors(np.arange(300))
    live = np.delete(np.arange(300), gallery.holes)
    queries = GRID[data.draw(st.lists(st.integers(0, 4), max_size=6))].reshape(-1, D)
    k = data.draw(st.sampled_from([1, 2, 5, 40, 193, 400]))
    rows = data.draw(st.none() | st.lists(st.sampled_from(live.tolist()), unique=True).map(sorted))
    first = data.draw(st.sampled_from([0, 3, 63, 128, 299, 300]))
    searched = [row for row in (live if rows is None else rows) if row >= first]
    sizes = {
        "BLOCK_BYTES": data.draw(st.sampled_from([16, 16 * 7, 16 * 64, 8 << 20])),
        "FEWEST_ROWS": data.draw(st.sampled_from([1, 33, 4096])),
        "PRODUCTS": data.draw(st.sampled_from([512, 4 << 20])),
        "CHOICES": data.draw(st.sampled_from([1, 300, 1 << 19])),
        "GROUP": data.draw(st.sampled_from([1, 8, 32])),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(exact_search, name, size)
        given_rows = None if rows is None else np.array(rows, np.int64)
        found = search_rows(gallery, queries, k, rows=given_rows, first=first)
    for ours, twins in zip(found, expected(vectors, queries, k, searched), strict=True):
        np.testing.assert_array_equal(ours, twins)
        assert ours.dtype == twins.dtype


def test_negative_products_and_zeros_are_in_order(tmp_path):
    gallery = Gallery(tmp_path, 2, writing=True)
    angles = np.linspace(0, np.pi, 41)
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    vectors[20] = [-0.0, 1]
    gallery.add(some_items(41), vectors)
    _, rows = search_rows(gallery, np.array([[1, 0], [-1, 0], [0, -1]], np.float32), 41)
    assert rows[0].tolist() == list(range(41))
    assert rows[1].tolist() == list(range(40, -1, -1))
    gallery.close()


def test_random_vectors_over_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(exact_search, "BLOCK_BYTES", 100 * 4 * 24)
    store = MemmapStore(tmp_path, 24, writing=True)
    vectors, queries = unit_vectors(3000, 24, seed=1), unit_vectors(70, 24, seed=2)
    store.add(some_items(3000), vectors)
    hits = store.search(queries, 12)
    products = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    np.testing.assert_array_equal(hits.numbers, np.argsort(-products, axis=1)[:, :12])
    np.testing.assert_allclose(hits.similarities, -np.sort(-products, axis=1)[:, :12], atol=1e-6)
    store.close()


@pytest.mark.parametrize("rows", ["all", "some"])
def test_no_more_products_are_in_memory_than_said(gallery, monkeypatch, rows):
    monkeypatch.setattr(exact_search, "PRODUCTS", 256)
    monkeypatch.setattr(exact_search, "FEWEST_ROWS", 64)
    sizes, multiply = [], torch.mm

    def counted(left, right, *, out):
        sizes.append(len(left) * right.shape[1])
        return multiply(left, right, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    live = np.delete(np.arange(300), gallery.holes)
    search_rows(gallery, np.repeat(GRID, 20, 0), 3, rows=live if rows == "some" else None)
    assert max(sizes) <= 256


def test_it_multiplies_in_full_precision(gallery, monkeypatch):
    seen, multiply = [], torch.mm

    def watched(left, right, *, out):
        seen.append((torch.is_autocast_enabled("cpu"), torch.backends.mkldnn.matmul.fp32_precision))
        return multiply(left, right, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    with torch.autocast("cpu", torch.bfloat16):
        search_rows(gallery, GRID, 3)
    assert set(seen) == {(False, "ieee")}


def test_torch_is_given_no_array_that_is_read_only(gallery, monkeypatch):
    """It warns of them, once in the life of a program."""
    given_to_torch, from_numpy = [], torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: given_to_torch.append(array) or from_numpy(array))
    queries = GRID[:1].copy()
    queries.flags.writeable = False
    rows = gallery.rows_matching(Where.parse('label != "class-1"'))
    assert not rows.flags.writeable
    for some in (rows, None):
        search_rows(gallery, queries, 3, rows=some)
    assert len(given_to_torch) > 4
    assert all(array.flags.writeable for array in given_to_torch)


def test_it_says_what_it_is(tmp_path):
    store = MemmapStore(tmp_path, D, writing=True)
    store.add(some_items(5), np.repeat(GRID[:1], 5, 0))
    store.remove(["id-2"])
    facts = store.describe()
    sizes = sum(path.stat().st_size for path in tmp_path.iterdir() if path.suffix in (".f32", ".sqlite"))
    assert facts["bytes"] >= sizes > 0
    assert {**facts, "bytes": 0} == {"kind": "memmap", "exact": True, "items": 4, "removed": 1, "bytes": 0}
    store.close()


@pytest.mark.gpu
def test_a_gpu_gives_the_same(gallery):
    queries = np.repeat(GRID, 3, 0)
    for ours, on_gpu in zip(
        search_rows(gallery, queries, 20), search_rows(gallery, queries, 20, device="cuda"), strict=True
    ):
        np.testing.assert_array_equal(ours, on_gpu)
