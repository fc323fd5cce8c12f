"""What a search of a reader costs against a Milvus server, beside an earlier checkout, in turns against one server.

    git worktree add ../before 9f7229d
    python -m eval.stores.milvus_reader --before ../before

A fresh server of the tests, set up as it is installed, with vectors written once. For each checkout a process of its
own opens them to read; in every round each of them searches as often, one query at a time, for 10 neighbours. What
both find must be the same. The first ten seconds, in which answers are Strong, and a first round of each are not in
the figures. Writes `milvus_reader.md` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from eval.shared.provenance import provenance_lines
from eval.shared.rounds import ratios, spread
from ke_metric.arrays import FloatArray
from ke_metric.stores.contract import Item
from ke_metric.stores.milvus_store import SECONDS_STRONG, MilvusStore

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("milvus_reader.md")
WARM_UP = (
    f"- not in the figures: the first {SECONDS_STRONG:.0f} seconds of a reader, in which its answers are Strong and "
    "wait for the server's tick, as those of each `ke-metric search` do; and a first round of each process. The "
    "figures are those of `ke-metric serve` and of readers in Python, after that. Before, a search was two Strong "
    "requests"
)
D, K = 128, 10
READER = """
import json, sys, time
import numpy as np
from ke_metric.stores.milvus_store import MilvusStore
store = MilvusStore(sys.argv[1], {dimension}, writing=False)
queries = np.load(sys.argv[2])
print("{{}}", flush=True)
for line in sys.stdin:
    cpu, wall = time.process_time(), time.perf_counter()
    found = [store.search(query[None], {k}) for query in queries]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    ids = [item.id for hits in found for item in hits.items()[0]]
    print(json.dumps(dict(wall=wall, cpu=cpu, ids=ids)), flush=True)
"""


def unit_vectors(count: int, seed: int) -> FloatArray:
    """Draw vectors of length 1, float32 [count, D]."""
    found = np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class Reader:
    """A process that searches with the package of a checkout."""

    def __init__(self, checkout: Path, uri: str, queries: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER.format(dimension=D, k=K), uri, str(queries)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
        )
        self._answer()

    def round(self) -> dict[str, Any]:
        """Search for every query once; return seconds and what was found."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a reader has ended with {self._process.wait()}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measured(uri: str, folder: Path, asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the rounds of both checkouts, the first of a round being the other one each time."""
    store = MilvusStore(uri, D, writing=True)
    store.add(
        [Item(f"{n}.jpg", f"pictures/{n}.jpg", str(n % 100)) for n in range(asked.items)],
        unit_vectors(asked.items, 0),
    )
    store.flush()
    store.close()
    np.save(folder / "queries.npy", unit_vectors(asked.queries, 1))
    readers = {
        name: Reader(checkout, uri, folder / "queries.npy")
        for name, checkout in (("before", asked.before), ("now", ROOT))
    }
    time.sleep(SECONDS_STRONG + 1)
    for reader in readers.values():
        reader.round()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in readers}
    for number in range(asked.rounds):
        for name in sorted(readers, reverse=number % 2 == 1):
            found[name].append(readers[name].round())
    for reader in readers.values():
        reader.close()
    return found


def table(found: dict[str, list[dict[str, Any]]], queries: int) -> list[str]:
    """Return the lines of the table: milliseconds of a search, and the ratio round by round."""
    rows = ["| | before, ms | now, ms | before / now |", "|---|---|---|---|"]
    for what in ("wall", "cpu"):
        times = {name: [1000 * each[what] / queries for each in rounds] for name, rounds in found.items()}
        label = "one search, on the clock" if what == "wall" else "CPU time of the client"
        rows.append(
            f"| {label} | {spread(times['before'])} | {spread(times['now'])} | "
            f"{spread(ratios(times['before'], times['now']))} |"
        )
    return rows


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="an earlier checkout")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    asked.before = asked.before.resolve()
    sys.path.append(str(ROOT / "tests"))  # milvus_server
    import milvus_server

    loads = f"{os.getloadavg()[0]:.0f}"
    server = milvus_server.MilvusServer()
    try:
        found = measured(server.uri, server.folder, asked)
        loads += f" to {os.getloadavg()[0]:.0f}, of other programs most of it"
    finally:
        server.stop()
    same = all(each["ids"] == found["now"][0]["ids"] for rounds in found.values() for each in rounds)
    commit = subprocess.run(
        ["git", "-C", asked.before, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    lines = [
        "# One search of a reader in Milvus",
        "",
        *provenance_lines(("pymilvus",), more=f"{asked.rounds} rounds of {asked.queries} searches; load {loads}"),
        f"- server: milvus {version('milvus')}, standalone, as it is installed",
        f"- before: commit {commit}; {asked.items:,} vectors of length {D}, FLAT, k = {K}; what both find is "
        f"{'the same' if same else 'NOT the same'}",
        WARM_UP,
        "",
        *table(found, asked.queries),
    ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
