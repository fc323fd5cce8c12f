"""Imports go one way: every file of the package stays within what its room may import."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ke_metric"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYER_0 = {
    "added_fields",
    "errors",
    "environment",
    "fingerprint",
    "generation",
    "randomness",
    "recipe",
    "recipe_file",
    "recipe_method",
    "recipe_problems",
    "recipe_section",
    "recipe_yaml",
    "regime",
}
LAYER_1 = {"data", "networks", "split", "methods", "losses", "training", "evaluation"}
LINEAGE = {"lineage", "lineage_data", "lineage_disk", "lineage_files", "lineage_folder", "lineage_recipe"}
LAYER_2 = {"blueprint", "evolution", "scoring"} | LINEAGE
LAYER_3 = {"comparison", "export", "report", "retrieval", "serving"}
# What a room may import besides layer 0 and itself.
ARROWS = {
    **dict.fromkeys(LAYER_0 | LAYER_1, frozenset[str]()),
    "methods": {"split"},
    "scoring": LAYER_1,
    "blueprint": {"methods", "networks", "split"},
    "evolution": LAYER_1 | {"blueprint", "scoring"},
    **dict.fromkeys(LINEAGE, LINEAGE),
    "comparison": LINEAGE,
    "report": LINEAGE,
    "retrieval": LINEAGE | {"blueprint", "data", "evaluation", "networks", "split"},
    "export": LINEAGE | {"evaluation", "networks", "retrieval"},
    "serving": LINEAGE | {"retrieval"},
    "cli": LAYER_1 | LAYER_2 | LAYER_3,
}
JUNK_DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "tools"}


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(source, package):
    """Return the dotted names of all modules imported anywhere in `source`, a file of `package`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def imported_rooms(source, package="ke_metric"):
    return {name.split(".")[1] for name in imported_modules(source, package) if name.startswith("ke_metric.")}


def forbidden_rooms(room, source, package="ke_metric"):
    return imported_rooms(source, package) - LAYER_0 - ARROWS[room] - {room}


def package_of(path):
    return ".".join(path.parent.relative_to(ROOT).parts)


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("data", "import torch\nfrom ke_metric.errors import KeMetricError", set()),
        ("data", "from ke_metric.networks.backbones import build_backbone", {"networks"}),
        ("data", "def f():\n    import ke_metric.split.plan", {"split"}),
        ("data", "from ..split import plan", {"split"}),
        ("data", "from .images import ImageSet", set()),
        ("data", "from ke_metric import evolve", {"evolve"}),
        ("recipe", "from ke_metric.data import images", {"data"}),
        ("methods", "from ke_metric.split.planning import plan_split", set()),
        ("lineage", "from ke_metric.evolution import evolve", {"evolution"}),
        ("evolution", "from ke_metric.lineage import Lineage\nfrom ke_metric.training import engine", {"lineage"}),
        ("scoring", "from ke_metric.evolution import evolve", {"evolution"}),
        ("report", "from ke_metric.lineage import Lineage\nfrom ke_metric.data import images", {"data"}),
        ("retrieval", "from ke_metric.training import engine", {"training"}),
    ],
)
def test_a_wrong_arrow_would_be_seen(room, source, expected):
    assert forbidden_rooms(room, source, "ke_metric.data") == expected


def test_the_package_was_found():
    assert len(FILES) > 10


def test_every_file_has_a_place():
    homeless = {room_of(path) for path in FILES} - set(ARROWS) - {"__init__"}
    assert not homeless, f"give {sorted(homeless)} a layer in this test and in docs/architecture.md"


def test_imports_follow_the_arrows():
    wrong = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in FILES
        if room_of(path) in ARROWS
        and (found := forbidden_rooms(room_of(path), path.read_text(encoding="utf-8"), package_of(path)))
    }
    assert not wrong


def test_layer_0_has_no_cycle():
    sources = {path.stem: path.read_text(encoding="utf-8") for path in FILES if path.parent == PACKAGE}
    waiting = {room: imported_rooms(sources[room]) & LAYER_0 for room in LAYER_0 & set(sources)}
    while free := {room for room, needed in waiting.items() if not needed & set(waiting)}:
        waiting = {room: needed for room, needed in waiting.items() if room not in free}
    assert not waiting


def test_faiss_is_imported_by_one_file():
    importers = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.split(".")[0] == "faiss" for name in imported_modules(path.read_text(encoding="utf-8"), ""))
    }
    assert importers <= {"evaluation/faiss_library.py"}


def test_there_is_no_junk_drawer():
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not names & JUNK_DRAWERS


def test_every_folder_has_a_sign_on_its_door():
    unmarked = []
    for folder in {path.parent for path in FILES}:
        sign = folder / "__init__.py"
        if not sign.exists() or not ast.get_docstring(ast.parse(sign.read_text(encoding="utf-8"))):
            unmarked.append(folder.name)
    assert not unmarked
