"""The store in Milvus, on a real server; what holds for every kind of store is in test_contract.py.

What takes more than a short life of one server is slow.
"""

import os
import random
import re
import secrets
import signal
import socket
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # milvus_server

import milvus_server

if not (milvus_server.URI in os.environ or milvus_server.is_installed()):
    pytest.skip("milvus is not installed, or no network namespace can be made", allow_module_level=True)

from store_twin import Twin, assert_same_answers, assert_same_content, filled, refused, some_items, unit_vectors
from test_kills import apply, copy_of, draw_calls, holds, twins_after

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.index import Index, StoreSettings
from ke_metric.stores import milvus_collection, milvus_connection, milvus_store
from ke_metric.stores.contract import Item, Where
from ke_metric.stores.milvus_collection import Collection
from ke_metric.stores.milvus_store import MilvusStore

D = 16
FACTS = {"digest": "a" * 64}
TOKEN = os.environ.get("KE_METRIC_MILVUS_TOKEN")


@pytest.fixture
def collection():
    """A name; what has it is dropped."""
    name = f"test_{secrets.token_hex(8)}"
    yield name
    milvus_server.drop(name)


@pytest.fixture
def open_store(collection):
    opened = []

    def make(dimension=D, *, writing=True, **settings):
        settings = {"collection": collection, "token": TOKEN} | settings
        opened.append(MilvusStore(milvus_server.server_uri(), dimension, writing=writing, **settings))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def server():
    """A server of the test's own, to be killed."""
    require_own()
    running = milvus_server.MilvusServer(milvus_server.QUICK)
    yield running
    running.stop()


def require_own():
    """Skip where no server can be started, only one that the environment names be asked."""
    if not milvus_server.is_installed():
        pytest.skip("milvus is not installed, or no network namespace can be made")


def one_more(store):
    store.add(some_items(1, first=100_000), unit_vectors(1, D, seed=1))


def opened(server, **settings):
    return closing(MilvusStore(server.uri, D, writing=True, **settings))


# A short life of a server


@contextmanager
def stopped(server):
    os.kill(server.process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process, signal.SIGCONT)


def killed_in_calls(server, store, calls, after):
    """Let the server be killed somewhere in calls and searches; return the calls that were acknowledged."""
    done = []
    killer = threading.Timer(after, server.kill)
    killer.start()
    with refused(": Milvus (says|does not answer)", ExitCode.ENVIRONMENT):
        while True:
            for call in calls[len(done) :]:
                apply(store, call)
                done.append(call)
            store.search(unit_vectors(2, D, seed=1), 3)
    killer.join()
    return done


def test_a_short_life(server, monkeypatch):
    """Built, searched, changed; it says nothing for a while; it is killed in an add, and opened again."""
    with opened(server) as store:
        twin = filled(store, 500)
        for where in (None, Where.parse('label == "class-1"'), Where.parse('label != "class-1" and id != "id-3"')):
            assert_same_answers(store, twin, unit_vectors(5, D, seed=1), 7, where=where)
        with closing(MilvusStore(server.uri, D, writing=False)) as new:
            assert len(new) == 500
            assert_same_answers(new, twin, unit_vectors(5, D, seed=1), 7)
        store.remove(["id-1", "id-8"])
        twin.remove(["id-1", "id-8"])
        assert_same_content(store, twin, 200)
        with (
            closing(MilvusStore(server.uri, D, writing=False)) as hasty,
            stopped(server),
            monkeypatch.context() as patch,
        ):
            patch.setattr(hasty, "_main", replace(hasty._main, timeout=1.0))
            patch.setattr(milvus_connection, "SECONDS_TO_CONNECT", 1.0)
            for doing, ask in (
                ("a search of 1 queries", lambda: hasty.search(unit_vectors(1, D, seed=1), 3)),
                ("connecting", lambda: MilvusStore(server.uri, D, writing=False)),
            ):
                with refused(f"{doing}: Milvus does not answer any more; 1 seconds were", ExitCode.ENVIRONMENT):
                    ask()
        calls = [["add", list(range(first, first + 400)), first, False] for first in range(1000, 9000, 400)]
        done = killed_in_calls(server, store, calls, 0.3)
        with refused("127.0.0.1.*: Milvus says: Fail connecting", ExitCode.ENVIRONMENT):
            one_more(store)
        server.start()
        possible = twins_after(twin, calls, len(done))
        with opened(server) as again:
            there = [one for one in possible if holds(again, one)]
            assert there, len(done)
            assert_same_answers(again, there[0], unit_vectors(5, D, seed=1), 7)
        assert_same_answers(store, there[0], unit_vectors(5, D, seed=1), 7)  # by the very store that was open


@pytest.mark.slow
def test_a_server_that_is_killed_ten_times_loses_nothing(server):
    seed = int(os.environ.get("KE_METRIC_KILL_SEED", secrets.randbits(32)))
    sys.stdout.write(f"KE_METRIC_KILL_SEED={seed}\n")
    draw, twin, fresh = random.Random(seed), Twin(), 0
    for kill in range(10):
        calls = draw_calls(draw, {int(name.removeprefix("id-")) for name in twin.content}, fresh)
        fresh = max([fresh, *(n + 1 for call in calls if call[0] == "add" for n in call[1])])
        with opened(server) as store:
            done = killed_in_calls(server, store, calls, draw.random() * 4)
        sys.stdout.write(f"kill {kill}: {len(done)} of {len(calls)} calls acknowledged\n")
        server.start()
        possible = twins_after(twin, calls, len(done))
        with opened(server) as store:
            there = [one for one in possible if holds(store, one)]
            assert there, f"kill {kill} of seed {seed}, after {len(done)} calls"
            twin = there[0]
            assert_same_answers(store, twin, unit_vectors(3, D, seed=2), 5)


@pytest.mark.slow
def test_a_server_that_is_killed_in_a_large_addition_has_all_of_it_or_nothing(server):
    """One request of it is several messages of the server's log: once 20,147 of 24,000 rows were there."""
    draw, vectors, took, there = random.Random(0), unit_vectors(24_000, 128, seed=1), None, 0
    for kill in range(8):
        items = some_items(len(vectors), first=kill * len(vectors))
        with closing(MilvusStore(server.uri, 128, writing=True)) as store:
            started = time.monotonic()
            if took is not None:
                killer = threading.Timer(took * (0.5 + 0.6 * draw.random()), server.kill)
                killer.start()
            acknowledged = False
            with suppress(KeMetricError):
                store.add(items, vectors)
                acknowledged = True
            if took is None:
                took, there = time.monotonic() - started, len(items)
                continue
            killer.join()
        server.start()
        with closing(MilvusStore(server.uri, 128, writing=True)) as store:
            assert len(store) in (there + len(items), there + acknowledged * len(items)), kill
            there = len(store)


# Requests


class Recorded:
    """A client that notes what is asked of it, and how long it may take."""

    LOCAL = ("prepare_index_params", "close")

    def __init__(self, client):
        self.client, self.asked = client, []

    def __getattr__(self, name):
        method = getattr(self.client, name)
        if name in self.LOCAL:
            return method

        def asked(*arguments, **settings):
            self.asked.append((name, settings.get("timeout"), settings.get("consistency_level")))
            return method(*arguments, **settings)

        return asked


@pytest.fixture
def recorded(monkeypatch):
    """Every client that is made from now on."""
    made, server = [], milvus_connection._server

    def recording(*arguments):
        made.append(Recorded(server(*arguments)))
        return made[-1]

    monkeypatch.setattr(milvus_connection, "_server", recording)
    return made


def everything_asked(store):
    """Call all that a store has, changes of several requests among them."""
    items, vectors = some_items(300), unit_vectors(300, D, seed=1)
    store.add(items, vectors)
    store.add(items, vectors, replace=True)
    condition = Where.parse('label == "class-1"')
    store.search(vectors[:2], 5).vectors()
    store.search(vectors[:2], 90, where=condition)
    store.matching(condition)
    store.count(condition)
    store.known_labels(["class-1"])
    store.items_at(["folder/1.jpg"])
    store.get(["id-1"])
    list(store.read(7))
    store.flush()
    store.remove([item.id for item in items[:200]])
    store.describe()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FLAT", "HNSW"])
def test_no_request_may_wait_for_ever(open_store, recorded, monkeypatch, kind):
    monkeypatch.setattr(milvus_collection, "REQUEST_BYTES", 4096)
    store = open_store(kind=kind)
    everything_asked(store)
    store._settled = False
    len(store)
    open_store(kind=kind, writing=False).search(unit_vectors(1, D, seed=1), 400)
    store.drop()
    asked = [each for client in recorded for each in client.asked]
    assert {name for name, _, _ in asked} >= {
        "create_collection", "create_index", "delete", "describe_collection", "describe_index", "drop_collection",
        "flush", "get_load_state", "has_collection", "list_indexes", "load_collection", "query", "search", "upsert",
    }  # fmt: skip
    assert [each for each in asked if each[1] not in (120.0, 600.0)] == []


def test_every_request_of_the_code_is_one_of_those():
    """The client is asked by one method alone, which gives each request its time."""
    text = "".join(Path(module.__file__).read_text() for module in (milvus_collection, milvus_store))
    assert re.findall(r"client\.(\w+)|getattr\((self\.client, \w+)\)", text) == [
        ("", "self.client, request"),
        ("prepare_index_params", ""),
    ]


@pytest.mark.slow
def test_a_reader_asks_once_for_a_search(open_store, recorded, monkeypatch):
    filled(open_store(), 500)
    reader = open_store(writing=False)
    client = recorded[-1]
    now = time.monotonic
    for position, level in enumerate(("Strong", "Strong", "Bounded")):
        monkeypatch.setattr(milvus_store.time, "monotonic", lambda more=6 * position: now() + more)
        client.asked.clear()
        assert reader.search(unit_vectors(4, D, seed=position), 7).items()
        assert client.asked == [("search", 120.0, level)]
    client.asked.clear()
    assert reader.search(unit_vectors(2, D, seed=1), 600).numbers.shape == (2, 500)
    assert [name for name, _, _ in client.asked] == ["search", "query"]


@pytest.mark.slow
def test_how_fresh_an_answer_is(open_store, recorded, monkeypatch):
    store = open_store()
    reader = open_store(writing=False)
    assert len(reader) == 0
    monkeypatch.setattr(reader, "_strong_until", 0.0)
    filled(store, 5)
    deadline = time.monotonic() + 10
    while len(reader) < 5:
        assert time.monotonic() < deadline, "what is Bounded is five seconds old at most"
        time.sleep(0.2)
    strict = open_store(writing=False, consistency="Strong")
    for count in range(5, 8):
        assert len(strict) == len(store) == count
        store.add([Item(secrets.token_hex(4))], unit_vectors(1, D, seed=1))
    assert {level for name, _, level in recorded[2].asked if name == "query"} == {"Strong"}
    recorded[0].asked.clear()
    store.search(unit_vectors(1, D, seed=1), 1)
    monkeypatch.setattr(milvus_store.time, "monotonic", lambda now=time.monotonic: now() + 60)
    store.search(unit_vectors(1, D, seed=1), 1)
    assert [level for _, _, level in recorded[0].asked] == ["Strong", "Bounded"]
    with refused("consistency = 'strong', must be one of Strong, Bounded, Eventually", ExitCode.USAGE):
        open_store(consistency="strong")


def test_a_server_that_takes_connections_and_says_nothing(monkeypatch):
    monkeypatch.setattr(milvus_connection, "SECONDS_TO_CONNECT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with refused(f"{uri}: connecting: Milvus (does not|says: Fail conn)", ExitCode.ENVIRONMENT):
            MilvusStore(uri, D, writing=True)


# Names, and what is not ours


@pytest.mark.parametrize(
    "name", ["", "a-b", "1a", "a b", "it's", 'we"ird', "ü", "a$b", "a.b", "a\n", "a" * 248, "x; drop"]
)
def test_names_that_no_collection_can_have_are_refused_before_anything_is_done(name, tmp_path):
    settings = StoreSettings.of(kind="milvus", uri="http://127.0.0.1:1", collection=name)
    with refused("collection = .*must be at most 247 letters of a to z, digits and under", ExitCode.USAGE):
        Index.create(tmp_path / "index", digest=FACTS["digest"], dimension=D, settings=settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_", "A1_b", "x" * 247])
def test_names_that_a_collection_can_have(open_store, name):
    milvus_server.drop(name)
    store = open_store(collection=name)
    assert_same_content(store, filled(store, 3))
    store.drop()


@pytest.mark.slow
def test_what_is_not_ours_is_refused_and_stays(open_store, collection):
    twin = filled(open_store(facts=FACTS))
    for settings, words, code in (
        ({"facts": {"digest": "b" * 64}}, "its digest is 'aaa.*asked for is 'bbb", ExitCode.LINEAGE),
        ({"dimension": D + 1}, "holds vectors of dimension 16, asked for is dimension 17", ExitCode.LINEAGE),
        ({"kind": "HNSW"}, "its index is FLAT by IP, asked for is HNSW by IP", ExitCode.USAGE),
        ({"collection": f"{collection}_no", "making": False}, "there is no such collection", ExitCode.DATA),
        ({"collection": f"{collection}_no", "writing": False}, "there is no such collection", ExitCode.DATA),
        ({"collection": f"{collection}_journal"}, "made by another program: there is no coll", ExitCode.DATA),
    ):
        with refused(words, code):
            open_store(**settings)
    from pymilvus import MilvusClient

    client = MilvusClient(milvus_server.server_uri(), token=TOKEN or "", timeout=60)
    client.create_collection(f"{collection}_other", dimension=D)
    try:
        client.insert(f"{collection}_other", [{"id": 1, "vector": [1.0] * D}])
        for writing in (True, False):
            with refused("a collection of something else: its fields are id, vector, must be", ExitCode.DATA):
                open_store(collection=f"{collection}_other", writing=writing)
        found = client.query(f"{collection}_other", filter="id == 1", consistency_level="Strong")
        assert len(found) == 1
    finally:
        client.drop_collection(f"{collection}_other")
        client.close()
    assert_same_content(open_store(facts=FACTS), twin)


# Two that write


@pytest.mark.slow
def test_of_two_writers_the_last_to_begin_writes(open_store):
    first = open_store()
    twin = filled(first)
    second = open_store()
    items, vectors = some_items(5, first=200), unit_vectors(5, D, seed=2)
    for store, some in ((first, slice(2)), (second, slice(2, 5))):
        store.add(items[some], vectors[some])
        twin.add(items[some], vectors[some])
    for change in (lambda: first.add(items, vectors, replace=True), lambda: first.remove(["id-1"]), first.drop):
        with refused("another process has begun to write it since", ExitCode.LINEAGE):
            change()
    for one in (first, second):
        assert_same_content(one, twin)
    first.close()
    third = open_store()
    third.remove(["id-1"])
    twin.remove(["id-1"])
    with refused("another process has begun to write it since", ExitCode.LINEAGE):
        second.remove(["id-2"])
    assert_same_content(third, twin)


@pytest.mark.slow
def test_what_a_writer_left_to_be_done_is_done_by_the_next(open_store, monkeypatch):
    monkeypatch.setattr(milvus_collection, "REQUEST_BYTES", 2048)
    store = open_store()
    twin = filled(store)

    class Cut(BaseException):
        pass

    def cut(self, rows):
        raise Cut

    items, vectors = some_items(90, first=50), unit_vectors(90, D, seed=2)
    main = store._main
    with monkeypatch.context() as patch:
        put = Collection.put
        patch.setattr(Collection, "put", lambda self, rows: cut(self, rows) if self is main else put(self, rows))
        with pytest.raises(Cut):
            store.add(items, vectors, replace=True)
        twin.add(items, vectors)  # it was committed
        next_one = open_store()
        main = next_one._main
        with pytest.raises(Cut):
            next_one.add(items[:60], vectors[30:], replace=True)
    before = next_one._journal.own.count()
    assert_same_content(store, twin)
    assert next_one._journal.own.count() == before > 60, "who was before leaves it alone"
    twin.add(items[:60], vectors[30:])
    assert_same_content(open_store(), twin)


# A server that refuses


@pytest.mark.slow
def test_a_token(tmp_path):
    require_own()
    server = milvus_server.MilvusServer(milvus_server.QUICK | {"authorization_enabled": True})
    try:
        for token in (None, "root:wrong", "secret"):
            with refused(
                "does not take the token, or asks for one.*KE_METRIC_MILVUS_TOKEN", ExitCode.ENVIRONMENT
            ) as no:
                MilvusStore(server.uri, D, writing=True, token=token)
            assert "wrong" not in str(no.value)
            assert "secret" not in str(no.value)
        with opened(server, token="root:Milvus") as store:
            assert_same_content(store, filled(store))
    finally:
        server.stop()


@pytest.mark.slow
def test_a_quota_that_is_used_up_takes_nothing_by_halves(server):
    with opened(server) as store:
        twin = filled(store, 20_000)
        store.flush()
        server.kill()
        server.settings |= {"quotaAndLimits.limitWriting.diskProtection.diskQuota": "1"}
        server.start()
    with closing(MilvusStore(server.uri, D, writing=False)) as reader:
        deadline = time.monotonic() + 60
        assert_same_content(reader, twin, 5000)
    items, vectors = some_items(1000, first=30_000), unit_vectors(1000, D, seed=9)
    with (
        refused("writing .* rows: Milvus says: quota exceeded.*disk quota exceeded", ExitCode.ENVIRONMENT),
        opened(server) as store,  # be it that it may not say that it writes
    ):
        while time.monotonic() < deadline:
            store.add(items, vectors, replace=True)
    server.kill()
    del server.settings["quotaAndLimits.limitWriting.diskProtection.diskQuota"]
    server.start()
    with opened(server) as store:
        whole = copy_of(twin)
        whole.add(items, vectors)
        assert holds(store, twin) or holds(store, whole)
        one_more(store)
