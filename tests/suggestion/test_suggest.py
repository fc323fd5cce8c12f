"""A proposed recipe loads as it was meant, and its dry run passes, whatever the pictures are."""

import pytest

from ke_metric.benchmarks.listings import Columns
from ke_metric.cli.train import dry_run
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.file import load_recipe
from ke_metric.suggestion import suggest
from ke_metric.suggestion.suggest import duration, parse_duration, suggest_recipe


@pytest.fixture
def untimed(monkeypatch, cost):
    """Nothing is timed; gives the recipes that would have been."""
    asked = []

    def measured(recipe, benchmark, device):
        asked.append(recipe)
        return cost

    monkeypatch.setattr(suggest, "measure", measured)
    return asked


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("name", ["grey", "transparent", "few classes", "pairs", "long", "list"])
def test_the_file_loads_and_its_dry_run_passes(folders, listing, tmp_path, name):
    path, columns = (listing, Columns("file", "bird")) if name == "list" else (folders[name], Columns())
    found = suggest_recipe(path, device="cpu", columns=columns)
    file = tmp_path / "my recipe.yaml"
    file.write_text(found.text, encoding="utf-8")
    recipe = load_recipe(file, ["name=suggested"])
    assert recipe == found.recipe
    assert dry_run(recipe, device="cpu", folder=tmp_path / "lineage").document["train"]["images"] > 0


@pytest.mark.usefixtures("untimed")
def test_every_reason_is_in_the_file(folders):
    found = suggest_recipe(folders["grey"], device="cpu")
    comments = " ".join(line.partition("#")[2].strip() for line in found.text.splitlines() if "#" in line)
    for choice in found.chosen:
        assert " ".join(choice.reason.split()) in comments, choice
    assert all(len(line) <= 110 or "root:" in line for line in found.text.splitlines())
    assert found.to_json()["choices"]["augmentation.flip"]["value"] == 0


@pytest.mark.usefixtures("untimed")
def test_names_that_yaml_would_misread_are_quoted(folders, tmp_path):
    odd = tmp_path / "no: #1 \"ünï\\'"
    odd.symlink_to(folders["few classes"])
    found = suggest_recipe(odd, device="cpu")
    (tmp_path / "r.yaml").write_text(found.text, encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml").data.root == str(odd)


def test_time_that_is_short_takes_cheaper_scales_until_the_steps_are_enough(folders, untimed, cost):
    found = suggest_recipe(folders["long"], device="cpu", seconds=10)
    assert [recipe.data.image_size for recipe in untimed] == [128, 96, 64, 32]
    assert not found.fits
    assert "less would teach nothing" in found.time_text
    untimed.clear()
    found = suggest_recipe(folders["long"], device="cpu", seconds=3 * cost.seconds(30) / 0.9 + 60)
    assert [recipe.data.image_size for recipe in untimed] == [128]
    assert found.fits
    assert found.seconds <= found.available


def test_a_device_that_is_not_there_is_told_before_pictures_are_decoded(folders, monkeypatch):
    monkeypatch.setattr(suggest, "survey_pictures", lambda *words, **options: pytest.fail("decoded"))
    with pytest.raises(KeMetricError) as refused:
        suggest_recipe(folders["long"], device="cuda:99")
    assert refused.value.exit_code in (ExitCode.ENVIRONMENT, ExitCode.USAGE)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), (" 2m ", 120)])
def test_times_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "0m", "-1h", "1d", "1h30m", "nan s"])
def test_other_times_are_none(text):
    assert parse_duration(text) is None


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (99, "99 s"), (600, "10 minutes"), (7200, "2.0 hours")])
def test_times_are_told(seconds, text):
    assert duration(seconds) == text
