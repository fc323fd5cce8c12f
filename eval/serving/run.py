"""`ke-metric serve` under load: every answer checked, memory watched, throughput beside the bare Embedder's.

    python -m eval.serving.run [--requests 50000] [--rounds 12] [--large] [--out eval/serving/results.md]

Starts the service as a process, on an index of the pictures of a lineage's benchmark (--lineage), or of a ResNet50
with random weights and JPEG files of 500x375 pixels (--large; speed only). Then, from this process, over the loopback
interface, with 64 connections at a time:

1. rounds of good searches, each beside a pass of the same encoded pictures through `Embedder.stream` in a third
   process that has the machine to itself meanwhile;
2. --requests requests, one in ten malformed, with slow uploads beside them; the service's memory is read meanwhile;
3. SIGTERM in the middle of requests.

`client.py` sends, `requests.py` says what, `bare.py` is the third process.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from eval.serving.client import LOST, Load, Request
from eval.serving.report import report
from eval.serving.requests import Good, malformed, slow, wrong_answer

CONCURRENT, SLOW_CONCURRENT = 64, 4
UPLOAD_SECONDS = 3
SAMPLE_SECONDS = 0.5
ENVIRONMENTS: dict[str, dict[str, str]] = {"default": {}, "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"}}
ROOT = Path(__file__).parents[2]


@dataclass
class Measured:
    """What was found.

    Attributes:
        rounds: Per round: requests per second of the service, images per second of each bare Embedder, CPU times.
        statuses: (kind, status) -> requests, of the mixed load.
        wrong: What is wrong with answers, in words.
        memory: (seconds, resident megabytes) of the service during the mixed load.
        facts: Everything else, for the report.
    """

    rounds: list[dict[str, Any]] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Service:
    """`ke-metric serve` in a process of its own."""

    def __init__(self, index: Path) -> None:
        command = [sys.executable, "-m", "ke_metric.cli", "serve", "--index", str(index), "--port", "0"]
        command += ["--upload-seconds", str(UPLOAD_SECONDS), "--device", "cpu"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+);", self.process.stderr.readline())
        if found is None:
            raise SystemExit("the service did not start")
        self.port = int(found[1])

    def ready(self) -> None:
        """Wait until the index is open."""
        while self.process.poll() is None:
            load = Load(
                "127.0.0.1", self.port, iter([Request("health", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")])
            )
            uvloop.run(load.run(1))
            if load.answers[0][1] == 200:
                return
            time.sleep(0.2)
        raise SystemExit(f"the service ended: {self.process.communicate()[1]}")

    @property
    def cpu(self) -> float:
        """Processor seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def megabytes(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


class Bare:
    """The Embedder alone, in a process of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "eval.serving.bare", "measure", str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment, cwd=ROOT
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def measure(self, batch_size: int) -> dict[str, float]:
        """Return images per second and processor microseconds per image."""
        assert self._process.stdin is not None
        print(batch_size, file=self._process.stdin, flush=True)
        found: dict[str, float] = json.loads(self._read())
        return found

    def end(self) -> None:
        """End it."""
        self._process.communicate("")


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000, help="mixed, in all (default: 50000)")
    parser.add_argument("--rounds", type=int, default=12, help="of throughput (default: 12)")
    parser.add_argument("--per-round", type=int, default=3000, help="searches (default: 3000)")
    parser.add_argument("--lineage", default="lineages/demo")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256], help="of the bare Embedder")
    parser.add_argument("--large", action="store_true", help="a ResNet50 at 224 pixels in place of a lineage")
    parser.add_argument("--out", type=Path, help="file that the report is added to")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "served"
        source = ["--large"] if given.large else ["--lineage", given.lineage]
        subprocess.run(
            [sys.executable, "-m", "eval.serving.bare", "prepare", str(folder), *source], cwd=ROOT, check=True
        )
        measured = measure(folder, given)
    text = report(measured.__dict__)
    print(text)
    if given.out:
        with given.out.open("a", encoding="utf-8") as file:
            file.write("\n" + text)
    if measured.wrong:
        raise SystemExit(f"{len(measured.wrong)} wrong answers, first: {measured.wrong[0]}")


def measure(folder: Path, given: argparse.Namespace) -> Measured:
    """Do all three parts."""
    good, measured = Good(folder), Measured()
    bare = {name: Bare(folder, environment) for name, environment in ENVIRONMENTS.items()}
    service = Service(folder / "index")
    service.ready()
    measured.facts = {"large": given.large, "requests": given.requests, **good.expected["facts"]}
    measured.facts["query_bytes"] = round(statistics.mean(len(body) for body in good.bodies))
    for number in range(given.rounds + 1):
        found = throughput(service, good, given.per_round, measured)
        if number:  # the first one warms up
            found["bare"] = {
                f"{name}, {size}": bare[name].measure(size) for name in ENVIRONMENTS for size in given.batches
            }
            measured.rounds.append(found)
            print(json.dumps(found), file=sys.stderr, flush=True)
    for one in bare.values():
        one.end()
    if given.requests:
        mixed_load(service, good, given.requests, measured)
    stop(service, good, measured)
    return measured


def throughput(service: Service, good: Good, count: int, measured: Measured) -> dict[str, Any]:
    """Return what searches cost, sent by 64 clients at a time."""
    load = Load("127.0.0.1", service.port, itertools.islice(itertools.cycle(good.searches), count))
    own, theirs = time.process_time(), service.cpu
    seconds = uvloop.run(load.run(CONCURRENT))
    own, theirs = time.process_time() - own, service.cpu - theirs
    check(load, measured, counted=False)
    waits = sorted(answer[3] for answer in load.answers)
    return {
        "requests_per_second": count / seconds,
        "service_cpu_microseconds": theirs / count * 1e6,
        "client_cpu_microseconds": own / count * 1e6,
        "median_milliseconds": waits[count // 2] * 1e3,
        "p99_milliseconds": waits[count * 99 // 100] * 1e3,
    }


def mixed_load(service: Service, good: Good, count: int, measured: Measured) -> None:
    """Send good and malformed requests, nine to one, with slow ones beside them, and read the service's memory."""

    async def work() -> None:
        load = Load("127.0.0.1", service.port, itertools.islice(_mixed(good), count))
        ended = asyncio.Event()
        lazy = Load("127.0.0.1", service.port, itertools.takewhile(lambda _: not ended.is_set(), slow(good)))
        watching = asyncio.create_task(_watch(service, measured, ended))
        dawdling = asyncio.create_task(lazy.run(SLOW_CONCURRENT))
        measured.facts["mixed_seconds"] = await load.run(CONCURRENT)
        ended.set()
        await asyncio.gather(watching, dawdling)
        check(load, measured)
        check(lazy, measured)

    uvloop.run(work())


def _mixed(good: Good) -> Any:
    generator, bad = random.Random(1), malformed(good)
    searches, others = itertools.cycle(good.searches), itertools.cycle(good.others)
    while True:
        for position in generator.sample(range(10), 10):
            yield next(bad) if position == 0 else next(others) if position == 1 else next(searches)


async def _watch(service: Service, measured: Measured, ended: asyncio.Event) -> None:
    started = time.perf_counter()
    while not ended.is_set():
        measured.memory.append((time.perf_counter() - started, service.megabytes))
        await asyncio.sleep(SAMPLE_SECONDS)


def check(load: Load, measured: Measured, *, counted: bool = True) -> None:
    """Compare every answer with what it must be."""
    for request, status, body, _ in load.answers:
        if counted:
            measured.statuses[request.kind, status] += 1
        if status not in request.expected:
            measured.wrong.append(f"{request.kind}: status {status}, not {request.expected}: {body[:200]!r}")
        elif status == 200 and (said := wrong_answer(request, body)):
            measured.wrong.append(f"{request.kind}: {said}")
        elif status >= 400 and set(json.loads(body)) != {"error"}:
            measured.wrong.append(f"{request.kind}: the error is {body[:200]!r}")


def stop(service: Service, good: Good, measured: Measured) -> None:
    """Send SIGTERM in the middle of searches."""

    async def work() -> Load:
        load = Load("127.0.0.1", service.port, itertools.islice(itertools.cycle(good.searches), 2000))
        asyncio.get_running_loop().call_later(0.3, service.process.send_signal, signal.SIGTERM)
        await load.run(CONCURRENT)
        return load

    started, load = time.perf_counter(), uvloop.run(work())
    printed = service.process.communicate(timeout=60)[1]
    for request, status, body, _ in load.answers:
        if status not in (200, 503, LOST) or (status == 200 and wrong_answer(request, body)):
            measured.wrong.append(f"stopping: status {status}: {body[:200]!r}")
    measured.facts |= {
        "exit_code": service.process.returncode,
        "stop_seconds": time.perf_counter() - started - 0.3,
        "stop_statuses": {str(status): count for status, count in Counter(a[1] for a in load.answers).items()},
        "printed": printed,
    }
    if service.process.returncode or "Traceback" in printed:
        measured.wrong.append(f"exit code {service.process.returncode}: {printed[-500:]}")


if __name__ == "__main__":
    main()
