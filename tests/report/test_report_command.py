"""`ke-metric report`: what it writes where, what it refuses before it computes anything."""

import builtins
import json

import pytest
from click.testing import CliRunner

from ke_metric.cli import main
from ke_metric.errors import ExitCode


def run(*words):
    return CliRunner().invoke(main, ["report", *map(str, words)])


def test_the_page_and_its_figures_are_written(retrieval, tmp_path):
    page, figures = tmp_path / "page.html", tmp_path / "figures"
    found = run(retrieval.lineage.folder, "-o", page, "--figures", figures, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["page"] == str(page)
    assert document["bytes"] == page.stat().st_size
    assert document["missing"] == {}
    assert document["changes"] == list(retrieval.gathered.changes)
    last = retrieval.lineage.scorecard(2)
    assert document["headline"][0]["value"] == last.dense["recall@1"]
    names = {f"{chart.name}{ending}" for chart in retrieval.gathered.report.charts for ending in (".png", ".svg")}
    assert (
        {path.name for path in figures.iterdir()}
        == names
        == {path.rpartition("/")[2] for path in document["figures"]}
    )


def test_without_a_name_it_lies_in_the_folder_of_the_lineage(classification):
    page = classification.lineage.folder / "report.html"
    found = run(classification.lineage.folder)
    assert found.exit_code == 0, found.output
    assert f"report: {page}" in found.stdout
    assert "Top-1 accuracy, dense" in found.stdout
    page.unlink()


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (["-o", "page.pdf"], "must end in .html or .htm", ExitCode.USAGE),
        (["-o", "nowhere/page.html"], "there is no folder nowhere", ExitCode.USAGE),
        (["--baseline", "nowhere"], "no lineage here", ExitCode.LINEAGE),
    ],
)
def test_what_cannot_be_is_refused(retrieval, words, told, code):
    found = run(retrieval.lineage.folder, *words)
    assert found.exit_code == code
    assert told in found.stderr
    assert "cost of the networks" not in found.stderr


def test_no_lineage_is_told(tmp_path):
    found = run(tmp_path)
    assert found.exit_code == ExitCode.LINEAGE
    assert "no lineage here" in found.stderr


@pytest.mark.parametrize("library", ["vl_convert", "jinja2"])
def test_a_missing_library_is_told_with_the_line_that_brings_it(retrieval, library, monkeypatch):
    imported = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    found = run(retrieval.lineage.folder)
    assert found.exit_code == ExitCode.ENVIRONMENT
    assert f"a report needs {library}" in found.stderr
    assert "pip install 'ke_metric[report]'" in found.stderr
