"""`ke-metric export`: which network, what is compared and scored, what is printed, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scored_lineages import CLASSES, grow_scored

from ke_metric import Predictor
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli import export as command
from ke_metric.cli import main
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.retrieval import score_retrieval
from ke_metric.export.export import ExportSettings
from ke_metric.export.onnx_file import OnnxNetwork
from ke_metric.export.record import top_cost
from ke_metric.generation import Generation, Provenance
from ke_metric.images.image_set import without_training
from ke_metric.images.pixel_store import Pictures
from ke_metric.lineage.store import Lineage
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.embedder import Embedder
from ke_metric.scoring import Scorer
from ke_metric.training.engine import Engine

FIELDS = {
    "name": "x",
    "generations": 1,
    "data": {"benchmark": "glyphs", "image_size": 32, "store_size": 48, "train_classes": 8, "test_classes": 8},
    "network": {"backbone": "timm/test_resnet", "embedding_size": 8},
    "evaluation": {"resize": 40, "kmeans_seeds": 1},
}


def run(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def expect(code, *arguments):
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stderr if code else result.stdout


@pytest.fixture(scope="module")
def lineage(tmp_path_factory):
    """A lineage whose only generation was drawn, not trained, and scored as a generation is."""
    recipe = Recipe.model_validate(FIELDS)
    lineage = Lineage.create(tmp_path_factory.mktemp("l") / "l", recipe, text="x", command="x")
    networks = LineageNetworks(recipe, 0)
    network = networks.build(1).eval()
    plan = networks.plan(network, 1)
    benchmark = without_training(load_benchmark(recipe.data, recipe.task))
    pictures = Pictures.decode(benchmark, recipe.data.store_size, store_shape=recipe.data.store_shape)
    lineage.append(
        Generation(
            number=1,
            weights=network.state_dict(),
            loss_weights={},
            split=plan.to_json(),
            split_bits=plan.to_tensors(),
            scorecard=Scorer(pictures, recipe, Engine("fp32", "cpu")).scorecard(network, plan),
            training_log=(),
            magnitudes={},
            provenance=Provenance("x", None, 0, {}, {}, {}, ()),
        )
    )
    return lineage


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for n in range(33):
        pixels = np.random.default_rng(n).integers(0, 256, (4, 5, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((50, 40)).save(folder / f"{n}.png")
    return folder


def test_the_scorecard_comes_out_of_the_file(lineage, tmp_path):
    arguments = ("--lineage", lineage.folder, "--format", "onnx", "-o", tmp_path / "e")
    document = json.loads(expect(ExitCode.OK, *arguments, "--json"))
    assert document["folder"] == str(tmp_path / "e")
    assert document["verification"]["source"] == "queries of glyphs"
    assert document["verification"]["pictures"] == 96
    assert document["recall_at_1"] is None
    embedder, network = Embedder.load(lineage.folder), OnnxNetwork(tmp_path / "e")
    assert document["digest"] == network.digest == embedder.digest
    images = load_benchmark(lineage.recipe.data, "retrieval").query
    pixels = np.stack([embedder.prepare(images.read(n)) for n in range(len(images))])
    scores = score_retrieval(network(pixels), images.labels, (1,))
    assert document["embedder"] == embedder.description
    stored = lineage.load(1).scorecard.dense
    assert scores["recall@1"] == pytest.approx(stored["recall@1"], abs=0.001)
    assert scores["map@r"] == pytest.approx(stored["map@r"], abs=0.001)


def test_integers_are_scored_on_the_benchmark_and_calibrated_on_its_training_part(lineage, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "CALIBRATED", 20)
    arguments = ("--lineage", lineage.folder, "--gen", 1, "--network", "dense", "--format", "onnx")
    arguments = (*arguments, "--int8", "static", "--max-loss", 100, "-o", tmp_path / "e")
    shown = expect(ExitCode.OK, *arguments)
    record = json.loads((tmp_path / "e" / "export.json").read_text())
    assert record["recall_at_1"]["pytorch"] == pytest.approx(lineage.load(1).scorecard.dense["recall@1"])
    assert record["calibration_pictures"] == 20
    assert f"{record['recall_at_1']['exported']:.4f} with the file" in shown


def test_a_bundle_is_compared_on_a_folder(lineage, photos, tmp_path):
    Embedder.load(lineage.folder).save(tmp_path / "bundle")
    arguments = ("--bundle", tmp_path / "bundle", "--format", "torch-export", "-o", tmp_path / "e")
    assert "--pictures" in expect(ExitCode.USAGE, *arguments)
    document = json.loads(expect(ExitCode.OK, *arguments, "--pictures", photos, "--json"))
    assert (document["verification"]["pictures"], document["verification"]["source"]) == (33, str(photos))
    assert "--overwrite" in expect(ExitCode.USAGE, *arguments, "--pictures", photos)
    (photos / "0.png").rename(tmp_path / "0.png")
    (photos / "1.png").rename(tmp_path / "1.png")
    try:
        told = expect(ExitCode.DATA, *arguments, "--pictures", photos, "--overwrite")
    finally:
        (tmp_path / "0.png").rename(photos / "0.png")
        (tmp_path / "1.png").rename(photos / "1.png")
    assert "31 pictures" in told


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--format", "onnx", "--gen", 4), ExitCode.LINEAGE, "no generation 4"),
        (("--format", "onnx", "--bundle", "x"), ExitCode.USAGE, "--bundle is one network"),
        (("--format", "torch-export", "--int8", "dynamic"), ExitCode.USAGE, "must be 'onnx'"),
        (("--format", "onnx", "--max-loss", 3), ExitCode.USAGE, "for --int8 alone"),
        (("--format", "onnx", "--int8", "dynamic", "--max-loss", 3, "--pictures", "x"), ExitCode.USAGE, "excludes"),
        (("--format", "onnx", "--int8", "dynamic", "--max-loss", "nan"), ExitCode.USAGE, "from 0 to 100"),
        (("--format", "tflite"), ExitCode.USAGE, "'tflite' is not one of"),
        ((), ExitCode.USAGE, "--format"),
    ],
)
def test_what_cannot_be_exported(arguments, code, words, lineage, tmp_path):
    assert words in expect(code, "--lineage", lineage.folder, "-o", tmp_path / "e", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_newest_lineage_is_taken_and_named(lineage, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lineages").mkdir()
    (tmp_path / "lineages" / "newest").symlink_to(lineage.folder)
    result = run("--format", "torch-export", "-o", "e", "--pictures", photos)
    assert result.exit_code == 0, result.output
    assert "newest lineage: lineages/newest" in result.stderr


def test_a_classifier_is_exported_with_its_classes_and_scored_by_top1(tmp_path):
    grown = grow_scored(tmp_path / "c", **CLASSES)
    arguments = ("--lineage", grown.folder, "--gen", 1, "--network", "dense", "--format", "torch-export")
    result = run(*arguments, "-o", tmp_path / "e", "--json")
    assert result.exit_code == ExitCode.OK, result.output
    document, predictor = json.loads(result.stdout), Predictor.load(grown.folder, 1, "dense")
    assert f"network: {predictor.description}" in result.stderr
    assert (document["embedder_digest"], document["output"]) == (predictor.digest, "logits")
    assert document["class_names"] == list(predictor.class_names)
    assert document["verification"]["source"] == "queries of glyphs"
    # With 8-bit integers, what they cost would be measured on this:
    scored = command._of_lineage(grown, predictor, ExportSettings("onnx", "dynamic")).scored
    assert scored.classes
    cost = top_cost(predictor.compute, lambda pixels: -predictor.compute(pixels), scored)
    assert cost.pytorch == grown.scorecard(1).dense["top1"] != cost.exported


def test_pictures_are_spread_over_all_there_are():
    chosen = command._spread(1000)
    assert (len(chosen), chosen[0], chosen[-1]) == (command.COMPARED, 0, 999)
    assert np.diff(chosen).max() <= 11
    assert command._spread(40).tolist() == list(range(40))


def test_a_gallery_of_its_own_is_searched(lineage, monkeypatch):
    whole = load_benchmark(lineage.recipe.data, "retrieval")
    query, gallery = (whole.query.at(np.arange(start, len(whole.query), 2)) for start in (0, 1))
    apart = replace(whole, query=query, gallery=gallery)
    monkeypatch.setattr(command, "load_benchmark", lambda *given: apart)
    scored = command._of_lineage(lineage, Embedder.load(lineage.folder), ExportSettings("onnx", "dynamic")).scored
    assert scored.query.keys == query.keys
    assert scored.gallery.keys == gallery.keys


def test_the_network_runs_on_the_processor(lineage, tmp_path, monkeypatch):
    seen = []

    def watched(model):
        seen.append(model.device)
        raise KeMetricError("seen", ExitCode.DATA)

    monkeypatch.setattr(command, "load_either", watched)
    expect(ExitCode.DATA, "--lineage", lineage.folder, "--format", "torch-export", "-o", tmp_path / "e")
    assert seen == ["cpu"]
