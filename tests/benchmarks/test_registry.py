"""The table of benchmarks, fields that nobody would read, and keeping some of the classes."""

import importlib
import inspect
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from ke_metric.benchmarks.registry import BENCHMARKS, NAMES, READERS, default_task, load_benchmark
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data

EVERY_READER = [(task, name) for task, readers in BENCHMARKS.items() for name in readers]


@pytest.fixture
def folders(make_class_folders, tmp_path):
    return make_class_folders(tmp_path / "pictures", 12, 2)


def load(root, benchmark="folder", task="retrieval", **fields):
    return load_benchmark(Data(benchmark=benchmark, root=str(root), verify_counts=False, **fields), task)


def refused(*arguments, **fields):
    with pytest.raises(KeMetricError) as raised:
        load(*arguments, **fields)
    assert raised.value.exit_code is ExitCode.RECIPE
    return str(raised.value)


def test_the_table_has_the_names_of_the_recipe():
    ours = {"glyphs", "emoji", "folder", "solar", "cub", "cars"}
    assert set(BENCHMARKS["retrieval"]) == {*ours, "sop", "inshop"}
    assert set(BENCHMARKS["classification"]) == {*ours, "flowers", "aircraft", "mit67", "dogs"}
    fields = Path(__file__).parents[2] / "docs" / "recipe-fields.md"
    described = re.search(r"^\| `data.benchmark` \|.*\| (.*) \|$", fields.read_text(encoding="utf-8"), re.MULTILINE)[
        1
    ]
    assert set(described.partition(":")[2].strip(" .").split(", ")) == set(NAMES)


@pytest.mark.parametrize(("task", "name"), EVERY_READER)
def test_every_reader_of_the_table_exists(task, name):
    module, _, function = READERS[name][task].partition(".")
    assert callable(getattr(importlib.import_module(f"ke_metric.benchmarks.{module}"), function))


def test_no_reader_is_missing_from_the_table():
    listed = {place for tasks in READERS.values() for place in tasks.values()}
    found = set()
    for module in {place.partition(".")[0] for place in listed}:
        functions = vars(importlib.import_module(f"ke_metric.benchmarks.{module}"))
        found |= {
            f"{module}.{name}"
            for name, function in functions.items()
            if callable(function)
            and function.__module__ == f"ke_metric.benchmarks.{module}"
            and inspect.signature(function).return_annotation == "Benchmark"
        }
    assert found == listed


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        BENCHMARKS["mine"] = BENCHMARKS["retrieval"]
    with pytest.raises(TypeError):
        BENCHMARKS["retrieval"]["mine"] = BENCHMARKS["retrieval"]["cub"]


def test_one_benchmark_does_not_need_the_module_of_another(folders, monkeypatch):
    for name in ("emoji", "glyphs", "cars"):
        monkeypatch.setitem(sys.modules, f"ke_metric.benchmarks.{name}", None)
    assert load(folders).name == "folder"


def test_a_misspelt_benchmark_is_refused_with_the_closest():
    with pytest.raises(KeMetricError) as raised:
        load_benchmark(Data(benchmark="in-shop"))
    assert raised.value.exit_code is ExitCode.RECIPE
    assert "did you mean 'inshop'" in str(raised.value)
    assert all(name in str(raised.value) for name in BENCHMARKS["retrieval"])


def test_the_task_is_retrieval_unless_another_is_asked_for(folders):
    assert load_benchmark(Data(benchmark="folder", root=str(folders))).task == "retrieval"
    assert load(folders, task="classification").task == "classification"
    assert [default_task(name) for name in ("cub", "sop", "dogs")] == ["retrieval", "retrieval", "classification"]


@pytest.mark.parametrize(("name", "task"), [("sop", "classification"), ("dogs", "retrieval")])
def test_a_benchmark_without_the_task_is_refused_with_those_that_have_it(tmp_path, name, task):
    message = refused(tmp_path, name, task)
    assert f"data.benchmark = {name!r} is no benchmark for {task}" in message
    assert ", ".join(BENCHMARKS[task]) in message


@pytest.mark.parametrize(
    ("name", "task", "fields", "read_by"),
    [
        ("cub", "retrieval", {"test_fraction": 0.3}, "in classification by glyphs, emoji, folder"),
        ("cub", "classification", {"test_fraction": 0.3}, "in retrieval by glyphs, emoji, folder"),
        ("solar", "retrieval", {"test_fraction": 0.3}, "in classification by glyphs, emoji, folder, solar"),
        ("folder", "classification", {"test_classes": 3}, "in retrieval by"),
        ("folder", "retrieval", {"train_on": "trainval"}, "in classification by"),
        ("cub", "classification", {"crop_banner": True}, "in classification by aircraft"),
        ("inshop", "retrieval", {"crop_banner": True}, "in classification by aircraft"),
    ],
)
def test_a_field_that_nobody_would_read_is_refused(tmp_path, name, task, fields, read_by):
    message = refused(tmp_path, name, task, **fields)
    (field,) = fields
    assert f"data.{field} = " in message
    assert f"data.benchmark = {name!r} and task = {task!r}" in message
    assert read_by in message


def test_a_field_with_its_default_is_no_field_that_is_set(folders):
    # A resolved recipe writes out every field, and has to run again.
    defaults = {name: field.default for name, field in Data.model_fields.items()}
    for task in BENCHMARKS:
        data = Data.model_validate({**defaults, "benchmark": "folder", "root": str(folders)})
        assert load_benchmark(data, task).task == task


def test_fewer_training_classes_are_kept_in_order_and_renumbered(folders):
    whole, cut = load(folders), load(folders, train_classes=4)
    kept = set(cut.train.class_names)
    expected = [
        (key, whole.train.class_names[label])
        for key, label in zip(whole.train.keys, whole.train.labels, strict=True)
        if whole.train.class_names[label] in kept
    ]
    found = [(key, cut.train.class_names[label]) for key, label in zip(cut.train.keys, cut.train.labels, strict=True)]
    assert found == expected
    assert np.unique(cut.train.labels).tolist() == [0, 1, 2, 3]
    assert cut.train.labels.dtype == np.int64
    assert cut.query is not None
    assert cut.query.keys == whole.query.keys
    assert cut.notes["train classes kept"] == "4 of 6"


def test_fewer_classes_are_a_part_of_more(folders):
    kept = [set(load(folders, train_classes=count).train.class_names) for count in range(2, 7)]
    assert all(fewer < more for fewer, more in itertools.pairwise(kept))


def test_fewer_test_classes_stay_one_set(folders):
    cut = load(folders, test_classes=2)
    assert cut.leave_one_out
    assert len(cut.query) == 4
    assert cut.notes["test classes kept"] == "2 of 6"


def test_query_and_gallery_keep_the_same_classes(make_inshop, tmp_path):
    root = make_inshop(tmp_path / "inshop")
    whole, cut = load(root, "inshop"), load(root, "inshop", test_classes=2)
    assert not cut.leave_one_out
    assert cut.query.class_names == cut.gallery.class_names
    assert len(cut.query.class_names) == 2
    for before, after in ((whole.query, cut.query), (whole.gallery, cut.gallery)):
        kept = [
            key
            for key, label in zip(before.keys, before.labels, strict=True)
            if before.class_names[label] in after.class_names
        ]
        assert list(after.keys) == kept
        assert all(after.class_names[label] in key for key, label in zip(after.keys, after.labels, strict=True))


def test_classes_that_only_the_gallery_has_are_not_drawn(tmp_path, make_picture):
    rows = ["path,label,split"]
    for name, splits in {"a": ["train"], "b": ["query", "gallery"], "c": ["query", "gallery"]}.items():
        rows += [f"{name}_{split}.jpg,{name},{split}" for split in splits]
    rows += [f"d{number}.jpg,d{number},gallery" for number in range(20)]
    for row in rows[1:]:
        make_picture(tmp_path / row.partition(",")[0])
    (tmp_path / "list.csv").write_text("\n".join(rows))
    assert load(tmp_path / "list.csv", test_classes=2).query.class_names == ("b", "c")


@pytest.mark.parametrize("field", ["train_classes", "test_classes"])
def test_more_classes_than_there_are_are_refused_with_both_numbers(folders, field):
    load(folders, **{field: 6})
    with pytest.raises(KeMetricError) as raised:
        load(folders, **{field: 7})
    assert raised.value.exit_code is ExitCode.RECIPE
    assert f"data.{field} = 7" in str(raised.value)
    assert "has 6" in str(raised.value)


@pytest.fixture
def parted(make_class_folders, tmp_path):
    """Six classes in all three parts."""
    names = [f"class_{number}" for number in range(6)]
    for part, count in {"train": 4, "val": 2, "test": 3}.items():
        make_class_folders(tmp_path / "parted" / part, names, count)
    return tmp_path / "parted"


def named(images):
    return {(key, images.class_names[label]) for key, label in zip(images.keys, images.labels, strict=True)}


def test_classification_keeps_the_same_classes_in_every_part(parted):
    whole, cut = load(parted, task="classification"), load(parted, task="classification", train_classes=3)
    kept = set(cut.train.class_names)
    assert len(kept) == 3
    for part in ("train", "validation", "query"):
        before, after = getattr(whole, part), getattr(cut, part)
        assert after.class_names == cut.train.class_names
        assert named(after) == {(key, name) for key, name in named(before) if name in kept}
    assert cut.gallery is cut.query
    assert cut.notes["train classes kept"] == "3 of 6"


def test_classes_without_any_test_image_cannot_be_all_that_is_kept(make_class_folders, tmp_path):
    make_class_folders(tmp_path / "train", [f"class_{number}" for number in range(12)], 2)
    kept = load(make_class_folders(tmp_path / "all", 12, 4), task="classification", train_classes=2).train.class_names
    make_class_folders(tmp_path / "test", sorted({f"class_{number}" for number in range(12)} - set(kept)), 2)
    message = refused(tmp_path, task="classification", train_classes=2)
    assert "data.train_classes = 2: the test part of 'folder' has no image of those classes" in message


def test_validation_images_are_held_out_of_the_classes_that_are_kept(make_class_folders, tmp_path):
    root = make_class_folders(tmp_path / "pictures", 6, 6)
    whole = load(root, task="classification", validation_fraction=0.4)
    cut = load(root, task="classification", validation_fraction=0.4, train_classes=4)
    assert len(cut.validation) == 4
    assert cut.notes["validation"].startswith("4 training images held out")
    # The same images whatever classes are beside them.
    assert named(cut.validation) == {pair for pair in named(whole.validation) if pair[1] in cut.train.class_names}


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_wrong_labels_are_shuffled_ones(make_class_folders, tmp_path, task):
    root = make_class_folders(tmp_path / "pictures", 12, 10)
    clean, some, more = (load(root, task=task, label_noise=share) for share in (0.0, 0.3, 0.6))
    assert "label noise" not in clean.notes
    assert some.train.keys == clean.train.keys
    assert some.train.class_names == clean.train.class_names
    wrong = [np.flatnonzero(noisy.train.labels != clean.train.labels) for noisy in (some, more)]
    for noisy, share, indices in zip((some, more), (0.3, 0.6), wrong, strict=True):
        assert 0.5 * share * len(clean.train) < len(indices) <= round(share * len(clean.train))
        assert noisy.notes["label noise"] == f"{len(indices)} of {len(clean.train)} training labels are wrong"
        # Every class is as large as it was, and what is scored is right.
        assert np.bincount(noisy.train.labels).tolist() == np.bincount(clean.train.labels).tolist()
        assert noisy.query.labels.tolist() == clean.query.labels.tolist()
        assert np.array_equal(noisy.train.labels, load(root, task=task, label_noise=share).train.labels)


def test_held_out_images_keep_their_labels(make_class_folders, tmp_path):
    root = make_class_folders(tmp_path / "pictures", 4, 20)
    clean, noisy = (
        load(root, task="classification", label_noise=share, validation_fraction=0.3) for share in (0.0, 0.9)
    )
    assert noisy.validation.keys == clean.validation.keys
    assert noisy.validation.labels.tolist() == clean.validation.labels.tolist()
    assert (noisy.train.labels != clean.train.labels).mean() > 0.4
