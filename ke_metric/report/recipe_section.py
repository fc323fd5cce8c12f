"""From what a lineage was grown: the recipe and what is special in it, versions and hardware."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ke_metric
from ke_metric.lineage.files import read_provenance
from ke_metric.lineage.store import Lineage
from ke_metric.recipe.file import load_recipe
from ke_metric.recipe.schema import Recipe
from ke_metric.recipe.yaml import write_yaml
from ke_metric.report.page_parts import Cell, DataTable, PageSection, SourceText
from ke_metric.report.places import places_of, without_places

SHIPPED = Path(ke_metric.__file__).parents[1] / "recipes"
"""Where the shipped recipes lie beside the package, in a checkout; an installed package has none."""
COMMIT_DIGITS = 12
# They name a lineage or the form of its file, and change nothing.
UNSHOWN = ("name", "schema_version")


def recipe_section(lineage: Lineage) -> PageSection:
    """Return the recipe, and the fields that differ from the shipped one of its name, or from the defaults."""
    recipe = lineage.recipe
    shipped = shipped_recipe(recipe.name)
    reference = f"the shipped recipe {recipe.name}" if shipped else "the defaults of the schema"
    differing = differences(recipe, shipped or Recipe(name=recipe.name))
    if differing:
        lead = [f"{len(differing)} field{'s differ' if len(differing) > 1 else ' differs'} from {reference}."]
    else:
        lead = [f"No field differs from {reference}."]
    rows: list[list[Cell]] = [[field, _shown(here), _shown(there)] for field, (here, there) in differing.items()]
    table = DataTable(f"What differs from {reference}", ["field", "here", "there"], rows)
    document = recipe.model_dump(mode="json")
    document["data"]["root"] = _travelling(document["data"]["root"])
    text = SourceText("The complete recipe, every default written out", write_yaml(document))
    return PageSection("recipe", "Recipe", lead, [*([table] if rows else []), text])


def shipped_recipe(name: str) -> Recipe | None:
    """Return the recipe of this name that comes with the project; None where there is none."""
    path = next((path for path in sorted(SHIPPED.glob("*.yaml")) if path.stem == name), None)
    return load_recipe(path) if path else None


def differences(recipe: Recipe, reference: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the dotted names of fields to their values here and there, where these are not equal."""
    here, there = (_flat(each.model_dump(mode="json")) for each in (recipe, reference))
    return {
        field: (here.get(field), there.get(field))
        for field in dict.fromkeys((*here, *there))
        if field not in UNSHOWN and json.dumps(here.get(field)) != json.dumps(there.get(field))
    }


def _flat(document: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat


def _shown(value: Any) -> str:
    return str(_travelling(value)) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _travelling(value: Any) -> Any:
    """Return a value of a recipe without the place where its files lie on this machine."""
    if not isinstance(value, str):
        return value
    return Path(value).name if Path(value).expanduser().is_absolute() else without_places(value)


# --- versions and hardware ----------------------------------------------------------------------------------------


def provenance_section(lineage: Lineage) -> PageSection:
    """Return by what the generations were trained: hardware and settings, versions of libraries."""
    settings, versions = {}, {}
    for number in lineage.numbers:
        settings[number], versions[number] = _provenance(lineage, number)
    parts = [*_tables("Hardware and settings", settings, folded=False), *_tables("Versions", versions, folded=True)]
    facts = lineage.facts
    lead = [f"Begun {facts.get('created', 'at an unknown time')}, {facts.get('status', 'in an unknown state')}."]
    return PageSection("versions", "Versions and hardware", lead, parts)


def _provenance(lineage: Lineage, number: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return hardware and settings, and versions, of a generation."""
    provenance = read_provenance(lineage.generation_folder(number))
    environment = dict(provenance.environment)
    versions = dict(environment.pop("versions", {}))
    changed = environment.pop("commit_changed", False)
    if "commit" in environment:
        environment["commit"] = f"{environment['commit'][:COMMIT_DIGITS]}{', with changes' if changed else ''}"
    training = {name: value for name, value in provenance.training.items() if name != "epochs"}
    shown = {
        name.replace("_", " "): without_places(str(value), *places_of(lineage))
        for name, value in {**training, **environment}.items()
    }
    return shown, {name: str(value) for name, value in versions.items()}


def _tables(title: str, found: Mapping[int, Mapping[str, str]], *, folded: bool) -> list[DataTable]:
    """Return what is the same in every generation, and what is not."""
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    values = {name: {each.get(name, "–") for each in found.values()} for name in names}
    same: list[list[Cell]] = [[name, *each] for name, each in values.items() if len(each) == 1]
    other = [name for name, each in values.items() if len(each) > 1]
    tables = [DataTable(f"{title} of every generation", ["what", "value"], same, folded=folded)] if same else []
    if other:
        rows: list[list[Cell]] = [
            [str(number), *(each.get(name, "–") for name in other)] for number, each in found.items()
        ]
        tables.append(DataTable(f"{title} that differ between generations", ["generation", *other], rows))
    return tables
