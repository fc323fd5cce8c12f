"""The FAISS store beside its contract: how it answers while its index is behind the gallery."""

import pytest
from faiss_filled import KINDS, check, fill, recall, vectors_of
from store_twin import Twin, assert_same_answers

from ke_metric.errors import KeMetricError
from ke_metric.evaluation.backend import load_faiss
from ke_metric.stores import faiss_index as faiss_file
from ke_metric.stores import faiss_store
from ke_metric.stores.contract import Item, Where
from ke_metric.stores.faiss_index import NAME

pytestmark = pytest.mark.usefixtures("one_faiss_thread")


@pytest.mark.parametrize("factory", KINDS)
def test_what_waits_is_found_beside_what_is_indexed(opened, factory):
    store = opened(factory)
    twin = fill(store, 900)
    store.flush()
    fill(store, 300, seed=1, twin=twin, first=900)
    assert store.describe()["indexed"] == 900
    check(store, twin, exact=factory == "Flat")
    waiting = vectors_of(300, 1)[:20]
    assert [row[0].id for row in store.search(waiting, 3).items()] == [f"id-{900 + n}" for n in range(20)]
    store.flush()
    assert store.describe()["indexed"] == 1200
    check(store, twin, exact=factory == "Flat")


@pytest.mark.parametrize("factory", KINDS)
def test_what_was_removed_crowds_nothing_out(opened, factory):
    """Everything near some queries is removed, but less than makes the index be built anew."""
    store = opened(factory)
    twin = fill(store)
    store.flush()
    queries = vectors_of(30, 5)
    gone = {item.id for row in store.search(queries[:3], 50).items() for item in row}
    store.remove(gone)
    twin.remove(gone)
    for k in (1, 10, 60, 990, 1100):
        assert_same_answers(store, twin, queries, k, exact=factory == "Flat" or k >= 990)
    assert recall(store, twin) >= 0.8


@pytest.mark.parametrize("factory", KINDS)
def test_an_index_of_much_that_was_removed_is_built_anew(opened, tmp_path, factory):
    store = opened(factory)
    twin = fill(store, 1500)
    store.flush()
    held = []
    for first in (0, 300):
        gone = [f"id-{n}" for n in range(first, first + 300)]
        store.remove(gone)
        twin.remove(gone)
        store.flush()
        held.append(load_faiss().read_index(str(tmp_path / "store" / NAME)).ntotal)
        check(store, twin, exact=factory == "Flat")
    assert held == [1500, 900]
    assert store.describe()["removed"] == 600
    assert recall(store, twin) >= 0.8


def test_all_removed(opened):
    store = opened("HNSW32")
    twin = fill(store)
    store.flush()
    store.remove(list(twin.content))
    for _ in range(2):
        check(store, Twin(), exact=True)
        store.flush()
    again = fill(store, 50, seed=2)
    store.flush()
    check(store, again, exact=False)
    assert store.describe()["indexed"] == 50


@pytest.mark.parametrize("factory", KINDS)
def test_where_is_exact_with_every_kind(opened, factory):
    worst = {"Flat": {}, "HNSW32": {"efSearch": 1}}
    store = opened(factory, search=worst.get(factory, {"nprobe": 1}))
    twin = fill(store)
    store.flush()
    fill(store, 100, seed=1, twin=twin, first=1000)
    for text in ('label == "class-3"', 'label != "class-3"', 'id == "id-1050"', 'label == "none"'):
        check(store, twin, exact=True, where=Where.parse(text))


def test_too_few_lists_are_no_reason_for_fewer_hits(opened):
    store = opened("IVF16,Flat", search={"nprobe": 1})
    twin = fill(store)
    store.flush()
    check(store, twin, exact=True, k=1000)
    hits = store.search(vectors_of(30, 5), 700)
    assert (hits.numbers >= 0).all()


def test_an_addition_first_takes_in_what_waits(opened, monkeypatch):
    monkeypatch.setattr(faiss_store, "WAITING_ROWS", 100)
    store = opened()
    twin = fill(store, 100)
    fill(store, 200, seed=1, twin=twin, first=100)
    assert store.describe()["indexed"] == 0, "the first time is flush's"
    store.flush()
    for step, indexed in enumerate((300, 300, 300, 420)):
        fill(store, 40, seed=2 + step, twin=twin, first=300 + 40 * step)
        assert store.describe()["indexed"] == indexed
    check(store, twin, exact=True)


def test_an_addition_that_cannot_take_in_what_waits_adds_nothing(opened, monkeypatch):
    monkeypatch.setattr(faiss_store, "WAITING_ROWS", 10)
    store = opened()
    twin = fill(store, 100)
    store.flush()
    fill(store, 50, seed=1, twin=twin, first=100)
    monkeypatch.setattr(faiss_file, "reach_disk", lambda path: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(KeMetricError, match="the disk is full"):
        store.add([Item("new")], vectors_of(1))
    assert store.known(["new"]) == set()
    check(store, twin, exact=True)
