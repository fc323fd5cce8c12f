"""Split every classifier of torchvision and a random sample of timm, and prove each split, beside Torch-Pruning.

`run` writes a row per network, rate and tool as they come; a second call goes on where the first one stopped. Rows
that other sources of the split or of these scripts, or other versions of the libraries, gave are done again, and
those without an answer when the time limit was raised. `table` makes the document.

`verdict.py` says what is demanded of a split, `torch_pruning.py` what of Torch-Pruning, `document.py` makes the
table, and `eval/shared/networks.py` knows which networks there are and how they get their weights.
"""

import argparse
import hashlib
import json
import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from typing import Any

import torch

from eval.coverage import torch_pruning, verdict
from eval.coverage.document import OURS, THEIRS, USAGE, Row, Task, read, table
from eval.coverage.torch_pruning import ask, require_torch_pruning
from eval.coverage.verdict import CRASHED, NO_ANSWER, examine
from eval.shared import networks
from eval.shared.memory import free_memory, limit_memory
from eval.shared.networks import (
    build_for_test,
    class_of,
    give_weights,
    make_images,
    split_name,
    timm_names,
    torchvision_names,
)
from ke_metric.environment import describe_environment
from ke_metric.errors import KeMetricError
from ke_metric.scoring import count_parameters
from ke_metric.split import planning

RATES = (0.5, 0.8)
SECONDS = 180
# Tool -> the function that answers, and the verdict if what it raises is not what it foresees.
TOOLS: dict[str, tuple[Callable[..., Row], str]] = {OURS: (examine, CRASHED), THEIRS: (ask, NO_ANSWER)}
# Tool -> the sources and the library that its rows depend on, beside what both depend on.
OWN_SOURCES = {
    OURS: sorted(Path(planning.__file__).parent.glob("*.py")),
    THEIRS: [Path(torch_pruning.__file__)],
}
SOURCES = [Path(module.__file__) for module in (networks, verdict)]
LIBRARIES = {OURS: ("torch", "torchvision", "timm"), THEIRS: ("torch", "torchvision", "timm", THEIRS)}
# One server imports the libraries once; every child is a fork of it, made before it has threads.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torchvision", "timm", "torch_pruning", "ke_metric.split.planning"])


def main() -> None:
    """Run networks, or make the document of those that were run."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{USAGE}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    """Yield command and machine, and then rows as they come."""
    environment = describe_environment()
    environment["versions"][THEIRS] = version(THEIRS)
    command = " ".join(["python", "-m", "eval.coverage.run", *sys.argv[1:]])
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
    crashed = tool == OURS and error.in_time
    return {"tool": tool, "rate": rate, "verdict": CRASHED if crashed else NO_ANSWER, "reason": str(error)}


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


if __name__ == "__main__":
    main()
