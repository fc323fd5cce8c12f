"""Imports go one way: every file of the package imports what docs/architecture.md draws, and nothing else."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ke_metric"
FILES = sorted(PACKAGE.rglob("*.py"))

PICTURE = re.search(
    r"^```mermaid\n(.*?)^```",
    (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)[1]


def arrows_drawn(picture):
    """Return room -> rooms that an arrow leads to, of a Mermaid picture with lines like `a --> b & c`."""
    drawn = {}
    for sources, targets in re.findall(r"^ *([\w &]+) --> ([\w &]+)$", picture, re.MULTILINE):
        for source in sources.split(" & "):
            drawn.setdefault(source, set()).update(targets.split(" & "))
    return drawn


def reached(room, drawn):
    """Return what `room` comes to along the arrows."""
    found = set()
    waiting = set(drawn.get(room, ()))
    while waiting:
        found |= waiting
        waiting = {target for source in waiting for target in drawn.get(source, ())} - found
    return found


DRAWN = arrows_drawn(PICTURE)
FOR_ALL = set(
    re.search(r"^ *(\w+(?: ~~~ \w+)*)$", PICTURE[PICTURE.index("subgraph") :], re.MULTILINE)[1].split(" ~~~ ")
)
ROOMS = FOR_ALL | set(DRAWN) | set().union(*DRAWN.values())
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
    return imported_rooms(source, package) - FOR_ALL - reached(room, DRAWN) - {room}


def package_of(path):
    return ".".join(path.parent.relative_to(ROOT).parts)


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("images", "import torch\nfrom ke_metric.errors import KeMetricError", set()),
        ("images", "from ke_metric.networks.dense import build_backbone", {"networks"}),
        ("images", "def f():\n    import ke_metric.split.plan", {"split"}),
        ("images", "if TYPE_CHECKING:\n    from ke_metric.split.plan import SplitPlan", {"split"}),
        ("images", "from ..split import plan", {"split"}),
        ("images", "from .image_set import ImageSet", set()),
        ("images", "from ke_metric import evolve", {"evolve"}),
        ("recipe", "from ke_metric.images import image_set", {"images"}),
        ("methods", "from ke_metric.split.planning import plan_split", set()),
        ("lineage", "from ke_metric.evolution import evolve", {"evolution"}),
        (
            "evolution",
            "from ke_metric.lineage.store import Lineage\nfrom ke_metric.training import engine",
            {"lineage"},
        ),
        ("scoring", "from ke_metric.evolution import evolve", {"evolution"}),
        (
            "lineage",
            "from ke_metric.recipe.file import load_recipe\nfrom ke_metric.images import image_set",
            {"images"},
        ),
        ("retrieval", "from ke_metric.training import engine", {"training"}),
    ],
)
def test_a_wrong_arrow_would_be_seen(room, source, expected):
    assert forbidden_rooms(room, source, "ke_metric.images") == expected


def test_the_package_was_found():
    assert len(FILES) > 10


def test_every_file_has_a_place():
    homeless = {room_of(path) for path in FILES} - ROOMS - {"__init__"}
    assert not homeless, f"draw {sorted(homeless)} in docs/architecture.md"


def test_imports_follow_the_arrows():
    wrong = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in FILES
        if room_of(path) in ROOMS
        and (found := forbidden_rooms(room_of(path), path.read_text(encoding="utf-8"), package_of(path)))
    }
    assert not wrong


def test_every_arrow_is_needed():
    followed = {
        (room_of(path), target) for path in FILES for target in imported_rooms(path.read_text(encoding="utf-8"))
    }
    assert {(source, target) for source, targets in DRAWN.items() for target in targets} <= followed


def test_what_all_may_use_uses_nothing_else():
    assert not FOR_ALL & set(DRAWN)


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules_imported(names, modules):
    """Return which of `modules` the dotted `names` of an import statement mean: a module, or something in one."""
    return {name if name in modules else name.rpartition(".")[0] for name in names} & set(modules)


def test_no_module_imports_itself_by_a_detour():
    modules = {module_of(path): path for path in FILES}
    waiting = {
        module: modules_imported(imported_modules(path.read_text(encoding="utf-8"), package_of(path)), modules)
        for module, path in modules.items()
        if path.name != "__init__.py"
    }
    while free := {module for module, needed in waiting.items() if not needed & set(waiting)}:
        waiting = {module: needed for module, needed in waiting.items() if module not in free}
    assert not waiting


def test_faiss_is_imported_by_one_file():
    importers = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.split(".")[0] == "faiss" for name in imported_modules(path.read_text(encoding="utf-8"), ""))
    }
    assert importers <= {"evaluation/backend.py"}


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
