"""What the README shows is run, and what it and the documents name is there."""

import re

import pytest
from built_site import ROOT
from shown_blocks import BLOCKS, DOCUMENTS

from ke_metric.recipe.file import load_recipe

README = DOCUMENTS["README.md"]


def blocks(language: str) -> list[str]:
    return [block.text for block in BLOCKS if block.document == "README.md" and block.language == language]


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
