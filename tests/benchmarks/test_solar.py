"""Solar cells: classes, splits and what is refused."""

import shutil

import numpy as np
import pytest

from ke_metric.benchmarks import solar
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import count_parts
from ke_metric.recipe.schema import Data

LEVELS = ("0.00", "0.33", "0.67", "1.00")
CLASSES = tuple(f"{module_type} {level}" for module_type in ("mono", "poly") for level in LEVELS)
# Of the fixture's pictures, drawn by a hash of their names: another list would be another benchmark.
HALF = tuple(f"cell{number:04}.png" for number in (2, 7, 8, 11, 13, 14, 16, 17, 19, 20, 21, 22, 23, 25, 26, 28))
QUARTER = tuple(f"cell{number:04}.png" for number in (16, 17, 19, 20, 21, 22, 23, 26))


@pytest.fixture
def root(make_solar, tmp_path):
    return make_solar(tmp_path / "solar")


def load(root, task="classification", **fields):
    return load_benchmark(Data(benchmark="solar", root=str(root), **{"verify_counts": False, **fields}), task)


def refused(root, **fields):
    with pytest.raises(KeMetricError) as raised:
        load(root, **fields)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


def change(root, line, text):
    path = root / "elpv_dataset" / "data" / "labels.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines), encoding="utf-8")


def test_retrieval_learns_from_one_type_and_is_tested_on_the_other(root):
    benchmark = load(root, "retrieval")
    assert benchmark.train.class_names == CLASSES[:4]
    assert benchmark.query.class_names == CLASSES[4:]
    assert benchmark.gallery is benchmark.query
    assert (len(benchmark.train), len(benchmark.query)) == (16, 16)
    assert benchmark.train.keys[:5] == (*(f"cell000{number}.png" for number in (1, 2, 3, 4, 9)),)
    assert benchmark.notes["split"] == "monocrystalline for training, polycrystalline for testing"


def test_classification_divides_the_pictures_of_every_class(root):
    benchmark = load(root)
    assert benchmark.train.class_names == benchmark.query.class_names == CLASSES
    for images in (benchmark.train, benchmark.query):
        assert np.bincount(images.labels).tolist() == [2] * 8
    assert not set(benchmark.train.keys) & set(benchmark.query.keys)
    assert tuple(sorted(benchmark.query.keys)) == HALF


def test_a_smaller_share_is_a_part_of_a_larger_one(root):
    benchmark = load(root, test_fraction=0.25)
    assert tuple(sorted(benchmark.query.keys)) == QUARTER
    assert set(QUARTER) < set(HALF)


def test_the_draw_depends_on_the_names_and_the_classes_alone(root, tmp_path):
    expected = load(root)
    data = root / "elpv_dataset" / "data"
    lines = (data / "labels.csv").read_text(encoding="utf-8").splitlines()
    (data / "labels.csv").write_text("\r\n".join(reversed(lines)), encoding="utf-8")
    for outer, place in {"repository": "elpv-dataset/src/elpv_dataset/data", "alone": "elpv-dataset"}.items():
        shutil.copytree(data, tmp_path / outer / place)
        for folder in (tmp_path / outer, tmp_path / outer / "elpv-dataset"):
            found = load(folder)
            assert (found.train.keys, found.query.keys) == (expected.train.keys, expected.query.keys)
            assert found.query.source.read(found.query.keys[0]).size == (30, 30)


def test_a_shortened_probability_is_the_same_one(root):
    before = load(root)
    change(root, 2, "images/cell0002.png 0.33 mono")
    change(root, 1, "images/cell0001.png 0 mono")
    after = load(root)
    assert (after.train.keys, after.train.labels.tolist()) == (before.train.keys, before.train.labels.tolist())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("images/cell0003.png 0.5 mono", "line 3: the probability must be 0, 1/3, 2/3 or 1, not '0.5'"),
        ("images/cell0003.png nan mono", "line 3: the probability must be 0, 1/3, 2/3 or 1, not 'nan'"),
        ("images/cell0003.png high mono", "line 3: the probability must be 0, 1/3, 2/3 or 1, not 'high'"),
        ("images/cell0003.png 0.0 thin", "line 3: the type must be mono or poly, not 'thin'"),
        ("cell0003.png 0.0 mono", "line 3: expected images/file.png, found 'cell0003.png'"),
        ("images/../cell0003.png 0.0 mono", "leaves the data folder"),
        ("images/cell0003.png 0.0", "line 3"),
        ("images/cell0004.png 1.0 mono", "listed more than once"),
        ("images/cell9999.png 1.0 mono", "cell9999.png. Is the archive unpacked completely?"),
    ],
)
def test_a_wrong_line_is_told_with_what_is_wrong(root, text, told):
    change(root, 3, text)
    for task in ("retrieval", "classification"):
        assert told in refused(root, task=task)


def test_a_picture_with_two_classes_is_refused(root):
    change(root, 3, "images/cell0004.png 0.0 poly")
    for task in ("retrieval", "classification"):
        assert "1 images are listed more than once: cell0004.png" in refused(root, task=task)


def test_the_published_counts_are_those_of_every_class(root, monkeypatch):
    assert sum(solar.COUNTS.values()) == 2624
    assert len(solar.COUNTS) == len(CLASSES)
    message = refused(root, verify_counts=True)
    assert "not the published benchmark" in message
    assert "images of class mono 0.00: expected 588, found 4" in message
    assert "images of class poly 1.00: expected 402, found 4" in message
    assert "data.verify_counts = false" in message
    monkeypatch.setattr(solar, "COUNTS", dict.fromkeys(solar.COUNTS, 4))
    for task in ("retrieval", "classification"):
        counts = count_parts(load(root, task, verify_counts=True))
        assert {part: found.images for part, found in counts.items()} == {"train": 16, "test": 16}
    monkeypatch.setitem(solar.COUNTS, 5, 3)
    assert "images of class poly 0.33: expected 3, found 4" in refused(root, verify_counts=True)


def test_missing_files_name_the_layout_and_the_command(tmp_path):
    message = refused(tmp_path)
    assert "elpv_dataset/data/labels.csv, elpv_dataset/data/images/" in message
    assert "ke-metric data prepare solar" in message
