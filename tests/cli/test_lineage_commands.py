"""`ke-metric lineages`: what is printed, what is asked, and the exit codes."""

import json
import shutil
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ke_metric.cli import main
from ke_metric.errors import ExitCode
from ke_metric.lineage.folder import REPORT
from ke_metric.lineage.store import Lineage
from ke_metric.report.vectors import LineageVectors


@pytest.fixture
def trained(scored, tmp_path, monkeypatch):
    """A folder with a copy of a small lineage in lineages/one, and a damaged one beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "broken"):
        shutil.copytree(scored.folder, tmp_path / "lineages" / name)
    (tmp_path / "lineages" / "broken" / "lineage.json").write_text("{}")
    return tmp_path / "lineages"


def run(*words, code=0, **options):
    done = CliRunner().invoke(main, ["lineages", *words], **options)
    assert done.exit_code == code, done.output
    return done


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("words", [["--json"], ["list", "--json"], ["--json", "list", "lineages"]])
def test_the_list_is_one_document_with_a_damaged_lineage_in_it(words):
    document = json.loads(run(*words).stdout)
    found = {each["folder"]: each for each in document["lineages"]}
    assert set(found) == {"lineages/one", "lineages/broken"}
    assert "format version None" in found["lineages/broken"]["damage"]
    assert found["lineages/one"]["done"] == found["lineages/one"]["planned"] == 2


@pytest.mark.usefixtures("trained")
def test_the_list_is_read_by_people():
    text = run().stdout
    assert "2 lineages" in text
    assert "2 of 2" in text
    assert "lineages/broken is damaged" in text


@pytest.mark.usefixtures("trained")
def test_a_lineage_is_shown_with_scores_weights_and_what_comes_next(scored):
    document = json.loads(run("show", "lineages/one", "--json").stdout)
    assert document["command"] == scored.facts["command"]
    assert [each["dense"] for each in document["generations"]] == [
        dict(scored.scorecard(number).dense) for number in scored.numbers
    ]
    assert set(document["weights"]) == {"1", "2"}
    assert any("--set generations=3" in each["command"] for each in document["next"])
    assert "weights kept" in run("show", "lineages/one").stdout
    assert "format version None" in run("show", "lineages/broken", code=ExitCode.LINEAGE).stderr


def test_nothing_goes_where_nobody_can_be_asked(trained):
    done = run("remove", "lineages/one", code=ExitCode.USAGE)
    assert "to be removed: lineages/one" in done.stderr
    assert "--yes" in done.stderr
    assert (trained / "one").is_dir()


class Terminal:
    """A standard input where somebody sits."""

    @staticmethod
    def isatty():
        return True


@pytest.mark.parametrize("agreed", [False, True])
def test_who_can_be_asked_is_asked(trained, monkeypatch, agreed):
    monkeypatch.setattr("ke_metric.cli.lineage_commands.sys", SimpleNamespace(stdin=Terminal))
    monkeypatch.setattr("click.confirm", lambda *words, **options: agreed)
    run("remove", "lineages/one", code=0 if agreed else ExitCode.USAGE)
    assert (trained / "one").is_dir() != agreed


def test_removed_is_removed_and_told_in_one_document(trained):
    document = json.loads(run("remove", "lineages/one", "lineages/broken", "--yes", "--json").stdout)
    assert document["removed"]
    assert document["bytes"] > 0
    assert not list(trained.iterdir())


def test_a_lineage_that_was_looked_at_is_removed_like_any_other(trained):
    """Its page and the vectors that the page or the explorer computed are its own."""
    lineage = Lineage(trained / "one")
    LineageVectors.open(lineage).vectors(1, "dense")
    (lineage.folder / REPORT).touch()
    assert (lineage.folder / "vectors").is_dir()
    run("remove", "lineages/one", "--yes")
    assert not lineage.folder.exists()


def test_agreeing_beforehand_does_not_agree_to_what_is_not_the_lineage_s_own(trained):
    (trained / "one" / "src").mkdir()
    done = run("remove", "lineages/one", "--yes", code=ExitCode.LINEAGE)
    assert "not the lineage's own: src" in done.stderr
    assert (trained / "one" / "src").is_dir()


def test_weights_alone_go(trained):
    first = trained / "one" / "generation-001"
    card = json.loads((first / "scorecard.json").read_text())
    card["dense"]["recall@1"] = 0.0
    (first / "scorecard.json").write_text(json.dumps(card))
    document = json.loads(run("remove", "--weights", "lineages/one", "--yes", "--json").stdout)
    assert document["bytes"] > 0
    assert set(json.loads(run("show", "lineages/one", "--json").stdout)["weights"]) == {"2"}
    assert "nothing to remove" in run("remove", "--weights", "lineages/one").stdout


def test_a_folder_that_is_no_lineage_is_refused(trained):
    (trained / "photos").mkdir()
    assert "is no lineage" in run("remove", "--yes", "lineages/photos", code=ExitCode.LINEAGE).stderr


def test_a_name_that_would_steer_a_terminal_is_shown_and_not_obeyed(trained):
    name = "z\x1b[2J[red]z"
    (trained / "one").rename(trained / name)
    (trained / "broken").rename(trained / f"{name}2")
    shown = (
        run().stdout,
        run("show", f"lineages/{name}").stdout,
        run("show", f"lineages/{name}2", code=ExitCode.LINEAGE).stderr,
        run("remove", f"lineages/{name}", code=ExitCode.USAGE).stderr,
    )
    for text in shown:
        assert "\x1b" not in text
        assert r"z\x1b[2J[red]z" in text
