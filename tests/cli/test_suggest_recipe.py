"""`ke-metric recipe`: what goes to stdout and into the file, and the exit codes."""

import json

import pytest
from click.testing import CliRunner

from ke_metric.cli import main
from ke_metric.errors import ExitCode
from ke_metric.recipe.file import load_recipe
from ke_metric.suggestion import suggest
from ke_metric.suggestion.cost import GenerationCost


@pytest.fixture
def pictures(tmp_path, monkeypatch, make_class_folders):
    """A folder of three classes; nothing is timed."""
    monkeypatch.chdir(tmp_path)
    cost = GenerationCost(0.1, 10, 2.0, (1000, 250), {"device": "cpu", "precision": "fp32"})
    monkeypatch.setattr(suggest, "measure", lambda recipe, benchmark, device: cost)
    return make_class_folders(tmp_path / "pictures", 3)


def run(*words, code=0):
    done = CliRunner().invoke(main, ["recipe", *map(str, words)])
    assert done.exit_code == code, done.output
    return done


def test_without_a_file_the_recipe_is_all_that_goes_to_stdout(pictures, tmp_path):
    done = run(pictures)
    (tmp_path / "r.yaml").write_text(done.stdout)
    assert load_recipe(tmp_path / "r.yaml").data.root == str(pictures)
    assert "looking at" in done.stderr


def test_a_file_is_written_once_and_replaced_when_asked(pictures, tmp_path):
    done = run(pictures, "-o", "new/r.yaml")
    assert "next: ke-metric train new/r.yaml" in done.stdout
    before = (tmp_path / "new" / "r.yaml").read_text()
    assert load_recipe(tmp_path / "new" / "r.yaml").name == "r"
    (tmp_path / "new" / "r.yaml").write_text("mine")
    assert "--overwrite" in run(pictures, "-o", "new/r.yaml", code=ExitCode.USAGE).stderr
    assert (tmp_path / "new" / "r.yaml").read_text() == "mine"
    run(pictures, "-o", "new/r.yaml", "--overwrite")
    assert (tmp_path / "new" / "r.yaml").read_text() == before


def test_the_document_has_the_choices_and_the_yaml(pictures):
    document = json.loads(run(pictures, "--json", "--time", "1h").stdout)
    assert document["task"] == "classification"
    assert document["choices"]["data.image_size"]["value"] == 32
    assert document["fits"]
    assert document["yaml"].startswith("# Proposed by")
    assert document["pictures"]["parts"] == {"train": 6, "test": 6}


def test_time_that_is_too_short_is_said(pictures):
    done = run(pictures, "--time", "2s")
    assert "does not fit" in done.stderr
    assert "less would teach nothing" in " ".join(done.stdout.replace("#", "").split())


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["pictures", "--time", "soon"], ExitCode.USAGE, "90s, 30m or 1.5h"),
        (["pictures", "-o", "recipe.txt"], ExitCode.USAGE, "recipe.yaml"),
        (["pictures", "-o", "."], ExitCode.USAGE, ""),
        (["pictures", "--task", "retrieval"], ExitCode.DATA, "needs at least 4"),
        (["nowhere"], ExitCode.DATA, "does not exist"),
        (["pictures", "-o", "pictures/class_0/class_0_0.jpg/r.yaml"], ExitCode.ENVIRONMENT, "cannot be made"),
    ],
)
@pytest.mark.usefixtures("pictures")
def test_what_is_wrong_is_said(words, code, told):
    assert told in run(*words, code=code).stderr
