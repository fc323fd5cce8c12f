"""The tables of what stores cost, of lines of results: `results.md`, and the one in docs/stores.md."""

import itertools
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.stores.measurements import ALONE, BLOCK, SHARES

MILLION = (
    "memmap",
    "faiss Flat",
    "faiss HNSW32",
    "faiss IVF4096,Flat",
    "faiss IVF4096,PQ64x4fs",
    "milvus FLAT",
    "milvus HNSW",
    "milvus-server HNSW",
    "postgres HNSW",
    "postgres HNSW_HALFVEC",
)
"""In the order of the tables."""
DISTURBED = 0.8
"""Load average, before a store is measured, of a machine that does something else."""
AIM = 1.15
"""Times the processors' time of a bare client that a store may take."""
RUNS = {
    "run began": lambda line: line.get("run", "not known"),
    "rounds": lambda line: str(line["rounds"]),
    "date": lambda line: line.get("date", "not known"),
    "load average before, after": lambda line: (
        "{:.1f}, {:.1f}".format(*line["load"]) if "load" in line else "not known"
    ),
    "commit": lambda line: line["commit"],
    "command": lambda line: f"`{line['command']}`" if "command" in line else "not known",
}
"""Titles to what is in the cells."""
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
    "of a process that imports only": lambda line: _number(line["torch_alone"]),
    "the server's, building": lambda line: _number(line["found"].get("server_build_peak")),
    "searching ": lambda line: _number(line["found"].get("server_search_peak")),
    "its folder": lambda line: _number(_mega(line["found"].get("server_bytes"))),
}
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
WAYS = {"batched": "batched", "one at a time": "alone"}
"""Titles to names of what was found."""
NARROWED = {
    f"{share}: {title}": (lambda line, share=share, cell=cell: cell(line, line["found"]["where"][share]))
    for share in list(SHARES)[1:]
    for title, cell in {
        "recall@10": lambda line, found: _number(found["recall"]),
        "queries/s batched": lambda line, found: _rate(_alone(line), found["batched"]),
        "time / bare": lambda line, found: _ratio(found, "batched"),
        "one at a time": lambda line, found: _rate(_alone(line), found["alone"]),
    }.items()
}
CLIENT = {
    f"{title}: {what}": (lambda line, name=name, cell=cell: cell(line, name))
    for title, name in WAYS.items()
    for what, cell in {
        "ms of the client": lambda line, name: _milliseconds(line, "all", name, "client"),
        "bare": lambda line, name: _milliseconds(line, "all", f"bare_{name}", "client"),
        "ms of the server": lambda line, name: _milliseconds(line, "all", name, "server"),
        "all / bare": lambda line, name: _spread(_cpu_ratios(line["found"], name)),
        "with items / bare": lambda line, name: _spread(_cpu_ratios(line["found"], name, "_items")),
    }.items()
}
NARROWED_CLIENT = {
    f"{share}, {title}: {what}": (lambda line, share=share, name=name, cell=cell: cell(line, share, name))
    for share in list(SHARES)[1:]
    for title, name in WAYS.items()
    for what, cell in {
        "ms of the client": lambda line, share, name: _milliseconds(line, share, name, "client"),
        "bare": lambda line, share, name: _milliseconds(line, share, f"bare_{name}", "client"),
        "ms of the server": lambda line, share, name: _milliseconds(line, share, name, "server"),
        "all / bare": lambda line, share, name: _spread(_cpu_ratios(_found(line, share), name)),
        "with items / bare": lambda line, share, name: _spread(_cpu_ratios(_found(line, share), name, "_items")),
    }.items()
}


def _narrowed_summary(share: str) -> Callable[[dict[str, Any]], str]:
    def cell(line: dict[str, Any]) -> str:
        if "where" not in line["found"]:
            return "–"
        found = line["found"]["where"][share]
        return f"{_number(found['recall'])}, {_rate(_alone(line), found['alone'])}"

    return cell


def _processors_summary(name: str) -> Callable[[dict[str, Any]], str]:
    def cell(line: dict[str, Any]) -> str:
        return _processors(line, "all", name) if "server" in line else "–"

    return cell


def _most_under_a_condition(line: dict[str, Any]) -> str:
    """Return the condition whose searches one at a time take most beside the bare client, and what they take."""
    if "server" not in line:
        return "–"
    shares = {
        share: statistics.median(_cpu_ratios(found, "alone")) for share, found in line["found"]["where"].items()
    }
    most = max(shares, key=lambda share: shares[share])
    return f"{most}: {_processors(line, most, 'alone')}"


def _processors(line: dict[str, Any], share: str, name: str) -> str:
    client, bare = (_milliseconds(line, share, whose, "client") for whose in (name, f"bare_{name}"))
    return f"{_spread(_cpu_ratios(_found(line, share), name))}; {client}, {bare}"


SUMMARY = {
    "add, then index": lambda line: f"{_number(line['found']['add'])} s, {_number(line['found']['flush'])} s",
    "on disk": lambda line: f"{_number(line['found']['bytes'] / 1e9)} GB",
    "memory to search": lambda line: f"{_number(_memory(line['found']) / 1e3)} GB",
    "recall@10": SEARCHING["recall@10"],
    "queries/s": SEARCHING["queries/s batched"],
    "time / bare": SEARCHING["time / bare"],
    "one at a time": SEARCHING["one at a time"],
    **{f"{share}: recall, one at a time": _narrowed_summary(share) for share in list(SHARES)[1:]},
    "processors / bare, at once; ms of the client, bare": _processors_summary("batched"),
    "the same, one at a time": _processors_summary("alone"),
    "the same under a condition, where it is most": _most_under_a_condition,
    "rounds": RUNS["rounds"],
}
"""What docs/stores.md tells, of the stores with the most vectors."""
MARK = " †"


def summary(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of docs/stores.md and a list beneath; of each store the last line with the most vectors."""
    last: dict[str, dict[str, Any]] = {}
    for line in sorted(lines, key=lambda line: line["count"]):
        last[line["store"]] = line
    shown = sorted(last.values(), key=lambda line: _place(line["store"]))
    marked = [line | {"store": line["store"] + MARK * _is_disturbed(line)} for line in shown]
    return [*_table(SUMMARY, marked), "", *_summary_notes(shown)]


def with_table(document: str, table: Sequence[str]) -> str:
    """Return a document's text with its table of stores, and the list beneath, replaced; it must have just one."""
    parts = re.split(r"^\| store \| vectors \|.*\n(?:\|.*\n)*(?:\n(?:- .*\n)+)?", document, flags=re.MULTILINE)
    if len(parts) != 2:
        sys.exit(f"the document has {len(parts) - 1} tables of stores, must have one")
    return "\n".join([*table, ""]).join(parts)


def _is_disturbed(line: Mapping[str, Any]) -> bool:
    return "load" not in line or line["load"][0] > DISTURBED


def _summary_notes(lines: Sequence[dict[str, Any]]) -> list[str]:
    notes = [_runs_note(lines)]
    if any(map(_is_disturbed, lines)):
        notes.append(
            f"{MARK.strip()}: beside other programs, the load average before it above {DISTURBED}, or not known."
        )
    notes.append(
        f"Of a process's memory, {_imports(lines)} is what it has once it has imported torch and the script."
    )
    notes.append(f"Adding {BLOCK:,} vectors more, and removing {BLOCK:,}: {_changes(lines)}.")
    if served := [line for line in lines if "server" in line]:
        milliseconds = ", ".join(
            f"{line['store']} {_milliseconds(line, 'all', 'batched', 'server')}" for line in served
        )
        notes += [f"Milliseconds of the server's processors for a query, at once: {milliseconds}.", *_aim(served)]
    return [f"- {note}" for note in notes]


def _runs_note(lines: Sequence[dict[str, Any]]) -> str:
    runs: dict[str, list[str]] = {}
    for line in lines:
        runs.setdefault(line.get("run", ""), []).append(line["store"])
    not_known = runs.pop("", [])
    told = [f"in one run, begun {run}: {', '.join(stores)}" for run, stores in runs.items() if stores[1:]]
    if alone := [stores[0] for stores in runs.values() if not stores[1:]]:
        told.append(f"each in a run of its own: {', '.join(alone)}")
    if not_known:
        told.append(f"in which runs is not known: {', '.join(not_known)}")
    return f"Measured {'; '.join(told)}."


def _imports(lines: Sequence[dict[str, Any]]) -> str:
    """Return the memory of processes that only imported: it grew with what the script imports."""
    known = [line["torch_alone"] for line in lines if line["torch_alone"] is not None]
    return f"{_range(known, _number)} MB" if known else "an amount that is not known"


def _changes(lines: Sequence[dict[str, Any]]) -> str:
    local = [line["found"] for line in lines if "server" not in line]
    each = [
        f"{line['store']} {_number(line['found']['add_more'])} s, {_number(line['found']['remove'])} s"
        for line in lines
        if "server" in line
    ]
    spans = [_range([found[name] for found in local], _short) for name in ("add_more", "remove")] if local else []
    return "; ".join([*([f"to a local store {spans[0]} s, {spans[1]} s"] if spans else []), *each])


def _short(value: float) -> str:
    return f"{value:.1f}"


def _range(values: Sequence[float], text: Callable[[float], str]) -> str:
    least, most = text(min(values)), text(max(values))
    return least if least == most else f"{least} to {most}"


def _aim(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return in which ways of searching servers the aim for the processors' time is met, and in which not."""
    together, alone = {}, []
    for line in lines:
        for share in ("all", *line["found"]["where"]):
            for (title, name), items in itertools.product(WAYS.items(), ("", "_items")):
                way = ", ".join(filter(None, (line["store"], share, title, items and "with items")))
                together[way] = _cpu_ratios(_found(line, share), name, items)
                alone.append(statistics.median(_cpu_ratios(_found(line, share), name, items, server=False)))
    medians = {way: statistics.median(ratios) for way, ratios in together.items()}
    above = [f"{way}, {medians[way]:.3f}" for way in together if medians[way] > AIM]
    at_times = [f"{way}, {max(together[way]):.3f}" for way in together if max(together[way]) > AIM >= medians[way]]
    met = sum(each <= AIM for each in alone)
    return [
        f"The aim was at most {AIM} times the processors' time of the bare client. With the server's time on both "
        f"sides, {len(together) - len(above)} of {len(together)} ways of searching (a store; {', '.join(SHARES)}; "
        "batched or one at a time; with items or without) meet it, by the median of the rounds. "
        f"Above it: {'; '.join(above) or 'none'}. Above it in some rounds only: {'; '.join(at_times) or 'none'}.",
        f"By the client's time alone, {'the aim is met' if met == len(alone) else 'the aim is not met'}: "
        f"{met} of {len(alone)} ways are within it, the medians are {_range(alone, '{:.2f}'.format)} times the "
        "bare client's.",
    ]


def _memory(found: Mapping[str, Any]) -> float:
    return float(found.get("server_search_peak", found["search_peak"]))


def report(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return what was measured as lines of Markdown: where and with what, building, searching, notes."""
    last = {(line["store"], line["count"], line["dimension"]): line for line in lines}
    shown = sorted(last.values(), key=lambda line: (-line["count"], _place(line["store"])))
    if not shown:
        return ["Nothing was measured."]
    return [
        *_provenance(shown),
        "",
        *_table(RUNS, shown),
        "",
        *_table(BUILDING, shown),
        "",
        *_table(SEARCHING, shown),
        "",
        *_table(NARROWED, [line for line in shown if "where" in line["found"]]),
        "",
        *_table(CLIENT, [line for line in shown if "server" in line]),
        "",
        *_table(NARROWED_CLIENT, [line for line in shown if "server" in line]),
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
        f"- queries: {all_of(lambda line: str(line['queries']))} in a batch, at most {ALONE} one at a time, 10 "
        "neighbours each; rounds in turns; medians",
    ]


def _table(columns: Mapping[str, Callable[[dict[str, Any]], str]], lines: Sequence[dict[str, Any]]) -> list[str]:
    titles = ["store", "vectors", *(title.strip() for title in columns)]
    rows = [
        [line["store"], f"{line['count']:,} x {line['dimension']}", *(cell(line) for cell in columns.values())]
        for line in lines
    ]
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


def _alone(line: dict[str, Any]) -> int:
    return min(ALONE, int(line["queries"]))


def _number(value: float | None) -> str:
    """Return three significant digits, never as a power of ten."""
    if value is None:
        return "–"
    if 0 < value < 0.001:
        return "<0.001"
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _rate(queries: int, seconds: Sequence[float] | None) -> str:
    return "–" if seconds is None else _number(queries / statistics.median(seconds))


def _mega(count: int | None) -> float | None:
    return None if count is None else count / 1e6


def _found(line: dict[str, Any], share: str) -> dict[str, Any]:
    """Return what was found by searching a share of the items."""
    found: dict[str, Any] = line["found"] if share == "all" else line["found"]["where"][share]
    return found


def _milliseconds(line: dict[str, Any], share: str, name: str, whose: str) -> str:
    """Return milliseconds of processors for each query."""
    queries = line["queries"] if share == "all" and "batched" in name else _alone(line)
    return _number(1000 * statistics.median(_found(line, share)[f"{name}_{whose}"]) / queries)


def _cpu_ratios(found: Mapping[str, Any], name: str, items: str = "", *, server: bool = True) -> list[float]:
    """Return the quotients of the rounds: of the processors' time of client and bare client, with the server's."""
    both = found[f"{name}_server"] + found[f"bare_{name}_server"]
    # The requests are the same: what differs is chance, of ticks and of other programs.
    each = statistics.mean(both) if server else 0
    pairs = zip(found[f"{name}{items}_client"], found[f"bare_{name}_client"], strict=True)
    return [(each + ours) / (each + bare) for ours, bare in pairs]


def _ratio(found: Mapping[str, Any], what: str) -> str:
    """Return median and range of the quotients of the rounds."""
    if f"bare_{what}" not in found:
        return "–"
    return _spread([ours / bare for ours, bare in zip(found[what], found[f"bare_{what}"], strict=True)])


def _spread(ratios: Sequence[float]) -> str:
    """Return the median, the least and the largest."""
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
        f"searches. A process that imports torch, and what the script imports at that commit, and does nothing "
        f"has {_imports(lines)}.",
        "- Run: stores with the same beginning were measured by one command, one after another; each waited for a "
        "low load average before it began, at most three minutes if not told otherwise.",
        "- Batched and one at a time: numbers and similarities of the neighbours, which FAISS gives too. With "
        "items: with the id, path and label of each, read from the store.",
        "- After changes: with the vectors that were added more waiting to be indexed, and the removed ones still in "
        "the index.",
        "- Under a condition: 200 queries, of the items of so many of the labels, which are named one by one. Bare: "
        "the same requests by psycopg or pymilvus alone.",
        "- Processors: milliseconds for each query. All / bare is client and server together beside the bare client "
        "and the same server; the requests are the same, so the server's time is the mean of both.",
        "- The server's memory: the most that all its processes had together, what they share counted once. Its "
        "folder has its logs, too.",
        *(f"- {line['store']}, {line['count']:,} vectors: {line['server']}." for line in lines if "server" in line),
        *codes,
    ]
