"""What a request asks for besides its picture: ?k=10&where=label == "crow"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl

from ke_metric.errors import KeMetricError
from ke_metric.retrieval.where import Where
from ke_metric.serving.exchange import Refused

DEFAULT_K = 10
DEFAULT_CLASSES = 5
PARAMETERS = ("k", "where")
# Longer query strings are read anew each time: kept, those that somebody makes up would fill the memory.
LONGEST_KEPT = 256


@dataclass(frozen=True)
class Question:
    """How the gallery is searched.

    Attributes:
        k: Neighbours.
        where: Which items are looked at; None: all.
    """

    k: int
    where: Where | None = None


@dataclass(frozen=True)
class ClassQuestion:
    """Which classes a picture is of.

    Attributes:
        k: How many of them; all where there are fewer.
    """

    k: int


def read_class_question(query: bytes, max_k: int) -> ClassQuestion:
    """Read the query string of a prediction.

    Raises:
        Refused: 400: a parameter is unknown, comes twice, or has a value that is not allowed.
    """
    return ClassQuestion(_read_k(read_parameters(query, ("k",)), min(DEFAULT_CLASSES, max_k), max_k))


def read_question(query: bytes, max_k: int) -> Question:
    """Read the query string of a search.

    Raises:
        Refused: 400: a parameter is unknown, comes twice, or has a value that is not allowed.
    """
    return _read_short(query, max_k) if len(query) <= LONGEST_KEPT else _read(query, max_k)


def _read(query: bytes, max_k: int) -> Question:
    given = read_parameters(query, PARAMETERS)
    k = _read_k(given, min(DEFAULT_K, max_k), max_k)
    return Question(k, _read_where(given["where"]) if "where" in given else None)


def _read_k(given: dict[str, str], default: int, max_k: int) -> int:
    k = given.get("k", str(default))
    if not (k.isascii() and k.isdecimal() and len(k) <= 9 and 1 <= int(k) <= max_k):
        raise Refused(400, f"k = {k[:20]!r}: must be a whole number from 1 to {max_k}")
    return int(k)


_read_short = lru_cache(maxsize=1024)(_read)


def read_parameters(query: bytes, allowed: tuple[str, ...]) -> dict[str, str]:
    """Read a query string.

    Raises:
        Refused: 400: it is none, or a parameter is not among those allowed or comes twice.
    """
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=8,
        )
    except ValueError:
        raise Refused(400, "the query string cannot be read") from None
    given = dict(pairs)
    unknown = [name for name in given if name not in allowed]
    if unknown or len(given) < len(pairs):
        wrong = f"parameter {unknown[0][:40]!r} is unknown" if unknown else "a parameter comes twice"
        raise Refused(400, f"{wrong}; allowed: {', '.join(allowed) or 'none'}")
    return given


def _read_where(text: str) -> Where:
    try:
        where = Where.parse(text)
    except KeMetricError as error:
        raise Refused(400, str(error)) from None
    if any(condition.field == "path" for condition in where.conditions):
        raise Refused(400, "where: paths are not shown here and cannot be asked for; there are id and label")
    return where
