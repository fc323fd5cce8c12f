"""The report of the load: throughput, statuses, memory, the end."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ke_metric.environment import describe_environment

PACKAGES = ("torch", "pillow", "faiss-cpu", "starlette", "uvicorn", "uvloop", "httptools")
WARM_UP = 0.2
"""Share of the mixed load before memory is compared."""


def report(measured: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    facts = measured["facts"]
    parts = [_head(facts), _throughput(measured["rounds"])]
    if facts["requests"]:
        parts += [_mixed(measured), _memory(measured["memory"])]
    parts.append(_stop(facts))
    return "\n\n".join(parts) + "\n"


def _head(facts: Mapping[str, Any]) -> str:
    found = describe_environment()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    commit = (
        f"commit {found['commit'][:12]}{' with changes' if found['commit_changed'] else ''}"
        if "commit" in found
        else ""
    )
    return (
        f"## {facts['model']}\n\n"
        f"{facts['items']:,} items, {facts['dimension']} numbers; queries of {facts['query_bytes']:,} bytes.\n"
        f"{found.get('processor', '')}, {found.get('cores')} cores for service, load generator and everything else; "
        f"Python {found['python']}, {versions}; {commit}."
    )


def _throughput(rounds: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| what | images/s | processor µs per image |",
        "|---|---|---|",
        f"| service, searches of 64 clients | {_spread(rounds, lambda r: r['requests_per_second'])} | "
        f"{_median(rounds, lambda r: r['service_cpu_microseconds'])} + "
        f"{_median(rounds, lambda r: r['client_cpu_microseconds'])} of the clients |",
    ]
    for name in rounds[0]["bare"]:
        speed = _spread(rounds, lambda r, name=name: r["bare"][name]["images_per_second"])  # type: ignore[misc]
        cost = _median(rounds, lambda r, name=name: r["bare"][name]["cpu_microseconds"])  # type: ignore[misc]
        environment, size = name.rsplit(", ", 1)
        lines.append(f"| bare Embedder, batches of {size}, {environment} | {speed} | {cost} |")
    sizes = sorted({int(name.rsplit(", ", 1)[1]) for name in rounds[0]["bare"]})
    return (
        f"Medians of {len(rounds)} rounds (least-most); in each the service and the bare Embedders take turns.\n\n"
        + "\n".join(lines)
        + "\n\n"
        + "".join(_ratios(rounds, size) for size in sizes)
        + f"Waiting: median {_median(rounds, lambda r: r['median_milliseconds'], 1)} ms, 99th percentile "
        f"{_median(rounds, lambda r: r['p99_milliseconds'], 1)} ms."
    )


def _ratios(rounds: Sequence[Mapping[str, Any]], size: int) -> str:
    """Compare each round with the better bare Embedder of that round: in speed, and in processor time."""
    speed, cost = [], []
    for one in rounds:
        bare = [found for name, found in one["bare"].items() if name.endswith(f", {size}")]
        spent = one["service_cpu_microseconds"] + one["client_cpu_microseconds"]
        speed.append(one["requests_per_second"] / max(found["images_per_second"] for found in bare))
        cost.append(min(found["cpu_microseconds"] for found in bare) / spent)
    return (
        f"Beside the faster bare Embedder with batches of {size} the service has **{_number(speed)}** of its "
        f"throughput; its images take {_number(cost)} of the processor time that service and clients take together.\n"
    )


def _spread(rounds: Sequence[Mapping[str, Any]], pick: Callable[[Mapping[str, Any]], float]) -> str:
    values = [pick(one) for one in rounds]
    digits = 0 if statistics.median(values) >= 100 else 1
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def _median(rounds: Sequence[Mapping[str, Any]], pick: Callable[[Mapping[str, Any]], float], digits: int = 0) -> str:
    return f"{statistics.median(pick(one) for one in rounds):,.{digits}f}"


def _number(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _mixed(measured: Mapping[str, Any]) -> str:
    kinds: dict[str, dict[int, int]] = defaultdict(dict)
    for (kind, status), count in sorted(measured["statuses"].items()):
        kinds[kind][status] = count
    total = sum(measured["statuses"].values())
    lines = ["| request | answers |", "|---|---|"]
    for kind, statuses in kinds.items():
        told = ", ".join(f"{count:,} x {status or 'connection closed'}" for status, count in statuses.items())
        lines.append(f"| {kind} | {told} |")
    wrong = len(measured["wrong"])
    seconds = measured["facts"]["mixed_seconds"]
    return (
        f"{total:,} requests in {seconds:,.0f} s, 64 at a time and 4 slow ones beside them; every answer compared "
        f"with what it must be: **{wrong} wrong**.\n\n" + "\n".join(lines)
    )


def memory_change(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean resident megabytes of the first and of the last third after the warm-up."""
    steady = [megabytes for _, megabytes in samples[int(len(samples) * WARM_UP) :]]
    third = max(1, len(steady) // 3)
    return statistics.mean(steady[:third]), statistics.mean(steady[-third:])


def _memory(samples: Sequence[tuple[float, float]]) -> str:
    first, last = memory_change(samples)
    return (
        f"Resident memory of the service: {first:,.0f} MB in the first third after warming up, {last:,.0f} MB in the "
        f"last ({(last / first - 1) * 100:+.1f} %), at most {max(megabytes for _, megabytes in samples):,.0f} MB "
        f"({len(samples)} samples)."
    )


def _stop(facts: Mapping[str, Any]) -> str:
    statuses = ", ".join(
        f"{count} x {'connection refused or closed' if status == '0' else status}"
        for status, count in facts["stop_statuses"].items()
    )
    return (
        f"SIGTERM in the middle of searches: exit code {facts['exit_code']} after {facts['stop_seconds']:.1f} s; "
        f"answers {statuses}."
    )
