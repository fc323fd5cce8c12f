"""`ke-metric predict`: the scorecard's own numbers, files, what is left out and what is refused."""

import csv
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from scored_lineages import CLASSES, grow_scored

from ke_metric import Embedder, Predictor
from ke_metric.cli import main
from ke_metric.errors import ExitCode, KeMetricError


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def expect(code, *arguments):
    result = run("predict", *arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stderr if code else result.stdout


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A lineage of two drawn classifiers of ten characters, and its test pictures as files."""
    lineage = grow_scored(tmp_path_factory.mktemp("classes") / "lineage", **CLASSES)
    pictures = lineage.folder.parent / "pictures"
    assert run("data", "pictures", "--lineage", lineage.folder, "--to", pictures).exit_code == ExitCode.OK
    return lineage, pictures


@pytest.mark.parametrize("network", ["dense", "slim"])
def test_the_accuracy_is_the_stored_one_bit_for_bit(network, classes, tmp_path):
    lineage, pictures = classes
    stored = getattr(lineage.scorecard(1), network)
    arguments = ("--lineage", lineage.folder, "--gen", 1, "--network", network, "--json")
    document = json.loads(expect(ExitCode.OK, pictures / "pictures.csv", *arguments))
    assert document["scores"] == dict(stored)
    assert document["scored"] == len(document["pictures"]) > 30
    # The same of a bundle; its batches are other ones.
    assert run("slim", "--lineage", lineage.folder, "--gen", 1, "--network", network, "-o", tmp_path / "b")
    again = json.loads(expect(ExitCode.OK, pictures / "pictures.csv", "--bundle", tmp_path / "b", "--json"))
    assert again["scores"]["top1"] == stored["top1"]
    assert again["model"]["digest"] == document["model"]["digest"]
    right = [picture["predictions"][0]["label"] == picture["label"] for picture in document["pictures"]]
    assert np.mean(right) == pytest.approx(stored["top1"])


def test_the_better_network_of_the_best_generation_is_taken_and_told(classes):
    lineage, pictures = classes
    result = run("predict", pictures / "pictures.csv", "--lineage", lineage.folder)
    assert result.exit_code == ExitCode.OK, result.output
    predictor = Predictor.load(lineage.folder)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("network: ")]
    assert line == f"network: {predictor.description}: the best generation kept, the better one of its networks"
    card = lineage.scorecard(lineage.best)
    assert f"top-1 {100 * max(card.dense['top1'], card.slim['top1']):.1f} %" in predictor.description
    assert f"top-1 {100 * max(card.dense['top1'], card.slim['top1']):.1f} %" in result.stdout
    assert f"always the largest class {100 * card.dense['majority_baseline']:.1f} %" in result.stdout
    assert "more; --json or -o has all" in result.stdout


def test_files_have_what_json_has(classes, tmp_path):
    lineage, pictures = classes
    arguments = (pictures / "pictures.csv", "--lineage", lineage.folder, "-k", 2)
    document = json.loads(expect(ExitCode.OK, *arguments, "-o", tmp_path / "p.csv", "--json"))
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "path", "label", "predicted", "probability", "predicted_2", "probability_2"]
    for row, picture in zip(rows, document["pictures"], strict=True):
        first, second = picture["predictions"]
        assert {name: row[name] for name in ("id", "path", "label")} == {name: picture[name] for name in
                                                                        ("id", "path", "label")}  # fmt: skip
        assert (row["predicted"], row["predicted_2"]) == (first["label"], second["label"])
        assert float(row["probability"]) == pytest.approx(first["probability"], rel=1e-5)
        assert first["probability"] >= second["probability"] > 0
    assert "--overwrite" in expect(ExitCode.USAGE, *arguments, "-o", tmp_path / "p.csv")
    expect(ExitCode.OK, *arguments, "-o", tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["pictures"] == document["pictures"]
    everything = json.loads(expect(ExitCode.OK, *arguments, "-k", 99, "--json"))["pictures"][0]["predictions"]
    assert len(everything) == 10
    assert sum(found["probability"] for found in everything) == pytest.approx(1)


def test_an_unreadable_picture_is_named_and_loses_nothing(classes, tmp_path):
    lineage, pictures = classes
    folder = tmp_path / "photos"
    shutil.copytree(next((pictures / "query").iterdir()), folder / "somewhere")
    (folder / "somewhere" / "broken.png").write_bytes(b"no picture")
    result = run("predict", folder, "--lineage", lineage.folder, "--json")
    assert result.exit_code == ExitCode.OK, result.output
    document = json.loads(result.stdout)
    assert len(document["pictures"]) == 1
    assert [bad["name"] for bad in document["left_out"]] == [str(folder / "somewhere" / "broken.png")]
    assert f"warning: {folder / 'somewhere' / 'broken.png'}: cannot be decoded" in result.stderr
    # A folder that is no class of the network is told, and not scored.
    assert "1 pictures are not scored, their labels are no classes of it: somewhere" in result.stderr
    assert "scores" not in document
    assert "broken.png" in expect(ExitCode.DATA, folder, "--lineage", lineage.folder, "--strict")
    only = folder / "somewhere" / "broken.png"
    assert "none of the 1 pictures can be used" in expect(ExitCode.DATA, only, "--lineage", lineage.folder)


def test_what_is_refused(classes, scored, tmp_path, monkeypatch):
    lineage, pictures = classes
    named = (pictures, "--lineage", lineage.folder)
    assert "no pictures are named" in expect(ExitCode.USAGE, "--lineage", lineage.folder)
    assert "must end in .csv or .json" in expect(ExitCode.USAGE, *named, "-o", tmp_path / "x.txt")
    assert "there is no folder" in expect(ExitCode.USAGE, *named, "-o", tmp_path / "none" / "x.csv")
    assert "no generation 7" in expect(ExitCode.LINEAGE, *named, "--gen", 7)
    told = expect(ExitCode.DATA, pictures, "--lineage", scored.folder)
    assert "gives embeddings, no classes" in told
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scored.folder, tmp_path / "lineages" / "x")
    assert "no lineage of task = 'classification'" in expect(ExitCode.LINEAGE, pictures)


def test_a_cosine_head_needs_the_scale_of_its_loss(tmp_path):
    network = {"backbone": "timm/test_resnet", "head": "cosine"}
    loss, data = {"name": "AdaCosLoss"}, CLASSES["data"] | {"train_classes": 4}
    lineage = grow_scored(tmp_path / "l", **CLASSES | {"network": network, "loss": loss, "data": data})
    predictor = Predictor.load(lineage.folder, 1, "slim")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    logits = predictor.compute(np.stack([predictor.prepare(picture) for picture in pixels]))
    assert 1 < np.abs(logits).max() <= 12.51
    predictor.save(tmp_path / "b")
    again = Predictor.load(tmp_path / "b")
    assert np.array_equal(np.concatenate([batch.logits for batch in again.stream(list(pixels))]), logits)
    assert again.class_names == predictor.class_names == lineage.load(1).provenance.class_names
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = [{found.label: found.probability for found in row} for row in predictor.predict(list(pixels), 4)]
    for row, likely in zip(shares, found, strict=True):
        np.testing.assert_allclose([likely[name] for name in predictor.class_names], row, rtol=1e-5)
    card = predictor._card.model_copy(update={"logit_scale": None})
    with pytest.raises(KeMetricError, match="logit_scale"):
        Predictor(predictor._stored, architecture=predictor._architecture, card=card)


def test_features_of_a_classifier_are_indexed_and_searched(classes, tmp_path):
    lineage, pictures = classes
    built = run("index", "build", pictures / "gallery", "-o", tmp_path / "i", "--lineage", lineage.folder, "--json")
    assert built.exit_code == ExitCode.OK, built.output
    embedder = Embedder.load(lineage.folder)
    model = json.loads(built.stdout)["model"]
    assert model == {"digest": embedder.digest, "description": embedder.description, "stored_here": True}
    found = run("search", pictures / "query", "--index", tmp_path / "i", "-k", 1, "--json")
    assert found.exit_code == ExitCode.OK, found.output
    assert f"network: {embedder.description}: that of the index" in found.stderr
    assert len(json.loads(found.stdout)["queries"]) == 10


@pytest.mark.parametrize("k", ["3", True, 0, 1.5, None])
def test_a_k_that_is_no_number_of_classes_is_refused(classes, k):
    lineage, _ = classes
    predictor = Predictor.load(lineage.folder)
    for pictures in ([], [np.zeros((32, 32, 3), np.uint8)]):
        with pytest.raises(KeMetricError, match=r"k = .*, must be a whole number of at least 1") as raised:
            predictor.predict(pictures, k=k)
        assert raised.value.exit_code == ExitCode.USAGE
