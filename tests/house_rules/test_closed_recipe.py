"""Every field of a recipe is read by something: a setting that nobody reads is a lie."""

import ast
from functools import cache
from pathlib import Path
from typing import Literal, get_args, get_origin

from ke_metric.recipe.schema import Recipe
from ke_metric.schema import Section

PACKAGE = Path(__file__).parents[2] / "ke_metric"


def recipe_fields():
    """Yield (section, its class, field) for every field with a choice; the section of a root field is empty."""
    complete = Recipe(name="x", miner={"name": "x"})
    sections = {"": complete} | {name: value for name, value in complete if isinstance(value, Section)}
    for name, value in sections.items():
        for field in type(value).model_fields:
            if field not in sections and not has_one_value(type(value), field):
                yield name, type(value), field


def has_one_value(section, field):
    """Tell whether the schema allows a single value, so that there is nothing to read."""
    annotation = section.model_fields[field].annotation
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


@cache
def mentions(source):
    """Return the attributes read in `source`, and every name it uses."""
    nodes = list(ast.walk(ast.parse(source)))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    return attributes, attributes | {node.id for node in nodes if isinstance(node, ast.Name)}


def reads(source, section, kind, field):
    """Tell whether a file that deals with the section reads an attribute with the name of the field."""
    attributes, names = mentions(source)
    return field in attributes and bool({section or "recipe", kind.__name__} & names)


def test_a_reader_is_recognised():
    _, kind, _ = next(entry for entry in recipe_fields() if entry[0] == "split")
    assert reads("plan(rate=recipe.split.rate)", "split", kind, "rate")
    assert reads("def plan(split: Split):\n    return split.rate", "split", kind, "rate")
    assert not reads("def plan(split: Split):\n    return split.kind", "split", kind, "rate")
    assert not reads("engine.rate", "split", kind, "rate")
    assert not reads("rate = 0.5", "split", kind, "rate")
    assert not reads("split.rate = 0.5", "split", kind, "rate")


def test_all_fields_are_looked_at():
    fields = {(section, field) for section, _, field in recipe_fields()}
    assert {("", "seed"), ("miner", "arguments"), ("evaluation", "recall_at")} <= fields
    assert ("", "split") not in fields
    assert ("", "schema_version") not in fields


def test_every_field_is_read():
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "recipe"]
    sources = [path.read_text(encoding="utf-8") for path in files]
    unread = [
        f"{section}.{field}".lstrip(".")
        for section, kind, field in recipe_fields()
        if not any(reads(source, section, kind, field) for source in sources)
    ]
    assert not unread, f"nothing reads {', '.join(unread)}"
