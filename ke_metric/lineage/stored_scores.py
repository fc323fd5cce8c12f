"""Scores as JSON has them, and back: each number is checked, so that whoever computes with them can rely on it.

What is not as it was written raises a TypeError, a ValueError or another of `files.MISFITS`: there the file is named.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ke_metric.generation import BestEpoch, ClassScores, Scorecard, SlimScores

Read = TypeVar("Read")


def score_facts(number: int, scorecard: Scorecard, magnitudes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scorecard and the mean absolute weights as they are stored; what was not computed is absent."""
    scores = {name: value for name, value in dataclasses.asdict(scorecard).items() if value is not None}
    if scorecard.narrow is not None:
        scores["narrow"] = {
            rate: {name: value for name, value in found.items() if value is not None}
            for rate, found in scores["narrow"].items()
        }
    return {"generation": number, **scores, "magnitudes": magnitudes}


def scorecard_from(facts: Mapping[str, Any]) -> Scorecard:
    """Return the scorecard that `score_facts` wrote."""
    return Scorecard(
        dense=_numbers("dense", facts["dense"]),
        slim=_numbers("slim", facts["slim"]) if "slim" in facts else None,
        dense_parameters=require_count("dense_parameters", facts["dense_parameters"]),
        slim_parameters=_optional(require_count, "slim_parameters", facts),
        # Absent for a retrieval, and for a lineage of before this was recorded.
        classes=_optional(_classes, "classes", facts),
        slim_as_cut=_optional(_numbers, "slim_as_cut", facts),
        slim_repair=facts.get("slim_repair"),
        narrow=_optional(_narrow, "narrow", facts),
        sizes=_optional(_sizes, "sizes", facts),
        best_epoch=_optional(_best_epoch, "best_epoch", facts),
    )


def magnitudes_from(facts: Mapping[str, Any]) -> dict[str, tuple[float | None, float | None]]:
    """Return parameter name to mean absolute weight in its fit and its reset part, as `score_facts` wrote them."""
    return {name: _pair(name, pair) for name, pair in facts["magnitudes"].items()}


def _optional(read: Callable[[str, Any], Read], name: str, facts: Mapping[str, Any]) -> Read | None:
    return None if facts.get(name) is None else read(name, facts[name])


def require_finite(name: str, value: object) -> float:
    """Return a number as it is stored; a TypeError or ValueError that names it where it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} = {value!r}, not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} = {value!r}, not a finite number")
    return value


def require_count(name: str, value: object) -> int:
    """Return a number of things as it is stored; a TypeError that names it where it is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} = {value!r}, not a whole number")
    return value


def _numbers(name: str, values: Any) -> dict[str, float]:
    return {own: require_finite(f"{name}: {own}", value) for own, value in dict(values).items()}


def _classes(name: str, networks: Any) -> dict[str, ClassScores]:
    found = {network: ClassScores(**scores) for network, scores in networks.items()}
    for network, scores in found.items():
        _numbers(f"{name}: {network}: accuracy", scores.accuracy)
        for own, taken_for in scores.confusion.items():
            _numbers(f"{name}: {network}: confusion: {own}", taken_for)
    return found


def _narrow(name: str, rates: Any) -> dict[str, SlimScores]:
    found = {rate: SlimScores(**scores) for rate, scores in rates.items()}
    for rate, each in found.items():
        require_finite(f"{name}: rate", float(rate))
        _numbers(f"{name}: {rate}: scores", each.scores)
        require_count(f"{name}: {rate}: parameters", each.parameters)
        _numbers(f"{name}: {rate}: as_cut", each.as_cut or {})
    return found


def _sizes(name: str, networks: Any) -> dict[str, dict[str, dict[str, float]]]:
    return {
        network: {size: _numbers(f"{name}: {network}: {size}", scores) for size, scores in by_size.items()}
        for network, by_size in networks.items()
    }


def _best_epoch(name: str, facts: Any) -> BestEpoch:
    return BestEpoch(**{own: require_count(f"{name}: {own}", value) for own, value in facts.items()})


def _pair(name: str, values: Any) -> tuple[float | None, float | None]:
    fit, reset = (None if value is None else require_finite(f"magnitudes: {name}", value) for value in values)
    return fit, reset
