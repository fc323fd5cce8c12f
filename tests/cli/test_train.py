"""What `ke-metric train` and `eval` refuse before they decode a picture, and what they say of unreadable ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ke_metric.cli import export as export_command
from ke_metric.cli import main
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.pixel_store import Pictures
from ke_metric.lineage.store import Lineage
from ke_metric.losses import building
from ke_metric.networks import recipe_networks

RECIPE = """
generations: 1
data: {benchmark: folder, image_size: 32, store_size: 32}
network: {backbone: timm/test_resnet, embedding_size: 8}
loss: {name: TripletMarginLoss}
miner: {name: TripletMarginMiner}
batches: {size: 4, images_per_class: 2}
optimizer: {name: adamw, learning_rate: 1e-3}
training: {epochs: 1, precision: fp32}
evaluation: {resize: 32, recall_at: [1], kmeans_seeds: 1}
"""


@pytest.fixture
def undecoded(monkeypatch):
    """Nothing is decoded: whoever tries fails."""

    def fail(*_, **__):
        raise AssertionError("pictures were decoded")

    monkeypatch.setattr(Pictures, "decode", fail)


@pytest.fixture
def recipe(tmp_path: Path, make_class_folders) -> Path:
    images = make_class_folders(tmp_path / "images", classes=4, images_per_class=3)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.replace("benchmark: folder", f"benchmark: folder, root: {images}"))
    return path


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(code: ExitCode, *arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stderr


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ("loss.name=TripletMarginLos", ExitCode.RECIPE, "did you mean 'TripletMarginLoss'"),
        ("loss.arguments.margn=1", ExitCode.RECIPE, "did you mean 'margin'"),
        ("miner.arguments.type_of_triplets=hardest", ExitCode.RECIPE, "'hard'"),
        ("batches.images_per_class=4", ExitCode.RECIPE, "negative pairs"),
        ("batches.size=64", ExitCode.RECIPE, "asks for 32 classes in a batch"),
        ("split.keep_whole=[backbone.nothing]", ExitCode.RECIPE, "backbone.nothing"),
        ("network.backbone=resnt18", ExitCode.RECIPE, "did you mean 'resnet18'"),
        ("evaluation.backend=faiss-gpu", ExitCode.ENVIRONMENT, "GPU"),
        ("training.precision=fp16", ExitCode.ENVIRONMENT, "needs a GPU"),
    ],
)
def test_what_the_recipe_tells_is_told_before_decoding(recipe, setting, code, words, tmp_path):
    assert words in refused(code, "train", recipe, "--lineage", tmp_path / "l", "--set", setting)
    assert not (tmp_path / "l").exists()


@pytest.mark.usefixtures("undecoded")
def test_what_the_folder_tells_is_told_before_decoding(recipe, scored, tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    shutil.copytree(scored.folder, taken)
    assert "exists. Go on with --resume" in refused(ExitCode.LINEAGE, "train", recipe, "--lineage", taken)
    with Lineage(taken).writing():
        told = refused(ExitCode.LINEAGE, "train", recipe, "--lineage", taken, "--overwrite")
        assert "another process is writing" in told
        longer = ("train", taken / "recipe.resolved.yaml", "--lineage", taken, "--resume", "--set", "generations=3")
        assert "another process is writing" in refused(ExitCode.LINEAGE, *longer)
    assert (taken / "generation-001").exists()
    (taken / "generation-002" / "weights.safetensors").write_bytes(b"torn")
    assert "weights.safetensors" in refused(ExitCode.LINEAGE, *longer)

    assert "is no lineage" in refused(ExitCode.LINEAGE, "train", recipe, "--lineage", tmp_path / "images")
    below = tmp_path / "tiny.yaml" / "l"
    assert "tiny.yaml is no folder" in refused(ExitCode.ENVIRONMENT, "train", recipe, "--lineage", below)
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    told = refused(ExitCode.ENVIRONMENT, "train", recipe, "--lineage", tmp_path / "l")
    assert f"{tmp_path} cannot be written" in told


@pytest.mark.usefixtures("undecoded")
def test_a_full_disk_is_told_before_decoding(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    told = refused(ExitCode.ENVIRONMENT, "train", recipe, "--lineage", tmp_path / "new" / "l")
    assert "1 MB are free" in told
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_test_part_on_which_nothing_can_be_scored_is_refused(recipe, tmp_path, dry):
    images = tmp_path / "images"
    names = sorted(path.name for path in images.iterdir())
    for part, classes in (("train", names[:2]), ("test", names[2:])):
        for name in classes:
            shutil.move(images / name, images / part / name)
    for name in names[2:]:
        for picture in sorted((images / "test" / name).iterdir())[1:]:
            picture.unlink()
    told = refused(ExitCode.DATA, "train", recipe, "--lineage", tmp_path / "l", *dry)
    assert "none of the 2 query picture(s) has another picture of its class to find" in told


@pytest.mark.usefixtures("undecoded")
def test_a_scoring_knows_its_device_before_decoding(scored):
    told = refused(ExitCode.ENVIRONMENT, "eval", "--lineage", scored.folder, "--gen", 1, "--device", "cuda:7")
    assert "cuda:7" in told


def test_an_export_knows_its_backend_before_decoding(scored, tmp_path, monkeypatch):
    copied = tmp_path / "copied"
    shutil.copytree(scored.folder, copied)
    resolved = copied / "recipe.resolved.yaml"
    resolved.write_text(resolved.read_text().replace("backend: torch", "backend: faiss-gpu"))

    def fail(*_):
        raise AssertionError("pictures were decoded")

    monkeypatch.setattr(export_command, "_prepared", fail)
    arguments = ("--lineage", copied, "--format", "onnx", "--int8", "dynamic", "-o", tmp_path / "onnx")
    assert "GPU" in refused(ExitCode.ENVIRONMENT, "export", *arguments)


def test_all_unreadable_pictures_are_named_at_once(recipe, tmp_path):
    """Of the training and of the test part, and the way to look for more."""
    pictures = sorted((tmp_path / "images").rglob("*.jpg"))
    broken = [pictures[1], pictures[4], pictures[10]]
    for picture in broken:
        picture.write_bytes(picture.read_bytes()[:200])
    told = refused(ExitCode.DATA, "train", recipe, "--lineage", tmp_path / "l")
    assert "3 pictures cannot be decoded" in told
    assert [picture for picture in pictures if str(picture) in told] == broken
    assert "ke-metric data check" in told
    assert not (tmp_path / "l").exists()


def test_a_dry_run_and_a_check_tell_of_classes_that_repeat_in_a_batch(recipe, tmp_path):
    """2 of the classes of 3 images are trained on; a batch takes 4 of each: 2 x 6 pairs, one of each a copy."""
    fours = ("--set", "batches.size=8", "--set", "batches.images_per_class=4")
    found = json.loads(run("train", recipe, "--dry-run", "--json", *fours).stdout)
    assert found["repeated_pictures"] == {"classes": 2, "self_pairs": 2, "positive_pairs": 12}
    assert "2 of 12 positive pairs" in run("train", recipe, "--dry-run", *fours).stdout
    assert "repeated_pictures" not in json.loads(run("train", recipe, "--dry-run", "--json").stdout)
    report = json.loads(run("data", "check", tmp_path / "images", "--json").stdout)
    assert report["ok"]
    assert report["notes"]["small classes"].startswith("2 of 2 training classes have fewer than 4 images")


def test_steps_that_taught_nothing_stand_under_the_table(recipe, tmp_path, monkeypatch):
    idle = {"epoch": 1, "loss": 0.0, "idle_steps": 1, "steps": 1}
    monkeypatch.setattr(Lineage, "training_log", lambda *_: (idle,))
    result = run("train", recipe, "--lineage", tmp_path / "l")
    assert "generation 1: 1 of 1 steps had loss 0 or no tuples" in result.stdout
    document = json.loads(run("train", recipe, "--lineage", tmp_path / "l", "--overwrite", "--json").stdout)
    assert document["generations"][0]["idle_steps"] == document["generations"][0]["steps"] == 1


@pytest.mark.parametrize(
    ("loss", "batches", "words"),
    [
        ("TupletMarginLoss", "{size: 4, images_per_class: 2}", "two pictures of one class have the same embedding"),
        ("TripletMarginLoss", "{size: 2, images_per_class: 1}", "two pictures of one class (positive pairs)"),
    ],
)
def test_what_was_trained_so_far_goes_on_with_a_warning(loss, batches, words, recipe, tmp_path, monkeypatch):
    """Lineages of before a loss, its batches or the split of a network were refused."""
    text = recipe.read_text().replace("miner: {name: TripletMarginMiner}\n", "").replace("TripletMarginLoss", loss)
    recipe.write_text(text.replace("{size: 4, images_per_class: 2}", batches))
    folder = tmp_path / "l"
    assert words in refused(ExitCode.RECIPE, "train", recipe, "--lineage", folder)
    with monkeypatch.context() as before:
        before.setattr(building, "rehearse", lambda *_, **__: None)
        first = run("train", recipe, "--lineage", folder)
        assert first.exit_code == ExitCode.OK, (first.stderr, first.exception)
    split = (folder / "generation-001" / "split.json").read_text()

    def refuse(*_, **__):
        raise KeMetricError("this network is refused", ExitCode.RECIPE)

    monkeypatch.setattr(recipe_networks, "plan_split", refuse)
    resolved = folder / "recipe.resolved.yaml"
    result = run("train", resolved, "--lineage", folder, "--resume", "--set", "generations=3")
    assert result.exit_code == ExitCode.OK, (result.stderr, result.exception)
    assert words in result.stderr
    assert result.stderr.count("A new lineage would be refused") == 1
    assert (folder / "generation-003" / "split.json").read_text() == split
    assert Lineage(folder).numbers == [1, 2, 3]
