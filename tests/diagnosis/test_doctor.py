"""The environment is looked at whatever is broken in it; what is broken is named with a command."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from ke_metric.diagnosis import doctor, places
from ke_metric.diagnosis.doctor import diagnose
from ke_metric.diagnosis.places import place_findings
from ke_metric.diagnosis.probes import ProbeResult, run_probe
from ke_metric.errors import ExitCode

FACTS = {
    "imports": {"numpy": None, "torch": None, "torchvision": None, "faiss": None},
    "devices": {
        "torch": "2.14.1", "cuda_build": None, "cuda": [], "mps": False, "threads": 2, "device": "cpu",
        "precision": "fp32",
    },
    "neighbors": {"version": "1.15.1", "gpus": 0, "tried": ["faiss-cpu"], "wrong": []},
    "fonts": {"faces": 16, "missing": []},
}  # fmt: skip


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Put a module in front of the real ones, for processes that are started: `stub("faiss", "1 / 0")`."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return lambda name, source: (tmp_path / f"{name}.py").write_text(source + "\n")


@pytest.fixture
def diagnosed(monkeypatch, tmp_path):
    """Topic to findings, where probes learnt this beside `FACTS`."""

    def find(failures=None, **facts):
        results = {
            name: ProbeResult(known | facts.get(name, {}), (failures or {}).get(name))
            for name, known in FACTS.items()
        }
        monkeypatch.setattr(doctor, "run_probe", lambda name, *rest: results[name])
        return {each.topic: each for each in diagnose(tmp_path)}

    return find


def test_this_environment_is_in_order(tmp_path):
    """All probes, as they are."""
    found = {each.topic: each for each in diagnose(tmp_path)}
    assert {topic for topic, each in found.items() if each.level == "broken"} == set()
    assert {"imports", "devices", "neighbours", "fonts", "lineages"} - set(found) == {"devices"}
    assert found["training"].told.startswith("on ")


def test_a_broken_torch_does_not_break_the_doctor(stub, tmp_path):
    stub("torch", 'raise ImportError("libtorch.so: no such file")')
    command = [sys.executable, "-m", "ke_metric.cli", "doctor", "--json", "--lineages", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    document = json.loads(done.stdout)
    assert not document["ok"]
    broken = {each["topic"]: each for each in document["findings"] if each["level"] == "broken"}
    assert set(broken) == {"torch"}
    assert "libtorch.so: no such file" in broken["torch"]["found"]
    assert broken["torch"]["cure"] == "pip install --force-reinstall torch torchvision"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ('raise ImportError("libcublas is gone")', "ImportError: libcublas is gone"),
        ('raise SystemExit("enough")', "SystemExit: enough"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended the process"),
        ('print("hello"); import os; os._exit(3)', "ended the process"),
    ],
)
def test_whatever_a_library_does_when_imported_is_told(stub, source, told):
    stub("faiss", source)
    found = run_probe("imports", ["json", "faiss"])
    assert found.facts == {"json": None, "faiss": told}
    assert (found.failure is not None) == (told == "ended the process")


def test_a_library_that_does_not_answer_is_left(stub):
    stub("faiss", "import time; time.sleep(60)")
    found = run_probe("imports", ["faiss"], seconds=1)
    assert "did not answer" in found.failure


def test_a_broken_faiss_is_told_once(diagnosed):
    found = diagnosed({"imports": "ended by signal 11: x"}, imports={"faiss": "ended the process"})
    broken = [each for each in found.values() if each.level == "broken"]
    assert [each.topic for each in broken] == ["faiss-cpu"]
    assert "ended by signal 11" in broken[0].told
    assert broken[0].cure == "pip install --force-reinstall --no-deps faiss-cpu"


@pytest.mark.parametrize(
    ("probe", "facts", "failure", "topic"),
    [
        ("devices", {}, "RuntimeError: operator torchvision::nms does not exist", "devices"),
        ("neighbors", {"wrong": ["faiss-cpu"]}, None, "neighbours"),
        ("neighbors", {}, "RuntimeError: no", "neighbours"),
        ("fonts", {"missing": ["STIXGeneral"]}, None, "fonts"),
        ("fonts", {}, "no such font", "fonts"),
    ],
)
def test_what_a_probe_finds_wrong_is_broken_and_has_a_command(diagnosed, probe, facts, failure, topic):
    found = diagnosed({probe: failure}, **{probe: facts})
    assert {each.topic for each in found.values() if each.level == "broken"} == {topic}
    assert found[topic].cure.startswith("pip install")


@pytest.mark.parametrize(("build", "cure"), [(None, "pip install"), ("13.0", "nvidia-smi")])
def test_a_gpu_that_torch_does_not_see_is_advice(diagnosed, monkeypatch, build, cure):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    found = diagnosed(devices={"cuda_build": build})["GPU"]
    assert (found.level, found.cure.startswith(cure)) == ("advice", True)
    assert diagnosed(devices={"cuda": ["H200 (140 GB)"]})["GPU"].told == "H200 (140 GB)"


@pytest.mark.parametrize(("free", "level"), [(10**6, "broken"), (10**9, "advice"), (10**11, "ok")])
def test_a_full_disk_is_told(tmp_path, monkeypatch, free, level):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**12, 0, free))
    found = list(place_findings(tmp_path / "not" / "there"))
    assert [each.level for each in found] == [level, level]
    assert "to be made in" in found[0].told


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(places.tempfile, "TemporaryFile", refuse)
    lineages, temporary = place_findings(tmp_path, tmp_path)
    assert "cannot be written: Permission denied" in lineages.told
    assert "--lineage" in lineages.cure
    assert "TMPDIR" in temporary.cure
    (tmp_path / "file").touch()
    assert "is no folder" in next(place_findings(tmp_path / "file" / "lineages")).told


def test_a_folder_that_may_not_be_looked_at_is_told(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(places.Path, "exists", refuse)
    lineages, _ = place_findings(tmp_path / "private" / "lineages", tmp_path)
    assert (lineages.level, "cannot be looked at: Permission denied" in lineages.told) == ("broken", True)


def test_where_imports_could_not_be_tried_the_command_mends(diagnosed):
    found = diagnosed({"imports": "ModuleNotFoundError: No module named 'ke_metric'"})["imports"]
    assert (found.level, found.cure) == ("broken", "pip install -e '.[cpu]'")
