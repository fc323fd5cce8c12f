"""How long `ke-metric explore` takes to answer, what its page weighs, and how soon it answers at all.

    python -m eval.explorer.run [--pictures 10000] [--generations 10] [--requests 300]

Starts the explorer as a process of its own on drawn pictures and vectors (`drawn.py`), asks every kind of question
over the loopback interface, one at a time as a person does, and writes measurements.json and results.md. Before the
questions are timed, every network is asked for once. Time is from sending a request to having read its answer; of a
picture that is dropped also from sending it to having read the neighbours that two networks find for it.
"""

import argparse
import http.client
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from eval.explorer.drawn import DrawnPictures, drawn_picture
from eval.shared.provenance import provenance_lines

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PHOTO_SIDE = 1600
WARMING = 10
WHOLE = "a dropped picture, both networks, whole"
PROMISED = 0.1
"""Seconds in which a picture that is dropped should be answered."""


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--requests", type=int, default=300, help="of every kind")
    parser.add_argument("--serve", action="store_true", help="be the explorer; for the process that is started")
    parser.add_argument("--show", action="store_true", help="measure nothing, write the table")
    options = parser.parse_args()
    if options.serve:
        serve(options.pictures, options.generations)
        return
    kept = HERE / "measurements.json"
    if not options.show:
        kept.write_text(json.dumps(measure(options), indent=1) + "\n", encoding="utf-8")
    text = report(json.loads(kept.read_text(encoding="utf-8")))
    (HERE / "results.md").write_text(text, encoding="utf-8")
    print(text)


def serve(pictures: int, generations: int) -> None:
    """Be an explorer, and print its address."""
    from ke_metric.explorer.application import LIMITS, explore
    from ke_metric.explorer.exploration import Exploration
    from ke_metric.serving.exchange import ServiceSettings

    explore(
        lambda: Exploration(DrawnPictures(pictures, generations)),
        ServiceSettings(port=0, limits=LIMITS),
        ready=lambda url: print(url, flush=True),
    )


class Explorer:
    """The process, and one connection to it."""

    def __init__(self, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "eval.explorer.run", "--serve"]
        command += ["--pictures", str(options.pictures), "--generations", str(options.generations)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        port = int(self.process.stdout.readline().rpartition(":")[2])
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """Return an answer."""
        kind = {} if body is None else {"Content-Type": "image/jpeg"}
        self._connection.request("GET" if body is None else "POST", path, body, kind)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {content[:200]!r}")
        return content

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that was measured; times in seconds."""
    load, begun = os.getloadavg()[0], time.perf_counter()
    explorer = Explorer(options)
    try:
        state = json.loads(explorer.ask("/api/state"))
        networks = [f"generation={each['generation']}&network={each['name']}" for each in state["networks"]]
        # What the page shows first: two generations beside each other.
        for shown in (networks[-2], networks[0]):
            explorer.ask(f"/api/neighbors?{shown}&part=gallery&position=0")
        first = time.perf_counter() - begun
        for network in networks:
            explorer.ask(f"/api/map?{network}")
        everything = time.perf_counter() - begun
        times = {
            kind: [timed(explorer, request) for request in requests]
            for kind, requests in questions(explorer, state, networks, options.requests).items()
        }
    finally:
        explorer.stop()
    return {
        "pictures": options.pictures,
        "networks": len(networks),
        "seconds": times,
        "first_answer": first,
        "all_networks": everything,
        "page_bytes": page_bytes(),
        "provenance": provenance_lines(
            ["starlette", "uvicorn", "faiss-cpu", "numpy", "pillow"],
            more=f"{options.requests} requests of each kind; load average {load:.1f} before it began",
        ),
    }


Request = tuple[str, bytes | None] | Callable[[], object]
"""A path and what is sent to it, or what asks one thing after the other."""
Requests = Iterator[Request]


def timed(explorer: Explorer, request: Request) -> float:
    """Return how long an answer takes."""
    begun = time.perf_counter()
    if isinstance(request, tuple):
        explorer.ask(*request)
    else:
        request()
    return time.perf_counter() - begun


def photographs(many: int) -> Iterator[bytes]:
    """Return large pictures as JPEG, made while they are asked for."""
    for number in range(many):
        file = io.BytesIO()
        drawn_picture(number, PHOTO_SIDE).save(file, "JPEG", quality=90)
        yield file.getvalue()


def questions(explorer: Explorer, state: dict[str, Any], networks: list[str], many: int) -> dict[str, Requests]:
    """Return kind of question -> requests, which are made while they are asked."""
    rng = Random(0)
    count, pictures = len(state["parts"]["gallery"]), state["pictures"]
    shown = rng.sample(range(count), min(many, count))
    uploads: list[int] = []

    def each(path: Callable[[str, int], str]) -> Requests:
        for number in range(many):
            yield path(rng.choice(networks), number), None

    def drop(photograph: bytes) -> None:
        upload = json.loads(explorer.ask("/api/uploads", photograph))["upload"]
        for network in (networks[0], networks[-2]):
            explorer.ask(f"/api/neighbors?{network}&part=upload&position={upload}")

    def of_new_pictures() -> Requests:
        uploads.extend(json.loads(explorer.ask("/api/state"))["uploads"])
        for number in uploads:
            yield f"/api/neighbors?{networks[0]}&part=upload&position={number}", None

    def of_known_uploads() -> Requests:
        for number in range(many):
            yield f"/api/neighbors?{networks[0]}&part=upload&position={uploads[number % len(uploads)]}", None

    changed = [name for name in networks if not name.startswith("generation=1&")] or networks
    return {
        "neighbours of a query": each(
            lambda network, _: f"/api/neighbors?{network}&part=gallery&position={rng.randrange(count)}"
        ),
        "a new picture of 2.6 megapixels": (("/api/uploads", photograph) for photograph in photographs(many // 3)),
        "its neighbours, first time (ResNet18 at 64 pixels)": of_new_pictures(),
        "its neighbours, again": of_known_uploads(),
        WHOLE: (partial(drop, photograph) for photograph in photographs(many // 3)),
        "queries mended since generation 1": each(
            lambda _, number: f"/api/queries?{changed[number % len(changed)]}&change=mended&since=1"
        ),
        "all queries, with a text in their labels": each(
            lambda network, number: f"/api/queries?{network}&text=ss+{number % 10}"
        ),
        "all queries": each(lambda network, _: f"/api/queries?{network}"),
        "the map": each(lambda network, _: f"/api/map?{network}"),
        "a picture, first time": ((f"{pictures}/gallery/{number}", None) for number in shown),
        "a picture, again": ((f"{pictures}/gallery/{number}", None) for number in shown),
        "what there is (once per visit)": (("/api/state", None) for _ in range(many // 3)),
    }


def page_bytes() -> dict[str, int]:
    """Return the bytes of the page's files."""
    static = ROOT / "ke_metric" / "explorer" / "static"
    return {path.name: path.stat().st_size for path in sorted(static.iterdir())}


def counted(seconds: list[float]) -> list[float]:
    """Return the times without those of the first requests."""
    return seconds[WARMING:] if len(seconds) > 2 * WARMING else seconds


def answer_to_drops(seconds: list[float]) -> str:
    """Return whether a picture that is dropped is answered within `PROMISED`, in words."""
    median = statistics.median(counted(seconds))
    longer = "longer than" if median > PROMISED else "within"
    return (
        f"- **A dropped picture of 2.6 megapixels takes {1000 * median:.0f} ms in the median until both networks' "
        f"neighbours are there: {longer} {1000 * PROMISED:.0f} ms.** It is "
        "decoded, and one network looks at it after the other."
    )


def report(found: dict[str, Any]) -> str:
    """Return the measurements in words."""
    lines = [
        "# How long the explorer takes to answer",
        "",
        *found["provenance"],
        f"- drawn pictures: {found['pictures']:,} in the gallery, each also a query; {found['networks']} networks, "
        "embeddings of 128 numbers; one request at a time",
        "",
        "| question | requests | median ms | p99 ms | longest ms |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, seconds in found["seconds"].items():
        kept = counted(seconds)
        p99 = sorted(kept)[min(len(kept) - 1, int(0.99 * len(kept)))]
        values = " | ".join(f"{1000 * value:.1f}" for value in (statistics.median(kept), p99, max(kept)))
        lines.append(f"| {kind} | {len(kept)} | {values} |")
    total, sizes = sum(found["page_bytes"].values()), found["page_bytes"]
    parts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    lines += [
        "",
        f"- The page weighs {total:,} bytes in {len(sizes)} files ({parts}), and loads nothing else but pictures.",
        "- From the start of the process to the neighbours of a query for two networks: "
        f"{found['first_answer']:.1f} s, importing torch among it; until all {found['networks']} networks and their "
        f"maps are there: {found['all_networks']:.1f} s. Vectors are drawn here; those of a lineage are computed "
        "from its weights the first time, and read later.",
        *([] if WHOLE not in found["seconds"] else [answer_to_drops(found["seconds"][WHOLE])]),
        f"- The first {WARMING} requests of each kind are not counted.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
