"""Importing the package, and asking for help, loads nothing heavy; every public name exists."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ke_metric
from ke_metric.cli import DECLARED

ROOT = Path(__file__).parents[2]
HEAVY = (
    "accelerate",
    "faiss",
    "jinja2",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "prometheus_client",
    "psycopg",
    "pyarrow",
    "pymilvus",
    "pytorch_metric_learning",
    "scipy",
    "sklearn",
    "starlette",
    "tensorboard",
    "timm",
    "torch",
    "torchvision",
    "uvicorn",
    "vl_convert",
)
REPORT = f"""
import json
print("LOADED" + json.dumps(sorted({{name.split(".")[0] for name in sys.modules}} & set({HEAVY}))))
"""
HELP = """
sys.argv = ["ke-metric", *{arguments}]
from ke_metric.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
"""


def loaded_by(program):
    """Return what a fresh interpreter has loaded of the heavy libraries, and what it printed before."""
    command = [sys.executable, "-c", "import sys\n" + program + REPORT]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 0, finished.stderr
    printed, _, loaded = finished.stdout.rpartition("LOADED")
    return json.loads(loaded), printed


def test_a_heavy_import_would_be_seen():
    assert "torch" in loaded_by("import torch")[0]


@pytest.mark.parametrize(
    "program",
    [
        "import ke_metric",
        "import ke_metric; ke_metric.__version__, dir(ke_metric), hasattr(ke_metric, 'zork')",
        "from ke_metric import load_recipe",
        "import ke_metric.cli",
    ],
)
def test_imports_are_light(program):
    assert loaded_by(program)[0] == []


@pytest.mark.parametrize("module", ["lineage_commands", "data"])
def test_what_runs_no_network_loads_little_beside_torch(module):
    assert loaded_by(f"import ke_metric.cli.{module}")[0] == ["torch"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["eval", "--help"],
        ["slim", "--help"],
        ["index", "build", "--help"],
        ["search", "--help"],
        ["predict", "--help"],
        ["report", "--help"],
    ],
)
def test_help_is_light(arguments):
    loaded, printed = loaded_by(HELP.format(arguments=arguments))
    assert loaded == []
    assert "Usage:" in printed


@pytest.mark.parametrize("name", ke_metric.__all__)
def test_every_public_name_resolves(name):
    assert getattr(ke_metric, name)
    assert name in dir(ke_metric)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="'ke_metric' has no attribute 'zork'"):
        ke_metric.zork  # noqa: B018 -- the access is what is tested


def test_the_version_has_one_source():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert ke_metric.__version__ not in setup
    command = [sys.executable, "setup.py", "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert printed.split()[-1] == ke_metric.__version__


IMPORTING = """
import gc
from ke_metric.cli import importing
stops = []
gc.callbacks.append(lambda phase, facts: stops.append(phase))
with importing():
    begun = len(stops)
    import ke_metric.cli.train
    stopped = len(stops) - begun
assert gc.isenabled()
frozen = gc.get_freeze_count()
with importing():
    import ke_metric.cli.train
    made = [[] for _ in range(1000)]
print(stopped, frozen, gc.get_freeze_count() - frozen)
"""


def test_no_garbage_is_looked_for_in_what_a_command_imports():
    stopped, frozen, frozen_later = map(int, loaded_by(IMPORTING)[1].split())
    assert stopped == 0
    assert frozen > 100_000
    assert frozen_later == 0


AT_ITS_END = """
import atexit, gc, os, runpy, sys
asked = []
register = atexit.register
atexit.register = lambda function, *rest, **more: asked.append(function) or register(function, *rest, **more)
sys.argv = ["ke-metric", "train", os.devnull]
try:
    {start}
except SystemExit as stop:
    assert stop.code in (2, 3), stop.code
print(asked.count(gc.freeze))
"""


@pytest.mark.parametrize(
    ("start", "times"),
    [
        ("from ke_metric.cli import main; main()", 0),
        ("from ke_metric.cli import main; main.main(sys.argv[1:], standalone_mode=False)", 0),
        ("from ke_metric.cli import run_program; run_program()", 1),
        ("runpy.run_module('ke_metric.cli', run_name='__main__')", 1),
    ],
)
def test_only_the_end_of_our_own_process_is_shortened(start, times):
    assert int(loaded_by(AT_ITS_END.format(start=start))[1]) == times


def test_the_command_is_our_own_process():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert '"console_scripts": ["ke-metric = ke_metric.cli:run_program"]' in setup


LIGHT = {"ke_metric.recipe.file"}
"""What a function may import as it stands: a bad recipe is told of before torch is there."""


def bare_imports(tree):
    """Return what the functions of a tree import outside `with importing()`, at whatever depth."""
    found = set()

    def look(node, *, in_function):
        if isinstance(node, ast.With) and any(ast.unparse(item.context_expr) == "importing()" for item in node.items):
            return
        if in_function and isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        if in_function and isinstance(node, ast.ImportFrom):
            found.add(node.module)
        for child in ast.iter_child_nodes(node):
            look(child, in_function=in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    look(tree, in_function=False)
    return found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("from a.b import c", {"a.b"}),
        ("import a.b, c", {"a.b", "c"}),
        ("if x:\n  from a import b", {"a"}),
        ("with other():\n  try:\n   import a\n  finally:\n   pass", {"a"}),
        ("def g():\n  import a", {"a"}),
        ("with importing():\n  from a import b\n  import c", set()),
        ("if x:\n  with importing():\n   import a\n import b", {"b"}),
    ],
)
def test_an_import_is_seen_wherever_it_stands(body, found):
    assert bare_imports(ast.parse(f"import top\n@command\ndef f():\n {body}\n")) == found


@pytest.mark.parametrize("name", sorted(set(DECLARED.values())))
def test_every_command_imports_its_work_in_one_way(name):
    tree = ast.parse((ROOT / "ke_metric" / "cli" / f"{name}.py").read_text(encoding="utf-8"))
    assert bare_imports(tree) <= LIGHT, "not in `with importing()`"
