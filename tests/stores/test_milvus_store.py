"""The store in Milvus, on Milvus Lite; what only a server does is in test_milvus_server.py.

What holds for every kind of store is in test_contract.py.
"""

import contextlib
import itertools
import json
import re
import shutil
import string
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_twin import unit_vectors

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.stores import milvus_collection, milvus_connection, milvus_journal, milvus_store
from ke_metric.stores.contract import Condition, Item, Where
from ke_metric.stores.milvus_collection import KINDS, Collection, expression_of, one_of, quoted
from ke_metric.stores.milvus_connection import OPENED, LiteFolder
from ke_metric.stores.milvus_journal import Journal
from ke_metric.stores.milvus_store import MilvusStore
from ke_metric.stores.opening import server_store

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

D = 4
FACTS = {"digest": "0123"}


def vectors(count, seed=0, dimension=D):
    found = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def items(count, start=0):
    return [Item(f"i{n:05}", f"p{n}.png", ["", "crow", "jay"][n % 3]) for n in range(start, start + count)]


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "milvus.db")


@pytest.fixture
def open_milvus(uri):
    """Open the store of a test; all are closed after it."""
    opened = []

    def store(*, writing=True, dimension=D, **more):
        opened.append(MilvusStore(uri, dimension, writing=writing, **more))
        return opened[-1]

    yield store
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A store that tests with many examples share."""
    store = MilvusStore(str(tmp_path_factory.mktemp("shared") / "milvus.db"), D, writing=True)
    yield store
    store.close()


def everything(store):
    return {
        item.id: (item, vector.tolist())
        for page, rows in store.read(7)
        for item, vector in zip(page, rows, strict=True)
    }


# Search


@pytest.mark.parametrize("kind", KINDS)
def test_search_gives_cosines_highest_first(open_milvus, kind):
    gallery, queries = vectors(300), vectors(20, seed=1)
    store = open_milvus(kind=kind)
    store.add(items(300), gallery)
    store.flush()
    store.add([Item("last")], -queries[:1])
    hits = store.search(queries, 5)
    exact = queries @ np.concatenate([gallery, -queries[:1]]).T
    order = np.argsort(-exact, axis=1)[:, :5]
    if kind == "FLAT":
        np.testing.assert_allclose(hits.similarities, np.take_along_axis(exact, order, axis=1), atol=1e-6)
    names = [f"i{n:05}" for n in range(300)] + ["last"]
    same = [
        {item.id for item in row} == {names[n] for n in right} for row, right in zip(hits.items(), order, strict=True)
    ]
    assert np.mean(same) > (0.99 if kind == "FLAT" else 0.5)
    assert store.describe()["exact"] == (kind == "FLAT")
    opposite = store.search(queries[:1], 301)
    assert [row[-1].id for row in opposite.items()] == ["last"] or kind == "IVF_FLAT"


def test_hits_give_items_and_vectors_of_the_same_rows(open_milvus):
    store = open_milvus()
    gallery = vectors(50)
    store.add(items(50), gallery)
    hits = store.search(vectors(3, seed=1), 60)
    assert hits.numbers.shape == (3, 50)
    found = hits.vectors()
    for query, row in enumerate(hits.items()):
        assert len(row) == 50
        np.testing.assert_array_equal(found[query, :50], [gallery[int(item.id[1:])] for item in row])


@pytest.mark.parametrize("kind", ["HNSW", "IVF_FLAT"])
def test_a_narrow_filter_and_removed_items_are_no_reason_for_fewer_hits(open_milvus, monkeypatch, kind):
    monkeypatch.setattr(milvus_collection, "REQUEST_ROWS", 64)  # several pages
    many, rare = 3000, [7, 400, 2100]
    gallery = unit_vectors(many, 16, seed=0, spread=0.3, centres=20)
    store = open_milvus(dimension=16, kind=kind)
    store.add([Item(f"i{n:05}", label="rare" if n in rare else "x") for n in range(many)], gallery)
    store.flush()
    queries = gallery[:30]
    hits = store.search(queries, 5, where=Where.parse('label == "rare"'))
    expected = np.sort(queries @ gallery[rare].T, axis=1)[:, ::-1]
    np.testing.assert_allclose(hits.similarities[:, :3], expected, atol=1e-6)
    assert np.isneginf(hits.similarities[:, 3:]).all()
    ids = np.array([f"i{n:05}" for n in rare])
    best = np.argsort(-(queries @ gallery[rare].T), axis=1)
    assert [[item.id for item in row] for row in hits.items()] == ids[best].tolist()
    store.remove([f"i{n:05}" for n in range(many - 150)])
    hits = store.search(queries, 100)
    expected = np.sort(queries @ gallery[-150:].T, axis=1)[:, ::-1][:, :100]
    assert (hits.numbers >= 0).all()
    assert (hits.similarities <= expected + 1e-6).all()


def test_requests_in_parts_answer_as_one(open_milvus, monkeypatch):
    store = open_milvus()
    store.add(items(500), vectors(500))
    queries = vectors(300, seed=1)
    whole = store.search(queries, 10)
    monkeypatch.setattr(milvus_store, "HITS_AT_ONCE", 70)
    monkeypatch.setattr(milvus_collection, "REQUEST_BYTES", 3000)
    monkeypatch.setattr(milvus_collection, "REQUEST_ROWS", 40)
    parts = store.search(queries, 10)
    np.testing.assert_array_equal(parts.similarities, whole.similarities)
    assert parts.items() == whole.items()
    np.testing.assert_array_equal(parts.vectors(), whole.vectors())
    assert len(everything(store)) == 500
    assert store.known([item.id for item in items(510)]) == {item.id for item in items(500)}


def test_ten_thousand_queries_and_none(open_milvus):
    store = open_milvus()
    assert store.search(vectors(3), 5).items() == [[], [], []]
    store.add(items(30), vectors(30))
    hits = store.search(vectors(10_000, seed=1), 1)
    assert (hits.numbers >= 0).all()
    np.testing.assert_allclose(
        hits.similarities[:, 0], (vectors(10_000, seed=1) @ vectors(30).T).max(axis=1), atol=1e-6
    )
    assert store.search(vectors(0), 3).similarities.shape == (0, 3)
    assert store.search(vectors(0), 3).vectors().shape == (0, 3, D)


def test_more_neighbours_than_milvus_gives_are_refused_only_where_there_are_more(open_milvus, monkeypatch):
    store = open_milvus()
    store.add(items(30), vectors(30))
    assert store.search(vectors(2), 100_000).numbers.shape == (2, 30)
    monkeypatch.setattr(milvus_store, "REQUEST_ROWS", 20)
    with pytest.raises(KeMetricError, match=r"k = 25, Milvus finds at most 20 neighbours"):
        store.search(vectors(2), 25)


# What text may be

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.text(
    "\"'\\\n\r\t%_ in[]", max_size=6
)


@given(ids=st.lists(TEXTS.filter(bool), unique=True, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_can_be_an_id(shared, ids):
    shared.remove([item.id for page, _ in shared.read() for item in page])
    rows = [Item(text, text, text) for text in ids]
    shared.add(rows, vectors(len(ids)))
    assert shared.get(ids) == rows
    assert shared.known([*ids, "no such id"]) == set(ids)
    assert [item.id for page, _ in shared.read(2) for item in page] == sorted(ids)
    for text in ids:
        found = shared.search(vectors(1), 9, where=Where((Condition("path", True, (text,)),)))
        assert [item.id for item in found.items()[0]] == [text]
    shared.remove(ids[:1])
    assert shared.known(ids) == set(ids[1:])


def test_the_longest_texts_that_are_allowed_fit(open_milvus):
    store = open_milvus()
    longest = ["😀" * 1024, '"' * 1024, "\\" * 1024, "\n" * 1024, "x" * 1024]
    store.add([Item(text, text, text) for text in longest], vectors(5))
    assert {item.path for row in store.search(vectors(1), 5).items() for item in row} == set(longest)
    store.remove(longest[:4])
    assert store.get(longest[4:])[0].label == longest[4]


CONDITIONS = st.builds(
    Condition,
    st.sampled_from(["id", "path", "label"]),
    st.booleans(),
    st.lists(
        st.sampled_from(["", '"', "\\", 'a" or label == "', "\n", "crow", "c\\", "é", "' in ["]), min_size=1
    ).map(tuple),
)


@given(where=st.lists(CONDITIONS, min_size=1, max_size=3).map(tuple).map(Where))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_where_holds_for_what_python_says(filtered, where):
    def holds(item):
        return all((getattr(item, one.field) in one.values) == one.within for one in where.conditions)

    store, rows = filtered
    found = {item.id for item in store.search(vectors(1), len(rows), where=where).items()[0]}
    assert found == {item.id for item in rows if holds(item)}


@pytest.fixture(scope="module")
def filtered(tmp_path_factory):
    texts = ["", '"', "\\", 'a" or label == "', "\n", "crow", "c\\", "é", "' in ["]
    rows = [Item(f"{n}{text}" if n else text or "x", texts[n % 7], texts[n % 5]) for n in range(6) for text in texts]
    store = MilvusStore(str(tmp_path_factory.mktemp("filtered") / "milvus.db"), D, writing=True)
    store.add(rows[:30], vectors(30))
    store.flush()  # some in a data file, some in the log: Milvus Lite filters them differently
    store.add(rows[30:], vectors(len(rows) - 30, seed=1))
    yield store, rows
    store.close()


def test_where_with_thousands_of_values(open_milvus):
    store = open_milvus()
    store.add(items(100), vectors(100))
    where = Where((Condition("id", True, tuple(f"i{n:05}" for n in range(50, 20_000))),))
    assert {item.id for item in store.search(vectors(1), 100, where=where).items()[0]} == {
        f"i{n:05}" for n in range(50, 100)
    }


def test_expressions():
    assert quoted('a"\\\n') == r'"a\"\\\n"'
    assert one_of("id", ["a", "b"]) == 'id in ["a", "b"]'
    assert expression_of(None) == ""
    assert expression_of(Where.parse('label == "x" and path != "y" and id in ["a", "b"]')) == (
        'label == "x" and path != "y" and id in ["a", "b"]'
    )
    never, always = (Where((Condition("label", within, ("a\0", "\ud800", "x" * 1025)),)) for within in (True, False))
    assert expression_of(never) == 'id == ""'
    assert expression_of(always) == ""
    assert expression_of(Where((Condition("label", False, ("a", "b")),))) == 'not (label in ["a", "b"])'


# All or nothing


@pytest.fixture
def small_requests(monkeypatch):
    monkeypatch.setattr(milvus_collection, "REQUEST_BYTES", 700)


class Cut(BaseException):
    """Where a process is killed."""


def cut_after(monkeypatch, requests):
    """Let the process be killed after that many requests that change something."""
    left = [requests]

    def counted(method):
        def call(self, what):
            if not left[0]:
                raise Cut
            left[0] -= 1
            method(self, what)

        return call

    for name in ("put", "delete"):
        monkeypatch.setattr(Collection, name, counted(getattr(Collection, name)))


def long_items(count, start=0):
    return [Item(f"{item.id}{'-' * 40}", item.path, item.label) for item in items(count, start=start)]


CHANGES = {
    "add": lambda store: store.add(long_items(30, start=20), vectors(30, seed=1)),
    "replace": lambda store: store.add(long_items(30), vectors(30, seed=1), replace=True),
    "remove": lambda store: store.remove([item.id for item in long_items(18)] * 2),
}


def expected_after(change, before):
    if change == "remove":
        return {item.id: before[item.id] for item in long_items(2, start=18)}
    new = zip(long_items(30, start=20 if change == "add" else 0), vectors(30, seed=1), strict=True)
    return before | {item.id: (item, vector.tolist()) for item, vector in new}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_many_requests_is_whole_or_not_at_all(open_milvus, small_requests, change):
    outcomes = []
    for requests in range(0, 100, 2):
        name = f"c{requests}"
        store = open_milvus(collection=name)
        store.add(long_items(20), vectors(20))
        before = everything(store)
        whole = expected_after(change, before)
        with pytest.MonkeyPatch.context() as patch:
            cut_after(patch, requests)
            try:
                CHANGES[change](store)
                finished = True
            except Cut:
                finished = False
        store.close()
        store = open_milvus(collection=name, writing=requests % 4 == 0)
        after = everything(store)
        assert after == whole if finished else after in (before, whole), requests
        assert len(store) == len(after)
        assert store._journal.own.count() == 1
        store.close()
        outcomes.append(after == whole)
        if finished:
            break
    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) > 1
    assert outcomes.count(True) > 2


def test_the_same_store_goes_on_after_a_request_that_failed(open_milvus, small_requests):
    store = open_milvus()
    store.add(long_items(20), vectors(20))
    for start, requests, count in [(100, 2, 20), (200, 12, 60)]:
        with pytest.MonkeyPatch.context() as patch:
            cut_after(patch, requests)
            with pytest.raises(Cut):
                store.add(long_items(40, start=start), vectors(40, seed=1))
        assert len(store) == count
        assert len(everything(store)) == count
    store.add(long_items(40, start=300), vectors(40))
    assert len(store) == len(everything(store)) == 100


def test_one_request_where_it_fits(open_milvus):
    store = open_milvus()
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, 1)
        store.add(items(5000), vectors(5000))
    assert len(store) == 5000


# What is there already


def test_another_dimension_model_index_or_collection_is_refused(open_milvus):
    open_milvus(facts=FACTS).close()
    for more, message in [
        ({"dimension": 5}, "holds vectors of dimension 4, asked for is dimension 5"),
        ({"facts": {"digest": "9"}}, "its digest is '0123', asked for is '9'"),
        ({"facts": {"model": "9"}}, "its model is None, asked for is '9'"),
        ({"kind": "HNSW"}, "its index is FLAT by IP, asked for is HNSW by IP"),
        ({"kind": "HNWS"}, "must be one of FLAT, HNSW, IVF_FLAT, AUTOINDEX; did you mean 'HNSW'"),
        ({"collection": "x", "writing": False}, "there is no such collection"),
    ]:
        with pytest.raises(KeMetricError, match=message):
            open_milvus(**more)
    store = open_milvus(writing=False, facts=FACTS)
    assert store.facts == FACTS
    with pytest.raises(KeMetricError, match="opened to read"):
        store.add(items(1), vectors(1))


def test_a_collection_of_something_else_is_refused(open_milvus, uri):
    from pymilvus import MilvusClient

    open_milvus().close()
    connection = milvus_connection.Connection(uri, writing=True)
    connection.client.create_collection("other", dimension=D)
    schema = MilvusClient.create_schema()
    for name in ("id", "path", "label"):
        schema.add_field(name, 21, max_length=10, is_primary=name == "id")
    schema.add_field("vector", 101, dim=D)
    connection.client.create_collection("alike", schema=schema)
    connection.close()
    with pytest.raises(KeMetricError, match="its fields are id, vector, must be id, path, label, vector"):
        open_milvus(collection="other")
    with pytest.raises(KeMetricError, match="made by another program: there is no collection alike_journal"):
        open_milvus(collection="alike")


def test_collections_in_one_file_are_apart(open_milvus):
    for name in ("one", "two"):
        store = open_milvus(collection=name)
        store.add([Item(name)], vectors(1))
        store.close()
    assert open_milvus(collection="one", writing=False).known(["one", "two"]) == {"one"}


# The file of Milvus Lite


@pytest.mark.parametrize("writing", [True, False])
def test_a_second_to_open_the_file_is_refused(open_milvus, uri, writing):
    store = open_milvus()
    with pytest.raises(KeMetricError, match=r"another process has it open; one process at a time .* a Milvus server"):
        open_milvus(writing=writing)
    program = f"from ke_metric.stores.milvus_store import MilvusStore; MilvusStore({uri!r}, 4, writing={writing})"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode
    assert "another process has it open" in ran.stderr
    store.add(items(1), vectors(1))


def test_another_program_that_has_the_file_open(uri):
    from pymilvus import MilvusClient

    program = f"from pymilvus import MilvusClient as C; c = C({uri!r}); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(KeMetricError, match="another process has it open"):
            MilvusStore(uri, D, writing=True)
        other.communicate(b"\n")
    assert MilvusClient
    MilvusStore(uri, D, writing=True).close()


def test_a_file_that_is_not_there_or_is_no_folder(uri, tmp_path):
    with pytest.raises(KeMetricError, match="there is no Milvus Lite database here"):
        MilvusStore(uri, D, writing=False)
    assert not Path(uri).exists()
    with pytest.raises(
        KeMetricError, match="cannot be opened", check=lambda error: error.exit_code == ExitCode.ENVIRONMENT
    ):
        MilvusStore(f"{__file__}/milvus.db", D, writing=True)
    MilvusStore(str(tmp_path / "absent" / "milvus.db"), D, writing=True).close()
    Path(uri).write_bytes(b"SQLite format 3\0")
    with pytest.raises(KeMetricError, match=r"Milvus Lite 2, which Milvus Lite 3 cannot open; build the index again"):
        MilvusStore(uri, D, writing=True)
    assert Path(uri).read_bytes() == b"SQLite format 3\0"


def killed_copy(uri, tmp_path):
    """Return a copy of a database as a SIGKILL would leave it now."""
    copy = tmp_path / "killed.db"
    shutil.copytree(uri, copy)
    return copy


def reopened(path, **more):
    return MilvusStore(str(path), D, writing=True, **more)


def test_what_was_answered_is_there_after_a_kill(open_milvus, uri, tmp_path):
    store = open_milvus(facts=FACTS)
    store.add(items(20), vectors(20))
    store.remove(["i00003"])
    expected = everything(store)
    again = reopened(killed_copy(uri, tmp_path), facts=FACTS)
    assert everything(again) == expected
    again.close()


@pytest.mark.parametrize("missing", ["schema.json", "manifest.json", "collection", "journal's schema.json"])
def test_a_collection_that_was_half_made_is_made_anew(open_milvus, uri, tmp_path, missing):
    open_milvus(facts=FACTS)
    copy = killed_copy(uri, tmp_path)
    main, journal = copy / "collections" / "ke_metric", copy / "collections" / "ke_metric_journal"
    if missing == "manifest.json":  # killed before the index was made
        (main / missing).unlink()
    else:
        shutil.rmtree(main)
        if missing == "schema.json":
            (main / "wal").mkdir(parents=True)
        if missing == "journal's schema.json":
            (journal / "schema.json").unlink()
    store = reopened(copy, facts=FACTS)
    store.add(items(20), vectors(20))
    store.close()
    store = reopened(copy, facts=FACTS)
    assert len(store) == 20
    assert store.search(vectors(1), 1).items()[0][0].id == "i00000"
    store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_file_that_was_half_written_is_made_anew(open_milvus, uri, tmp_path, kind):
    store = open_milvus(kind=kind)
    store.add(items(300), vectors(300))
    store.close()
    copy = killed_copy(uri, tmp_path)
    found = list(copy.glob("collections/ke_metric/**/*.idx"))
    assert found
    for file in found:
        file.write_bytes(file.read_bytes()[:100])
    (copy / OPENED).touch()
    store = reopened(copy, kind=kind)
    assert store.search(vectors(300)[:1], 1).items()[0][0].id == "i00000"
    store.close()


def test_a_log_that_is_in_the_data_files_already_doubles_nothing(open_milvus, uri, tmp_path):
    store = open_milvus()
    store.add(items(20), vectors(20))
    logs = Path(uri) / "collections" / "ke_metric" / "wal"
    shutil.copytree(logs, tmp_path / "logs")
    store.flush()
    store.add(items(5, start=20), vectors(5, seed=1))
    copy = killed_copy(uri, tmp_path)  # as if killed after the manifest was written, before the log was removed
    shutil.copytree(tmp_path / "logs", copy / "collections" / "ke_metric" / "wal", dirs_exist_ok=True)
    again = reopened(copy)
    assert len(again) == 25
    assert len(again.search(vectors(1), 40).items()[0]) == 25
    again.add([Item("more")], vectors(1, seed=1))
    again.close()


def test_a_log_of_an_unknown_version_stays(tmp_path):
    collection = tmp_path / "milvus.db" / "collections" / "x"
    (collection / "wal").mkdir(parents=True)
    (collection / "schema.json").write_text("{}")
    log = collection / "wal" / "wal_data_000001.arrow"
    log.touch()
    for manifest, stays in [
        ({"manifest_format_version": 3, "active_wal_number": 2}, True),
        ({"manifest_format_version": 2, "active_wal_number": None}, True),
        ({"manifest_format_version": 2, "active_wal_number": 1}, True),
        ([], True),
        ({"manifest_format_version": 2, "active_wal_number": 2}, False),
    ]:
        (collection / "manifest.json").write_text(json.dumps(manifest))
        (tmp_path / "milvus.db" / OPENED).touch()
        LiteFolder(tmp_path / "milvus.db", writing=True).close()
        assert log.exists() == stays, manifest


# Servers


@pytest.mark.parametrize("uri", ["http://root:secret@host:1", "https://host?token=secret"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(KeMetricError, match="KE_METRIC_MILVUS_TOKEN") as caught:
        MilvusStore(uri, D, writing=True)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer():
    with pytest.raises(KeMetricError, match=r"http://127\.0\.0\.1:1: connecting: Milvus says: Fail") as caught:
        MilvusStore("http://127.0.0.1:1", D, writing=False, token="root:secret")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["http://[::1", "http://[bad]:19530", "http://host:port", "http://host:99999"])
def test_a_server_that_cannot_be(uri):
    with pytest.raises(KeMetricError, match=re.escape(repr(uri))) as caught:
        MilvusStore(uri, D, writing=True)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_uri_of_neither_kind():
    with pytest.raises(KeMetricError, match=r"must be a file that ends with \.db, or a server: http://host:19530"):
        MilvusStore("gallery.sqlite", D, writing=True)


@pytest.mark.parametrize("package", ["pymilvus", "milvus_lite"])
def test_a_missing_library_names_the_command(uri, monkeypatch, package):
    monkeypatch.setattr(
        milvus_connection.importlib.util, "find_spec", lambda name: None if name == package else object()
    )
    with pytest.raises(KeMetricError, match=rf"{package} is not installed: pip install 'ke_metric\[cpu,milvus\]'"):
        MilvusStore(uri, D, writing=True)
    assert not Path(uri).exists()


def test_the_same_requests_over_http(open_milvus, uri):
    """What the store asks of a server it asks of Milvus Lite: spoken to over its port, it answers the same."""
    from milvus_lite.server_manager import server_manager_instance

    store = open_milvus(facts=FACTS)
    store.add(items(30), vectors(30))
    port = server_manager_instance._servers[uri][2]
    reader = MilvusStore(f"http://127.0.0.1:{port}", D, writing=False, facts=FACTS)
    assert "bytes" not in reader.describe()
    assert len(reader) == 30
    store.add(items(5, start=30), vectors(5, seed=1))
    assert len(reader) == 35
    assert reader.search(vectors(1), 1).items() == store.search(vectors(1), 1).items()
    writer = MilvusStore(f"http://127.0.0.1:{port}", D, writing=True, collection="second", kind="HNSW")
    writer.add([Item(letter) for letter in string.ascii_letters], vectors(52))
    assert len(writer) == 52
    for one in (writer, reader):
        one.close()


def test_how_fresh_answers_are_is_said_by_the_environment(monkeypatch):
    monkeypatch.setenv("KE_METRIC_MILVUS_CONSISTENCY", "strong")
    with pytest.raises(KeMetricError, match="consistency = 'strong', must be one of Strong, Bounded, Ev") as caught:
        server_store("milvus")("http://127.0.0.1:1", D, writing=False)
    assert caught.value.exit_code == ExitCode.USAGE
    for value, consistency in (("Strong", "Strong"), ("", None)):
        monkeypatch.setenv("KE_METRIC_MILVUS_CONSISTENCY", value)
        assert server_store("milvus").keywords["consistency"] == consistency


# Several clients, over the port of Milvus Lite


@pytest.fixture
def open_over_port(open_milvus, uri):
    """Open a store as one of a server, which has no lock; all are closed after it."""
    from milvus_lite.server_manager import server_manager_instance

    open_milvus(collection="first")  # keeps Milvus Lite running
    port, opened = server_manager_instance._servers[uri][2], []

    def store(*, writing=True, **more):
        opened.append(MilvusStore(f"http://127.0.0.1:{port}", D, writing=writing, **more))
        return opened[-1]

    yield store
    for one in opened:
        one.close()


def before_requests(patch, store, act):
    """Call act(number) before each request with which a store changes something, its number from 0 on."""
    numbers = itertools.count()

    def told(method):
        def call(self, what):
            if self.client is store._main.client:
                act(next(numbers))
            method(self, what)

        return call

    for name in ("put", "delete"):
        patch.setattr(Collection, name, told(getattr(Collection, name)))


def added_until(store, start, last):
    """Add items in many requests, before one of which the process is killed."""

    def act(number):
        if number >= last:
            raise Cut

    with pytest.MonkeyPatch.context() as patch:
        before_requests(patch, store, act)
        with contextlib.suppress(Cut):
            store.add(long_items(12, start=start), vectors(12, seed=start))


@pytest.mark.parametrize("others", [0, 2, 100])
@pytest.mark.parametrize("more", [1, 2, 100])
def test_another_writer_at_any_moment_leaves_no_change_by_halves(open_over_port, small_requests, others, more):
    """One that has begun a change, be it killed in it, while the first one is in its own, and is killed in that."""
    changes = [{item.id for item in long_items(12, start=start)} for start in (100, 200)]
    moments = 0
    for moment in itertools.count():
        first = open_over_port(collection=f"c{moment}")
        first.add(long_items(3), vectors(3))
        reached = False

        def act(number, moment=moment, first=first):
            nonlocal reached
            if number == moment:
                reached = True
                added_until(open_over_port(collection=f"c{moment}"), 200, others)
            if number >= moment + more:
                raise Cut

        with pytest.MonkeyPatch.context() as patch:
            before_requests(patch, first, act)
            with contextlib.suppress(Cut, KeMetricError):
                first.add(long_items(12, start=100), vectors(12, seed=1))
        if not reached:
            break
        moments += 1
        last = open_over_port(collection=f"c{moment}")
        there = set(everything(last)) - {item.id for item in long_items(3)}
        assert all(change <= there or not change & there for change in changes), (moment, sorted(there))
        assert last._journal.own.count() == 2
        if others == 100:
            assert changes[1] <= there, moment
    assert moments > 8


def test_a_writer_settles_its_own_changes_alone(open_over_port, small_requests, monkeypatch):
    """Another may sign, and begin a change, right after it was seen that nobody has."""
    first = open_over_port()
    added_until(first, 100, 2)
    second = open_over_port()

    def act(number):
        if number == 2:
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "_is_signed", lambda journal: True)
                assert len(first) == 0
        if number == 5:
            raise Cut

    with monkeypatch.context() as patch:
        before_requests(patch, second, act)
        with pytest.raises(Cut):
            second.add(long_items(12, start=200), vectors(12))
    assert 0 < len(first) < 12
    assert set(everything(open_over_port())) == {item.id for item in long_items(12, start=200)}


@pytest.mark.parametrize("committed", [True, False])
def test_a_journal_without_names_is_settled(open_milvus, committed):
    """As earlier versions wrote it."""
    store = open_milvus()
    store.add(items(5), vectors(5))
    own = store._journal.own
    row = {"path": "p", "label": "l", "vector": vectors(1)[0]}
    own.put([row | {"id": name} for name in ("put new", "put writer x put y", "gone i00002")])
    if committed:
        own.put([row | {"id": "commit"}])
    store.close()
    store = open_milvus()
    kept = {item.id for item in items(5)}
    assert set(everything(store)) == (kept - {"i00002"} | {"new", "writer x put y"} if committed else kept)
    assert own_ids(store) == ["facts"]


def test_a_journal_takes_nobody_elses_place(open_over_port):
    """The name of a journal may be that of a gallery, with items like entries, or of another program's collection."""
    gallery = open_over_port(collection="photos_journal")
    names = ["facts", "commit", "put x", "writer", "i00001"]
    gallery.add([Item(name) for name in names], vectors(5))
    with pytest.raises(KeMetricError, match="its journal would be the collection photos_journal, which") as caught:
        open_over_port(collection="photos")
    assert caught.value.exit_code == ExitCode.DATA
    assert set(everything(gallery)) == set(names)
    gallery.remove(names)
    with pytest.raises(KeMetricError, match="its journal would be the collection photos_journal, which"):
        open_over_port(collection="photos")  # it may be about to be filled
    alone = replace(gallery._main, name="alone_journal")
    alone.make(D)
    alone.put([{"id": "x", "path": "", "label": "", "vector": vectors(1)[0]}])
    with pytest.raises(KeMetricError, match="its journal would be the collection alone_journal, which"):
        open_over_port(collection="alone")
    client = gallery._main.client
    client.create_collection("app_journal", dimension=D)
    client.insert("app_journal", [{"id": 1, "vector": [1.0] * D}])
    with pytest.raises(KeMetricError, match="app_journal is a collection of something else: its fields are id, vec"):
        open_over_port(collection="app")
    assert client.query("app_journal", filter="id == 1")
    assert not client.has_collection("app")
    assert not client.has_collection("photos")


@pytest.mark.parametrize("left", [[], ["facts"], ["facts", "by", "writer 0.1 put x", "writer 0.1 commit"]])
def test_a_journal_that_was_left_alone_is_made_anew(open_over_port, left):
    own = open_over_port(collection="other")._journal.own
    remains = replace(own, name="left_journal")
    remains.make(D)
    if left:
        row = {"path": "", "label": "{}", "vector": vectors(1)[0]}
        remains.put([row | {"id": name} for name in left])
    store = open_over_port(collection="left", facts=FACTS)
    assert store.facts == FACTS
    assert own_ids(store) == ["by", "facts"]
    assert len(store) == 0


def test_what_is_refused_takes_writing_from_nobody(open_over_port):
    first = open_over_port()
    first.add(items(5), vectors(5))
    second = open_over_port()
    assert len(second) == 5
    for code, change in (
        (ExitCode.DATA, lambda: second.add(items(3), vectors(3))),
        (ExitCode.DATA, lambda: second.remove(["i00001", "none"])),
    ):
        with pytest.raises(KeMetricError) as caught:
            change()
        assert caught.value.exit_code == code
    first.add(items(2, start=5), vectors(2))
    second.remove(["i00000"])
    with pytest.raises(KeMetricError, match="another process has begun to write it since") as caught:
        first.add(items(2, start=7), vectors(2))
    assert caught.value.exit_code == ExitCode.LINEAGE
    with pytest.raises(KeMetricError, match="another process has begun to write it since"):
        first.drop()
    assert len(second) == 6
    second.drop()


def test_what_another_adds_before_this_one_begins_is_seen(open_over_port, monkeypatch):
    """Between what a first change reads and its sign, the writer before may still change something."""
    first = open_over_port()
    first.add(items(1), vectors(1))
    second, sign = open_over_port(), Journal.sign

    def late(journal):
        monkeypatch.setattr(Journal, "sign", sign)
        first.add(items(1, start=1), vectors(1))
        journal.sign()

    monkeypatch.setattr(Journal, "sign", late)
    with pytest.raises(KeMetricError, match="item 'i00001' is there already"):
        second.add(items(2, start=1), vectors(2))
    assert set(everything(second)) == {"i00000", "i00001"}


def test_a_change_waits_until_what_was_left_is_finished(open_over_port, small_requests, monkeypatch):
    """Finishing it failed when this writer began; what is newer must not be overwritten by it later."""
    first = open_over_port()
    first.add(long_items(12), vectors(12))
    second = open_over_port()
    added, put = vectors(12, seed=2), Collection.put

    def cut(self, *what, **more):
        if self in (first._main, second._journal):
            raise Cut
        put(self, *what, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "put", cut)
        with pytest.raises(Cut):
            first.add(long_items(12), vectors(12, seed=1), replace=True)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "settle", cut)
        with pytest.raises(Cut):
            second.add(long_items(12), added, replace=True)
    second.add(long_items(12), added, replace=True)
    second.close()
    last = everything(open_over_port())
    np.testing.assert_array_equal([last[item.id][1] for item in long_items(12)], added)


def test_a_request_that_comes_late_is_part_of_no_other_change(open_over_port, small_requests, monkeypatch):
    """Its answer was lost, and it is carried out when its change was settled: a commit, the deleting of a range."""
    store = open_over_port()
    store.add(long_items(3), vectors(3))
    late, put, delete = [], Collection.put, Collection.delete
    own = store._journal.own

    def noting(request):
        def noted(self, what):
            if self is own:
                late.append(lambda: request(self, what))
            request(self, what)

        return noted

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "put", noting(put))
        patch.setattr(Collection, "delete", noting(delete))
        store.add(long_items(12, start=100), vectors(12))
    before, new = set(everything(store)), {item.id for item in long_items(12, start=200)}
    for again, committed in itertools.product(late, (False, True)):
        add_until(store, again, committed=committed)
        store._settle()
        assert set(everything(store)) == (before | new if committed else before)
        store.remove(sorted(new & set(everything(store))))
    assert own_ids(open_over_port()) == ["by", "facts"]


def add_until(store, act, *, committed):
    """Add items 200 to 211, act after some entries or after the commit, and be killed then."""
    put, numbers = Collection.put, itertools.count()

    def acting(self, rows):
        if self is store._main if committed else next(numbers) == 3:
            patch.setattr(Collection, "put", put)
            act()
            raise Cut
        put(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collection, "put", acting)
        with pytest.raises(Cut):
            store.add(long_items(12, start=200), vectors(12))


@pytest.mark.parametrize("replaced", [0, 1, 5])
def test_what_replaces_items_on_a_server_is_written_down_first(open_over_port, monkeypatch, replaced):
    """Its log has the new rows before the removal of the old ones, and may end between the two."""
    store = open_over_port()
    store.add(items(5), vectors(5))
    put, at_main = Collection.put, []

    def cut(self, rows):
        if self is store._main:
            at_main.append(own_ids(store))
            raise Cut
        put(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "put", cut)
        with pytest.raises(Cut):
            store.add(items(5, start=5 - replaced), vectors(5, seed=1), replace=True)
    (written,) = at_main
    assert len([name for name in written if " put " in name]) == (5 if replaced else 0)
    found = everything(open_over_port())
    assert len(found) == (10 - replaced if replaced else 5)
    if replaced:
        np.testing.assert_array_equal([found[one.id][1] for one in items(5, start=5 - replaced)], vectors(5, seed=1))


@pytest.mark.parametrize("message", [1000, 100_000])
def test_what_is_more_than_a_message_of_a_servers_log_is_written_down_first(open_over_port, monkeypatch, message):
    """A server that is killed may have carried out a part of one request."""
    monkeypatch.setattr(milvus_journal, "MESSAGE_BYTES", message)
    store, written = open_over_port(), []
    put, delete = Collection.put, Collection.delete

    def noting(request):
        def noted(self, what):
            if self is store._main:
                written.append(len([name for name in own_ids(store) if " put " in name or " gone " in name]))
            request(self, what)

        return noted

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "put", noting(put))
        patch.setattr(Collection, "delete", noting(delete))
        store.add(items(100), vectors(100))
        store.add(items(2, start=100), vectors(2))
        store.remove([item.id for item in items(100, start=2)])
    assert written == ([100, 0, 100] if message == 1000 else [0, 0, 0])
    assert set(everything(store)) == {item.id for item in items(2)}
    assert own_ids(store) == ["by", "facts"]


def test_of_two_that_fill_a_collection_the_later_one_does(open_over_port):
    first, second = open_over_port(), open_over_port()
    with pytest.raises(KeMetricError, match="another process has begun to write it since"):
        first.add(items(2), vectors(2))
    second.add(items(3), vectors(3))
    assert set(everything(second)) == {item.id for item in items(3)}


@pytest.mark.parametrize("late", [False, True])
def test_a_collection_that_was_made_again_for_another_network_is_not_written(open_over_port, monkeypatch, late):
    """Be it between the last look at it and the signature."""
    first = open_over_port(facts=FACTS)
    first.add(items(2), vectors(2))
    second, sign, made = open_over_port(facts=FACTS), Journal.sign, []

    def make_again():
        first.drop()
        made.append(open_over_port(facts={"digest": "4567"}))
        made[0].add(items(2), vectors(2))

    def signing(journal):
        monkeypatch.setattr(Journal, "sign", sign)
        make_again()
        journal.sign()

    if late:
        monkeypatch.setattr(Journal, "sign", signing)
    else:
        make_again()
    with pytest.raises(KeMetricError, match=r"said .*0123.* of itself when it was opened, says .*4567") as caught:
        second.add(items(2, start=2), vectors(2))
    assert caught.value.exit_code == ExitCode.LINEAGE
    assert len(made[0]) == 2
    if not late:
        made[0].add(items(2, start=4), vectors(2))


def test_a_journal_that_somebody_takes_meanwhile_is_not_dropped(open_over_port, monkeypatch):
    remains = replace(open_over_port(collection="other")._journal.own, name="left_journal")
    remains.make(D)
    wait = Collection.wait_until_loaded

    def meanwhile(collection):
        wait(collection)
        monkeypatch.setattr(Collection, "wait_until_loaded", wait)
        open_over_port(collection="left").add(items(3), vectors(3))

    monkeypatch.setattr(Collection, "wait_until_loaded", meanwhile)
    with pytest.raises(KeMetricError, match="another process has just made it") as caught:
        open_over_port(collection="left", facts=FACTS)
    assert caught.value.exit_code == ExitCode.LINEAGE
    assert len(open_over_port(collection="left", writing=False)) == 3


def test_what_another_may_be_finishing_is_not_forgotten(open_over_port, small_requests, monkeypatch):
    first = open_over_port()
    first.add(items(1), vectors(1))
    second, third = open_over_port(), open_over_port()
    added_until(first, 100, 3)
    pages = Journal._pages

    def signed_meanwhile(journal, *asked, **more):
        monkeypatch.setattr(Journal, "_pages", pages)
        third._journal.sign()
        return journal._pages(*asked, **more)

    monkeypatch.setattr(Journal, "_pages", signed_meanwhile)
    with pytest.raises(KeMetricError, match="another process has begun to write it since"):
        second.add(items(1, start=1), vectors(1))
    assert len([name for name in own_ids(first) if " put " in name]) > 2


def test_a_signature_whose_answer_was_lost_and_that_comes_late_is_nobodys(open_over_port, monkeypatch):
    first = open_over_port()
    first.add(items(1), vectors(1))
    second, third, put = open_over_port(), open_over_port(), Collection.put
    lost = []

    def losing(collection, rows):
        lost.append(rows)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "put", losing)
        with pytest.raises(Cut):
            second.add(items(1, start=1), vectors(1))
    second.add(items(1, start=1), vectors(1))
    third.add(items(1, start=2), vectors(1))
    put(second._journal.own, lost[0])
    for store in (second, third):
        with pytest.raises(KeMetricError, match="another process has begun to write it since"):
            store.add(items(1, start=3), vectors(1))


def test_waiting_for_a_collection_that_somebody_releases(open_over_port, monkeypatch):
    store = open_over_port()
    states = iter(["NotExist", *["NotLoad"] * 1000])
    monkeypatch.setattr(
        store._main.client, "get_load_state", lambda *a, **k: {"state": SimpleNamespace(name=next(states))}
    )
    monkeypatch.setattr(milvus_collection, "SECONDS_BETWEEN_LOOKS", 0.001)
    for one in (replace(store._main, timeout=0.05), replace(store._main, timeout=None)):
        monkeypatch.setattr(milvus_collection, "SECONDS_WITHOUT_PROGRESS", 0.05)
        with pytest.raises(KeMetricError, match="loading it: its state is NotLoad for 0 seconds now: somebody"):
            one.wait_until_loaded()


def own_ids(store):
    return [row["id"] for page in store._journal.own.pages(["id"], width=1024) for row in page]


@pytest.mark.parametrize("consistency", [None, "Bounded", "Eventually"])
def test_what_a_writer_reads_before_a_change_is_strong(open_over_port, monkeypatch, consistency):
    store = open_over_port(consistency=consistency)
    store.add(items(9), vectors(9))
    levels, query = [], Collection.query
    monkeypatch.setattr(
        Collection, "query", lambda *asked, level="Strong", **more: levels.append(level) or query(*asked, **more)
    )
    assert len(store.matching(Where.parse('label == "crow"'))) == 3
    assert store.known(["i00001"])
    assert store.get(["i00001"])
    assert len(store) == 9
    assert set(levels) == {"Strong"}
    assert len(open_over_port(writing=False, consistency=consistency)) == 9
    assert levels[-1] == (consistency or "Strong")


@pytest.mark.parametrize("seconds", [0, 11])
def test_all_that_a_new_reader_asks_is_strong(open_over_port, monkeypatch, seconds):
    """`ke-metric search` counts first; a search that finds too few counts, and reads, after it has searched."""
    open_over_port(kind="HNSW").add(items(300), vectors(300))
    reader, levels = open_over_port(writing=False, kind="HNSW"), []
    for name in ("query", "search"):
        asked = getattr(Collection, name)
        monkeypatch.setattr(
            Collection,
            name,
            lambda *a, asked=asked, level="Strong", **more: levels.append(level) or asked(*a, level=level, **more),
        )
    monkeypatch.setattr(milvus_store.time, "monotonic", lambda now=time.monotonic: now() + seconds)
    assert len(reader) == 300
    monkeypatch.setattr(milvus_store, "NEIGHBORS_UNCOUNTED", 10)  # a count before the search
    reader.search(vectors(1, seed=1), 90, where=Where.parse('id == "i00007"'))
    assert len(levels) > 3
    assert set(levels) == {"Strong" if seconds < 10 else "Bounded"}


def test_many_neighbours_of_few_items_need_no_room(open_over_port, monkeypatch):
    open_over_port().add(items(3), vectors(3))
    shapes, found = [], milvus_store.Found
    monkeypatch.setattr(milvus_store, "Found", lambda *shape: shapes.append(shape) or found(*shape))
    hits = open_over_port(writing=False).search(vectors(2000), 16_000)
    assert hits.numbers.shape == (2000, 3)
    assert shapes == [(2000, 3)]


def test_a_hit_that_is_newer_than_what_a_later_answer_sees(open_over_port, monkeypatch):
    open_over_port().add(items(9), vectors(9))
    reader = open_over_port(writing=False)
    query = Collection.query

    def stale(*asked, level="Strong", **more):
        return [row for row in query(*asked, **more) if level == "Strong" or row.get("id") != "i00004"]

    monkeypatch.setattr(Collection, "query", stale)
    hits = reader.search(vectors(9)[4:5], 3)
    assert hits.items()[0][0].id == "i00004"
    np.testing.assert_array_equal(hits.vectors()[0, 0], vectors(9)[4])
    assert reader.get(["i00004", "i00001"]) == [items(9)[4], items(9)[1]]
    with pytest.raises(KeMetricError, match="there is no item 'none'"):
        reader.get(["none", "i00004"])
