"""What the README shows is run, and what it and the documents name is there."""

import re
from pathlib import Path

import click
import pytest

from ke_metric.cli import main
from ke_metric.recipe.file import load_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "eval" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
COMMANDS = [
    line
    for text in DOCUMENTS.values()
    for line in re.findall(r"^ke-metric (.*?)(?:\s+#.*|\s+[>|].*)?$", text, re.MULTILINE)
]


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


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_exists_with_its_options(line):
    command, words = main, line.split()
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_named_is_there(name):
    text = DOCUMENTS[name]
    missing = [
        path
        for path in re.findall(r"`((?:docs|eval|recipes|tests|ke_metric)/(?:[a-z0-9_./-]|README)+)`", text)
        if not (ROOT / path).exists()
    ]
    folder = (ROOT / name).parent
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing += [link for link in links if "://" not in link and not (folder / link).exists()]
    assert not missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_heading_linked_to_is_there(name):
    text = DOCUMENTS[name]
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_every_document_is_on_the_map():
    named = set(re.findall(r"`(docs/[\w./-]+\.md)`", README))
    # The first page of the site is the README's beginning.
    assert named == {name for name in DOCUMENTS if name.startswith("docs/")} - {"docs/index.md"}


def test_every_recipe_is_described():
    text = DOCUMENTS["docs/recipes-and-methods.md"]
    table = re.findall(r"^\| (`[a-z_0-9`, ]+`) \| [A-Z]", text[: text.index("## Methods")], re.MULTILINE)
    named = {name for row in table for name in re.findall(r"`(\w+)`", row)}
    assert named == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
