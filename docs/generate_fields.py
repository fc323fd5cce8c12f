"""Writes docs/recipe-fields.md: every field of a recipe, from the schema that checks it (`make docs`)."""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ke_metric.errors import either
from ke_metric.recipe.method_rules import RULES
from ke_metric.recipe.schema import Recipe
from ke_metric.schema import Ground, Section

PAGE = Path(__file__).with_name("recipe-fields.md")
HEAD = """\
# Every field of a recipe

Written by `docs/generate_fields.py` from the schema that checks recipes. A field that is left out takes its \
default; any field can be set on the command line (`--set split.rate=0.8`), where `null` leaves out what may be left \
out. What a word stands for is in `docs/recipes-and-methods.md`, what benchmarks read is in `docs/start.md`.
"""
WORDS = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
PLURALS = {str: "names", int: "whole numbers", float: "numbers"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
DEFAULTS = {"name": "the file's name"}
"""Of fields that the schema demands and that something else fills in."""
NOTES = {"method": "A field that the method does not read is refused."}


def sections_of(kind: type[Section]) -> Iterator[tuple[str, type[Section], FieldInfo]]:
    """Yield the sections of a recipe: name, schema, and the field it is."""
    for name, field in kind.model_fields.items():
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, Section):
                yield name, candidate, field


def allowed(field: FieldInfo) -> str:
    """Return what a value of a field may be, in words."""
    kind, is_optional = field.annotation, False
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
        is_optional = True
    words = kind_in_words(kind, field.metadata) + limits(field.metadata)
    if any(getattr(bound, "min_length", None) for bound in field.metadata):
        words += ", not empty"
    return f"{words}; or nothing" if is_optional else words


def limits(metadata: list[Any]) -> str:
    """Return which numbers are allowed, to be said after the kind; empty where all are."""
    found = {name: getattr(bound, name) for name in BOUNDS for bound in metadata if hasattr(bound, name)}
    if found.keys() == {"ge", "le"}:
        return f" from {found['ge']} to {found['le']}"
    return ", " * bool(found) + " and ".join(f"{BOUNDS[name]} {bound}" for name, bound in found.items())


def kind_in_words(kind: Any, metadata: list[Any]) -> str:
    """Return a type in words; `metadata` are what stands beside it, which tells a colour from other text."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return kind_in_words(inner[0], [*inner[1:]])
    if origin is Literal:
        return either([f"`{one}`" for one in inner])
    if origin is tuple:
        count = "" if Ellipsis in inner else f"{len(inner)} "
        return f"list of {count}{PLURALS[inner[0]]}"
    if origin is dict:
        return "names and values"
    if any(check in metadata for check in get_args(Ground)[1:]):
        return '`white`, `keep` or a colour `"#rrggbb"`'
    return WORDS[kind]


def default_of(name: str, field: FieldInfo) -> str:
    """Return the default as a recipe would write it."""
    if field.is_required():
        return DEFAULTS.get(name, "must be given")
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "nothing"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def texts_of(kind: type[Section]) -> dict[str, str]:
    """Return what stands below every field in the source of its section.

    Pydantic could attach it to the field, which would cost every command a tenth of a second.
    """
    (section,) = ast.parse(inspect.getsource(kind)).body
    return {
        field.target.id: inspect.cleandoc(text.value.value).strip()
        for field, text in pairwise(section.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def said(text: str, field: FieldInfo) -> str:
    """Return a field's own text, fit for a cell of a table: its values and the pages it names as code."""
    text = " ".join(text.split()).replace("|", "\\|")
    text = re.sub(r"(?<!`)docs/[\w-]+\.md", r"`\g<0>`", text)
    for choice in get_args(field.annotation) if get_origin(field.annotation) is Literal else ():
        text = re.sub(rf"(?<![`\w])({re.escape(str(choice))})(?=:| \(\w+\):)", r"`\1`", text)
    return text


def readers(name: str) -> str:
    """Return which methods read a field of `method`; empty where all do."""
    found = [f"`{method}`" for method, rules in RULES.items() if name in rules.reads]
    return f" Read by {', '.join(found)}." if found and len(found) < len(RULES) else ""


def table(kind: type[Section], prefix: str, *, without: tuple[str, ...] = ()) -> str:
    """Return the table of a section's fields."""
    texts = texts_of(kind)
    rows = [
        f"| `{prefix}{name}` | {allowed(field)} | {default_of(prefix + name, field)} "
        f"| {said(texts[name], field)}{readers(name) if prefix == 'method.' else ''} |"
        for name, field in kind.model_fields.items()
        if name not in without
    ]
    return "\n".join(["| field | value | default | meaning |", "|---|---|---|---|", *rows])


def page() -> str:
    """Return the page."""
    sections, texts = list(sections_of(Recipe)), texts_of(Recipe)
    names = tuple(name for name, _, _ in sections)
    parts = [HEAD, "## The recipe itself", table(Recipe, "", without=names)]
    for name, kind, field in sections:
        parts += [f"## {name}", f"{said(texts[name], field)} {NOTES.get(name, '')}", table(kind, f"{name}.")]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
