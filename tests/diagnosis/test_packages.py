"""What is said of installed packages, from metadata that a test makes up."""

import shlex

import pytest
from packaging.requirements import Requirement

from ke_metric.diagnosis import distributions, packages
from ke_metric.diagnosis.checkout import stale_metadata
from ke_metric.diagnosis.packages import our_requirements, package_findings, torch_pair
from ke_metric.evaluation import backend

ASKED = [
    "numpy>=2.0",
    "torch>=2.9",
    'windows-only>=1; sys_platform == "win32"',
    'faiss-cpu>=1.10; extra == "cpu"',
    "faiss-gpu>=1.14; (platform_system == 'Linux') and extra == 'gpu'",
    'timm>=1.0.22; extra == "timm"',
    'uvicorn>=0.30; extra == "serve"',
    'nowhere>=1; sys_platform == "win32" and extra == "serve"',
    'pytest>=8; extra == "test"',
]
ALL = {"numpy": "2.4", "torch": "2.14.1+cu130", "faiss-cpu": "1.15", "timm": "1.0.31", "uvicorn": "0.54"}


@pytest.fixture
def found(monkeypatch):
    """Topic to finding, where these versions are installed."""

    def find(versions, faiss=("faiss-cpu",), asked=ASKED):
        monkeypatch.setattr(packages, "installed_distributions", lambda: faiss)
        requirements = None if asked is None else list(map(Requirement, asked))
        return {each.topic: each for each in package_findings(requirements, versions.get)}

    return find


def test_where_all_is_there_nothing_is_said_against_it(found):
    findings = found(ALL)
    assert {each.level for each in findings.values()} == {"ok"}
    assert set(findings) == {"Python", "packages", "FAISS", "extra serve", "extra timm"}
    assert "2.14.1+cu130" in findings["packages"].told


@pytest.mark.parametrize("version", [None, "2.8.1", "2.9.0rc1"])
def test_a_package_that_is_missing_or_old_is_broken(found, version):
    versions = ALL | {"torch": version}
    finding = found(versions)["torch"]
    assert finding.level == "broken"
    assert finding.cure == "pip install --upgrade 'torch>=2.9'"
    assert "packages" not in found(versions)


def test_an_extra_that_is_missing_is_advice_and_an_old_one_broken(found):
    missing = found({name: version for name, version in ALL.items() if name != "timm"})["extra timm"]
    assert (missing.level, missing.cure) == ("advice", "pip install 'ke_metric[timm]'")
    old = found(ALL | {"timm": "0.9"})["extra timm"]
    assert (old.level, old.cure) == ("broken", "pip install --upgrade 'timm>=1.0.22'")


def test_of_an_extra_both_what_is_missing_and_what_is_old_is_told(found):
    asked = ["a>=2; extra == 'serve'", "b>=1; extra == 'serve'"]
    finding = found({"a": "1.0"}, asked=asked)["extra serve"]
    assert finding.told == "not installed: b; a 1.0 is installed, needed is >=2"
    assert (finding.level, finding.cure) == ("advice", "pip install 'ke_metric[serve]'")


SETUP = """
from setuptools import setup
setup(
    name="ke_metric",
    install_requires=["numpy>=2.0", "Torch_Vision>=1"],
    extras_require={"timm": ["timm>=1.0.22"], "new": ["fresh>=1; python_version>'3'"], "test": ["pytest>=99"]},
)
"""


@pytest.mark.parametrize(
    ("known", "told", "cure"),
    [
        (["numpy>=2.0", "torch-vision>=1", "timm>=1.0.22; extra == 'timm'"], "extra new: fresh>=1", "[new]"),
        (["numpy>=1.0", "torch-vision>=1", "timm>=1.0.22; extra == 'timm'", "fresh>=1; extra == 'new'"],
         "always: numpy>=2.0", ""),
        (["numpy>=2.0", "torch-vision>=1", "timm>=1.0.22; extra == 'timm'", "fresh>=1; extra == 'new'"], None, None),
        (None, None, None),
    ],
)  # fmt: skip
def test_metadata_of_an_older_setup_py_are_stale(tmp_path, known, told, cure):
    (tmp_path / "setup.py").write_text(SETUP)
    requirements = None if known is None else [Requirement(text) for text in known]
    found = list(stale_metadata(requirements, tmp_path))
    assert len(found) == (told is not None)
    for finding in found:
        assert finding.level == "advice"
        assert told in finding.told
        assert "timm" not in finding.told
        assert finding.cure.strip("'") == f"pip install -e {shlex.quote(f'{tmp_path}{cure}')}".strip("'")


@pytest.mark.parametrize("text", [None, "def (", "setup(**options)", "setup(install_requires=read())"])
def test_a_setup_py_that_cannot_be_read_tells_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "setup.py").write_text(text)
    assert list(stale_metadata([], tmp_path)) == []


def test_our_own_setup_py_is_read():
    """Without any metadata all of it is stale."""
    [finding] = stale_metadata([])
    assert "torch>=" in finding.told
    assert "extra report: jinja2>=" in finding.told


def test_faiss_twice_is_broken_and_the_command_leaves_one(found):
    finding = found(ALL, faiss=("faiss-cpu", "faiss-gpu"))["FAISS"]
    assert finding.level == "broken"
    assert finding.cure == (
        "pip uninstall -y faiss-cpu faiss-gpu && pip install --force-reinstall --no-deps faiss-gpu"
    )


def test_without_faiss_there_is_advice(found):
    finding = found(ALL, faiss=())["FAISS"]
    assert (finding.level, finding.cure) == ("advice", "pip install 'ke_metric[cpu]'")
    assert found(ALL | {"faiss-cpu": "1.9"})["FAISS"].level == "broken"


def test_milvus_lite_does_not_bring_a_second_faiss(found):
    asked = ["milvus-lite>=3; extra == 'milvus'"]
    assert "--no-deps milvus-lite" in found(ALL, faiss=("faiss-gpu",), asked=asked)["extra milvus"].cure
    assert found(ALL, asked=asked)["extra milvus"].cure == "pip install 'ke_metric[milvus]'"


def test_where_pip_does_not_know_us_that_is_said(found):
    assert found(ALL, asked=None)["packages"].level == "advice"


def test_our_own_metadata_can_be_read():
    assert {"torch", "numpy"} <= {each.name for each in our_requirements()}


@pytest.mark.parametrize(("needed", "broken"), [(["torch==2.14.1", "numpy"], False), (["torch==2.13.0"], True)])
def test_torchvision_for_another_torch_is_broken(needed, broken):
    versions = {"torch": "2.14.1+cu130", "torchvision": "0.28.0+cu130"}
    found = list(torch_pair(versions.get, needed))
    assert bool(found) == broken
    if broken:
        assert found[0].cure == "pip install 'torch==2.13.0' torchvision==0.28.0"
    assert not list(torch_pair({}.get, needed))


@pytest.mark.parametrize("present", [(), ("faiss-cpu",), ("faiss-cpu", "faiss-gpu")])
def test_faiss_is_told_of_as_a_search_tells_of_it(present):
    assert distributions.DISTRIBUTIONS == backend.DISTRIBUTIONS
    assert distributions.installed_distributions() == backend.installed_distributions()
    assert distributions.repair_command(present) == backend.repair_command(present)
