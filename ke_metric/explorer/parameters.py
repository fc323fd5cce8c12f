"""What a request says in its path and query string: whole numbers, known words, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args
from urllib.parse import parse_qsl

from ke_metric.explorer.collection import Part
from ke_metric.explorer.exploration import Change, Listing
from ke_metric.serving.exchange import Refused

LONGEST_QUERY = 2000
MOST_DIGITS = 9
LARGEST_PAGE = 240
LISTED = 60
"""Queries that a list shows where nobody says how many."""


def read_query(raw: bytes, allowed: frozenset[str]) -> dict[str, str]:
    """Return the parameters of a query string.

    Raises:
        Refused: 400: it is malformed or too long, or has a parameter twice or one that is not allowed.
    """
    if len(raw) > LONGEST_QUERY:
        raise Refused(400, "the query string is too long")
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw), errors="strict")
    except ValueError as error:
        raise Refused(400, "the query string is malformed") from error
    found = dict(pairs)
    if len(found) < len(pairs) or found.keys() - allowed:
        raise Refused(400, f"the parameters must be among {', '.join(sorted(allowed)) or 'none'}, each once")
    return found


def whole_number(found: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Return a number from 0 on.

    Raises:
        Refused: 400: it is missing, without a default, or no such number.
    """
    if name not in found and default is not None:
        return default
    text = str(found.get(name, ""))
    if not (text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS):
        raise Refused(400, f"{name} must be a whole number")
    return int(text)


def read_part(found: Mapping[str, Any], *more: str) -> str:
    """Return the name of a part, or one of some words more.

    Raises:
        Refused: 400: it is none of them.
    """
    words, part = (*get_args(Part), *more), str(found.get("part", ""))
    if part not in words:
        raise Refused(400, f"part must be one of {', '.join(words)}")
    return part


LISTING = frozenset({"generation", "network", "change", "since", "class", "text", "from", "count"})


def read_listing(found: Mapping[str, str]) -> tuple[Listing, slice]:
    """Return what is listed, and which of it is told in full.

    Raises:
        Refused: 400: a parameter is no value of its kind.
    """
    change = found.get("change", "all")
    if change not in get_args(Change):
        raise Refused(400, f"change must be one of {', '.join(get_args(Change))}")
    label = whole_number(found, "class") if found.get("class") else None
    listing = Listing(cast(Change, change), whole_number(found, "since", 0), label, found.get("text", ""))
    start, many = whole_number(found, "from", 0), whole_number(found, "count", LISTED)
    return listing, slice(start, start + min(many, LARGEST_PAGE))
