"""index.faiss is derived: it is opened only if it is the recorded one, and replaced as a whole."""

import os
from pathlib import Path

import pytest
from faiss_filled import KINDS, RARER_KINDS, D, check, fill, vectors_of

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import load_faiss
from ke_metric.stores import faiss_index as faiss_file
from ke_metric.stores.faiss_index import NAME, read_records
from ke_metric.stores.faiss_store import FaissStore

pytestmark = pytest.mark.usefixtures("one_faiss_thread")


@pytest.mark.parametrize("factory", KINDS + RARER_KINDS)
def test_the_file_is_faiss_s_own_and_its_ids_are_rows(opened, tmp_path, factory):
    store = opened(factory)
    fill(store)
    store.remove(["id-0", "id-500"])
    store.flush()
    index = load_faiss().read_index(str(tmp_path / "store" / NAME))
    assert index.ntotal == 998
    assert index.metric_type == load_faiss().METRIC_INNER_PRODUCT
    _, rows = index.search(vectors_of(1000)[700:710], 1)
    if factory in ("Flat", "HNSW32", "IVF4,Flat"):
        assert rows[:, 0].tolist() == list(range(700, 710))
    assert store.describe()["factory"] == factory
    assert store.describe()["indexed"] == 998


def damage(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGES = {
    "a flipped bit": damage,
    "cut off": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: path.write_bytes(b""),
    "no FAISS file": lambda path: path.write_bytes(b"x" * 5000),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("spoil", DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_is_not_the_recorded_one_is_never_opened(opened, tmp_path, monkeypatch, spoil):
    store = opened("HNSW32")
    twin = fill(store)
    store.flush()
    store.close()
    spoil(tmp_path / "store" / NAME)
    with monkeypatch.context() as patch:
        patch.setattr(load_faiss(), "read_index", lambda *_: pytest.fail("opened"))
        reader = opened("HNSW32", writing=False)
        check(reader, twin, exact=True)
        assert NAME in reader.describe()["reason"]
        assert "searched exactly until flushed" in reader.describe()["reason"]
        assert reader.describe()["indexed"] == 0
        writer = opened("HNSW32")
        check(writer, twin, exact=True)
    writer.flush()
    assert writer.describe()["indexed"] == 1000
    check(writer, twin, exact=False)
    assert opened("HNSW32", writing=False).describe()["indexed"] == 1000


def test_the_file_of_another_gallery_is_never_opened(opened, tmp_path):
    store = opened()
    twin = fill(store)
    store.flush()
    store.close()
    other = FaissStore(tmp_path / "other", D, writing=True)
    fill(other, seed=3)
    other.flush()
    other.close()
    (tmp_path / "other" / NAME).replace(tmp_path / "store" / NAME)
    store = opened()
    assert store.describe()["indexed"] == 0
    check(store, twin, exact=True)


def test_killed_before_the_file_was_renamed_the_old_one_is_good(opened, monkeypatch):
    store = opened()
    twin = fill(store)
    store.flush()
    fill(store, 100, seed=1, twin=twin, first=1000)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.flush()
    monkeypatch.undo()
    check(store, twin, exact=True)
    store.close()
    store = opened()
    assert store.describe()["indexed"] == 1000
    check(store, twin, exact=True)
    store.flush()
    assert store.describe()["indexed"] == 1100


def test_killed_twice_before_the_file_was_renamed_the_old_one_is_good(opened, monkeypatch):
    store = opened()
    twin = fill(store)
    store.flush()
    for first in (1000, 1100):
        fill(store, 100, seed=first, twin=twin, first=first)
        monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.flush()
        monkeypatch.undo()
        store.close()
        store = opened()
        assert store.describe()["indexed"] == 1000
        check(store, twin, exact=True)
    store.flush()
    assert store.describe()["indexed"] == 1200
    assert len(read_records(store)) == 1


def test_a_file_that_this_faiss_cannot_read_is_built_anew(opened, monkeypatch):
    """As another version of FAISS may have written it: it is the recorded one, and FAISS refuses it."""
    store = opened("HNSW32")
    twin = fill(store)
    real = faiss_file._Sink.write
    with monkeypatch.context() as patch:
        patch.setattr(faiss_file._Sink, "write", lambda sink, part: real(sink, part[::-1]))
        store.flush()
    store.close()
    store = opened("HNSW32")
    check(store, twin, exact=True)
    assert "cannot be read by this version of FAISS" in store.describe()["reason"]
    store.flush()
    assert store.describe()["indexed"] == 1000


def test_killed_after_the_file_was_renamed_the_new_one_is_good(opened, monkeypatch):
    store = opened()
    twin = fill(store)
    store.flush()
    fill(store, 100, seed=1, twin=twin, first=1000)
    written = []
    real = faiss_file._write_records

    def once(*arguments):
        if written:
            raise KeyboardInterrupt
        written.append(real(*arguments))

    monkeypatch.setattr(faiss_file, "_write_records", once)
    with pytest.raises(KeyboardInterrupt):
        store.flush()
    monkeypatch.undo()
    store.close()
    store = opened(writing=False)
    assert store.describe()["indexed"] == 1100
    check(store, twin, exact=True)


def test_a_full_disk_leaves_the_old_file(opened, tmp_path, monkeypatch):
    store = opened()
    twin = fill(store)
    store.flush()
    fill(store, 100, seed=1, twin=twin, first=1000)
    monkeypatch.setattr(
        faiss_file._Sink, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(KeMetricError, match="the disk is full") as caught:
        store.flush()
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    monkeypatch.undo()
    assert not list((tmp_path / "store").glob(".writing-*"))
    assert store.describe()["indexed"] == 1000
    check(store, twin, exact=True)


def test_a_reader_takes_the_file_that_a_writer_replaced(opened):
    writer = opened("HNSW32")
    twin = fill(writer)
    writer.flush()
    reader = opened("HNSW32", writing=False)
    check(reader, twin, exact=False)
    fill(writer, 100, seed=1, twin=twin, first=1000)
    assert reader.describe()["indexed"] == 1000
    check(reader, twin, exact=False, k=100)
    writer.flush()
    assert reader.describe()["indexed"] == 1100


def test_a_file_that_is_replaced_while_a_reader_looks(opened, monkeypatch):
    """The reader read the record of the old file, and then finds the new one."""
    writer = opened()
    twin = fill(writer)
    writer.flush()
    gallery = writer
    stale = read_records(gallery)
    fill(writer, 100, seed=1, twin=twin, first=1000)
    writer.flush()
    told = iter([stale])
    monkeypatch.setattr(faiss_file, "read_records", lambda gallery: next(told, None) or read_records(gallery))
    derived, missing = faiss_file.load_derived(gallery)
    assert derived.record.rows == 1100
    assert missing == ""
