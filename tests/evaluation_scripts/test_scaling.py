"""Pictures embedded by a Ray cluster of two nodes are those of `ke-metric embed`, also where a worker is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))  # scored_lineages

from scored_lineages import grow_scored

from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.datasets.pictures import write_pictures
from ke_metric.errors import ExitCode
from ke_metric.recipe.schema import Data
from ke_metric.retrieval.index import Index
from ke_metric.retrieval.parquet_files import ParquetFiles

ROOT = Path(__file__).parents[2]
ROWS = 32
"""Pictures in a file: two forward passes of the lineage's batch size."""

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch):
    """A head and two nodes of one processor each, on the loopback address."""
    # Read when Ray is imported: 0 has it use the loopback address alone, as it does on Windows and macOS.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    # Not below pytest's folder: the name of a socket has at most 107 characters.
    folder = tempfile.mkdtemp(prefix="ray")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    here = {"object_store_memory": 100 * 2**20}
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={**here, "num_cpus": 0, "include_dashboard": False}
    )
    try:
        assert cluster.address.startswith("127.0.0.1:")
        for _ in range(2):
            cluster.add_node(**here, num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a lineage and a thousand pictures of characters."""
    folder = tmp_path_factory.mktemp("scaling")
    grow_scored(folder / "lineage")
    benchmark = load_benchmark(Data(benchmark="glyphs", test_classes=80), "retrieval")
    write_pictures(benchmark, folder / "pictures")
    return folder


def start(folder, *command):
    # The bits of a forward pass depend on the number of threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "stderr").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip


def ended_well(folder, process):
    process.wait(timeout=100)
    assert process.returncode == 0, (folder / "stderr").read_text()[-3000:]


def run(folder, *command):
    process = start(folder, "ke_metric.cli", *command)
    out = process.stdout.read()
    ended_well(folder, process)
    return out


def embed_with_ray(folder, cluster, *, killing):
    """Run the script; with `killing`, kill the worker that is done with a part first. What each part gave."""
    script = ("eval.scaling.ray_embedding", "pictures", "-o", "parts", "--network", "lineage", "--gen", "1")
    process = start(folder, *script, "--rows", ROWS, "--workers", 2, "--address", cluster.address)
    done = []
    for line in process.stdout:
        done.append(json.loads(line))
        if killing and len(done) == 1:
            os.kill(done[0]["worker"], signal.SIGKILL)
    ended_well(folder, process)
    return done


def content(path):
    batches = list(ParquetFiles.open(path).batches())
    return [item for batch in batches for item in batch.items], np.concatenate([batch.vectors for batch in batches])


def test_a_killed_worker_loses_no_picture_and_doubles_none(folder, cluster):
    run(folder, "embed", "pictures", "-o", "whole.parquet", "--lineage", "lineage", "--gen", "1")
    items, vectors = content(folder / "whole.parquet")
    parts = -(-len(items) // ROWS)
    assert len(items) > 900

    done = embed_with_ray(folder, cluster, killing=True)
    assert sorted(part["part"] for part in done) == [f"part-{number:05d}.parquet" for number in range(parts)]
    assert len({part["node"] for part in done}) == 2
    assert len({part["worker"] for part in done}) == 3, "one took the place of the killed one"
    assert sum(part["count"] for part in done) == len(items)
    found, same = content(folder / "parts")
    assert found == items
    np.testing.assert_array_equal(same, vectors)

    was = {path.name: path.stat().st_mtime_ns for path in (folder / "parts").iterdir()}
    lost = folder / "parts" / "part-00002.parquet"
    lost.unlink()
    again = embed_with_ray(folder, cluster, killing=False)
    assert sum(part["count"] for part in again) == len(items)
    now = {path.name: path.stat().st_mtime_ns for path in (folder / "parts").iterdir()}
    assert {name for name in was if now[name] != was[name]} == {lost.name}

    run(folder, "index", "build", "--from", "whole.parquet", "-o", "a", "--lineage", "lineage", "--gen", "1")
    run(folder, "index", "build", "--from", "parts/part-*.parquet", "-o", "b", "--lineage", "lineage", "--gen", "1")
    with Index.open(folder / "a") as one, Index.open(folder / "b") as other:
        for index in (one, other):
            ((there, stored),) = index.store.read()
            assert there == items
            np.testing.assert_array_equal(stored, vectors)
        hits = [index.search(vectors, k=5, digest=index.digest) for index in (one, other)]
    np.testing.assert_array_equal(hits[0].numbers, hits[1].numbers)
    np.testing.assert_array_equal(hits[0].similarities, hits[1].similarities)


@pytest.mark.skipif(sys.platform != "linux", reason="keeps nodes to a processor each")
@pytest.mark.parametrize(
    ("what", "rows"),
    [
        (
            ("embedding", "--pictures", 128, "--rounds", 1),
            ["| | ", "| --- ", "| 1 worker ", "| 2 workers ", "| `ke-m"],
        ),
        (("parquet", "--vectors", 110_000), ["| index", "| --- ", *["| faiss Flat "] * 2, *["| memmap "] * 2]),
    ],
    ids=["embedding", "parquet"],
)
def test_the_measurement_runs(tmp_path, what, rows):
    pytest.importorskip("ray")
    results = tmp_path / "results.md"
    process = start(tmp_path, "eval.scaling.run", *what, "--markdown", results)
    printed = process.stdout.read()
    ended_well(tmp_path, process)
    text = results.read_text(encoding="utf-8")
    assert text in printed
    found = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(found) == len(rows)
    assert all(line.startswith(row) for line, row in zip(found, rows, strict=True))


def test_an_error_of_a_worker_is_told_as_it_is(folder, cluster):
    shutil.rmtree(folder / "parts", ignore_errors=True)
    (folder / "parts").mkdir()
    (folder / "parts" / "part-00001.parquet").write_bytes(b"no file of Parquet")
    script = ("eval.scaling.ray_embedding", "pictures", "-o", "parts", "--network", "lineage", "--gen", "1")
    process = start(folder, *script, "--rows", 500, "--workers", 2, "--address", cluster.address)
    process.communicate(timeout=200)
    said = (folder / "stderr").read_text()
    assert process.returncode == ExitCode.DATA, said[-3000:]
    assert "part-00001.parquet" in said.splitlines()[-1]

    process = start(folder, *script[:5], "none", "--rows", 500, "--address", "127.0.0.1:1")
    process.communicate(timeout=100)
    assert process.returncode == ExitCode.DATA, (folder / "stderr").read_text()[-3000:]


TOGETHER = """
import json, sys
from eval.scaling.run import together
done = [{"worker": worker, "at": at, "count": 32} for worker, at in json.loads(sys.argv[1])]
print(together(done))
"""


@pytest.mark.parametrize(
    ("parts", "rate"),
    [
        ([(1, 10), (1, 12), (1, 14)], "16.0"),
        ([(1, 10), (2, 11), (1, 12), (2, 13)], "32.0"),
        ([(1, 10), (2, 11)], "None"),
        ([(1, 10), (1, 11), (1, 12), (2, 13)], "None"),
    ],
)
def test_images_a_second_count_from_when_each_worker_has_done_a_part(parts, rate):
    pytest.importorskip("ray")
    command = [sys.executable, "-c", TOGETHER, json.dumps(parts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == rate


def test_a_folder_of_other_files_is_refused(tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "pictures").mkdir()
    for name in (b"1.png", b"2.png", b"3.png", b"\xff.png"):
        Path(os.fsdecode(os.fsencode(tmp_path / "pictures") + b"/" + name)).touch()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "part-00002.parquet").touch()
    script = ("eval.scaling.ray_embedding", "pictures", "-o", "parts", "--network", "none", "--rows", 2)
    process = start(tmp_path, *script, "--address", "127.0.0.1:1")
    assert process.stdout.read() == ""
    assert process.wait(timeout=100) == ExitCode.USAGE
    said = (tmp_path / "stderr").read_text()
    assert "udcff.png': the path is not UTF-8" in said.splitlines()[0]
    assert "parts: holds part-00002.parquet, which is none of the 2 files of these pictures" in said.splitlines()[-1]

    process = start(tmp_path, *script[:-1], 0)
    process.communicate(timeout=100)
    assert process.returncode == ExitCode.USAGE
    assert "--rows = 0, must be a whole number" in (tmp_path / "stderr").read_text().splitlines()[-1]
