"""Figures: the numbers drawn are those of the lineages."""

import json
import statistics

import pytest
from click.testing import CliRunner

from eval.figures import run as figures
from eval.figures.run import Curve, fit_values, grouped, magnitude_curves, score_curves
from ke_metric import Lineage
from ke_metric.cli import main
from ke_metric.errors import KeMetricError

TINY = """
task: {task}
generations: 2
keep: all
data: {{benchmark: glyphs, train_classes: 6, image_size: 32, store_size: 32}}
network: {{backbone: squeezenet1_1}}
loss: {{name: {loss}}}
batches: {{size: 8, images_per_class: 2}}
optimizer: {{name: adamw, learning_rate: 1e-3}}
training: {{epochs: 1, precision: fp32, channels_last: false}}
evaluation: {{resize: 32, recall_at: [1], kmeans_seeds: 1}}
"""


@pytest.fixture(scope="module")
def grow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lineages")

    def grown(task, *settings):
        loss = {"retrieval": "ProxyAnchorLoss", "classification": "CrossEntropyLoss"}[task]
        path = folder / f"{task}{len(list(folder.iterdir()))}.yaml"
        path.write_text(TINY.format(task=task, loss=loss))
        target = str(folder / f"{path.stem}-lineage")
        overrides = [f"--set={setting}" for setting in settings]
        result = CliRunner().invoke(main, ["train", str(path), "--lineage", target, *overrides])
        assert result.exit_code == 0, result.output
        return Lineage(target)

    return grown


@pytest.fixture(scope="module")
def lineage(grow):
    return grow("classification")


def test_spread_is_that_of_the_seeds_generation_by_generation():
    spread = Curve("x", [[1.0, 2.0, 3.0], [3.0, 2.0]]).spread()
    assert spread == [(2.0, statistics.stdev([1, 3])), (2.0, 0.0)]
    assert Curve("x", [[1.0, 5.0]]).spread() == [(1.0, 0.0), (5.0, 0.0)]


def test_the_fit_hypothesis_of_kels_scores_as_its_slim_network(lineage):
    """Scored as that of WELS is: the dense network with its reset hypothesis set to zero."""
    assert figures._scored_without_reset_part(lineage) == pytest.approx(fit_values(lineage), abs=1e-9)


def test_the_fit_hypothesis_of_wels_is_the_network_without_the_rest(grow):
    whole = grow("retrieval", "split.kind=wels", "split.rate=1.0", "data.test_classes=4")
    dense, fit = score_curves({"": [whole]})
    assert fit.values == dense.values
    assert (dense.label, fit.label) == ("dense", "fit hypothesis (rest zero)")


def test_magnitudes_are_means_over_layers(lineage):
    fit, reset = magnitude_curves([lineage])
    card = json.loads((lineage.generation_folder(2) / "scorecard.json").read_text())
    pairs = [pair for pair in card["magnitudes"].values() if None not in pair]
    assert fit.values[0][1] == pytest.approx(sum(each for each, _ in pairs) / len(pairs))
    assert reset.values[0][1] == pytest.approx(sum(each for _, each in pairs) / len(pairs))


@pytest.mark.parametrize("figure", ["curves", "magnitudes"])
def test_a_figure_is_written_with_its_numbers(figure, lineage, tmp_path, monkeypatch):
    named = f"KELS={lineage.folder}" if figure == "curves" else str(lineage.folder)
    monkeypatch.setattr("sys.argv", ["figures.py", figure, named, "-o", str(tmp_path / "f" / "drawn_0.5")])
    figures.main()
    assert (tmp_path / "f" / "drawn_0.5.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "f" / "drawn_0.5.svg").read_text()
    numbers = json.loads((tmp_path / "f" / "drawn_0.5.json").read_text())
    assert list(numbers) == (["score"] if figure == "curves" else ["score", "magnitude"])
    assert numbers["score"][1]["seeds"] == [fit_values(lineage)]


def test_lineages_need_labels(lineage):
    assert {name: len(found) for name, found in grouped([f"a={lineage.folder}"]).items()} == {"a": 1}
    with pytest.raises(KeMetricError, match="of one recipe and one seed"):
        grouped([f"a={lineage.folder}", f"a={lineage.folder}"])
    with pytest.raises(SystemExit, match="is not LABEL=LINEAGE"):
        grouped(["lineage"])
