"""What the code imports, setup.py asks for: a fresh environment lacks nothing."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("ke_metric", "eval", "tests")
# What a library that is asked for cannot be without.
BROUGHT_BY = {"grpc": "pymilvus", "pydantic_core": "pydantic"}


def plain(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()


def requirements_of(keyword):
    """The names that setup.py lists under a keyword of setup(), in extras of the users or of the developers."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    listed = next(node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == keyword)
    value = ast.literal_eval(listed)
    lists = value.values() if isinstance(value, dict) else [value]
    return {plain(re.match(r"[\w.-]+", line)[0]) for lines in lists for line in lines}


def imported_by(folder):
    modules = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in names:
                modules.setdefault(name.split(".")[0], path.relative_to(ROOT))
    return modules


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_library_that_is_imported_is_asked_for(folder):
    asked_for = requirements_of("install_requires") | requirements_of("extras_require")
    # Tests import each other's helpers by name alone; everything else is imported by way of its folder.
    ours = set(FOLDERS) | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    distributions = packages_distributions()
    foreign = {
        module: path
        for module, path in imported_by(folder).items()
        if module not in sys.stdlib_module_names and module not in ours
    }
    assert len(foreign) > 3
    forgotten = {
        module: str(path)
        for module, path in foreign.items()
        if not asked_for & {plain(name) for name in [*distributions.get(module, []), BROUGHT_BY.get(module, "")]}
    }
    assert forgotten == {}
