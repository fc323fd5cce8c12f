"""The one error a user sees, and the exit code that goes with it.

`KeMetricError` is for everything a user can mend (a recipe, a file, an environment); `assert` is for our own
mistakes. The message carries the whole situation: file, field, value, what is allowed, the closest name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `ke-metric`; stable, relied upon by scripts."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    RECIPE = 3
    DATA = 4
    ENVIRONMENT = 5
    DIVERGED = 6
    GATE = 7
    LINEAGE = 8
    INTERRUPTED = 130


class KeMetricError(ValueError):
    """Something the user can mend.

    Args:
        message: The whole situation in words: file, field, value, what is allowed.
        exit_code: What the command line exits with when nobody handles this error.
    """

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.UNEXPECTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def closest(name: str, candidates: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the candidate closest to `name`, or an empty string.

    Compared without case, so that `proxyncaloss` finds `ProxyNCALoss`.
    """
    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f"; did you mean {by_folded[found[0]]!r}?" if found else ""


def either(choices: Sequence[str]) -> str:
    """Return `a, b or c`."""
    *others, last = choices or [""]
    return f"{', '.join(others)} or {last}" if others else last


def some_of(texts: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Return the first texts, and how many more there are."""
    more = len(texts) - most
    return separator.join(texts[:most]) + (f" and {more:,} more" if more > 0 else "")


def readable(text: str) -> str:
    """Return a text whose control characters, line ends apart, stand there as `\\x1b`: a terminal would obey them.

    Names of files and folders are made by anybody.
    """
    return "".join(each if each == "\n" or each.isprintable() else ascii(each)[1:-1] for each in text)
