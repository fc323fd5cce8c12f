"""Split every classifier of torchvision and a random sample of timm, and prove each split, beside Torch-Pruning.

    pip install -e '.[timm,compare]'
    python eval/coverage.py run --out FILE.jsonl [--jobs 1] [--networks NAME ...] [--rates 0.5 0.8] [--timeout 180]
    python eval/coverage.py table FILE.jsonl --out docs/coverage.md

`run` writes a row per network, rate and tool as they come; a second call goes on where the first one stopped. Rows
that other sources of the split or of these scripts, or other versions of the libraries, gave are done again, and
those without an answer when the time limit was raised. `table` makes the document.

`coverage_verdict.py` says what is demanded of a split, `coverage_torch_pruning.py` what of Torch-Pruning,
`coverage_networks.py` which networks there are and how they get their weights.
"""

import argparse
import hashlib
import inspect
import json
import multiprocessing
import re
import signal
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from typing import Any

import coverage_networks
import coverage_torch_pruning
import coverage_verdict
import torch
from coverage_networks import (
    build_for_test,
    class_of,
    give_weights,
    make_images,
    split_name,
    timm_names,
    torchvision_names,
)
from coverage_torch_pruning import RUNS, SAME, ask, require_torch_pruning
from coverage_verdict import (
    CRASHED,
    EXACT,
    EXACT_FP64,
    EXACT_NORMS,
    EXACT_PASTED,
    NO_ANSWER,
    VERDICTS,
    examine,
)
from network_cost import free_memory, limit_memory

from ke_metric.environment import describe_environment
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.scoring import count_parameters
from ke_metric.split import planning

Row = dict[str, Any]
# A tool and a split rate.
Task = tuple[str, float]

LONGEST_COMMAND = 200
RATES = (0.5, 0.8)
SECONDS = 180
OURS, THEIRS = "ke_metric", "torch-pruning"
# Tool -> the function that answers, and the verdict if what it raises is not what it foresees.
TOOLS: dict[str, tuple[Callable[..., Row], str]] = {OURS: (examine, CRASHED), THEIRS: (ask, NO_ANSWER)}
# Tool -> the sources and the library that its rows depend on, beside what both depend on.
OWN_SOURCES = {
    OURS: sorted(Path(planning.__file__).parent.glob("*.py")),
    THEIRS: [Path(coverage_torch_pruning.__file__)],
}
SOURCES = [Path(module.__file__) for module in (coverage_networks, coverage_verdict)]
LIBRARIES = {OURS: ("torch", "torchvision", "timm"), THEIRS: ("torch", "torchvision", "timm", THEIRS)}
# One server imports the libraries once; every child is a fork of it, made before it has threads.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torchvision", "timm", "torch_pruning", "ke_metric.split.planning"])

PROVEN = (EXACT, EXACT_NORMS, EXACT_PASTED)
# Below this share of all parameters in the reset hypothesis, a network is hardly split, however exactly.
HARDLY = 0.1
CONVOLUTIONAL = "convolutional"
GROUPS = tuple(
    (f"{library}, {title}", library, wanted)
    for library in coverage_networks.LIBRARIES
    for title, wanted in ((CONVOLUTIONAL, True), ("others", False))
)
SHORT = {
    EXACT_NORMS: "exact (norms)",
    EXACT_PASTED: "exact (keep_whole)",
    SAME: "exact",
    coverage_torch_pruning.OTHER: "runs, differs",
    coverage_torch_pruning.UNDECIDED: "runs",
}


def main() -> None:
    """Run networks, or make the document of those that were run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="split networks and keep what came of it")
    running.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="file of the rows")
    running.add_argument("--jobs", type=int, default=1, help="networks at a time; they share the cores (default: 1)")
    running.add_argument("--networks", nargs="+", metavar="NAME", help="these alone (default: all 280)")
    running.add_argument("--rates", nargs="+", type=float, default=RATES, help="split rates (default: 0.5 0.8)")
    running.add_argument("--timeout", type=float, default=SECONDS, help="seconds for each answer (default: 180)")
    running.set_defaults(
        work=lambda options: run(
            options.out, options.networks, options.rates, jobs=options.jobs, seconds=options.timeout
        )
    )
    tabling = commands.add_parser("table", help="make the document")
    tabling.add_argument("rows", type=Path, metavar="FILE.jsonl", help="what `run` wrote")
    tabling.add_argument("--out", type=Path, required=True, metavar="FILE.md", help="where to write the document")
    tabling.set_defaults(work=lambda options: table(options.rows, options.out))
    options = parser.parse_args()
    try:
        options.work(options)
    except KeMetricError as error:
        raise SystemExit(str(error)) from error


# --- all networks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Attributes:
        seconds: For each answer.
        threads: How many threads.
        memory: Bytes; None where the system does not tell what is free.
    """

    seconds: float
    threads: int
    memory: int | None


def run(
    out: Path, names: Sequence[str] | None = None, rates: Sequence[float] = RATES, *, jobs: int, seconds: float
) -> None:
    """Examine networks and append a row per network, rate and tool to a file, but for those that are in it.

    Args:
        out: JSON lines; made where it is missing.
        names: Names of networks; all by default.
        rates: Split rates.
        jobs: How many networks at a time; they share cores and free memory.
        seconds: Time limit for each answer.

    Raises:
        KeMetricError: Torch-Pruning is missing, there is no such network, or the file holds something else.
    """
    require_torch_pruning()
    names = ["/".join(split_name(name)) for name in names] if names else [*torchvision_names(), *timm_names()]
    made_by = {tool: fingerprint(tool) for tool in TOOLS}
    tasks = missing_tasks(read(out)[1] if out.exists() else [], names, rates, made_by=made_by, seconds=seconds)
    print(f"{len(tasks)} of {len(names)} networks to do", file=sys.stderr)
    free = free_memory()
    limits = Limits(seconds, max(1, torch.get_num_threads() // jobs), None if free is None else free // jobs)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        for line in _lines_of(tasks, made_by, jobs, limits) if tasks else ():
            file.write(json.dumps(line) + "\n")
            file.flush()


def missing_tasks(
    rows: Sequence[Row], names: Sequence[str], rates: Sequence[float], *, made_by: Mapping[str, str], seconds: float
) -> dict[str, list[Task]]:
    """Return what is still to be asked, by network; networks of which everything is known are not in it."""
    known = {
        (row["network"], row["tool"], row["rate"])
        for row in rows
        if row["made_by"] == made_by[row["tool"]]
        and not (row["verdict"] == NO_ANSWER and row["seconds_allowed"] < seconds)
    }
    missing = {
        name: [(tool, rate) for tool in TOOLS for rate in rates if (name, tool, rate) not in known] for name in names
    }
    return {name: tasks for name, tasks in missing.items() if tasks}


def fingerprint(tool: str) -> str:
    """Return a digest of all that a tool's rows depend on beside the machine: sources and versions of libraries."""
    digest = hashlib.sha256()
    for library in LIBRARIES[tool]:
        digest.update(f"{library} {version(library)}\n".encode())
    for source in [*SOURCES, *OWN_SOURCES[tool]]:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _lines_of(
    tasks: dict[str, list[Task]], made_by: Mapping[str, str], jobs: int, limits: Limits
) -> Iterator[dict[str, Any]]:
    """Yield the circumstances, and then rows as they come."""
    environment = describe_environment()
    environment["versions"][THEIRS] = version(THEIRS)
    command = " ".join(["python", "eval/coverage.py", *sys.argv[1:]])
    chosen = {"command": command, "made_by": made_by, "jobs": jobs, **asdict(limits)}
    yield {"started": f"{datetime.now(UTC):%Y-%m-%d}", **chosen, **environment}
    pool, stop = ThreadPoolExecutor(jobs), Event()
    try:
        pending: list[Future[list[Row]]] = [
            pool.submit(examine_network, name, asked, limits, stop) for name, asked in tasks.items()
        ]
        for done, future in enumerate(as_completed(pending), start=1):
            rows = future.result()
            yield from ({**row, "made_by": made_by[row["tool"]], "seconds_allowed": limits.seconds} for row in rows)
            said = ", ".join(f"{row['tool']} {row['rate']:g} {row['verdict']}" for row in rows)
            print(f"{done}/{len(tasks)} {rows[0]['network']}: {said}", file=sys.stderr)
    finally:
        # An interrupt must not wait for what is being examined.
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.kill()


# --- one network, in a child process ------------------------------------------------------------------------------


class ChildLostError(Exception):
    """A child gave no answer.

    Attributes:
        in_time: It ended by itself; it did not take too long.
    """

    def __init__(self, reason: str, *, in_time: bool) -> None:
        super().__init__(reason)
        self.in_time = in_time


def examine_network(name: str, tasks: Sequence[Task], limits: Limits, stop: Event) -> list[Row]:
    """Return the rows of one network; where a child is lost, another one goes on with what was not asked yet.

    Args:
        name: The network.
        tasks: What to ask.
        limits: What a child may use.
        stop: Set when nobody wants the rows any more.
    """
    facts: dict[str, Any] = {"network": name}
    rows: list[Row] = []
    waiting = list(tasks)
    while waiting and not stop.is_set():
        built = False
        try:
            for answer in answers(work, name, waiting[:], limits, seconds=limits.seconds):
                if built:
                    rows.append(answer)
                    waiting.pop(0)
                else:
                    facts, built = answer, True
        except ChildLostError as error:
            lost = _lost(waiting, error) if built else waiting[:]
            rows += [_answer_of_none(*task, error) for task in lost]
            waiting = [task for task in waiting if task not in lost]
    return [facts | row for row in rows]


def _lost(waiting: Sequence[Task], error: ChildLostError) -> list[Task]:
    """Return what a lost child gives no answer to: its task, and the tool's other rates if it took too long."""
    return [task for task in waiting if task == waiting[0] or (task[0] == waiting[0][0] and not error.in_time)]


def _answer_of_none(tool: str, rate: float, error: ChildLostError) -> Row:
    verdict = CRASHED if tool == OURS and error.in_time else NO_ANSWER
    return {"tool": tool, "rate": rate, "verdict": verdict, "reason": str(error)}


def work(name: str, tasks: Sequence[Task], limits: Limits) -> Iterator[dict[str, Any]]:
    """Yield the facts about a network and then the answer to each task; runs in a child process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(limits.threads)
    limit_memory(limits.memory)
    network, pixels = build_for_test(name)
    images = make_images(pixels)
    kind = class_of(network, images[:1])
    give_weights(network, images)
    yield {"network": name, "class": kind, "pixels": pixels, "parameters": count_parameters(network)}
    for tool, rate in tasks:
        ask_for, crashed = TOOLS[tool]
        started = time.perf_counter()
        try:
            answer = ask_for(network, images, rate)
        except Exception as error:  # what was not foreseen is a row of its own, never a missing one
            answer = {"verdict": crashed, "reason": _in_words(error)}
        yield {"tool": tool, "rate": rate, "took": round(time.perf_counter() - started, 1), **answer}


def answers(work: Callable[..., Iterator[Any]], *arguments: Any, seconds: float) -> Iterator[Any]:
    """Yield what a generator function yields in a child process: a crash costs one answer, not the whole table.

    Args:
        work: A generator function of a module; yields what can be pickled.
        arguments: Its arguments.
        seconds: How long to wait for each answer.

    Raises:
        ChildLostError: An answer took longer, or the child ended before it was done.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_send, args=(sender, work, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        while (answer := _receive(receiver, process, seconds)) is not None:
            yield answer[0]
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send(sender: Connection, work: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    """Send every answer in a tuple, and then None; a text says what was raised."""
    try:
        for answer in work(*arguments):
            sender.send((answer,))
    except Exception as error:  # the parent makes a row of it
        sender.send(_in_words(error))
    else:
        sender.send(None)


def _receive(receiver: Connection, process: Any, seconds: float) -> tuple[Any] | None:
    if not receiver.poll(seconds):
        raise ChildLostError(f"no answer within {seconds:g} s", in_time=False)
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise ChildLostError(_ending(process.exitcode), in_time=True) from None
    if isinstance(answer, str):
        raise ChildLostError(answer, in_time=True)
    return answer


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _ending(code: int) -> str:
    """Say in words how a process ended."""
    if code == -signal.SIGKILL:
        return "the process was killed: probably not enough memory"
    return f"the process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


# --- the document -------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[list[dict[str, Any]], list[Row]]:
    """Return the circumstances of every run that wrote to a file, and the last row of each network, tool and rate.

    Raises:
        KeMetricError: There is no such file, or it holds something else.
    """
    if not path.is_file():
        raise KeMetricError(f"there is no file {path}", ExitCode.USAGE)
    started, rows = [], {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            if "started" in entry:
                started.append(entry)
            else:
                rows[entry["network"], entry["tool"], entry["rate"]] = entry
        except (KeyError, TypeError, ValueError) as error:
            raise KeMetricError(f"{path}, line {number}: no row of `coverage.py run`", ExitCode.USAGE) from error
    return started, list(rows.values())


def table(path: Path, out: Path) -> None:
    """Write the document of a file of rows.

    Raises:
        KeMetricError: There is no such file, it holds something else, or no rows.
    """
    started, rows = read(path)
    if not rows or not started:
        raise KeMetricError(f"{path} holds no rows", ExitCode.USAGE)
    out.write_text(document(started, rows), encoding="utf-8")


def document(started: Sequence[dict[str, Any]], rows: Sequence[Row]) -> str:
    """Return the document as Markdown.

    Args:
        started: The circumstances of every run that gave rows.
        rows: A row per network, tool and rate.
    """
    parts: dict[str, Iterable[str]] = {
        "## Summary": summary(rows),
        "## How to repeat it": _circumstances(started, rows),
        "## What was asked, and what counts": _rules(),
        "## A line per network": _lines(rows),
        "## What is kept whole": _kept_whole(rows),
        "## Not exact at once: why": _reasons(rows),
        "## Where Torch-Pruning stopped": _stops(rows),
    }
    lines = ["# Which networks can be split", "", "Written by `eval/coverage.py table` from what `run` measured."]
    for title, part in parts.items():
        lines += ["", title, "", *part]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def summary(rows: Sequence[Row]) -> list[str]:
    """Return the summary tables, ours and Torch-Pruning's, and who is hardly split, as lines of Markdown."""
    ours = ["networks", "rate", "number", *VERDICTS, "the first three", f"of them reset < {HARDLY:.0%}"]
    ours += ["Torch-Pruning: runs", "and equals the zeroed dense network"]
    theirs = ["networks", "rate", "number", *coverage_torch_pruning.VERDICTS]
    return [
        "ke_metric: how many networks got which verdict; the last two columns are Torch-Pruning's.",
        "",
        *_header(ours),
        *(_line(cells) for cells in _counts(rows)),
        "",
        "Torch-Pruning: how many networks got which verdict.",
        "",
        *_header(theirs),
        *(_line(cells) for cells in _their_counts(rows)),
        "",
        *_hardly_split(rows),
    ]


def _groups(rows: Sequence[Row], tool: str) -> Iterator[tuple[str, float, list[Row]]]:
    """Yield name, rate and rows of every group of networks that has any."""
    for name, library, wanted in GROUPS:
        for rate in _rates(rows):
            group = [
                row for row in rows if _is_in(row, library, wanted) and (row["tool"], row["rate"]) == (tool, rate)
            ]
            if group:
                yield name, rate, group


def _is_in(row: Row, library: str, convolutional: bool) -> bool:
    return row["network"].startswith(f"{library}/") and (row.get("class") == CONVOLUTIONAL) == convolutional


def _rates(rows: Sequence[Row]) -> list[float]:
    return sorted({row["rate"] for row in rows})


def _counts(rows: Sequence[Row]) -> Iterator[list[str]]:
    theirs = {(name, rate): group for name, rate, group in _groups(rows, THEIRS)}
    for name, rate, group in _groups(rows, OURS):
        counts = Counter(row["verdict"] for row in group)
        proven = [row for row in group if row["verdict"] in PROVEN]
        hardly = sum(row["reset_share"] < HARDLY for row in proven)
        other = theirs.get((name, rate), [])
        yield [
            name,
            f"{rate:g}",
            str(len(group)),
            *(str(counts[verdict]) for verdict in VERDICTS),
            f"{len(proven)} ({100 * len(proven) / len(group):.0f} %)",
            str(hardly),
            f"{sum(row['verdict'] in RUNS for row in other)} of {len(other)}",
            f"{sum(row['verdict'] == SAME for row in other)} of {len(other)}",
        ]


def _their_counts(rows: Sequence[Row]) -> Iterator[list[str]]:
    for name, rate, group in _groups(rows, THEIRS):
        counts = Counter(row["verdict"] for row in group)
        found = [str(counts[verdict]) for verdict in coverage_torch_pruning.VERDICTS]
        yield [name, f"{rate:g}", str(len(group)), *found]


def _hardly_split(rows: Sequence[Row]) -> Iterator[str]:
    """Yield which networks keep nearly all of their weights: exact is easy where nothing is reset."""
    for rate in _rates(rows):
        found = [
            f"{row['network']} ({row['reset_share']:.1%})"
            for row in rows
            if row["tool"] == OURS and row["rate"] == rate and row.get("reset_share", 1) < HARDLY
        ]
        yield (
            f"Rate {rate:g}, at which a chain of layers resets {1 - rate**2:.0%} of its weights: networks that reset "
            f"less than {HARDLY:.0%} of their parameters: {', '.join(found) or 'none'}."
        )
        yield ""


# --- circumstances and rules --------------------------------------------------------------------------------------


def _circumstances(started: Sequence[dict[str, Any]], rows: Sequence[Row]) -> Iterator[str]:
    yield from ("```", *_usage(), "```", "")
    for tool in TOOLS:
        used = Counter(row["made_by"] for row in rows if row["tool"] == tool)
        if len(used) > 1:
            counts = ", ".join(f"{count} by {made_by}" for made_by, count in used.items())
            yield f"**The rows of {tool} are of different sources or versions: {counts}.**"
            yield ""
    digests = {row["made_by"] for row in rows}
    for run in (entry for entry in started if digests & set(entry["made_by"].values())):
        commit = run.get("commit", "not known") + (", changed since" if run.get("commit_changed") else "")
        versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        memory = "any amount" if run["memory"] is None else f"{run['memory'] / 1e9:.0f} GB"
        yield from (
            f"- {run['started']}: `{textwrap.shorten(run['command'], LONGEST_COMMAND, placeholder=' ...')}`",
            f"  - commit {commit}; digests of sources and versions: "
            + ", ".join(f"{tool} {digest}" for tool, digest in run["made_by"].items()),
            f"  - Python {run['python']}, {versions}",
            f"  - {run.get('processor', 'processor not known')}, {run.get('cores')} cores, {run.get('system')}; "
            f"{run['jobs']} at a time; each has {run['threads']} threads, {run['seconds']:g} s for every answer and "
            f"{memory} of memory",
        )
    yield (
        f"- seeds: sample of timm {coverage_networks.SAMPLE_SEED}, weights 0, images {coverage_networks.IMAGE_SEED}; "
        "wels masks 0"
    )
    yield ""


def _usage() -> list[str]:
    """Return the commands in this module's docstring."""
    assert __doc__ is not None
    return [line.strip() for line in __doc__.splitlines() if line.startswith("    ")]


def _rules() -> list[str]:
    verdict, networks = coverage_verdict, coverage_networks
    return [
        f"**Networks.** All classifiers of torchvision; of timm's names, sorted and shuffled by "
        f"`random.Random({networks.SAMPLE_SEED})`, the first {networks.SAMPLE_NETWORKS} with at most "
        f"{networks.SAMPLE_PARAMETERS / 1e6:.0f} M parameters, of any family.",
        "",
        *_said("Images", networks.make_images),
        *_said("Image size", networks.build_for_test),
        *_said("Weights", networks.give_weights),
        *_said("Norm statistics", networks.measure_statistics),
        *_said("Convolutional or not", networks.class_of),
        *_said("What is demanded of ke_metric", verdict),
        f"**Limits.** Outputs in fp32 differ by at most {verdict.LIMIT:g} of the largest dense output, and by at "
        f"most {verdict.LIMIT_OF_SIGNAL:g} of what the dense outputs for two images differ by. Where that is not so, "
        f"but outputs in fp64 differ by at most {verdict.LIMIT_FP64:g}, a network is *{EXACT_FP64}*: it amplifies "
        "rounding. Everything else that runs is *wrong*.",
        "",
        "**Refused.** The split says what it cannot follow. Where the message gives a list of what to keep whole, "
        f"that is done, up to {verdict.PASTES} times: *{EXACT_PASTED}*. For the others WELS is tried: fit entries "
        "stay as they are, reset entries change, the outputs are finite.",
        "",
        "**No answer.** The time limit was over. A tool that had no answer at one rate is not asked at the others.",
        "",
        *_said("What is demanded of Torch-Pruning", coverage_torch_pruning.ask),
        "It is made for pruning before fine-tuning, and does not promise that its networks equal the dense one with "
        "what was removed at zero; that column says how many do.",
    ]


def _said(title: str, source: Any) -> list[str]:
    """Return what the docstring of a function or module says between its first line and its arguments."""
    text = inspect.cleandoc(source.__doc__).partition("\n\n")[2].split("\nArgs:")[0].strip()
    return [f"**{title}.** {text}", ""]


# --- a line per network -------------------------------------------------------------------------------------------


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    rates = _rates(rows)
    yield (
        f"Cells are for rate {' / '.join(f'{rate:g}' for rate in rates)}. Error: largest difference of outputs in "
        "fp32, relative to the largest dense output. Reset: share of all parameters that is the reset hypothesis. "
        "FLOPs: slim / dense at this image size. Whole: modules that the plan keeps whole by itself. *exact "
        "(norms)*: norms over fit channels. *exact (keep_whole)*: with the lists of the error messages."
    )
    titles = ["network", "class", "M", "pixels", "verdict", "error", "reset", "FLOPs", "whole", "Torch-Pruning"]
    for name, library, wanted in GROUPS:
        group = _by_network(row for row in rows if _is_in(row, library, wanted))
        if group:
            yield from ("", f"### {name}", "", *_header(titles))
            yield from (_line(_cells(network, answers, rates)) for network, answers in sorted(group.items()))


def _by_network(rows: Iterable[Row]) -> dict[str, dict[Task, Row]]:
    found: dict[str, dict[Task, Row]] = {}
    for row in rows:
        found.setdefault(row["network"], {})[row["tool"], row["rate"]] = row
    return found


def _cells(network: str, answers: dict[Task, Row], rates: Sequence[float]) -> list[str]:
    facts = next(iter(answers.values()))
    ours = [answers.get((OURS, rate), {}) for rate in rates]
    theirs = [answers.get((THEIRS, rate), {}) for rate in rates]
    return [
        network.partition("/")[2],
        facts.get("class", "not known"),
        f"{facts['parameters'] / 1e6:.1f}" if "parameters" in facts else "",
        str(facts.get("pixels", "")),
        _each(ours, lambda row: SHORT.get(row["verdict"], row["verdict"])),
        _each(ours, lambda row: f"{row['error']:.0e}" if row["error"] else "0"),
        _each(ours, lambda row: f"{row['reset_share']:.0%}"),
        _each(ours, lambda row: f"{row['flop_ratio']:.2f}"),
        _each(ours, lambda row: str(len(row["kept_whole"]))),
        _each(theirs, lambda row: SHORT.get(row["verdict"], row["verdict"])),
    ]


def _each(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Return a cell per rate, one where they are the same, a dash where there is no figure."""

    def shown(row: Row) -> str:
        try:
            return cell(row)
        except KeyError:
            return "–"

    cells = [shown(row) for row in rows]
    return cells[0] if len(set(cells)) == 1 else " / ".join(cells)


# --- reasons ------------------------------------------------------------------------------------------------------


def _kept_whole(rows: Sequence[Row]) -> list[str]:
    """Return a line per network and rate of which a plan keeps something whole, with the first reason."""
    lines = []
    for row in rows:
        if whole := row.get("kept_whole") or {}:
            names = ", ".join(list(whole)[:6]) + (f" and {len(whole) - 6} more" if len(whole) > 6 else "")
            reason = _quoted(next(iter(whole.values())))
            lines.append(f"- {row['network']}, rate {row['rate']:g}: {names}. The first because of {reason}")
    return lines or ["Nothing is."]


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Return a line per network and rate that was not exact at once, with its reason."""
    lines = []
    for row in rows:
        if row["tool"] != OURS or row["verdict"] in (EXACT, EXACT_NORMS):
            continue
        line = f"- {row['network']}, rate {row['rate']:g}: {row['verdict']}. {_quoted(row.get('reason', ''))}"
        if row.get("pasted"):
            line += f" Kept whole then: {', '.join(row['pasted'][:12])}."
        if "reason_pasted" in row:
            line += f" With that: {_quoted(row['reason_pasted'])}"
        if "wels" in row:
            line += f" WELS {row['wels']}."
        lines.append(line)
    return lines or ["All were."]


def _stops(rows: Sequence[Row]) -> list[str]:
    """Return how often Torch-Pruning gave each reason; numbers in a reason are left out."""
    reasons: Counter[str] = Counter()
    for row in rows:
        if row["tool"] == THEIRS and row["verdict"] not in RUNS:
            reasons[f"{row['verdict']}: {_quoted(re.sub('[0-9]+', '#', row.get('reason', '')))}"] += 1
    lines = [_line([str(number), reason.replace("|", "\\|")]) for reason, number in reasons.most_common()]
    return [*_header(["networks x rates", "verdict and reason"]), *lines] if lines else ["Nowhere."]


def _quoted(text: str) -> str:
    """Return the first line of a message as Markdown code, without folders of the machine it was raised on."""
    line = re.sub(r"/\S*/site-packages/", "", text.partition("\n")[0]).replace("`", "'")
    return f"`{line[:400].rstrip()}`" if line else ""


def _header(titles: Sequence[str]) -> list[str]:
    return [_line(titles), _line(["---"] * len(titles))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
