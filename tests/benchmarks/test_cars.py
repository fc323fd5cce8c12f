"""Stanford Cars in its three layouts."""

import re

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from ke_metric.benchmarks import cub_and_cars as readers
from ke_metric.benchmarks.table import PublishedCounts
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data

LAYOUTS = ("A", "B", "C")


def read(root, **fields):
    return readers.read_cars(Data(benchmark="cars", root=str(root), **{"verify_counts": False, **fields}))


def classify(root, **fields):
    return readers.read_cars_classification(
        Data(benchmark="cars", root=str(root), **{"verify_counts": False, **fields})
    )


def refused(root, reader=read, **fields):
    with pytest.raises(KeMetricError) as raised:
        reader(root, **fields)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_classes_up_to_98_train_in_every_layout(make_cars, tmp_path, layout):
    benchmark = read(make_cars(tmp_path / "cars", layout))
    assert [int(re.findall(r"Model (\d+)", name)[0]) for name in benchmark.train.class_names] == [1, 2, 97, 98]
    assert benchmark.query.class_names == (
        "Make Model 99 2012",
        "Ram C/V Cargo Van Minivan 2012",
        "Make Model 196 2012",
    )
    assert np.bincount(benchmark.train.labels).tolist() == [4, 4, 4, 4]
    assert np.bincount(benchmark.query.labels).tolist() == [4, 4, 4]
    assert benchmark.notes["layout"].startswith(f"layout {layout}")


def class_of_every_key(benchmark):
    return {
        key: images.class_names[label]
        for images in (benchmark.train, benchmark.query)
        for key, label in zip(images.keys, images.labels, strict=True)
    }


NAMES = (
    *(f"Make Model {number} 2012" for number in (1, 2, 97, 98, 99)),
    "Ram C/V Cargo Van Minivan 2012",
    "Make Model 196 2012",
)


def test_every_picture_of_layout_a_has_the_class_of_its_record(make_cars, tmp_path):
    found = class_of_every_key(read(make_cars(tmp_path / "cars", "A")))
    assert found == {f"{number + 1:06d}.jpg": NAMES[number // 4] for number in range(28)}


def test_every_picture_of_layout_b_has_the_class_of_its_record(make_cars, tmp_path):
    # One number in both folders is two pictures: joining by number is a known bug.
    found = class_of_every_key(read(make_cars(tmp_path / "cars", "B")))
    expected = {f"cars_train/{number + 1:05d}.jpg": NAMES[number // 2] for number in range(14)}
    expected |= {f"cars_test/{number + 1:05d}.jpg": NAMES[::-1][number // 2] for number in range(14)}
    assert found == expected


def test_every_picture_of_layout_c_has_the_class_of_its_folder(make_cars, tmp_path):
    found = class_of_every_key(read(make_cars(tmp_path / "cars", "C")))
    assert len(found) == 28
    assert all(name.replace("/", "-") == key.split("/")[1] for key, name in found.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_are_in_the_order_of_their_bytes(make_cars, tmp_path, layout):
    benchmark = read(make_cars(tmp_path / "cars", layout))
    for images in (benchmark.train, benchmark.query):
        assert list(images.keys) == sorted(images.keys, key=str.encode)


def test_the_field_order_of_the_annotations_does_not_matter(make_cars, tmp_path):
    root = make_cars(tmp_path / "cars", "A")
    before = read(root)
    content = loadmat(root / "cars_annos.mat")
    records = content["annotations"]
    turned = np.empty(records.shape, dtype=[(name, object) for name in reversed(records.dtype.names)])
    for name in records.dtype.names:
        turned[name] = records[name]
    savemat(root / "cars_annos.mat", {"annotations": turned, "class_names": content["class_names"]})
    after = read(root)
    assert before.train.keys == after.train.keys
    assert np.array_equal(before.query.labels, after.query.labels)


def test_layout_a_is_preferred_where_several_are_there(make_cars, tmp_path):
    for layout in LAYOUTS:
        make_cars(tmp_path / "cars", layout)
    assert read(tmp_path / "cars").notes["layout"].startswith("layout A")


def test_the_devkit_may_lie_nested_as_in_web_copies(make_cars, tmp_path):
    root = make_cars(tmp_path / "cars", "B")
    (root / "car_devkit").mkdir()
    (root / "devkit").rename(root / "car_devkit" / "devkit")
    (root / "cars_test_annos_withlabels.mat").rename(root / "car_devkit/devkit/cars_test_annos_withlabels.mat")
    assert len(read(root).train) == 16


def test_test_annotations_without_classes_are_recognized(make_cars, tmp_path):
    root = make_cars(tmp_path / "cars", "B")
    (root / "cars_test_annos_withlabels.mat").unlink()
    message = refused(root)
    assert "missing: cars_test_annos_withlabels.mat" in message
    assert "cars_test_annos.mat has no classes" in message


def test_unlabelled_annotations_under_the_labelled_name_are_refused(make_cars, tmp_path):
    root = make_cars(tmp_path / "cars", "B")
    (root / "devkit" / "cars_test_annos.mat").replace(root / "cars_test_annos_withlabels.mat")
    assert "no field class" in refused(root)


def test_the_train_part_alone_is_recognized(make_cars, tmp_path):
    root = make_cars(tmp_path / "cars", "B")
    (root / "cars_test").rename(tmp_path / "elsewhere")
    (root / "devkit" / "cars_test_annos.mat").unlink()
    message = refused(root)
    assert "only the train part" in message
    assert "missing: cars_test/" in message


@pytest.mark.parametrize(("total", "part"), [(8144, "train"), (8041, "test")])
def test_the_count_of_one_official_part_is_recognized(total, part):
    assert f"official {part} part" in readers.CARS_COUNTS.suspects[total]


def test_the_published_counts_add_up():
    (train, train_classes), (test, test_classes) = (
        readers.CARS_COUNTS.parts["train"],
        readers.CARS_COUNTS.parts["test"],
    )
    assert train + test == 16185 == sum(readers.CARS_COUNTS.suspects)
    assert train_classes + test_classes == 196


def test_a_class_without_name_is_refused(make_cars, tmp_path):
    root = make_cars(tmp_path / "cars", "C")
    names = (root / "names.csv").read_text().splitlines(keepends=True)
    (root / "names.csv").write_text("".join(names[:-1]))
    message = refused(root)
    assert "no name: 196" in message
    assert "195" in message


def test_a_malformed_row_of_layout_c_is_named(make_cars, tmp_path):
    root = make_cars(tmp_path / "cars", "C")
    text = (root / "anno_test.csv").read_text()
    (root / "anno_test.csv").write_text("00001.jpg,1,2,3\n" + text)
    message = refused(root)
    assert "anno_test.csv, line 1" in message
    assert "6 columns" in message


def test_a_class_that_is_no_number_is_named(make_cars, tmp_path):
    root = make_cars(tmp_path / "cars", "C")
    text = (root / "anno_train.csv").read_text()
    (root / "anno_train.csv").write_text(text + "00099.jpg,1,2,3,4,convertible\n")
    assert "'convertible'" in refused(root)


def official_parts(root):
    benchmark = classify(root)
    assert benchmark.gallery is benchmark.query
    assert benchmark.train.class_names == benchmark.query.class_names == NAMES
    assert np.bincount(benchmark.train.labels).tolist() == np.bincount(benchmark.query.labels).tolist() == [2] * 7
    return benchmark


def test_the_official_flag_of_layout_a_is_in_the_records(make_cars, tmp_path):
    benchmark = official_parts(make_cars(tmp_path / "cars", "A"))
    assert benchmark.train.keys == tuple(f"{number:06d}.jpg" for number in range(1, 29, 2))
    assert benchmark.query.keys == tuple(f"{number:06d}.jpg" for number in range(2, 29, 2))
    assert class_of_every_key(benchmark) == {f"{number + 1:06d}.jpg": NAMES[number // 4] for number in range(28)}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("layout", "train", "test"), [("B", "cars_train/", "cars_test/"), ("C", "train/", "test/")])
def test_the_official_parts_of_layouts_b_and_c_are_their_folders(make_cars, tmp_path, layout, train, test, nested):
    root = make_cars(tmp_path / "cars", layout, nested=nested)
    benchmark = official_parts(root)
    assert all(key.startswith(train) for key in benchmark.train.keys)
    assert all(key.startswith(test) for key in benchmark.query.keys)
    assert class_of_every_key(benchmark) == class_of_every_key(read(root))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_of_the_official_parts_are_in_the_order_of_their_bytes(make_cars, tmp_path, layout):
    benchmark = classify(make_cars(tmp_path / "cars", layout))
    for images in (benchmark.train, benchmark.query):
        assert list(images.keys) == sorted(images.keys, key=str.encode)


def test_only_classification_needs_the_flag_of_layout_a(make_cars, tmp_path):
    root = make_cars(tmp_path / "cars", "A")
    content = loadmat(root / "cars_annos.mat")
    records = content["annotations"]
    kept = [name for name in records.dtype.names if name != "test"]
    flagless = np.empty(records.shape, dtype=[(name, object) for name in kept])
    for name in kept:
        flagless[name] = records[name]
    savemat(root / "cars_annos.mat", {"annotations": flagless, "class_names": content["class_names"]})
    assert read(root).train.keys
    assert "no field test" in refused(root, classify)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_official_counts_are_verified(make_cars, tmp_path, monkeypatch, layout):
    assert readers.OFFICIAL_CARS_COUNTS.parts == {"train": (8144, 196), "test": (8041, 196)}
    assert readers.OFFICIAL_CARS_COUNTS.class_sizes == (48, 136)
    root = make_cars(tmp_path / "cars", layout)
    assert "train images: expected 8,144, found 14" in refused(root, classify, verify_counts=True)
    monkeypatch.setattr(readers, "OFFICIAL_CARS_COUNTS", PublishedCounts({"train": (14, 7), "test": (14, 7)}))
    assert len(classify(root, verify_counts=True).train) == 14
