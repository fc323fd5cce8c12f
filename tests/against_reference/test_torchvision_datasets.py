"""Our readers of Flowers102 and FGVC-Aircraft give what torchvision's give: the same files with the same labels."""

from pathlib import Path

import pytest
from torchvision.datasets import FGVCAircraft, Flowers102

from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.recipe.schema import Data


def ours(name, root, **fields):
    data = Data(benchmark=name, root=str(root), verify_counts=False, **fields)
    benchmark = load_benchmark(data, "classification")
    return {"train": benchmark.train, "val": benchmark.validation, "test": benchmark.query}


def labels_by_file(images):
    return dict(zip(images.keys, images.labels.tolist(), strict=True))


def theirs(dataset):
    # The lists behind its items have no public name.
    return {Path(file).name: label for file, label in zip(dataset._image_files, dataset._labels, strict=True)}


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_flowers(make_flowers, tmp_path, monkeypatch, part):
    root = make_flowers(tmp_path / "flowers-102")
    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)
    assert labels_by_file(ours("flowers", root)[part]) == theirs(Flowers102(tmp_path, split=part))


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_aircraft(make_aircraft, tmp_path, part):
    root = make_aircraft(tmp_path)
    assert labels_by_file(ours("aircraft", root)[part]) == theirs(FGVCAircraft(tmp_path, split=part))


def test_aircraft_trainval(make_aircraft, tmp_path):
    root = make_aircraft(tmp_path)
    joined = ours("aircraft", root, train_on="trainval")
    assert joined["val"] is None
    assert labels_by_file(joined["train"]) == theirs(FGVCAircraft(tmp_path, split="trainval"))
