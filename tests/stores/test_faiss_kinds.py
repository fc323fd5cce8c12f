"""Kinds of FAISS index: trained, chosen, set, and compared again where they hold short codes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faiss_filled import KINDS, RARER_KINDS, D, check, fill, recall, vectors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from store_twin import Twin

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import load_faiss
from ke_metric.stores.faiss_index import read_records
from ke_metric.stores.faiss_kinds import (
    EXAMPLES,
    LEAST_PER_CENTROID,
    choose_kind,
    is_exact,
    list_count,
    make_index,
    training_counts,
)
from ke_metric.stores.faiss_store import FaissStore
from ke_metric.stores.gallery import Gallery

pytestmark = pytest.mark.usefixtures("one_faiss_thread")


def test_a_kind_that_cannot_be_trained_yet_is_searched_exactly(opened):
    store = opened("IVF16,Flat")
    twin = fill(store, 600)
    store.flush()
    assert store.describe()["indexed"] == 0
    assert store.describe()["exact"] is True
    assert store.describe()["reason"] == (
        "IVF16,Flat: needs 624 items for its training; the 600 that there are are searched exactly"
    )
    check(store, twin, exact=True)
    fill(store, 24, seed=1, twin=twin, first=600)
    store.flush()
    assert store.describe()["indexed"] == 624
    assert store.describe()["reason"] == "IVF16,Flat: asked for"


def test_a_kind_is_trained_again_when_the_gallery_has_grown(opened):
    store = opened("IVF4,Flat")
    twin = fill(store, 200)
    for size, trained in ((200, 200), (800, 200), (801, 801)):
        if size > len(twin.content):
            fill(store, size - len(twin.content), seed=size, twin=twin, first=len(twin.content))
        store.flush()
        assert read_records(store)[0].trained == trained
        assert store.describe()["indexed"] == size


def test_training_takes_a_sample_of_the_whole_gallery(opened, monkeypatch):
    asked = []
    real = Gallery.vectors
    monkeypatch.setattr("ke_metric.stores.faiss_kinds.LEAST_SAMPLE", 500)
    monkeypatch.setattr("ke_metric.stores.faiss_kinds.PER_CENTROID", 40)
    monkeypatch.setattr(Gallery, "vectors", lambda self, rows: (asked.append(rows), real(self, rows))[1])
    store = opened("IVF4,Flat")
    fill(store, 2000)
    store.remove([f"id-{n}" for n in range(1000)])
    store.flush()
    (sample,) = asked
    assert len(sample) == 500
    assert sample.min() >= 1000, "what was removed trains nothing"
    assert sample.min() < 1020
    assert sample.max() > 1980
    assert (np.diff(sample) > 0).all()


def test_the_same_gallery_gives_the_same_file(tmp_path):
    digests = []
    for name in ("a", "b"):
        store = FaissStore(tmp_path / name, D, writing=True, factory="IVF4,PQ8x4")
        fill(store)
        store.flush()
        digests.append(read_records(store)[0].sha256)
        store.close()
    assert digests[0] == digests[1]


def test_auto_changes_the_kind_with_the_size(opened, monkeypatch):
    monkeypatch.setattr("ke_metric.stores.faiss_kinds.FLAT_NUMBERS", 500 * D)
    monkeypatch.setattr("ke_metric.stores.faiss_kinds.HNSW_NUMBERS", 1000 * D)
    monkeypatch.setattr("ke_metric.stores.faiss_kinds.IVF_NUMBERS", 1500 * D)
    store = opened("auto")
    assert store.describe()["factory"] == "Flat"
    twin = Twin()
    for size, factory, exact in (
        (400, "Flat", True),
        (900, "HNSW32", False),
        (1400, "IVF16,Flat", False),
        (2000, "IVF16,PQ8x4fs", False),
    ):
        fill(store, size - len(twin.content), seed=size, twin=twin, first=len(twin.content))
        store.flush()
        facts = store.describe()
        assert (facts["factory"], facts["exact"], facts["indexed"]) == (factory, exact, size)
        assert facts["reason"].startswith(f"{factory}: {size:,} vectors of {D} numbers take ")
        check(store, twin, exact=exact)
    gone = list(twin.content)[:1600]
    store.remove(gone)
    twin.remove(gone)
    assert store.describe()["reason"].startswith("IVF16,PQ8x4fs, until flushed. Flat: 400 vectors")
    store.flush()
    assert store.describe()["factory"] == "Flat"
    check(store, twin, exact=True)


def test_another_kind_asked_for_is_built_when_flushed(opened):
    store = opened("Flat")
    twin = fill(store)
    store.flush()
    store.close()
    store = opened("HNSW32")
    assert store.describe()["reason"] == "Flat, until flushed. HNSW32: asked for"
    check(store, twin, exact=True)
    store.flush()
    assert store.describe()["factory"] == "HNSW32"


def test_short_codes_are_compared_again(opened):
    store = opened("IVF4,PQ4x4", search={"nprobe": 4})
    twin = fill(store, 2000)
    store.flush()
    bare = store._now().derived.index
    queries = vectors_of(30, 5)
    _, rows = bare.search(queries, 10)
    truth = [set(sorted(s, key=s.get)[-10:]) for s in map(twin.similarities, queries)]
    by_codes = sum(len({f"id-{n}" for n in row} & best) for row, best in zip(rows.tolist(), truth, strict=True)) / 300
    assert recall(store, twin) > by_codes + 0.1
    check(store, twin, exact=False)


def test_settings_are_used(opened):
    store = opened("IVF16,Flat")
    twin = fill(store, 2000)
    store.flush()
    assert store.describe()["search"] == {"nprobe": 4}
    store.close()
    found = []
    for nprobe in (1, 16):
        store = opened("IVF16,Flat", writing=False, search={"nprobe": nprobe})
        assert store.describe()["search"] == {"nprobe": nprobe}
        found.append(recall(store, twin))
    assert found[0] < found[1] == 1


@pytest.mark.parametrize(
    ("factory", "name"), [("Flat", "nprobe"), ("HNSW32", "nprobe"), ("IVF16,Flat", "efSearch"), ("SQ8", "efSearch")]
)
def test_a_setting_that_a_kind_does_not_read_is_refused(tmp_path, factory, name):
    with pytest.raises(KeMetricError, match=f"{name} = 7: an index of kind '{factory}' does not read it") as caught:
        FaissStore(tmp_path / "store", D, writing=True, factory=factory, search={name: 7})
    assert caught.value.exit_code == ExitCode.USAGE
    assert not (tmp_path / "store").exists()
    FaissStore(tmp_path / "store", D, writing=True, search={name: 7}).close()  # auto: it may be read one day


def test_pytorch_metric_learning_imported_first(tmp_path):
    """It replaces FAISS's search by one of fewer arguments."""
    code = f"""
import pytorch_metric_learning.utils.inference, faiss.contrib.torch_utils, numpy as np, sys
sys.path.append({str(Path(__file__).parent)!r})
from store_twin import *
from ke_metric.stores.faiss_store import FaissStore
for number, factory in enumerate({KINDS + RARER_KINDS!r}):
    search = {{"nprobe": 4}} if "IVF" in factory else {{}}
    search |= {{"efSearch": 200}} if "HNSW" in factory else {{}}
    store = FaissStore(__import__("pathlib").Path({str(tmp_path)!r}) / str(number), 16, writing=True, factory=factory,
                       search=search)
    twin = Twin()
    items, vectors = some_items(700), unit_vectors(700, 16, seed=1)
    store.add(items, vectors); twin.add(items, vectors); store.flush()
    store.remove(["id-3", "id-600"]); twin.remove(["id-3", "id-600"])
    whole = factory in ("Flat", "HNSW32", "IVF4,Flat", "IVF4_HNSW8,Flat")
    assert_same_answers(store, twin, unit_vectors(20, 16, seed=2), 5, exact=whole)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


BAD_FACTORIES = (
    "nonsense",
    "",
    "IVF0,Flat",
    "HNSW1",
    "IVF16",
    "PQ7x4",
    "LSH",
    "NSG16",
    "IDMap,Flat",
    "IVF12345678,Flat",
)


@pytest.mark.parametrize("factory", BAD_FACTORIES)
def test_a_bad_factory_is_refused_before_anything_is_made(tmp_path, factory):
    with pytest.raises(KeMetricError, match="for example Flat, HNSW32, IVF1024,Flat") as caught:
        FaissStore(tmp_path / "store", D, writing=True, factory=factory)
    assert caught.value.exit_code == ExitCode.USAGE
    assert repr(factory) in str(caught.value)
    assert ".cpp" not in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"nprobes": 3}, "unknown setting 'nprobes'; did you mean 'nprobe'?"),
        ({"nprobe": 0}, "nprobe = 0, must be a whole number from 1"),
        ({"efSearch": -1}, "efSearch = -1"),
        ({"efSearch": 10**7}, "efSearch = 10000000"),
        ({"nprobe": True}, "nprobe = True"),
        ({"nprobe": 1.5}, "nprobe = 1.5"),
    ],
)
def test_bad_settings_are_refused(tmp_path, search, said):
    with pytest.raises(KeMetricError) as caught:
        FaissStore(tmp_path / "store", D, writing=True, search=search)
    assert caught.value.exit_code == ExitCode.USAGE
    assert said in str(caught.value)


def test_what_faiss_cannot_build_is_an_error_that_loses_nothing(opened, monkeypatch):
    store = opened("HNSW32")
    twin = fill(store, 300)
    store.flush()
    fill(store, 10, seed=1, twin=twin, first=300)

    def refuses(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(load_faiss().IndexIDMap, "add_with_ids", refuses)
    with pytest.raises(KeMetricError, match="nothing is lost"):
        store.flush()
    check(store, twin, exact=False)


def test_no_kind_that_we_name_trains_codes_that_nothing_reads():
    """Polysemous codes take most of the time of such a training; only FAISS's polysemous_ht reads them."""
    examples = re.findall(r"OPQ\S+|IVF\S+PQ\S+", EXAMPLES)
    assert examples == ["IVF4096,PQ64x4fs", "OPQ32,IVF4096,PQ32x8np"]
    for factory, read in ((examples[0], []), (examples[1], [False]), (choose_kind(10_000_000, 128).factory, [])):
        made = make_index(factory, 128)  # which owns what is inside
        lists = load_faiss().downcast_index(load_faiss().extract_index_ivf(made))
        assert [lists.do_polysemous_training for _ in [0] if hasattr(lists, "do_polysemous_training")] == read


@pytest.mark.parametrize(
    ("count", "dimension", "factory", "words"),
    [
        (0, 128, "Flat", "0 vectors of 128 numbers take 0 bytes and are searched exactly"),
        (4_021, 128, "Flat", "4,021 vectors of 128 numbers take 2 MB and are searched exactly"),
        (100_000, 128, "Flat", "51 MB"),
        (100_001, 128, "HNSW32", "51 MB"),
        (500_000, 128, "HNSW32", "256 MB"),
        (500_001, 128, "IVF4096,Flat", "256 MB"),
        (1_000_000, 128, "IVF4096,Flat", "512 MB"),
        (2_000_001, 128, "IVF4096,PQ64x4fs", "1.0 GB"),
        (100_000_000, 128, "IVF65536,PQ64x4fs", "4.0 GB"),
        (10_000, 512, "Flat", "20 MB"),
        (40_000, 2048, "IVF256,Flat", "328 MB"),
        (3_000_000, 127, "IVF4096,SQ8", "1.5 GB"),
    ],
)
def test_the_kind_and_its_reason(count, dimension, factory, words):
    choice = choose_kind(count, dimension)
    assert choice.factory == factory
    assert choice.reason.startswith(f"{factory}: {count:,} vectors of {dimension} numbers take ")
    assert words in choice.reason


def test_around_a_limit_the_kind_that_is_there_stays():
    assert choose_kind(90_000, 128, "HNSW32").factory == "HNSW32"
    assert "90,000" in choose_kind(90_000, 128, "HNSW32").reason
    assert choose_kind(90_000, 128).factory == "Flat"
    assert choose_kind(49_000, 128, "HNSW32").factory == "Flat"
    assert choose_kind(100_001, 128, "Flat").factory == "HNSW32", "a kind that is too small does not stay"
    assert choose_kind(90_000, 128, "IVF4096,PQ64x4fs").factory == "Flat"


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 4096))
def test_a_chosen_kind_can_be_trained(count, dimension):
    factory = choose_kind(count, dimension).factory
    if "65536" not in factory and "16384" not in factory:
        assert training_counts(make_index(factory, dimension))[0] <= max(count, 1)
    assert LEAST_PER_CENTROID * (list_count(count) if "IVF" in factory else 0) <= count


@given(st.integers(0, 10**9))
def test_lists_are_a_power_of_four_and_rise(count):
    lists = list_count(count)
    assert lists in (4**n for n in range(1, 9))
    assert list_count(count + 1) >= lists


@pytest.mark.parametrize(("factory", "exact"), [("Flat", True), ("HNSW32", False), ("IVF4,Flat", False)])
def test_exactness(factory, exact):
    assert is_exact(make_index(factory, 16)) is exact
