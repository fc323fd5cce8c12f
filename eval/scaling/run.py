"""What embedding by the workers of a Ray cluster costs, and building an index of their files.

    python -m eval.scaling.run embedding [--pictures 256] [--rounds 2] [--markdown eval/scaling/embedding.md]
    python -m eval.scaling.run parquet [--vectors 204800] [--markdown eval/scaling/parquet.md]

A head and two nodes on this machine, each node kept to a processor of its own; a worker has one thread for the
network. `eval/scaling/ray_embedding.py` embeds drawn photographs with one worker and with two, and `ke-metric embed`
does so on one processor, in turns. Images/s of a worker are those of the time that it spent on its parts; the whole
run has the start of Ray's processes and of torch in it. What a picture takes is then measured in one process:
decoding and resizing, and the forward pass.

Files of Parquet are written with random vectors of unit length, and `ke-metric index build --from` reads them, in a
process of its own whose memory is measured.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Read when Ray is imported: only the loopback address is used, and nobody is told.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}

import numpy as np
import torch
from ray.cluster_utils import Cluster

from eval.shared.memory import peak_of_process
from eval.shared.photographs import write_photographs
from eval.shared.provenance import provenance_lines
from eval.shared.rounds import clocked, spread
from ke_metric import Architecture, Embedder, NetworkCard, save_network
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.embedding_files import ItemBatch
from ke_metric.retrieval.parquet_files import parts_of, write_parquet
from ke_metric.stores.contract import Item

RECIPE: dict[str, Any] = {
    "name": "resnet50",
    "data": {"image_size": 224, "store_size": 256},
    "network": {"backbone": "resnet50", "embedding_size": 512},
    "evaluation": {"resize": 256},
}
PART = 32
"""Pictures in a file, and in a forward pass, of those that are embedded."""
ROWS = 10_240
"""Vectors in a file of those that are not."""
STORES = {"faiss Flat": ("--factory", "Flat"), "memmap": ("--store", "memmap")}
TEN_FILES = "part-0000?.parquet"


def write_bundle(folder: Path) -> Embedder:
    """Store a network with random weights and load it, on one thread."""
    recipe = Recipe.model_validate(RECIPE)
    network = LineageNetworks(recipe, 0).build(1)
    save_network(network, folder, architecture=Architecture.of_recipe(recipe), card=NetworkCard.of_recipe(recipe))
    return Embedder.load(folder, device="cpu")


@contextmanager
def two_nodes(folder: Path) -> Iterator[str]:
    """Start a head, and two nodes of one processor each; gives the address."""
    os.environ["RAY_TMPDIR"] = str(folder)
    everywhere, memory = os.sched_getaffinity(0), {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**memory, "num_cpus": 0, "include_dashboard": False})
    try:
        for processor in sorted(everywhere)[:2]:
            os.sched_setaffinity(0, {processor})  # the node and its workers inherit it
            cluster.add_node(num_cpus=1, **memory)
        os.sched_setaffinity(0, everywhere)
        yield cluster.address
    finally:
        os.sched_setaffinity(0, everywhere)
        cluster.shutdown()


def run_script(folder: Path, address: str, workers: int) -> dict[str, Any]:
    """Embed with so many workers; images/s of the workers, of the whole run, and seconds to the first part."""
    shutil.rmtree(folder / "parts", ignore_errors=True)
    script = ["eval.scaling.ray_embedding", str(folder / "pictures"), "-o", str(folder / "parts")]
    options = ["--network", str(folder / "network"), "--rows", str(PART), "--workers", str(workers)]
    started = time.perf_counter()
    command = [sys.executable, "-m", *script, *options, "--address", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        done = [{**json.loads(line), "at": time.perf_counter() - started} for line in process.stdout]
    assert process.returncode == 0, "the script has failed"
    count, whole = sum(part["count"] for part in done), time.perf_counter() - started
    return {
        "count": count,
        "each": count / sum(part["seconds"] for part in done),
        "cpu": count / sum(part["cpu_seconds"] for part in done),
        "whole": count / whole,
        "first": done[0]["at"],
        "together": together(done),
    }


def together(done: Sequence[dict[str, Any]]) -> float | None:
    """Return the images/s of all workers after each has done a part; None where nothing was done after that.

    Until then libraries are loaded, and what is done was not begun in the time measured.
    """
    first = {part["worker"]: part["at"] for part in reversed(done)}
    warm, end = max(first.values()), done[-1]["at"]
    return sum(part["count"] for part in done if part["at"] > warm) / (end - warm) if end > warm else None


def _cell(runs: Sequence[dict[str, Any]], name: str) -> str:
    known = [run[name] for run in runs if run[name] is not None]
    return spread(known, 1) if known else "-"


def _beside_one(found: dict[int, list[dict[str, Any]]]) -> str:
    rates = {
        workers: [run["together"] for run in runs if run["together"] is not None] for workers, runs in found.items()
    }
    if not all(rates.values()):
        return "not known, as a worker did its first part last; take more pictures"
    return f"{statistics.median(rates[2]) / statistics.median(rates[1]):.2f} times the images/s"


def run_embed(folder: Path) -> float:
    """Embed by the command, on one processor; images/s of the whole run."""
    shutil.rmtree(folder / "parts", ignore_errors=True)
    sources = [str(folder / "pictures"), "-o", str(folder / "parts"), "--bundle", str(folder / "network")]
    options = ["--batch-size", str(PART), "--rows-per-file", str(PART), "--json"]
    command = [sys.executable, "-m", "ke_metric.cli", "embed", *sources, *options]
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    os.sched_setaffinity(0, everywhere)
    return float(json.loads(done.stdout)["count"]) / seconds


def embedding_lines(folder: Path, pictures: int, rounds: int) -> list[str]:
    """Measure embedding, and return the table."""
    embedder = write_bundle(folder / "network")
    size = write_photographs(folder / "pictures", classes=8, each=pictures // 8 - 1)
    paths = sorted((folder / "pictures").rglob("*.jpg"))
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    command = []
    with two_nodes(folder) as address:
        for number in range(rounds):
            command.append(run_embed(folder))
            for workers in (1, 2) if number % 2 == 0 else (2, 1):
                found[workers].append(run_script(folder, address, workers))
    torch.set_num_threads(1)
    batch = np.stack([embedder.prepare(path) for path in paths[:PART]])
    prepare = clocked(lambda: [embedder.prepare(path) for path in paths[:PART]]).cpu / PART
    embedder.compute(batch)
    forward = clocked(lambda: embedder.compute(batch)).cpu / PART
    columns = ("images/s of a worker", "of its processor", "of all, after the first parts", "of the whole run")
    lines = [f"| | {' | '.join(columns)} | first part after |", f"| {' | '.join(['---'] * 6)} |"]
    for workers, runs in found.items():
        assert {run["count"] for run in runs} == {len(paths)}
        cells = [_cell(runs, name) for name in ("each", "cpu", "together", "whole", "first")]
        lines.append(f"| {workers} worker{'s' if workers > 1 else ''} | {' | '.join(cells)} s |")
    lines.append(f"| `ke-metric embed`, one processor | | | | {spread(command, 1)} | |")
    return [
        f"ResNet50, {RECIPE['data']['image_size']} pixels, {len(paths)} photographs (drawn) of 500 x 375 pixels and "
        f"{size / 1000:.0f} kB, parts and forward passes of {PART}, {rounds} rounds:",
        "",
        *lines,
        "",
        f"- Two workers beside one: {_beside_one(found)}.",
        f"- A picture takes {prepare * 1000:.1f} ms of a processor to decode and resize, {forward * 1000:.1f} ms in "
        f"the network: {1 / (prepare + forward):.1f} images/s.",
    ]


def random_batches(items: Sequence[Item], dimension: int, seed: int) -> Iterator[ItemBatch]:
    """Yield items with random vectors of length 1, 1,024 at a time."""
    draw = np.random.default_rng(seed)
    for start in range(0, len(items), 1024):
        some = items[start : start + 1024]
        vectors = draw.normal(size=(len(some), dimension)).astype(np.float32)
        yield ItemBatch(some, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def build(folder: Path, pattern: str, store: str) -> tuple[float, float, int]:
    """Build an index of files, in a process of its own: seconds, of a processor, and its most memory in bytes."""
    shutil.rmtree(folder / "index", ignore_errors=True)
    origin = ["--from", str(folder / "vectors" / pattern), "-o", str(folder / "index"), *STORES[store]]
    command = [sys.executable, "-m", "ke_metric.cli", "index", "build", *origin]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, "index build has failed"
    return time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def parquet_lines(folder: Path, count: int) -> list[str]:
    """Measure lists of pictures, files of Parquet, and indexes of them; return the tables."""
    listed = memory_of_a_list(500_000)
    embedder = write_bundle(folder / "network")
    items = [
        Item(name, f"/pictures/{name}", name[:9])
        for name in (f"class-{n % 997:03d}/{n:08d}.jpg" for n in range(count))
    ]
    (folder / "vectors").mkdir()
    parts = list(parts_of(items, ROWS))

    def write() -> None:
        for number, (name, part) in enumerate(parts):
            write_parquet(folder / "vectors" / name, embedder, random_batches(part, embedder.dimension, number))

    def draw() -> None:
        for number, (_, part) in enumerate(parts):
            for _ in random_batches(part, embedder.dimension, number):
                pass

    drawn, written = clocked(draw), clocked(write)
    size = sum(path.stat().st_size for path in (folder / "vectors").iterdir())
    lines = [
        "| index build --from | vectors | s | s of a processor | most memory MB |",
        f"| {' | '.join(['---'] * 5)} |",
    ]
    for store in STORES:
        for pattern, rows in ((TEN_FILES, 10 * ROWS), ("part-*.parquet", count)):
            wall, used, memory = build(folder, pattern, store)
            cells = f"{wall:.1f} | {used:.1f} | {memory / 1e6:,.0f}"
            lines.append(f"| {store} | {rows:,} x {embedder.dimension} | {cells} |")
    return [
        f"{count:,} vectors of {embedder.dimension} numbers in {len(parts)} files of {ROWS:,}: {size / count:,.0f} "
        f"bytes each (4 x {embedder.dimension} = {4 * embedder.dimension:,} of them the vector), written in "
        f"{(written.cpu - drawn.cpu) / count * 1e6:.0f} microseconds of a processor each.",
        f"The program that lists pictures takes {listed:.0f} bytes of memory for each (of 500,000).",
        "",
        *lines,
    ]


def memory_of_a_list(count: int) -> float:
    """Return the bytes that one picture of a list takes, with its row for Ray."""

    def listed() -> list[Any]:
        items = [
            Item(f"class-{n % 997:03d}/{n:08d}.jpg", f"/pictures/class-{n % 997:03d}/{n:08d}.jpg", "x")
            for n in range(count)
        ]
        rows = [
            {"part": name, **{field: [getattr(item, field) for item in part] for field in ("id", "path", "label")}}
            for name, part in parts_of(items, ROWS)
        ]
        return [items, rows]

    return (peak_of_process(listed) or 0) / count


def main() -> None:
    """Measure, print, and write where one says so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["embedding", "parquet"])
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--vectors", type=int, default=204_800)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    # Not below a long folder: the name of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    try:
        if given.what == "embedding":
            lines = embedding_lines(folder, given.pictures, given.rounds)
        else:
            lines = parquet_lines(folder, given.vectors)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    about = provenance_lines(
        ("faiss-cpu", "torchvision", "numpy"), more=f"ray {version('ray')}, pyarrow {version('pyarrow')}"
    )
    text = "\n".join([f"# Embedding by several workers: {given.what}", "", *about, "", *lines]) + "\n"
    print(text)
    if given.markdown is not None:
        given.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
