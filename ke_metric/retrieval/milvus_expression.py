"""What is searched for, in Milvus's expression language; text never becomes syntax."""

from __future__ import annotations

from collections.abc import Iterable

from ke_metric.retrieval.vector_store import is_unicode
from ke_metric.retrieval.where import LONGEST_TEXT, Condition, Where, check_where

# What ends a text in quotes or begins an escape, for Milvus and Milvus Lite alike; all else stands for itself.
ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})

NEVER = 'id == ""'


def quoted(text: str) -> str:
    """Return a text as a literal, in double quotes."""
    return f'"{text.translate(ESCAPES)}"'


def one_of(field: str, values: Iterable[str]) -> str:
    """Return the expression that a field is one of the values."""
    return f"{field} in [{', '.join(map(quoted, values))}]"


def expression_of(where: Where | None) -> str:
    """Return the expression that holds where `where` does; empty for what holds for all items."""
    check_where(where)
    return " and ".join(filter(None, map(_condition, where.conditions))) if where else ""


def possible(texts: Iterable[str]) -> list[str]:
    """Return those of the texts that an item can have; the others cannot be sent, and nothing is equal to them."""
    return [text for text in texts if len(text) <= LONGEST_TEXT and "\0" not in text and is_unicode(text)]


def _condition(condition: Condition) -> str:
    values = possible(condition.values)
    if not values:
        return NEVER if condition.within else ""
    if len(values) == 1:
        return f"{condition.field} {'==' if condition.within else '!='} {quoted(values[0])}"
    found = one_of(condition.field, values)
    return found if condition.within else f"not ({found})"
