"""What is searched for, in Milvus's expression language; text never becomes syntax."""

from __future__ import annotations

from collections.abc import Iterable

from ke_metric.retrieval.where import Condition, Where

# What ends a text in quotes or begins an escape, for Milvus and Milvus Lite alike; all else stands for itself.
ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def quoted(text: str) -> str:
    """Return a text as a literal, in double quotes."""
    return f'"{text.translate(ESCAPES)}"'


def one_of(field: str, values: Iterable[str]) -> str:
    """Return the expression that a field is one of the values."""
    return f"{field} in [{', '.join(map(quoted, values))}]"


def expression_of(where: Where | None) -> str:
    """Return the expression that holds where `where` does; empty for None, which holds for all items."""
    return " and ".join(map(_condition, where.conditions)) if where else ""


def _condition(condition: Condition) -> str:
    if len(condition.values) == 1:
        return f"{condition.field} {'==' if condition.within else '!='} {quoted(condition.values[0])}"
    found = one_of(condition.field, condition.values)
    return found if condition.within else f"not ({found})"
