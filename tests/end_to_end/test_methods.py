"""Other methods than Knowledge Evolution through the real commands: train, eval, slim, dry run."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ke_metric import Lineage
from ke_metric.cli import main
from ke_metric.errors import ExitCode
from ke_metric.methods import METHODS
from ke_metric.recipe.file import load_recipe

TINY = """
generations: 2
keep: all
data: {benchmark: glyphs, train_classes: 6, test_classes: 4, image_size: 32, store_size: 32}
network: {backbone: squeezenet1_1, embedding_size: 8}
loss: {name: ProxyAnchorLoss}
batches: {size: 8, images_per_class: 2}
optimizer: {name: adamw, learning_rate: 1e-3}
training: {epochs: 1, precision: fp32}
evaluation: {resize: 32, recall_at: [1], kmeans_seeds: 1}
"""
# What a method needs beside its name.
NEEDS = {
    "later_layer_forgetting": ["method.layers=[head]"],
    "repr": ["method.cycles=1", "method.full_epochs=1", "method.dropped_epochs=1", "training.epochs=3"],
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def expect(code: ExitCode, *arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result


def settings(name: str) -> list[str]:
    return [f"--set={setting}" for setting in (f"method.name={name}", *NEEDS.get(name, ()))]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> tuple[Path, dict]:
    """A finished lineage of the slim architecture alone, and what training printed."""
    folder = tmp_path_factory.mktemp("alone") / "lineage"
    printed = expect(ExitCode.OK, "train", recipe, *settings("slim_alone"), "--lineage", folder, "--json").stdout
    return folder, json.loads(printed)


def test_slim_alone_is_trained_and_scored_again_without_a_slim_row(alone):
    folder, document = alone
    assert [set(generation) for generation in document["generations"]] == [{"generation", "dense"}] * 2
    result = expect(ExitCode.OK, "eval", "--lineage", folder, "--gen", 2, "--json")
    scored = json.loads(result.stdout)
    assert scored == {"lineage": str(folder), "untrained": scored["untrained"], **document["generations"][1]}
    assert "equal to the stored scorecard" in result.stderr
    both = expect(ExitCode.OK, "eval", "--lineage", folder, "--gen", "all", "--network", "both").stdout
    assert "slim" not in both


def test_slim_alone_has_no_slim_network_to_ask_for(alone, tmp_path):
    folder, _ = alone
    told = expect(ExitCode.LINEAGE, "eval", "--lineage", folder, "--gen", 2, "--network", "slim").stderr
    assert "method.name = 'slim_alone'" in told
    told = expect(ExitCode.LINEAGE, "slim", "--lineage", folder, "--gen", 2, "-o", tmp_path / "n").stderr
    assert "slim_alone" in told


def test_a_dry_run_counts_the_network_that_is_trained(alone, recipe):
    lineage = Lineage(alone[0])
    document = json.loads(expect(ExitCode.OK, "train", recipe, *settings("slim_alone"), "--dry-run", "--json").stdout)
    assert "parameters_slim" not in document
    assert document["parameters"] == lineage.scorecard(1).dense_parameters
    dense = json.loads(expect(ExitCode.OK, "train", recipe, "--dry-run", "--json").stdout)
    assert document["parameters"] == dense["parameters_slim"]


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_with_every_default_written_out_is_read_again(name, recipe, tmp_path):
    given = load_recipe(recipe, [setting.removeprefix("--set=") for setting in settings(name)])
    resolved = tmp_path / "recipe.resolved.yaml"
    resolved.write_text(given.to_yaml())
    assert load_recipe(resolved) == given
    assert load_recipe(resolved).digest == given.digest


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("method.layers=[haed]", "method.layers: the network has no weights in a layer 'haed'; did you mean 'head'"),
        ("method.layers=head", "--set method.layers=head: method.layers = 'head', must be a list of names"),
        ("method.layres=[head]", "unknown field 'method.layres'; did you mean 'layers'"),
        ("method.share=0.3", "method.share = 0.3, is not read by later_layer_forgetting"),
        ("method.name=later_layer", "did you mean 'later_layer_forgetting'"),
    ],
)
def test_what_is_wrong_shows_before_anything_is_trained(setting, words, recipe, tmp_path):
    arguments = ("--set=method.name=later_layer_forgetting", "--set=method.layers=[head]", f"--set={setting}")
    for command in (("--dry-run",), ("--lineage", tmp_path / "lineage")):
        assert words in expect(ExitCode.RECIPE, "train", recipe, *arguments, *command).stderr
    assert not (tmp_path / "lineage").exists()


def test_a_layer_wise_lineage_does_not_become_longer(recipe, tmp_path):
    arguments = ("train", recipe, *settings("layer_wise"), "--lineage", tmp_path / "lineage")
    expect(ExitCode.OK, *arguments)
    told = expect(ExitCode.LINEAGE, *arguments, "--resume", "--set=generations=3").stderr
    assert "generations = 3, the lineage has 2 (layer_wise shares its units out" in told
