"""The comparison of stores measures what it says, on few vectors; the tables show the last line of each store."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.stores import measurements as store_measurements
from eval.stores import run as stores
from eval.stores.measurements import BLOCK, Task, blocks, in_turns, items_from, queries_of, recall_of, synthetic

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


def test_they_take_turns_in_being_first():
    asked = []
    seconds = in_turns(lambda: asked.append("ours"), lambda: asked.append("bare"), 2)
    assert asked == ["ours", "bare", "bare", "ours", "ours", "bare"]
    assert [len(each) for each in seconds] == [2, 2]


@pytest.mark.parametrize("store", ["memmap", "faiss Flat", "faiss IVF16,PQ8x4fs"])
def test_what_is_measured(tmp_path, store):
    task = task_in(tmp_path / "store", store)
    expected = store_measurements.truth(task)
    vectors = np.concatenate([block for _, block in blocks(task)])
    best = np.argsort(-queries_of(task) @ vectors.T, axis=1)[:, :10]
    assert recall_of(expected, best) > 0.99
    found = store_measurements.build(task)
    assert found["bytes"] >= vectors.nbytes
    found |= store_measurements.open_and_search(task) | store_measurements.compare(task, expected)
    if store in ("memmap", "faiss Flat"):
        assert found["recall"] == pytest.approx(1, abs=0.01)
    assert found["bare_recall"] == pytest.approx(found["recall"], abs=0.1)
    assert (found["codes_recall"] is not None) == ("PQ" in store)
    assert all(len(found[name]) == 2 for name in ("batched", "bare_batched", "alone", "bare_alone"))
    found |= store_measurements.change(task)
    reopened = store_measurements.opened(task, writing=False)
    assert len(reopened) == BLOCK
    assert reopened.known(["0", "1999", "2000", str(1999 + BLOCK)]) == {"2000", str(1999 + BLOCK)}
    reopened.close()


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
    text = "\n".join(stores.report([LINE]))
    building, searching = [row for row in text.splitlines() if row.startswith("| faiss Flat")]
    assert building == (
        "| faiss Flat | 1,000,000 x 128 | 12.3 | 1.5 | 0.5 | 0.25 | 0.125 | 2.5 | 0.75 | 1,200 | 1,700 | 1,100 |"
    )
    assert searching == (
        "| faiss Flat | 1,000,000 x 128 | 1 | 0.99 | 500 | 667 | 1.25 (1.00–1.50) | 250 | 20 | 20 | 20 | 200 "
        "| nprobe 64 |"
    )
    assert "has 512 MB" in text
    assert "abacus, 2 cores" in text
    assert "short codes alone" not in text


def test_what_has_no_bare_twin_has_no_ratio():
    found = {name: value for name, value in LINE["found"].items() if "bare" not in name and "codes" not in name}
    text = "\n".join(stores.report([LINE | {"store": "milvus FLAT", "found": found}]))
    assert "| milvus FLAT | 1,000,000 x 128 | 1 | – | 500 | – | – | 250 | 20 | – | 20 | 200 | nprobe 64 |" in text


def test_short_codes_have_a_note():
    found = LINE["found"] | {"codes_recall": 0.7654, "codes_batched": 0.05}
    text = "\n".join(stores.report([LINE | {"found": found}]))
    assert "recall@10 0.765, 20,000 queries/s" in text


def test_the_last_line_of_a_store_is_shown_the_most_vectors_first():
    newer, fewer = LINE | {"found": LINE["found"] | {"recall": 0.123}}, LINE | {"count": 10}
    rows = [row for row in stores.report([fewer, LINE, newer]) if row.startswith("| faiss Flat")]
    assert [row.split("|")[2].strip() for row in rows] == ["1,000,000 x 128", "10 x 128"] * 2
    assert "| 0.123 |" in rows[2]
    assert stores.report([]) == ["Nothing was measured."]


@pytest.mark.slow
def test_the_script(tmp_path):
    command = [sys.executable, *SCRIPT, "faiss Flat", "--count", "500", "--dimension", "8", "--queries", "20"]
    command += ["--rounds", "2", "--results", str(tmp_path / "stores")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads((tmp_path / "stores.jsonl").read_text(encoding="utf-8"))
    assert line["count"] == 500
    text = (tmp_path / "stores.md").read_text(encoding="utf-8")
    assert text.strip().endswith(done.stdout.strip())
    assert "| faiss Flat | 500 x 8 | 1 | 1 |" in text


@pytest.mark.parametrize("options", [["--count", "5"], ["--rounds", "1"], ["--queries", "0"]])
def test_bad_options_are_refused(monkeypatch, options):
    monkeypatch.setattr(sys, "argv", ["stores.py", *options])
    with pytest.raises(SystemExit) as caught:
        stores.main()
    assert caught.value.code == 2
