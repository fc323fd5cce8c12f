"""Which recipe may continue a lineage: the one it was grown from, but for what changes no weight."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ke_metric.added_fields import RECIPE_FIELDS, unchanged_fields
from ke_metric.recipe import Recipe

# Fields that say where things lie or how fast they go.
FREE_FIELDS = frozenset({"data.root", "data.workers"})
_NOT_SET = object()


def as_continued(stored: Recipe, given: Recipe) -> Recipe:
    """Return a recipe as it continues a lineage that was begun before some fields existed.

    Such a field keeps the value that was in effect then, unless the recipe sets it: a default that came later is not
    what its author asked for.

    Args:
        stored: The lineage's recipe.
        given: The recipe that is to continue it.
    """
    document = stored.model_dump(mode="json")
    for field in unchanged_fields(document, RECIPE_FIELDS):
        section, name = field.split(".")
        part = getattr(given, section)
        if part is not None and name not in part.model_fields_set:
            part = part.model_copy(update={name: document[section][name]})
            given = given.model_copy(update={section: part})
    return given


def changed_fields(stored: Recipe, given: Recipe) -> dict[str, str]:
    """Return what differs between two recipes: dotted field name to a sentence with both values.

    Args:
        stored: The lineage's recipe.
        given: The recipe that is to continue it.
    """
    pairs = _differing(stored.model_dump(mode="json"), given.model_dump(mode="json"), ())
    return {name: f"{name} {_given(new)}, the lineage {_stored(old)}" for name, old, new in pairs}


def forbidden_changes(stored: Recipe, given: Recipe) -> dict[str, str]:
    """Return the changes that make it another lineage: all but `FREE_FIELDS` and more generations.

    What some recipes do in a generation depends on how many there are in all: those may not become more.
    """
    changed = {name: text for name, text in changed_fields(stored, given).items() if name not in FREE_FIELDS}
    if "generations" in changed and (reason := why_not_longer(stored)):
        changed["generations"] += f" ({reason})"
    elif given.generations > stored.generations:
        del changed["generations"]
    elif "generations" in changed:
        changed["generations"] += " (it may grow, not shrink)"
    return changed


def why_not_longer(recipe: Recipe) -> str | None:
    """Return why a lineage cannot get more generations than it was begun with, if it cannot."""
    method = recipe.method
    if method.name == "layer_wise":
        return "layer_wise shares its units out among the generations it was begun with"
    if method.slim_last:
        return "method.slim_last makes the last one the slim network"
    if method.final_share is not None:
        return "method.final_share belongs to the last one"
    return None


def _differing(stored: Any, given: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        for name in {**stored, **given}:
            yield from _differing(stored.get(name, _NOT_SET), given.get(name, _NOT_SET), (*path, name))
    elif _NOT_SET in (stored, given) or json.dumps(stored) != json.dumps(given):
        # As text, as in the recipe's digest: to Python, true equals 1.
        yield ".".join(path), stored, given


def _given(value: Any) -> str:
    return "is not set" if value is _NOT_SET else f"= {value!r}"


def _stored(value: Any) -> str:
    return "does not set it" if value is _NOT_SET else f"has {value!r}"
