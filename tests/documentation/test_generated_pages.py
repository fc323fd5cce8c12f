"""The pages that the code says are those it says today, and say all of it."""

import re
import runpy

import pytest
from built_site import ROOT

from ke_metric.cli import main
from ke_metric.errors import ExitCode
from ke_metric.recipe.method_rules import RULES
from ke_metric.recipe.schema import Recipe

DOCS = ROOT / "docs"
GENERATED = {
    "recipe-fields.md": "generate_fields.py",
    "commands.md": "generate_commands.py",
    "losses.md": "generate_losses.py",
}


def rows(name):
    """The cells of every row of a page's tables, by the first cell."""
    text = (DOCS / name).read_text(encoding="utf-8")
    lines = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[1:] for cells in lines}


@pytest.mark.parametrize("name", GENERATED)
def test_a_page_is_what_the_code_says(name):
    script = runpy.run_path(str(DOCS / GENERATED[name]))
    said = f"out of date: run `python docs/{GENERATED[name]}`"
    assert (DOCS / name).read_text(encoding="utf-8") == script["page"](), said


def test_every_field_has_its_row_with_words_and_default():
    fields = Recipe(name="x", miner={"name": "x"}).model_dump(mode="json")
    dotted = {
        f"{name}.{inner}" if isinstance(value, dict) else name
        for name, value in fields.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    table = rows("recipe-fields.md")
    assert set(table) == dotted
    assert all(all(cells) and len(cells) == 3 for cells in table.values())
    assert table["split.rate"][0] == "number, above 0 and at most 1"
    assert table["generations"][0] == "whole number from 1 to 1000"
    assert table["data.mean"][1] == "`[0.485, 0.456, 0.406]`"


@pytest.mark.parametrize("field", ["share", "reset", "cycles", "teacher_weight"])
def test_a_field_of_method_names_the_methods_that_read_it(field):
    said = rows("recipe-fields.md")[f"method.{field}"][-1]
    named = set(re.findall(r"`(\w+)`", said[said.index("Read by ") :]))
    assert named == {name for name, rules in RULES.items() if field in rules.reads}


def test_every_command_has_its_section_with_all_options():
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    waiting = [("ke-metric", main)]
    while waiting:
        name, command = waiting.pop()
        if hasattr(command, "commands"):
            waiting += [(f"{name} {inner}", command.commands[inner]) for inner in command.commands]
            if not command.invoke_without_command:
                continue
        section = sections.pop(name)
        assert all(
            f"`{option}" in section for parameter in command.params for option in parameter.opts if "-" in option
        )
        assert command.params == [] or "| |" in section
    assert set(sections) == {"Exit codes"}


def test_every_exit_code_is_told():
    codes = re.findall(r"^\| (\d+) \|", (DOCS / "commands.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(code) for code in codes] == [code.value for code in ExitCode]
