"""What stores of vectors cost: time to build, add, remove, open and search, memory, disk, recall; beside bare FAISS.

    python -m eval.stores.run [STORE ...] [--count 1000000] [--dimension 128] [--queries 1000] [--rounds 5]
        [--results eval/stores/results]

A STORE is `memmap`, `faiss FACTORY` or `milvus KIND`, in quotes. The vectors are synthetic: 10 independent normal
numbers, mapped to D ones linearly, then by a sine, and normalised; the queries are more of them. Each store is
measured in processes of its own, and kept as a line of RESULTS.jsonl; then RESULTS.md is written from all lines, the
last one for each store and number of vectors. Without a STORE only the table is written.

Bare FAISS is an index of the same factory string, built in memory from an array, trained on as many vectors, with
the same settings of the search. It searches in turns with the store, in one process; the ratio is taken within each
round. Where an index holds short codes, bare FAISS compares four times as many candidates again (`IndexRefineFlat`),
as the store does; a store without an index (memmap) is compared with `Flat`.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eval.stores import measurements as store_measurements
from eval.stores.measurements import ALONE, BLOCK, Task
from ke_metric.environment import describe_environment

MILLION = (
    "memmap",
    "faiss Flat",
    "faiss HNSW32",
    "faiss IVF4096,Flat",
    "faiss IVF4096,PQ64x4fs",
    "milvus FLAT",
    "milvus HNSW",
)
VERSIONS = ("ke_metric", "numpy", "torch", "faiss-cpu", "pymilvus", "milvus-lite")


def main() -> None:
    """Measure the stores named on the command line, and write the tables of all that was measured."""
    options = _options()
    lines = options.results.with_suffix(".jsonl")
    for store in options.stores:
        print(f"{store}: {options.count:,} vectors ...", file=sys.stderr)
        with TemporaryDirectory(dir=options.scratch) as scratch:
            task = Task(
                store, Path(scratch) / "store", options.count, options.dimension, options.queries, options.rounds
            )
            line = measured(task)
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    text = "\n".join(report([json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]))
    options.results.with_suffix(".md").write_text(f"# What stores cost\n\n{text}\n", encoding="utf-8")
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", metavar="STORE", help=f"for a million: {', '.join(MILLION)}")
    parser.add_argument("--count", type=int, default=1_000_000, help="vectors, N (default: 1000000)")
    parser.add_argument("--dimension", type=int, default=128, help="numbers in each, D (default: 128)")
    parser.add_argument("--queries", type=int, default=1000, help="queries searched at once (default: 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in turns, at least 2 (default: 5)")
    parser.add_argument("--results", type=Path, default=Path("eval/stores/results"), help="without an ending")
    parser.add_argument("--scratch", type=Path, help="folder for the stores (default: the system's)")
    options = parser.parse_args()
    if options.rounds < 2 or min(options.dimension, options.queries) < 1 or options.count < 100:
        parser.error("--rounds must be at least 2, --count 100, --dimension and --queries 1")
    return options


def measured(task: Task) -> dict[str, Any]:
    """Return all that is measured of a store, and when and where, as plain JSON values."""
    task.folder.mkdir()
    expected = alone(store_measurements.truth, task)
    found = alone(store_measurements.build, task)
    found |= alone(store_measurements.open_and_search, task)
    found |= alone(store_measurements.compare, task, expected)
    found |= alone(store_measurements.change, task)
    environment = describe_environment()
    return {
        "store": task.store,
        "count": task.count,
        "dimension": task.dimension,
        "queries": task.queries,
        "rounds": task.rounds,
        "machine": f"{environment.get('processor', 'processor not known')}, {environment.get('cores')} cores",
        "python": environment["python"],
        "versions": {name: environment["versions"].get(name, "missing") for name in VERSIONS},
        "commit": environment.get("commit", "not known")
        + (", changed since" * bool(environment.get("commit_changed"))),
        "torch_alone": alone(store_measurements.torch_alone),
        "found": found,
    }


def alone(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


# --- tables ---------------------------------------------------------------------------------------------------------

BUILDING = {
    "add s": lambda line: _number(line["found"]["add"]),
    "flush s": lambda line: _number(line["found"]["flush"]),
    "bare build s": lambda line: _number(line["found"].get("bare_build")),
    f"add {BLOCK:,} more s": lambda line: _number(line["found"]["add_more"]),
    f"remove {BLOCK:,} s": lambda line: _number(line["found"]["remove"]),
    "flush again s": lambda line: _number(line["found"]["flush_more"]),
    "open and first search s": lambda line: _number(line["found"]["open"]),
    "disk MB": lambda line: _number(line["found"]["bytes"] / 1e6),
    "peak MB: building": lambda line: _number(line["found"]["build_peak"]),
    "searching": lambda line: _number(line["found"]["search_peak"]),
}
"""Titles to what is in the cells."""
SEARCHING = {
    "recall@10": lambda line: _number(line["found"]["recall"]),
    "bare": lambda line: _number(line["found"].get("bare_recall")),
    "queries/s batched": lambda line: _rate(line["queries"], line["found"]["batched"]),
    "bare ": lambda line: _rate(line["queries"], line["found"].get("bare_batched")),
    "time / bare": lambda line: _ratio(line["found"], "batched"),
    "with items": lambda line: _rate(line["queries"], [line["found"]["with_items"]]),
    "one at a time": lambda line: _rate(_alone(line), line["found"]["alone"]),
    "bare  ": lambda line: _rate(_alone(line), line["found"].get("bare_alone")),
    "with items ": lambda line: _rate(_alone(line), [line["found"]["alone_with_items"]]),
    "after changes, batched": lambda line: _rate(line["queries"], [line["found"]["behind"]]),
    "settings": lambda line: ", ".join(f"{name} {value}" for name, value in line["found"]["settings"].items()) or "–",
}


def report(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return what was measured as lines of Markdown: where and with what, building, searching, notes."""
    last = {(line["store"], line["count"], line["dimension"]): line for line in lines}
    shown = sorted(last.values(), key=lambda line: (-line["count"], _place(line["store"])))
    if not shown:
        return ["Nothing was measured."]
    return [
        *_provenance(shown),
        "",
        *_table(BUILDING, shown),
        "",
        *_table(SEARCHING, shown),
        "",
        *_notes(shown),
    ]


def _place(store: str) -> int:
    return MILLION.index(store) if store in MILLION else len(MILLION)


def _provenance(lines: Sequence[dict[str, Any]]) -> list[str]:
    def all_of(of: Callable[[dict[str, Any]], str]) -> str:
        return "; ".join(sorted({of(line) for line in lines}))

    def versions(line: dict[str, Any]) -> str:
        named = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
        return f"Python {line['python']}, {named}"

    return [
        f"- machine: {all_of(lambda line: line['machine'])}",
        f"- versions: {all_of(versions)}",
        f"- commit: {all_of(lambda line: line['commit'])}",
        f"- queries: {all_of(lambda line: str(line['queries']))} in a batch, at most {ALONE} one at a time, 10 "
        f"neighbours each; rounds: {all_of(lambda line: str(line['rounds']))}, in turns; medians",
    ]


def _table(columns: Mapping[str, Callable[[dict[str, Any]], str]], lines: Sequence[dict[str, Any]]) -> list[str]:
    titles = ["store", "vectors", *(title.strip() for title in columns)]
    rows = [
        [line["store"], f"{line['count']:,} x {line['dimension']}", *(cell(line) for cell in columns.values())]
        for line in lines
    ]
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


def _alone(line: dict[str, Any]) -> int:
    return min(ALONE, line["queries"])


def _number(value: float | None) -> str:
    """Return three significant digits, never as a power of ten."""
    if value is None:
        return "–"
    if 0 < value < 0.001:
        return "<0.001"
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _rate(queries: int, seconds: Sequence[float] | None) -> str:
    return "–" if seconds is None else _number(queries / statistics.median(seconds))


def _ratio(found: Mapping[str, Any], what: str) -> str:
    """Return median and range of the quotients of the rounds."""
    if f"bare_{what}" not in found:
        return "–"
    ratios = [ours / bare for ours, bare in zip(found[what], found[f"bare_{what}"], strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def _notes(lines: Sequence[dict[str, Any]]) -> list[str]:
    codes = [
        f"- {line['store']}, {line['count']:,} vectors: the short codes alone, not compared again, in bare FAISS: "
        f"recall@10 {_number(found['codes_recall'])}, {_rate(line['queries'], [found['codes_batched']])} queries/s."
        for line in lines
        if (found := line["found"]).get("codes_recall") is not None
    ]
    return [
        f"- Memory is the most that a process of its own ever had: one that builds, and one that only opens and "
        f"searches. A process that imports torch and does nothing has {_number(lines[0]['torch_alone'])} MB.",
        "- Batched and one at a time: numbers and similarities of the neighbours, which FAISS gives too. With "
        "items: with the id, path and label of each, read from the store.",
        "- After changes: with the vectors that were added more waiting to be indexed, and the removed ones still in "
        "the index.",
        *codes,
    ]


if __name__ == "__main__":
    main()
