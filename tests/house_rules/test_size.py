"""The package stays small enough to be read in an afternoon, in files of one idea and functions of a few lines."""

import ast
from collections import Counter
from pathlib import Path
from statistics import median, quantiles

import pytest

PACKAGE = Path(__file__).parents[2] / "ke_metric"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}
MOST_MODULES = 234
MOST_LINES = 48_272
LONGEST_FILE = 450


def test_the_package_is_not_longer():
    assert sum(len(source.splitlines()) for source in SOURCES.values()) <= MOST_LINES


def test_there_are_not_more_modules():
    assert len(SOURCES) <= MOST_MODULES


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_one_idea_long(name):
    assert len(SOURCES[name].splitlines()) <= LONGEST_FILE


def test_functions_are_short():
    lengths = [
        node.end_lineno - node.lineno + 1
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert median(lengths) <= 8
    assert quantiles(lengths, n=10)[-1] <= 25


def test_one_name_is_one_class():
    names = Counter(
        node.name
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, count in names.items() if count > 1]


def test_no_name_is_a_metaphor():
    words = {"Nursery", "Birth", "Regime", "Blueprint", "Keeper", "Watch", "Watches", "Origin"}
    names = {node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert not names & words
    assert not {Path(name).stem for name in SOURCES} & {word.lower() for word in words | {"circumstances"}}
