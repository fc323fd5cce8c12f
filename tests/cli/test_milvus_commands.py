"""What docs/milvus.md shows is run against a real server, from top to bottom; what it finds is what FAISS finds."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1]))  # milvus_server

import milvus_server

from ke_metric.cli import main
from ke_metric.errors import ExitCode

if not (milvus_server.URI in os.environ or milvus_server.is_installed()):
    pytest.skip("milvus is not installed, or no network namespace can be made", allow_module_level=True)
pytest.importorskip("milvus_lite")

DOCUMENT = (Path(__file__).parents[2] / "docs" / "milvus.md").read_text(encoding="utf-8")
LINES = re.findall(r"^ke-metric (.*)$", DOCUMENT, re.MULTILINE)
pytestmark = pytest.mark.slow


def expect(code, *arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result.stderr if code else json.loads(result.stdout)


@pytest.fixture
def folder(scored, glyph_files, tmp_path, monkeypatch):
    """What the lines of the page speak of."""
    shutil.copytree(scored.folder, tmp_path / "lineages" / "demo")
    shutil.copytree(glyph_files / "gallery", tmp_path / "pictures")
    shutil.copytree(glyph_files / "query", tmp_path / "more")
    shutil.copy(next((glyph_files / "query").rglob("*.png")), tmp_path / "new.png")
    monkeypatch.chdir(tmp_path)
    milvus_server.drop("ke_metric")
    yield tmp_path
    milvus_server.drop("ke_metric")


def told(line, *more):
    words = shlex.split(line.replace("http://milvus.example:19530", milvus_server.server_uri()))
    return expect(ExitCode.OK, *words, *more, "--json")


def test_the_lines_of_the_page(folder):
    assert [line.split(" -")[0] for line in LINES] == [
        "index build pictures/",
        "index build",
        "index add more/",
        "search new.png",
        "index info",
        "index remove",
        "eval",
    ]
    _, build, add, search, info, remove, evaluate = LINES
    told(LINES[0])
    expect(ExitCode.OK, "index", "build", "--from", "photos.index", "-o", "flat.index", "--factory", "Flat", "--json")
    assert told(build)["store"]["uri"] == milvus_server.server_uri()
    assert told(add)["added"] == told(add.replace("shared.index", "flat.index"))["added"] == 5
    found, exact = (told(line)["queries"] for line in (search, search.replace("shared.index", "flat.index")))
    assert len(found[0]["results"]) == len(exact[0]["results"]) > 5
    for one, other in zip(found[0]["results"], exact[0]["results"], strict=True):
        assert one["similarity"] == pytest.approx(other["similarity"], abs=1e-6)
    assert [one["id"] for one in found[0]["results"]] == [one["id"] for one in exact[0]["results"]]
    assert told(info)["items"] == told(info.replace("shared.index", "flat.index"))["items"]
    scores = told(evaluate)
    flat = told(f"{evaluate.split(' --store')[0]} --store faiss --factory Flat")
    assert scores["store"]["dense"] == flat["store"]["dense"]
    assert scores["store"]["slim"] == flat["store"]["slim"]
    assert set(scores["store"]["loss"]["dense"].values()) == {0.0}
    assert told(remove)["items"] == 0


def test_a_server_that_goes_away_is_told_and_what_was_acknowledged_is_there(folder):
    server = milvus_server.MilvusServer(milvus_server.QUICK)
    try:
        told(LINES[0])
        told(LINES[1].replace("http://milvus.example:19530", server.uri))
        items = told(LINES[4])["items"]
        server.kill()
        for line in (LINES[2], LINES[3]):
            assert f"{server.uri}: connecting: Milvus says: Fail" in expect(ExitCode.ENVIRONMENT, *shlex.split(line))
        server.start()
        assert told(LINES[4])["items"] == items
        assert told(LINES[2])["added"] == 5
    finally:
        server.stop()
