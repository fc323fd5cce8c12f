"""Ways of doing one thing, timed in turn: machines drift, so that only ratios within one round are compared."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Way = Callable[[], object]


@dataclass(frozen=True)
class Clocked:
    """How long one call took.

    Attributes:
        wall: Seconds on the clock.
        cpu: Seconds that processors spent on it in this process, its threads and its ended children.
    """

    wall: float
    cpu: float


def clocked(work: Way) -> Clocked:
    """Call it and return how long it took."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    work()
    return Clocked(time.perf_counter() - wall, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    # Of this process in nanoseconds; of its children the system tells hundredths of a second.
    return time.process_time() + sum(os.times()[2:4])


def in_turn(ways: Mapping[str, Way], rounds: int) -> dict[str, list[Clocked]]:
    """Time every way once per round, the first of a round being another one each time, and return all times."""
    assert rounds >= 1, rounds
    names = list(ways)
    found: dict[str, list[Clocked]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(clocked(ways[name]))
    return found


def ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Return one over the other, round by round."""
    return [mine / theirs for mine, theirs in zip(one, other, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return median, smallest and largest as text: `0.24 (0.23-0.26)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
