"""Which items a search looks at: `label == "crow" and path != "a.jpg"`, in the words that Milvus understands too."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, Literal, Self

from ke_metric.errors import ExitCode, KeMetricError, closest

FIELDS = ("id", "path", "label")
LONGEST = 10_000
LONGEST_TEXT = 1024
"""Characters of an id, path or label; what every kind of store can hold."""
# SQLite gives up at about 1,000.
MOST_CONDITIONS = 100
FORM = 'must be FIELD == "text", FIELD != "text" or FIELD in ["text", ...], several of them joined by `and`'


@dataclass(frozen=True)
class Condition:
    """One condition on a field of an item.

    Attributes:
        field: One of `FIELDS`; an unknown path or label is the empty text.
        within: Whether the field must be one of the values, or none of them.
        values: At least one text.
    """

    field: Literal["id", "path", "label"]
    within: bool
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.field not in FIELDS:
            raise KeMetricError(
                f"condition: there is no field {self.field!r}{closest(str(self.field), FIELDS)}; there are "
                f"{', '.join(FIELDS)}",
                ExitCode.USAGE,
            )
        if isinstance(self.values, str) or not self.values or not all(isinstance(text, str) for text in self.values):
            raise KeMetricError(
                f"condition on {self.field}: values = {self.values!r}, must be a tuple of at least one text, as in "
                '("crow",)',
                ExitCode.USAGE,
            )


@dataclass(frozen=True)
class Where:
    """Conditions that all hold.

    Attributes:
        conditions: At least one.
    """

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `label == "crow"`, `label != "crow"`, `label in ["crow", "jay"]`, or several joined by `and`.

        A text is read as Python and JSON write it: `"\\ud83e\\udd9c"`, as JSON may write a character above U+FFFF, is
        that one character.

        Raises:
            KeMetricError: USAGE: it is none of these, the field is unknown, or a text is one that no item can have.
        """
        try:
            if len(text) > LONGEST:
                raise ValueError(f"{len(text)} characters, at most {LONGEST:,} are allowed")
            source = text.strip()
            tree = ast.parse(source, mode="eval").body
        except SyntaxError as error:
            # Its own words for where that is, a line of a file, mean nothing here.
            raise _refused(text, error.msg) from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise _refused(text, str(error) or "it is nested too deeply") from error
        parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
        if len(parts) > MOST_CONDITIONS:
            raise _refused(text, f"{len(parts)} conditions, at most {MOST_CONDITIONS} are allowed")
        return cls(tuple(_condition(part, source) for part in parts))

    def holds(self, item: Any) -> bool:
        """Return whether all conditions hold for an `Item`, or what else has its fields."""
        return all((getattr(item, one.field) in one.values) == one.within for one in self.conditions)


def check_where(where: Where | None) -> None:
    """Refuse what is no condition, such as the text of one, as USAGE."""
    if where is not None and not isinstance(where, Where):
        raise KeMetricError(
            f"where = {str(where)[:80]!r}: is {type(where).__name__}, must be a Where, as Where.parse makes one of a "
            "text",
            ExitCode.USAGE,
        )


def _condition(node: ast.expr, text: str) -> Condition:
    match node:
        case ast.Compare(left=ast.Name(id=name), ops=[operator], comparators=[right]):
            if name not in FIELDS:
                raise _refused(text, f"there is no field {name!r}{closest(name, FIELDS)}; there are id, path, label")
            if isinstance(operator, ast.In) and isinstance(right, ast.List | ast.Tuple) and right.elts:
                return Condition(name, True, tuple(_text(element, text) for element in right.elts))  # type: ignore[arg-type]
            if isinstance(operator, ast.Eq | ast.NotEq):
                return Condition(name, isinstance(operator, ast.Eq), (_text(right, text),))  # type: ignore[arg-type]
    raise _refused(text, f"'{_written(node, text)}' is no condition")


def _text(node: ast.expr, text: str) -> str:
    if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        raise _refused(text, f'{_written(node, text)} is no text in quotes, such as "crow"')
    try:
        # JSON writes a character above U+FFFF as the two halves of a pair, which Python reads as two characters.
        value = node.value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise _refused(text, f"{_written(node, text)} has half a surrogate pair, which no item can have") from error
    if len(value) > LONGEST_TEXT or "\0" in value:
        what = "a NUL" if "\0" in value else f"{len(value):,} characters, of at most {LONGEST_TEXT:,}"
        raise _refused(text, f"{_written(node, text)} has {what}, which no item can have")
    return value


def _written(node: ast.expr, text: str) -> str:
    """Return the beginning of a part as it was written; `ast.unparse` fails on deep nesting and huge numbers."""
    return (ast.get_source_segment(text, node) or text)[:80]


def _refused(text: str, reason: str) -> KeMetricError:
    return KeMetricError(f"where = '{text[:200]}': {reason}; {FORM}", ExitCode.USAGE)
