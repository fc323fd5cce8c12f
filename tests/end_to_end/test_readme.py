"""What the README shows is run."""

import re
from pathlib import Path

import click
import pytest

from ke_metric.cli import main
from ke_metric.recipe.file import load_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_python_example_runs(capsys, tmp_path, monkeypatch):
    """Three lines in a foreign training loop; the slim network comes back from the disk bit for bit."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    dense, slim = (sum(p.numel() for p in names[name].parameters()) for name in ("network", "slim"))
    assert dense / slim > 3.5
    printed = capsys.readouterr().out
    assert "conv1" in printed
    assert printed.splitlines()[-1] == "True"


def test_the_recipe_example_is_a_recipe(tmp_path):
    (text,) = blocks("yaml")
    (tmp_path / "my_recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "my_recipe.yaml").name == "my_recipe"


@pytest.mark.parametrize("line", re.findall(r"^ke-metric (.*?)(?:\s+#.*)?$", README, re.MULTILINE))
def test_every_command_exists_with_its_options(line):
    command, words = main, line.split()
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_every_recipe_and_document_named_is_there():
    for name in re.findall(r"`((?:docs|eval|recipes)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name
    table = re.findall(r"^\| (`[a-z_0-9`, ]+`) \| [A-Z]", README, re.MULTILINE)
    named = {name for row in table for name in re.findall(r"`(\w+)`", row)}
    assert named == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
