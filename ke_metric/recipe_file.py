"""From a file to a recipe: defaults, then the file, then `--set`, then `--seed`; every problem named at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ke_metric.added_fields import RECIPE_FIELDS, with_values_before
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.recipe import Recipe
from ke_metric.recipe_problems import FieldPath, Problem, dotted, find_problems, shown
from ke_metric.recipe_yaml import read_yaml

MAX_RECIPE_BYTES = 1_000_000
RESOLVED = "recipe.resolved.yaml"
"""Name under which a lineage stores its recipe, with every default written out."""


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
        KeMetricError: The file cannot be read, or the recipe is wrong. The problems are listed, one a line, each
            with the file or the override that caused it; fields that do not go together are looked for once
            every single field is right.
    """
    path = Path(path)
    fields = _read_fields(path)
    if path.name == RESOLVED:
        fields = with_values_before(fields, RECIPE_FIELDS)
    settings, lines = _parse_overrides(overrides)
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


def _parse_overrides(overrides: Sequence[str]) -> tuple[list[_Setting], list[str]]:
    """Return the overrides that can be read, and what is wrong with the others."""
    settings, lines = [], []
    for text in overrides:
        try:
            settings.append(_parse_override(text))
        except KeMetricError as error:
            lines.append(str(error))
    return settings, lines


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
