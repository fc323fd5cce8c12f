"""The table of benchmarks, and keeping some of the classes."""

import itertools
import sys

import numpy as np
import pytest

from ke_metric.data.benchmarks import BENCHMARKS, load_benchmark
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe import Data


@pytest.fixture
def folders(make_class_folders, tmp_path):
    return make_class_folders(tmp_path / "pictures", 12, 2)


def load(root, benchmark="folder", **fields):
    return load_benchmark(Data(benchmark=benchmark, root=str(root), verify_counts=False, **fields))


def test_the_table_has_the_names_of_the_recipe():
    assert set(BENCHMARKS) == {"glyphs", "emoji", "folder", "cub", "cars", "sop", "inshop"}


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        BENCHMARKS["mine"] = BENCHMARKS["cub"]


def test_one_benchmark_does_not_need_the_module_of_another(folders, monkeypatch):
    for name in ("emoji", "glyphs", "cars"):
        monkeypatch.setitem(sys.modules, f"ke_metric.data.{name}", None)
    assert load(folders).name == "folder"


def test_a_misspelt_benchmark_is_refused_with_the_closest():
    with pytest.raises(KeMetricError) as raised:
        load_benchmark(Data(benchmark="in-shop"))
    assert raised.value.exit_code is ExitCode.RECIPE
    assert "did you mean 'inshop'" in str(raised.value)
    assert all(name in str(raised.value) for name in BENCHMARKS)


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
