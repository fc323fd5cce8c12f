"""The script that holds a training against its limit runs, on a handful of small steps."""

import statistics

import pytest

from eval.speed import freed_memory, training
from ke_metric.training import compiling


def test_every_row_is_measured(tmp_path, monkeypatch):
    small = ["data.image_size=32", "data.store_size=32", "evaluation.resize=32", "training.precision=fp32"]
    small += ["network.backbone=resnet18"]
    of_recipe = training.training_of
    monkeypatch.setattr(training, "training_of", lambda name, changes: of_recipe(name, [*changes, *small]))
    monkeypatch.setattr(training, "PICTURE", (60, 40))
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    text = training.measured(training.ROWS, tmp_path, 1, training.Sizes(resnet18=2, cars=1, emoji=1, batch=4))
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "images/s" not in line]
    assert len(rows) == len(training.ROWS)
    for row in rows:
        assert len(row) == 8
        assert row[-1] in ("yes |", "no |", "– |")
    assert "- command: " in text


@pytest.mark.parametrize("way", ["bare", "authors"])
def test_the_other_ways_learn_as_much_as_ours(tmp_path, way):
    """Or they would be quick because they do something else."""
    training.write_photographs(tmp_path, classes=3, each=4, size=(60, 40))
    small = ["data.image_size=32", "data.store_size=32", "evaluation.resize=32", "training.precision=fp32"]
    changes = ["data.benchmark=folder", f"data.root={tmp_path}", "data.workers=0", "batches.size=4", *small]
    found = training.training_of("cub_resnet18", [*changes, "optimizer.learning_rate=0.01"])
    epochs = training.Bare(found) if way == "bare" else training.Authors(found, tmp_path / "train")
    twin = epochs.network
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    epochs()
    moved = [name for name, value in twin.named_parameters() if not value.equal(before[name])]
    assert len(moved) == len(list(twin.parameters()))
    assert statistics.mean([float(twin.state_dict()[name]) for name in before if "tracked" in name]) == 3


@pytest.mark.slow
def test_memory_that_is_kept_is_not_cleared_again(capsys):
    table = freed_memory.measured(1, {"emoji": 2, "resnet18": 2}).splitlines()[-4:]
    pages = [float(line.split("|")[3].split()[0]) for line in table]
    assert pages[1] < pages[0]
    assert pages[3] < pages[2]
