"""What is wrong with a recipe, in sentences: field, value, what is allowed, the closest name.

pydantic finds the problems. Its words are made for programmers, so each kind of problem that the schema can have
is said again here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ke_metric.errors import closest
from ke_metric.recipe import Recipe
from ke_metric.recipe_section import ConflictError, Section
from ke_metric.recipe_yaml import NUMBER

FieldPath = tuple[int | str, ...]

LONGEST_VALUE = 80
BOUND_WORDS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
OUT_OF_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
NOT_A_LIST = {"tuple_type", "too_short", "too_long", "missing"}
REQUIREMENTS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text, in quotes where it looks like something else",
    "dict_type": "must be a mapping of names to values",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe.

    Attributes:
        paths: The fields concerned, each as its path from the root: ("split", "rate"). A missing field is a matter
            of the section that lacks it.
        sentence: What is wrong with them, and what is allowed.
    """

    paths: tuple[FieldPath, ...]
    sentence: str


def find_problems(error: ValidationError) -> list[Problem]:
    """Return one problem for everything that pydantic found, in its order."""
    return [_problem(details) for details in error.errors(include_url=False)]


def dotted(path: FieldPath) -> str:
    """Return ("data", "mean", 1) as `data.mean[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def shown(value: Any) -> str:
    """Return a value as a recipe would write it, cut off after 80 characters."""
    in_yaml = {None: "null", True: "true", False: "false"}
    text = in_yaml[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _problem(details: ErrorDetails) -> Problem:
    path = _without_tags(details["loc"])
    conflict = details.get("ctx", {}).get("error")
    if isinstance(conflict, ConflictError):
        paths = tuple((*path, *name.split(".")) for name in conflict.fields)
        return Problem(paths, ".".join([*map(str, path), str(conflict)]))
    if details["type"] == "extra_forbidden":
        return Problem((path,), _unknown_field(path))
    if details["type"] == "missing" and isinstance(path[-1], str):
        return Problem((path[:-1],), f"{dotted(path)} is missing")
    if details["type"] == "missing":  # an item of a list that is too short; the value shown is the list
        path = path[:-1]
    return Problem((path,), f"{dotted(path)} = {shown(details['input'])}, {_requirement(path, details)}")


def _without_tags(location: FieldPath) -> FieldPath:
    """Cut off what pydantic adds below a free mapping: which kind of JSON value it took an entry for."""
    is_free = len(location) > 2 and get_origin(_field(location).annotation) is dict
    return location[:3] if is_free else location


def _requirement(path: FieldPath, details: ErrorDetails) -> str:
    kind = details["type"]
    if kind in OUT_OF_BOUNDS:
        return _bounds(_field(path))
    if kind == "literal_error":
        return _choices(_field(path), details["input"])
    if kind in NOT_A_LIST:
        return _list_of(_field(path))
    if kind == "model_type":
        return f"must be a mapping with fields of {dotted(path)}: {_names(_section(path))}"
    if kind == "value_error":
        return str(details["ctx"]["error"])
    requirement = REQUIREMENTS.get(kind, details["msg"])
    return requirement + (" without quotes" if _is_quoted_number(kind, details["input"]) else "")


def _is_quoted_number(kind: str, value: Any) -> bool:
    return kind in {"int_type", "float_type"} and isinstance(value, str) and NUMBER.fullmatch(value) is not None


def _bounds(field: FieldInfo) -> str:
    words = [
        f"{words} {getattr(bound, name)}"
        for bound in field.metadata
        for name, words in BOUND_WORDS.items()
        if hasattr(bound, name)
    ]
    return "must be " + " and ".join(words)


def _choices(field: FieldInfo, value: Any) -> str:
    choices = [str(choice) for choice in get_args(field.annotation)]
    last = f" or {choices[-1]}" if len(choices) > 1 else choices[-1]
    return "must be " + ", ".join(choices[:-1]) + last + closest(str(value), choices)


def _list_of(field: FieldInfo) -> str:
    items = get_args(field.annotation)
    count = "one or more" if Ellipsis in items else str(len(items))
    if str in items:
        return "must be a list of names"
    return f"must be a list of {count} {'whole numbers' if int in items else 'numbers'}"


def _unknown_field(path: FieldPath) -> str:
    *parents, name = path
    section = _section(tuple(parents))
    hint = _home_of(str(name)) or closest(str(name), section.model_fields) or "."
    return f"unknown field {dotted(path)!r}{hint} Fields of {dotted(tuple(parents)) or 'a recipe'}: {_names(section)}"


def _home_of(name: str) -> str:
    """Return a hint for a field that exists, but in another section."""
    sections = {parent: _section((parent,)) for parent, field in Recipe.model_fields.items() if _sections_in(field)}
    homes = [f"{parent}.{name}" for parent, section in sections.items() if name in section.model_fields]
    return f"; did you mean {' or '.join(map(repr, homes))}?" if homes else ""


def _names(section: type[Section]) -> str:
    return ", ".join(section.model_fields)


def _field(path: FieldPath) -> FieldInfo:
    """Return the field at `path`, or the field whose list or free mapping `path` leads into."""
    field = Recipe.model_fields[str(path[0])]
    sections = _sections_in(field)
    return sections[0].model_fields[str(path[1])] if sections and len(path) > 1 else field


def _section(path: FieldPath) -> type[Section]:
    return _sections_in(_field(path))[0] if path else Recipe


def _sections_in(field: FieldInfo) -> list[type[Section]]:
    """Return the section a field holds, also where it may be left out (`Miner | None`)."""
    candidates = (field.annotation, *get_args(field.annotation))
    return [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Section)]
