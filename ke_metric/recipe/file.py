"""From a file to a recipe: defaults, then the file, then `--set`, then `--seed`; every problem named at once.

pydantic finds the problems. Its words are made for programmers, so each kind of problem that the schema can have
is said again here: field, value, what is allowed, the closest name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ke_metric.errors import ExitCode, KeMetricError, closest, either
from ke_metric.recipe.schema import Recipe
from ke_metric.recipe.yaml import NUMBER, read_yaml
from ke_metric.schema import RECIPE_FIELDS, ConflictError, FieldPath, Section, dotted, shown, with_values_before

MAX_RECIPE_BYTES = 1_000_000
RESOLVED = "recipe.resolved.yaml"
"""Name under which a lineage stores its recipe, with every default written out."""
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
class _Setting:
    """A value that replaces what the file says at `path`; `source` is what an error blames for it."""

    path: tuple[str, ...]
    value: Any
    source: str

    def lies_in(self, path: FieldPath) -> bool:
        return self.path[: len(path)] == path


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, seed: int | None = None) -> Recipe:
    """Read a recipe, replace some of its fields, and check all of it.

    Later wins: defaults of the schema, the file, overrides in their order, the seed. A recipe without a name is
    named after its file. In a lineage's own `recipe.resolved.yaml`, a field that did not exist when it was written
    has the value that was in effect then.

    Args:
        path: A YAML file of at most 1 MB of UTF-8.
        overrides: Settings as given to `--set`, in the form `split.rate=0.8`; the value is read as YAML, so
            `miner=null` and `evaluation.recall_at=[1, 10]` work.
        seed: Replaces the recipe's seed, in [0, 2**31).

    Raises:
        KeMetricError: The file cannot be read, or the recipe is wrong: a line for each problem, with the file or the
            override that caused it; fields that do not go together are told once every single field is right.
    """
    path = Path(path)
    fields = _read_fields(path)
    if path.name == RESOLVED:
        fields = with_values_before(fields, RECIPE_FIELDS)
    settings: list[_Setting] = []
    lines: list[str] = []
    for text in overrides:
        try:
            settings.append(_parse_override(text))
        except KeMetricError as error:
            lines.append(str(error))
    if "name" not in fields:
        settings.insert(0, _Setting(("name",), path.stem, f"{path} (named after the file)"))
    if seed is not None:
        settings.append(_Setting(("seed",), seed, "--seed"))
    applied: list[_Setting] = []
    for setting in settings:
        try:
            _apply(setting, fields)
        except KeMetricError as error:
            lines.append(str(error))
        else:
            applied = [earlier for earlier in applied if not earlier.lies_in(setting.path)] + [setting]
    return _checked(fields, applied, lines, path)


def _checked(fields: dict[str, Any], settings: Sequence[_Setting], lines: Sequence[str], path: Path) -> Recipe:
    """Return the recipe, or raise with `lines` and every problem of `fields`."""
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        found = [f"{_blamed(problem, settings) or path}: {problem.sentence}" for problem in find_problems(error)]
        raise KeMetricError("\n".join([*lines, *found]), ExitCode.RECIPE) from error
    if lines:
        raise KeMetricError("\n".join(lines), ExitCode.RECIPE)
    return recipe


def _blamed(problem: Problem, settings: Sequence[_Setting]) -> str:
    """Return the settings that have to do with a problem; empty where only the file has."""
    return ", ".join(
        setting.source
        for setting in settings
        if any(setting.lies_in(path) or path[: len(setting.path)] == setting.path for path in problem.paths)
    )


def _read_fields(path: Path) -> dict[str, Any]:
    document = read_yaml(_read_text(path), str(path))
    if document is None:
        raise KeMetricError(f"{path}: is empty; a recipe is a mapping of fields to values", ExitCode.RECIPE)
    if not isinstance(document, dict):
        raise KeMetricError(
            f"{path}: holds {shown(document)}; a recipe is a mapping of fields to values", ExitCode.RECIPE
        )
    return document


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_RECIPE_BYTES + 1)
    except FileNotFoundError as error:
        hint = closest(path.name, (neighbor.name for neighbor in path.parent.glob("*.y*ml")))
        raise KeMetricError(f"{path}: there is no such file{hint}", ExitCode.RECIPE) from error
    except OSError as error:
        raise KeMetricError(f"{path}: cannot be read: {error.strerror}", ExitCode.RECIPE) from error
    if len(content) > MAX_RECIPE_BYTES:
        raise KeMetricError(f"{path}: is larger than {MAX_RECIPE_BYTES} bytes", ExitCode.RECIPE)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise KeMetricError(
            f"{path}: is not a text file in UTF-8 (byte 0x{content[error.start]:02x} at position {error.start + 1})",
            ExitCode.RECIPE,
        ) from error


def _parse_override(text: str) -> _Setting:
    source = f"--set {text}"
    field, equals, value = text.partition("=")
    path = tuple(part.strip() for part in field.split("."))
    if not equals or not value.strip() or not all(path):
        raise KeMetricError(f"{source}: must have the form field=value, for example split.rate=0.8", ExitCode.RECIPE)
    return _Setting(path, read_yaml(value, source), source)


def _apply(setting: _Setting, fields: dict[str, Any]) -> None:
    """Write a setting into nested `fields`, in place."""
    *parents, name = setting.path
    section = fields
    for depth, parent in enumerate(parents, start=1):
        if section.get(parent) is None:
            section[parent] = {}
        if not isinstance(section[parent], dict):
            place, value = dotted(setting.path[:depth]), shown(section[parent])
            raise KeMetricError(f"{setting.source}: {place} is {value}, which has no fields", ExitCode.RECIPE)
        section = section[parent]
    section[name] = setting.value


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe."""

    paths: tuple[FieldPath, ...]
    """The fields concerned, each as its path from the root; of a missing one, the section that lacks it."""
    sentence: str
    """What is wrong with them, and what is allowed."""


def find_problems(error: ValidationError) -> list[Problem]:
    """Return one problem for everything that pydantic found, in its order."""
    return [_problem(details) for details in error.errors(include_url=False)]


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
        choices = [str(choice) for choice in get_args(_field(path).annotation)]
        return f"must be {either(choices)}{closest(str(details['input']), choices)}"
    if kind in NOT_A_LIST:
        return _list_of(_field(path))
    if kind == "model_type":
        return f"must be a mapping with fields of {dotted(path)}: {', '.join(_section(path).model_fields)}"
    if kind == "value_error":
        return str(details["ctx"]["error"])
    requirement, value = REQUIREMENTS.get(kind, details["msg"]), details["input"]
    is_quoted_number = kind in {"int_type", "float_type"} and isinstance(value, str) and NUMBER.fullmatch(value)
    return f"{requirement} without quotes" if is_quoted_number else requirement


def _bounds(field: FieldInfo) -> str:
    bounds = {name: getattr(bound, name) for bound in field.metadata for name in BOUND_WORDS if hasattr(bound, name)}
    return "must be " + " and ".join(f"{BOUND_WORDS[name]} {bound}" for name, bound in bounds.items())


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
    fields = ", ".join(section.model_fields)
    return f"unknown field {dotted(path)!r}{hint} Fields of {dotted(tuple(parents)) or 'a recipe'}: {fields}"


def _home_of(name: str) -> str:
    """Return a hint for a field that exists, but in another section."""
    sections = {parent: _section((parent,)) for parent, field in Recipe.model_fields.items() if _sections_in(field)}
    homes = [f"{parent}.{name}" for parent, section in sections.items() if name in section.model_fields]
    return f"; did you mean {' or '.join(map(repr, homes))}?" if homes else ""


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
