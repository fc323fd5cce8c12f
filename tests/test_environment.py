"""What a result depends on is named; what is not known is absent, and so is everything private."""

import getpass
import json
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ke_metric import environment
from ke_metric.environment import describe_environment


def git(folder, *command):
    """Run git in a folder, as somebody, whatever repository the tests themselves are run from."""
    settings = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(folder)}
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    done = subprocess.run(
        ["git", *who, *command],
        cwd=folder,
        env={"PATH": environment.os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def source(tmp_path):
    """A source file in a repository of its own."""
    path = tmp_path / "repository" / "package" / "environment.py"
    path.parent.mkdir(parents=True)
    path.write_text("first")
    git(path.parent, "init", "--quiet", "..")
    git(path.parent, "add", ".")
    git(path.parent, "commit", "--quiet", "--message", "first")
    return path


def test_versions_and_hardware():
    facts = describe_environment()
    assert facts["python"] == platform.python_version()
    assert facts["versions"]["torch"] == version("torch")
    assert facts["versions"]["ke_metric"] == version("ke_metric")
    assert facts["cores"] >= 1
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_a_package_that_is_not_installed_is_absent(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    assert describe_environment()["versions"].keys() == {"torch"}


def test_no_paths_and_no_names_of_people_or_hosts():
    text = json.dumps(describe_environment() | {"commit": ""})
    private = [str(Path.home()), str(Path(__file__).parents[1]), sys.prefix, platform.node()]
    if getpass.getuser() != "root":
        private.append(getpass.getuser())
    assert [word for word in private if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)] == []


def test_the_processor_has_a_name(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Big Chip @ 3 GHz\nmodel name\t: another\n")
    assert environment._processor(tmp_path / "cpuinfo") == "Big Chip @ 3 GHz"


def test_a_processor_nobody_names_is_absent(monkeypatch):
    monkeypatch.setattr(environment, "_processor", lambda: "")
    assert "processor" not in describe_environment()


@pytest.mark.parametrize("text", [None, "Features : fp asimd\n"])
def test_without_a_model_name_the_platform_is_asked(tmp_path, monkeypatch, text):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert environment._processor(tmp_path / "cpuinfo") == "arm"


def test_the_commit_of_our_source(source):
    commit = git(source.parent, "rev-parse", "HEAD")
    assert environment._commit(source) == {"commit": commit, "commit_changed": False}


def test_a_changed_or_new_file_beside_it_is_told(source):
    (source.parent / "new.py").write_text("new")
    assert environment._commit(source)["commit_changed"]
    (source.parent / "new.py").unlink()
    source.write_text("second")
    assert environment._commit(source)["commit_changed"]


def test_a_change_elsewhere_in_the_repository_is_none_of_ours(source):
    (source.parents[1] / "notes.txt").write_text("new")
    assert not environment._commit(source)["commit_changed"]


def test_an_installed_package_has_no_commit(tmp_path):
    assert environment._commit(tmp_path / "environment.py") == {}


def test_a_package_installed_inside_another_repository_has_no_commit(source):
    installed = source.parents[1] / ".venv" / "ke_metric" / "environment.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("ours")
    assert environment._commit(installed) == {}


def test_the_variables_of_a_git_hook_mislead_nobody(source, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert environment._commit(source)["commit"] == git(source.parent, "rev-parse", "HEAD")


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_without_git_there_is_no_commit(source, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert environment._commit(source) == {}
