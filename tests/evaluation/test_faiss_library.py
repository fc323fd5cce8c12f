import ast
import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation import backend as faiss_library

needs_faiss = pytest.mark.skipif(not faiss_library.is_installed(), reason="FAISS is not installed")


def pretend_installed(monkeypatch, *names):
    def only_these(name):
        if name not in names:
            raise PackageNotFoundError(name)
        return distribution("numpy")

    monkeypatch.setattr(faiss_library.importlib.metadata, "distribution", only_these)


def put_first(monkeypatch, folder, source):
    (folder / "faiss").mkdir()
    (folder / "faiss" / "__init__.py").write_text(source)
    # Set and then removed, so that what the test imports does not outlive it.
    monkeypatch.setitem(sys.modules, "faiss", None)
    del sys.modules["faiss"]
    monkeypatch.syspath_prepend(folder)


def test_missing(monkeypatch):
    pretend_installed(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KeMetricError, match=r"not installed.*pip install faiss-cpu.*'torch'") as caught:
        faiss_library.load_faiss()
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert not faiss_library.is_installed()


@pytest.mark.parametrize("gpu", ["faiss-gpu", "faiss-gpu-cuvs"])
def test_two_distributions_are_refused_before_the_import(monkeypatch, tmp_path, gpu):
    pretend_installed(monkeypatch, "faiss-cpu", gpu)
    put_first(monkeypatch, tmp_path, "raise AssertionError('imported')")
    repair = f"pip uninstall -y faiss-cpu {gpu} && pip install --force-reinstall --no-deps {gpu}`"
    with pytest.raises(KeMetricError, match="break each other") as caught:
        faiss_library.load_faiss()
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert repair in str(caught.value)
    assert faiss_library.installed_distributions() == ("faiss-cpu", gpu)


@pytest.mark.parametrize("error", ["RuntimeError", "ImportError", "OSError"])
def test_broken_import_says_why_and_how_to_mend_it(monkeypatch, tmp_path, error):
    pretend_installed(monkeypatch, "faiss-gpu")
    put_first(monkeypatch, tmp_path, f"raise {error}('libcublas is gone')")
    with pytest.raises(KeMetricError, match=r"libcublas is gone.*--no-deps faiss-gpu`") as caught:
        faiss_library.load_faiss()
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_broken_import_of_unknown_origin(monkeypatch, tmp_path):
    pretend_installed(monkeypatch)
    put_first(monkeypatch, tmp_path, "import no_such_module_at_all")
    with pytest.raises(KeMetricError, match=r"no_such_module_at_all.*--no-deps faiss-cpu`"):
        faiss_library.load_faiss()


def test_description_of_any_faiss(monkeypatch, tmp_path):
    put_first(monkeypatch, tmp_path, "__version__ = '9.8.7'\ndef get_num_gpus(): return 2\n")
    pretend_installed(monkeypatch)
    assert faiss_library.describe_faiss() == faiss_library.FaissLibrary("unknown", "9.8.7", 2)
    pretend_installed(monkeypatch, "faiss-gpu")
    assert faiss_library.describe_faiss() == faiss_library.FaissLibrary("faiss-gpu", "9.8.7", 2)


@needs_faiss
def test_description_of_this_faiss():
    described = faiss_library.describe_faiss()
    (name,) = faiss_library.installed_distributions()
    assert described.distribution == name
    assert distribution(name).version.startswith(described.version)
    assert described.gpus >= 0


def imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_only_this_module_imports_faiss_and_only_when_asked():
    for path in Path(faiss_library.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        assert ("faiss" in imports(ast.walk(tree))) == (path.name == "backend.py"), path
        assert not {"faiss", "sklearn"} & set(imports(tree.body)), path
