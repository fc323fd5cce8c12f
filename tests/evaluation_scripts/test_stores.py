"""The comparison of stores measures what it says, on few vectors; the tables show the last line of each store."""

import dataclasses
import json
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest

from eval.stores import measurements as store_measurements
from eval.stores import run as stores
from eval.stores import servers, tables
from eval.stores.measurements import BLOCK, K, Task, blocks, items_from, queries_of, recall_of, synthetic

SCRIPT = ["-m", "eval.stores.run"]
ROOT = Path(stores.__file__).parents[2]
LINE = {
    "store": "faiss Flat",
    "count": 1_000_000,
    "dimension": 128,
    "queries": 1000,
    "rounds": 2,
    "machine": "abacus, 2 cores",
    "python": "3.11",
    "versions": {"torch": "2.14.1"},
    "commit": "abc",
    "torch_alone": 512.25,
    "found": {
        "add": 12.345,
        "flush": 1.5,
        "bytes": 1.2e9,
        "build_peak": 1700.0,
        "open": 0.75,
        "search_peak": 1100.0,
        "reason": "",
        "settings": {"nprobe": 64},
        "recall": 1.0,
        "with_items": 4.0,
        "alone_with_items": 10.0,
        "bare_build": 0.5,
        "bare_recall": 0.99,
        "codes_recall": None,
        "codes_batched": None,
        "batched": [3.0, 1.0],
        "bare_batched": [2.0, 1.0],
        "alone": [8.0, 12.0],
        "bare_alone": [10.0, 10.0],
        "add_more": 0.25,
        "remove": 0.125,
        "behind": 5.0,
        "flush_more": 2.5,
    },
}


pytestmark = pytest.mark.usefixtures("one_faiss_thread")


def task_in(folder, store="faiss Flat", count=2000):
    folder.mkdir(exist_ok=True)
    return Task(store, folder, count, 16, 50, 2)


def test_vectors_are_of_low_dimension_and_the_same_every_time():
    vectors = synthetic(3, 500, 32)
    np.testing.assert_array_equal(vectors, synthetic(3, 500, 32))
    np.testing.assert_array_equal(vectors[:20], synthetic(3, 20, 32))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors @ synthetic(4, 500, 32).T).max() < 0.9999
    assert vectors.dtype == np.float32


def test_blocks_are_the_whole_gallery(tmp_path):
    firsts, parts = zip(*blocks(task_in(tmp_path, count=BLOCK + 7)), strict=True)
    assert firsts == (0, BLOCK)
    assert [len(part) for part in parts] == [BLOCK, 7]


def test_queries_are_no_vectors_of_the_gallery(tmp_path):
    task = task_in(tmp_path)
    queries = queries_of(task)
    assert queries.shape == (50, 16)
    assert all((queries @ block.T).max() < 0.9999 for _, block in blocks(task))


def test_recall_is_the_share_that_was_found():
    assert recall_of(np.array([[1, 2], [9, 3]]), np.array([[2, 1], [3, 4]])) == 0.75
    assert recall_of([[1], []], np.array([[1, -1], [2, -1]])) == 0.5


def test_they_take_turns_in_being_first():
    asked = []
    costs = servers.in_turns({"ours": lambda: asked.append("ours"), "bare": lambda: asked.append("bare")}, 2)
    assert asked == ["ours", "bare", "ours", "bare", "bare", "ours"]
    assert all(len(each.wall) == len(each.client) == 2 and each.server == [0, 0] for each in costs.values())
    assert costs["ours"].named("alone").keys() == {"alone", "alone_client", "alone_server"}


@pytest.mark.parametrize("store", ["memmap", "faiss Flat", "faiss IVF16,PQ8x4fs"])
def test_what_is_measured(tmp_path, store):
    task = task_in(tmp_path / "store", store)
    expected = store_measurements.truth(task)
    vectors = np.concatenate([block for _, block in blocks(task)])
    best = np.argsort(-queries_of(task) @ vectors.T, axis=1)[:, :10]
    assert recall_of(expected["all"], best) > 0.99
    assert [(each >= 0).sum(1).min() for each in expected.values()] == [10, 10, 2]  # two items have the one class
    assert (expected["10 %"] % 1000 < 100).all()
    found = store_measurements.build(task)
    assert found["bytes"] >= vectors.nbytes
    found |= store_measurements.open_and_search(task) | store_measurements.compare(task, expected)
    if store in ("memmap", "faiss Flat"):
        assert found["recall"] == pytest.approx(1, abs=0.01)
    assert found["bare_recall"] == pytest.approx(found["recall"], abs=0.1)
    assert (found["codes_recall"] is not None) == ("PQ" in store)
    names = ("batched", "bare_batched", "alone", "bare_alone", "alone_client", "bare_alone_client")
    assert all(len(found[name]) == 2 for name in names)
    assert [found["where"][share]["recall"] for share in ("10 %", "0.1 %")] == pytest.approx([1, 1], abs=0.02)
    assert len(found["where"]["10 %"]["batched"]) == 2
    found |= store_measurements.change(task)
    reopened = store_measurements.opened(task, writing=False)
    assert len(reopened) == BLOCK
    assert reopened.known(["0", "1999", "2000", str(1999 + BLOCK)]) == {"2000", str(1999 + BLOCK)}
    reopened.close()


@pytest.mark.parametrize("store", ["postgres HNSW", pytest.param("milvus-server HNSW", marks=pytest.mark.slow)])
def test_a_server_is_measured_beside_a_bare_client(tmp_path, store):
    if servers.lacking(store.split()[0]):
        pytest.skip(servers.lacking(store.split()[0]))
    with servers.started(store.split()[0], 1 << 20) as server:
        task = dataclasses.replace(task_in(tmp_path / "store", store, 10_000), server=server)
        peaks = {}
        with servers.watched(server, peaks, "peak"):
            found = store_measurements.build(task)
        assert peaks["peak"] > 20
        assert found["server_bytes"] > found["bytes"] / 2 > task.count * 16 * 2
        found |= store_measurements.compare(task, store_measurements.truth(task))
        assert found["recall"] > 0.95
        assert [found["where"][share]["recall"] for share in ("10 %", "0.1 %")] == pytest.approx([1, 1], abs=0.05)
        # Of all ways together: a fast server answers these few queries in less than the 0.01 s that are counted.
        spent = [seconds for name, seconds in found.items() if name.endswith("_server")]
        assert [len(each) for each in spent] == [2] * 6
        assert sum(map(sum, spent)) > 0
        assert found["where"]["0.1 %"]["bare_alone"]
        reader, query = store_measurements.opened(task, writing=False), queries_of(task)[:1]
        reader.search(query, K)
        (request,) = servers.requests_of(reader, lambda: reader.search(query, K))
        with servers.bare_client(task.kind, server) as ask:
            assert len(ask(request)) in (1, 14)  # Milvus: a list for each query; PostgreSQL: four more than ten
        reader.close()
    assert not server.folder.exists()


WORKER = """
import sys, time
print("ready", flush=True)
for _ in sys.stdin:
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    print("done", flush=True)
"""


def test_a_server_is_a_process_and_all_that_it_started():
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKER!r}])"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:

        def ask():
            started.stdin.write(b"work\n")
            started.stdin.flush()
            assert started.stdout.readline() == b"done\n"

        assert started.stdout.readline() == b"ready\n"
        assert len(servers.processes_of(started.pid)) == 2
        assert servers.processes_of(started.pid)[0] == started.pid
        server = servers.Server("", started.pid, Path(), "")
        assert 1 < servers.megabytes_now(server) < 1000
        before = servers.cpu_seconds(server)
        costs = servers.in_turns({"busy": ask, "idle": lambda: None}, 2, server)
        # The system counts hundredths of a second, of the programs and of the system apart.
        assert min(costs["busy"].server) > 0.05 > max(costs["idle"].server)
        assert servers.cpu_seconds(server) - before > 0.2


def test_one_store_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    def measured(task, load):
        if "Flat" in task.store:
            raise RuntimeError("the server went away")
        return LINE | {"store": task.store}

    monkeypatch.setattr(stores, "measured", measured)
    command = ["stores.py", "memmap", "faiss Flat", "faiss HNSW32", "--count", "500", "--settle", "0"]
    monkeypatch.setattr(sys, "argv", [*command, "--results", str(tmp_path / "stores")])
    with pytest.raises(SystemExit, match="not measured: faiss Flat"):
        stores.main()
    kept = [json.loads(line) for line in (tmp_path / "stores.jsonl").read_text().splitlines()]
    assert [line["store"] for line in kept] == ["memmap", "faiss HNSW32"]
    shared = [{name: line[name] for name in ("run", "command", "commit")} for line in kept]
    assert shared[0] == shared[1]
    assert shared[0]["command"] == (
        "python -m eval.stores.run memmap 'faiss Flat' 'faiss HNSW32' "
        "--count 500 --dimension 128 --queries 1000 --rounds 5"
    )
    assert "the server went away" in capsys.readouterr().err


def test_what_a_machine_has_too_little_of_is_said_before(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stores.py", "memmap", "--count", "100000000000"])
    with pytest.raises(SystemExit):
        stores.main()
    assert "disk: " in (said := capsys.readouterr().err)
    assert "memory: " in said


def test_items_are_numbered():
    assert [item.id for item in items_from(5, 2)] == ["5", "6"]


@pytest.mark.skipif(not store_measurements.STATUS.exists(), reason="the system does not tell")
def test_memory_is_of_a_process_of_its_own():
    ballast = np.ones(400_000_000 // 8)
    assert store_measurements.peak_megabytes() > 400
    del ballast
    grown = store_measurements.peak_megabytes()
    assert stores.alone(store_measurements.torch_alone) < grown - 50


def test_the_tables_say_what_was_measured():
    text = "\n".join(tables.report([LINE]))
    run, building, searching = [row for row in text.splitlines() if row.startswith("| faiss Flat")]
    assert run == "| faiss Flat | 1,000,000 x 128 | not known | 2 | not known | not known | abc | not known |"
    assert building == (
        "| faiss Flat | 1,000,000 x 128 | 12.3 | 1.5 | 0.5 | 0.25 | 0.125 | 2.5 | 0.75 | 1,200 | 1,700 | 1,100 "
        "| 512 | – | – | – |"
    )
    assert searching == (
        "| faiss Flat | 1,000,000 x 128 | 1 | 0.99 | 500 | 667 | 1.25 (1.00–1.50) | 250 | 20 | 20 | 20 | 200 "
        "| nprobe 64 |"
    )
    assert "does nothing has 512 MB" in text
    assert "does nothing has 512 to 717 MB" in "\n".join(
        tables.report([LINE, LINE | {"count": 5, "torch_alone": 717}])
    )
    assert "abacus, 2 cores" in text
    assert "short codes alone" not in text


def test_what_has_no_bare_twin_has_no_ratio():
    found = {name: value for name, value in LINE["found"].items() if "bare" not in name and "codes" not in name}
    text = "\n".join(tables.report([LINE | {"store": "milvus FLAT", "found": found}]))
    assert "| milvus FLAT | 1,000,000 x 128 | 1 | – | 500 | – | – | 250 | 20 | – | 20 | 200 | nprobe 64 |" in text


def test_the_tables_of_a_server():
    line = line_of_a_server()
    text = "\n".join(tables.report([LINE, line]))
    assert "| 1,100 | 512 | 2,000 | – | 3,000 |" in text
    narrowed, client, narrowed_client = [row for row in text.splitlines() if row.startswith("| postgres HNSW")][3:]
    assert narrowed.split(" | ")[2:6] == ["1", "100", "1.25 (1.00–1.50)", "20"]
    assert client.split(" | ")[2:7] == ["0.1", "0.1", "0.9", "1.00 (1.00–1.00)", "2.00 (2.00–2.00)"]
    # 200 queries under a condition, not 1,000.
    assert narrowed_client.split(" | ")[2:7] == ["0.5", "0.5", "4.5", "1.00 (1.00–1.00)", "2.00 (2.00–2.00)"]
    assert narrowed_client.split(" | ")[17:21] == ["1", "0.5", "4.5", "1.10 (1.10–1.10)"]
    assert "- postgres HNSW, 1,000,000 vectors: as it is." in text
    cells = tables.summary([line])[2].split(" | ")
    assert cells[-4:] == [
        "1.00 (1.00–1.00); 0.1, 0.1",
        "1.00 (1.00–1.00); 0.5, 0.5",
        "0.1 %: 1.10 (1.10–1.10); 1, 0.5",
        "2 |",
    ]


def test_the_list_says_where_the_aim_is_met():
    *_, aim, alone = tables.summary([LINE, line_of_a_server()])
    assert "6 of 12 ways" in aim
    assert "Above it: postgres HNSW, all, batched, with items, 2.000; " in aim
    assert "Above it in some rounds only: none." in aim
    assert "is not met: 5 of 12 ways are within it, the medians are 1.00 to 11.00 times" in alone
    met = line_of_a_server()
    for found in (met["found"], *met["found"]["where"].values()):
        found |= {name: [0.1, 0.1] for name in found if name.endswith("_client")}
    *_, aim, alone = tables.summary([met])
    assert "12 of 12 ways" in aim
    assert "Above it: none." in aim
    assert "the aim is met: 12 of 12" in alone


def test_the_list_says_what_was_one_run_and_what_was_disturbed():
    run = {"run": "2026-12-01T01:02:03Z", "load": [0.8, 3.0]}
    lines = [LINE | {"store": "memmap"} | run, LINE | run, LINE | {"store": "faiss HNSW32"}]
    lines += [LINE | {"store": "faiss IVF4096,Flat", "run": "2026-12-02T01:02:03Z", "load": [0.9, 0.1]}]
    table = tables.summary(lines)
    assert [row.split(" | ")[0] for row in table[2:6]] == [
        *("| memmap", "| faiss Flat", "| faiss HNSW32 †", "| faiss IVF4096,Flat †")
    ]
    assert table[7] == (
        "- Measured in one run, begun 2026-12-01T01:02:03Z: memmap, faiss Flat; each in a run of its own: "
        "faiss IVF4096,Flat; in which runs is not known: faiss HNSW32."
    )
    assert table[8].startswith("- †: ")
    assert "†" not in "\n".join(tables.summary(lines[:2]))
    assert "to a local store 0.2 s, 0.1 s." in table[-1]


def test_a_store_waits_until_the_machine_is_quiet(monkeypatch):
    loads, slept = [2.0, 0.6, 0.4, 0.3], []
    monkeypatch.setattr(stores.os, "getloadavg", lambda: (loads.pop(0), 0, 0))
    monkeypatch.setattr(stores.time, "sleep", slept.append)
    assert stores.settled(60) == 0.4
    assert len(slept) == 2
    loads[:] = [7.0]
    assert stores.settled(0) == 7


def line_of_a_server():
    """Return a line of which searches with items take more, and searches one at a time of the fewest items."""
    client = {
        f"{bare}{name}{items}_client": [0.1 + bool(items), 0.1 + bool(items)]
        for bare in ("", "bare_")
        for name in ("batched", "alone")
        for items in ("", "_items")
    }
    client |= {f"{bare}{name}_server": [0.9] for bare in ("", "bare_") for name in ("batched", "alone")}
    found = LINE["found"] | client
    where = {"10 %": dict(found), "0.1 %": found | {"alone_client": [0.2, 0.2]}}
    found |= {"where": where, "server_build_peak": 2000.0, "server_bytes": 3e9}
    return LINE | {"store": "postgres HNSW", "server": "as it is", "found": found}


def test_short_codes_have_a_note():
    found = LINE["found"] | {"codes_recall": 0.7654, "codes_batched": 0.05}
    text = "\n".join(tables.report([LINE | {"found": found}]))
    assert "recall@10 0.765, 20,000 queries/s" in text


def test_the_last_line_of_a_store_is_shown_the_most_vectors_first():
    newer, fewer = LINE | {"found": LINE["found"] | {"recall": 0.123}}, LINE | {"count": 10}
    rows = [row for row in tables.report([fewer, LINE, newer]) if row.startswith("| faiss Flat")]
    assert [row.split("|")[2].strip() for row in rows] == ["1,000,000 x 128", "10 x 128"] * 3
    assert "| 0.123 |" in rows[4]
    assert tables.report([]) == ["Nothing was measured."]


def test_the_documents_have_their_figures_from_the_results():
    results = ROOT / "eval" / "stores" / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    text = "\n".join(tables.report(lines))
    assert results.with_suffix(".md").read_text(encoding="utf-8") == f"# What stores cost\n\n{text}\n"
    assert "\n".join(["", *tables.summary(lines), ""]) in (ROOT / "docs" / "stores.md").read_text(encoding="utf-8")


def test_a_line_says_how_it_came_about(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "alone", lambda *_: {"add": 1.0, "flush": 1.0})
    asked = ["run.py", "faiss Flat", "--count", "2000", "--dimension", "16", "--queries", "50", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", [*asked, "--results", str(tmp_path / "stores")])
    call = stores.called(stores._options())
    line = stores.measured(Task("faiss Flat", tmp_path / "store", 2000, 16, 50, 2), 0.25) | call
    program, options = line["command"].split(" 'faiss Flat' ")
    assert program.split() == ["python", *SCRIPT]
    assert options.split() == asked[2:]
    asked = stores._options()
    assert [asked.count, asked.dimension, asked.queries, asked.rounds] == [2000, 16, 50, 2]
    assert abs(datetime.now(UTC).date() - date.fromisoformat(line["date"])).days <= 1
    began = datetime.strptime(line["run"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - began).total_seconds()) < 60
    assert line["load"][0] == 0.25
    known = {"command": "python x", "run": "then", "date": "2026-11-30", "load": [0.25, 13.0]}
    run = next(row for row in tables.report([LINE | known]) if row.startswith("| faiss Flat"))
    assert run == "| faiss Flat | 1,000,000 x 128 | then | 2 | 2026-11-30 | 0.2, 13.0 | abc | `python x` |"
    assert len(line["load"]) == 2


def test_the_table_of_a_document_is_written_anew(tmp_path, monkeypatch):
    (tmp_path / "stores.jsonl").write_text(json.dumps(LINE) + "\n")
    document = tmp_path / "stores.md.txt"
    command = ["run.py", "--results", str(tmp_path / "stores"), "--document", str(document)]
    monkeypatch.setattr(sys, "argv", command)
    table = "\n".join([*tables.summary([LINE]), ""])
    old = "| store | vectors | so |\n| --- |\n| faiss \\1 |\n"
    texts = (old, f"# Costs\n\n{old}\nMore.\n\n| store | of |\n", f"# Costs\n\n{table}")
    for text in (*texts, f"{table}\nMore.\n\n- And a list.\n"):
        document.write_text(text, encoding="utf-8")
        stores.main()
        assert document.read_text(encoding="utf-8") == text.replace(old, table)
    document.write_text("none")
    with pytest.raises(SystemExit, match="0 tables of stores"):
        stores.main()


@pytest.mark.slow
def test_the_script(tmp_path):
    command = [sys.executable, *SCRIPT, "faiss Flat", "--count", "500", "--dimension", "8", "--queries", "20"]
    command += ["--rounds", "2", "--settle", "0", "--results", str(tmp_path / "stores")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads((tmp_path / "stores.jsonl").read_text(encoding="utf-8"))
    assert line["count"] == 500
    assert {"command", "run", "date", "load", "commit"} <= line.keys()
    text = (tmp_path / "stores.md").read_text(encoding="utf-8")
    assert text.strip().endswith(done.stdout.strip())
    assert "| faiss Flat | 500 x 8 | 1 | 1 |" in text


@pytest.mark.parametrize("options", [["--count", "5"], ["--rounds", "1"], ["--queries", "0"]])
def test_bad_options_are_refused(monkeypatch, options):
    monkeypatch.setattr(sys, "argv", ["stores.py", *options])
    with pytest.raises(SystemExit) as caught:
        stores.main()
    assert caught.value.code == 2
