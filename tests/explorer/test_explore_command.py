"""The process: `ke-metric explore` says where it is, answers, and ends when it is told to."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1]))  # scored_lineages

from scored_lineages import CLASSES, grow_scored

from ke_metric.cli import main
from ke_metric.cli.explore import open_page
from ke_metric.errors import ExitCode
from ke_metric.serving.exchange import TOKEN_VARIABLE


@pytest.fixture(scope="module")
def lineage(tmp_path_factory):
    return grow_scored(tmp_path_factory.mktemp("command") / "lineage").folder


def run(*arguments):
    return CliRunner(env={TOKEN_VARIABLE: None}).invoke(main, ["explore", "--no-browser", *map(str, arguments)])


def test_it_answers_until_it_is_told_to_end(lineage):
    command = [
        sys.executable,
        "-m",
        "ke_metric.cli",
        "explore",
        "--lineage",
        str(lineage),
        "--port",
        "0",
        "--no-browser",
    ]
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        with urlopen(f"{found[0]}/api/state", timeout=20) as answer:
            assert json.load(answer)["title"] == "lineage"
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
        assert printed == said == ""


@pytest.mark.parametrize(
    ("platform", "screen", "opens"), [("linux", ":0", True), ("linux", "", False), ("darwin", "", True)]
)
def test_the_page_is_opened_where_there_is_a_screen(monkeypatch, platform, screen, opens):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", screen)
    open_page("http://127.0.0.1:8050")
    assert opened == ["http://127.0.0.1:8050"] * opens


def test_one_that_is_named_twice_is_refused(lineage):
    result = run("--lineage", lineage, "--index", lineage)
    assert result.exit_code == ExitCode.USAGE
    assert "not both" in result.stderr


def test_another_host_needs_a_token(lineage):
    result = run("--lineage", lineage, "--host", "0.0.0.0")
    assert result.exit_code == ExitCode.USAGE
    assert "--token-file" in result.stderr


def test_a_port_that_is_taken_is_told_before_anything_is_decoded(lineage):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--lineage", lineage, "--port", taken.getsockname()[1])
    assert result.exit_code == ExitCode.ENVIRONMENT
    assert "cannot be listened on" in result.stderr
    assert "decoding" not in result.stderr


def test_what_is_not_there_is_told(tmp_path):
    assert run("--port", 0, "--lineage", tmp_path).exit_code == ExitCode.LINEAGE
    assert run("--port", 0, "--index", tmp_path).exit_code != ExitCode.OK


def test_a_classification_is_sent_to_the_report(tmp_path):
    result = run("--port", 0, "--lineage", grow_scored(tmp_path / "classes", **CLASSES).folder)
    assert result.exit_code == ExitCode.LINEAGE
    assert "ke-metric report" in result.stderr


def test_the_cores_are_shared_before_torch_is_there():
    """OpenMP reads how its threads wait when torch is imported, and never again."""
    program = "import sys, ke_metric.cli.explore; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_where_only_classifications_were_trained_the_report_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["explore", "--no-browser"])
    assert result.exit_code == ExitCode.LINEAGE
    assert "ke-metric report" in result.stderr
    named = CliRunner().invoke(main, ["explore", "--no-browser", "--lineage", "gone"])
    assert named.exit_code == ExitCode.LINEAGE
    assert "ke-metric report" not in named.stderr
