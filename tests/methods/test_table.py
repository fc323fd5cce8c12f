"""The table of methods: complete, named as in recipes, and described to whoever writes one."""

import re
from pathlib import Path
from typing import get_args

import pytest

from ke_metric.methods import METHODS
from ke_metric.methods.method import LineageMethod
from ke_metric.recipe.method_rules import RULES
from ke_metric.recipe.schema import Method as MethodRecipe

GUIDE = (Path(__file__).parents[2] / "docs" / "recipes-and-methods.md").read_text(encoding="utf-8")
FIELDS = {
    name: (default, readers)
    for names, default, readers in re.findall(r"^\| (`[^|]*`) \| ([^|]*) \| ([^|]*) \|$", GUIDE, flags=re.MULTILINE)
    for name in re.findall(r"`(\w+)`", names)
}

READERS = {
    field: [name for name, rules in RULES.items() if field in rules.reads]
    for field in MethodRecipe.model_fields
    if field != "name"
}


def section_of(name):
    """Return what the guide says under a method's own heading."""
    found = re.search(rf"^###?#? {name}\n(.*?)(?=^##|\Z)", GUIDE, flags=re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def test_the_table_has_what_a_recipe_can_name():
    assert set(METHODS) == set(get_args(MethodRecipe.model_fields["name"].annotation))
    assert all(isinstance(method, LineageMethod) for method in METHODS.values())
    assert len({type(method) for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_in_the_guide(name):
    assert re.search(rf"^\| `{name}` \|", GUIDE, flags=re.MULTILINE), "not in the table at the top"
    assert len(section_of(name)) > 200, "no section of its own"


@pytest.mark.parametrize("name", METHODS)
def test_every_section_names_the_fields_that_its_method_reads(name):
    text = section_of(name).replace("`teacher_*`", "`teacher_weight`, `teacher_temperature`")
    named = set(re.findall(r"`(\w+)`", text)) & set(READERS)
    assert named == {field for field, readers in READERS.items() if name in readers}


@pytest.mark.parametrize("field", READERS)
def test_every_field_is_in_the_guide_with_its_default(field):
    default = MethodRecipe.model_fields[field].default
    assert field in FIELDS, "not in the table of fields"
    told = FIELDS[field][0]
    if default is not None:
        values = [default] if not isinstance(default, tuple) else []
        assert all(re.search(rf"\b{str(value).lower().removesuffix('.0')}\b", told) for value in values), told


@pytest.mark.parametrize("field", [field for field in READERS if not field.startswith(("teacher", "reset_loss"))])
def test_the_guide_names_the_readers_of_a_field(field):
    assert set(re.findall(r"`(\w+)`", FIELDS[field][1])) == set(READERS[field])
