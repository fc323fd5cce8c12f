"""The user's own pictures, end to end: folders and CSV files to a benchmark."""

import csv

import numpy as np
import pytest

from ke_metric.benchmarks import folder
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data


def read(root, **fields):
    return folder.read(Data(benchmark="folder", root=str(root), **fields))


def classify(root, **fields):
    return folder.read_classification(Data(benchmark="folder", root=str(root), **fields))


def refused(root, reader=read, exit_code=ExitCode.DATA, **fields):
    with pytest.raises(KeMetricError) as raised:
        reader(root, **fields)
    assert raised.value.exit_code is exit_code
    return str(raised.value)


def write_csv(path, rows, header=("path", "label", "split")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def class_of_every_key(images):
    return {key: images.class_names[label] for key, label in zip(images.keys, images.labels, strict=True)}


@pytest.fixture
def root(make_class_folders, tmp_path):
    return make_class_folders(tmp_path / "pictures", ["ant", "bee", "cat", "dog", "eel", "fox"], 3)


def test_every_picture_has_the_class_of_its_folder(root):
    benchmark = read(root)
    found = class_of_every_key(benchmark.train) | class_of_every_key(benchmark.query)
    assert len(found) == 18
    assert all(key.partition("/")[0] == name for key, name in found.items())
    assert benchmark.leave_one_out


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_test_fraction_divides_the_classes(root, fraction):
    benchmark = read(root, test_fraction=fraction)
    assert len(benchmark.query.class_names) == round(fraction * 6)
    assert len(benchmark.train.class_names) == 6 - round(fraction * 6)
    assert str(fraction) in benchmark.notes["split"]


def test_items_are_in_the_order_of_their_paths(root):
    benchmark = read(root)
    for images in (benchmark.train, benchmark.query):
        assert list(images.keys) == sorted(images.keys, key=str.encode)


def test_train_and_test_folders_are_the_split(make_class_folders, tmp_path):
    make_class_folders(tmp_path / "train", ["ant", "bee"])
    make_class_folders(tmp_path / "test", ["cat", "dog", "eel"])
    benchmark = read(tmp_path)
    assert benchmark.train.class_names == ("ant", "bee")
    assert benchmark.query.class_names == ("cat", "dog", "eel")
    assert benchmark.train.keys[0] == "train/ant/ant_0.jpg"
    assert benchmark.notes["split"] == "as given"


def test_train_and_test_folders_that_share_classes_are_refused(make_class_folders, tmp_path):
    make_class_folders(tmp_path / "train", ["ant", "bee", "cat"])
    make_class_folders(tmp_path / "test", ["bee", "cat", "dog"])
    message = refused(tmp_path)
    assert "2 classes are both trained on and tested on: bee, cat" in message
    assert "data.test_fraction" in message


def test_a_csv_with_train_and_test_is_one_test_set(root):
    rows = [
        (f"{name}/{name}_{number}.jpg", name, "train" if name < "d" else "test")
        for name in ("fox", "ant", "bee", "dog")
        for number in range(3)
    ]
    benchmark = read(write_csv(root / "list.csv", rows))
    assert benchmark.train.class_names == ("ant", "bee")
    assert benchmark.query.class_names == ("dog", "fox")
    assert benchmark.leave_one_out
    assert benchmark.train.read(0).size


def test_a_csv_label_need_not_be_the_folder(root):
    rows = [(f"ant/ant_{number}.jpg", f"kind {number}", "train" if number < 2 else "test") for number in range(3)]
    benchmark = read(write_csv(root / "list.csv", rows))
    assert benchmark.train.class_names == ("kind 0", "kind 1")
    assert benchmark.query.class_names == ("kind 2",)


def test_a_csv_with_query_and_gallery_shares_one_numbering(root):
    rows = [("ant/ant_0.jpg", "ant", "train"), ("ant/ant_1.jpg", "ant", "train")]
    rows += [("cat/cat_0.jpg", "cat", "gallery"), ("bee/bee_0.jpg", "bee", "gallery")]
    rows += [("cat/cat_1.jpg", "cat", "query"), ("cat/cat_0.jpg", "cat", "query")]
    benchmark = read(write_csv(root / "list.csv", rows))
    assert not benchmark.leave_one_out
    assert class_of_every_key(benchmark.query) == {"cat/cat_0.jpg": "cat", "cat/cat_1.jpg": "cat"}
    assert class_of_every_key(benchmark.gallery) == {"bee/bee_0.jpg": "bee", "cat/cat_0.jpg": "cat"}
    assert benchmark.query.class_names == benchmark.gallery.class_names == ("bee", "cat")
    # cat_0 in the gallery is cat_1's match, but its own self-match.
    assert benchmark.notes["queries without any match"] == "1"


def test_a_csv_without_split_column_is_divided_as_the_folders_are(root):
    rows = [(path.relative_to(root).as_posix(), path.parent.name) for path in root.rglob("*.jpg")]
    listed = read(write_csv(root / "list.csv", rows, header=("path", "label")))
    walked = read(root)
    assert listed.train.keys == walked.train.keys
    assert np.array_equal(listed.query.labels, walked.query.labels)


def test_a_csv_with_shared_classes_is_refused(root):
    rows = [("ant/ant_0.jpg", "ant", "train"), ("ant/ant_1.jpg", "ant", "test")]
    assert "ant" in refused(write_csv(root / "list.csv", rows))


def test_a_csv_with_a_picture_that_is_not_there_is_refused(root):
    rows = [("ant/ant_0.jpg", "ant", "train"), ("bee/none.jpg", "bee", "test")]
    message = refused(write_csv(root / "list.csv", rows))
    assert "bee/none.jpg" in message
    assert "1 of the 2 images" in message


def test_a_csv_row_given_twice_is_refused(root):
    rows = [("ant/ant_0.jpg", "ant", "train"), ("./ant/ant_0.jpg", "ant", "train"), ("bee/bee_0.jpg", "bee", "test")]
    message = refused(write_csv(root / "list.csv", rows))
    assert "more than once" in message
    assert "ant/ant_0.jpg" in message


def test_classes_with_one_image_are_kept_and_noted(make_class_folders, tmp_path):
    make_class_folders(tmp_path / "train", ["ant", "bee"], 1)
    make_class_folders(tmp_path / "train", ["cat"], 2)
    make_class_folders(tmp_path / "test", ["dog"], 1)
    make_class_folders(tmp_path / "test", ["eel", "fox"], 2)
    benchmark = read(tmp_path)
    assert len(benchmark.train) == 4
    assert benchmark.notes["training classes with one image"] == "2"
    assert benchmark.notes["queries without any match"] == "1"


def test_a_root_that_is_not_there_says_what_is_expected(tmp_path):
    message = refused(tmp_path / "nowhere")
    assert "does not exist" in message
    assert "path,label,split" in message
    assert "train/ and test/" in message


@pytest.mark.parametrize("reader", [read, classify])
def test_a_test_fraction_is_refused_where_the_user_has_divided_the_pictures(make_class_folders, tmp_path, reader):
    for part in ("train", "test"):
        make_class_folders(tmp_path / part, ["ant", "bee"])
    message = refused(tmp_path, reader, ExitCode.RECIPE, test_fraction=0.1)
    assert "data.test_fraction = 0.1" in message
    assert "leave the field out" in message


@pytest.mark.parametrize(("fraction", "tested"), [(0.01, 1), (0.3, 2), (0.5, 3), (0.99, 5)])
def test_for_classification_the_images_of_every_class_are_divided(make_class_folders, tmp_path, fraction, tested):
    root = make_class_folders(tmp_path / "pictures", ["ant", "bee", "cat"], 6)
    benchmark = classify(root, test_fraction=fraction)
    assert benchmark.gallery is benchmark.query
    assert benchmark.train.class_names == benchmark.query.class_names == ("ant", "bee", "cat")
    assert np.bincount(benchmark.query.labels).tolist() == [tested] * 3
    assert np.bincount(benchmark.train.labels).tolist() == [6 - tested] * 3
    found = class_of_every_key(benchmark.train) | class_of_every_key(benchmark.query)
    assert len(found) == 18
    assert all(key.partition("/")[0] == name for key, name in found.items())
    assert benchmark.validation is None
    assert str(fraction) in benchmark.notes["split"]


def test_a_class_with_one_image_is_for_training(make_class_folders, tmp_path):
    make_class_folders(tmp_path, ["ant"], 1)
    make_class_folders(tmp_path, ["bee"], 2)
    benchmark = classify(tmp_path)
    assert set(class_of_every_key(benchmark.train).values()) == {"ant", "bee"}
    assert set(class_of_every_key(benchmark.query).values()) == {"bee"}
    assert benchmark.query.class_names == ("ant", "bee")
    assert benchmark.notes["classes without a test image"] == "1"


def test_train_val_and_test_folders_are_the_parts(make_class_folders, tmp_path):
    for part, count in {"train": 3, "val": 2, "test": 1}.items():
        make_class_folders(tmp_path / part, ["ant", "bee"], count)
    benchmark = classify(tmp_path)
    for images, part, count in (
        (benchmark.train, "train", 3),
        (benchmark.validation, "val", 2),
        (benchmark.query, "test", 1),
    ):
        names = ("ant", "bee")
        expected = {f"{part}/{name}/{name}_{number}.jpg": name for name in names for number in range(count)}
        assert class_of_every_key(images) == expected
        assert images.class_names == names
    assert benchmark.notes["split"] == "as given"
    assert benchmark.notes["layout"] == "class folders below train, val and test"


def test_a_validation_class_that_is_not_trained_is_refused(make_class_folders, tmp_path):
    for part, names in {"train": ["ant", "bee"], "val": ["ant", "cow"], "test": ["bee"]}.items():
        make_class_folders(tmp_path / part, names, 1)
    message = refused(tmp_path, classify)
    assert "1 classes of the validation part have no training image: cow" in message
    assert "task: retrieval" in message


def test_for_retrieval_a_folder_val_is_passed_over(make_class_folders, tmp_path):
    for part, names in {"train": ["ant", "bee"], "val": ["ant"], "test": ["cat", "dog"]}.items():
        make_class_folders(tmp_path / part, names, 2)
    benchmark = read(tmp_path)
    assert benchmark.validation is None
    assert benchmark.notes["folders skipped"] == "1"


def test_a_csv_with_train_val_and_test(root):
    splits = ["train", "val", "test"]
    rows = [(f"{name}/{name}_{number}.jpg", name, splits[number]) for name in ("bee", "ant") for number in range(3)]
    benchmark = classify(write_csv(root / "list.csv", rows))
    assert benchmark.train.keys == ("ant/ant_0.jpg", "bee/bee_0.jpg")
    assert benchmark.validation.keys == ("ant/ant_1.jpg", "bee/bee_1.jpg")
    assert benchmark.query.keys == ("ant/ant_2.jpg", "bee/bee_2.jpg")


def test_a_csv_of_one_task_is_no_csv_of_the_other(root):
    rows = [("ant/ant_0.jpg", "ant", "train"), ("bee/bee_0.jpg", "bee", "query"), ("bee/bee_1.jpg", "bee", "gallery")]
    assert "allowed: train and test, or train, val and test" in refused(write_csv(root / "list.csv", rows), classify)
    rows = [(f"ant/ant_{number}.jpg", "ant", split) for number, split in enumerate(("train", "val", "test"))]
    assert "split 'val' does not exist" in refused(write_csv(root / "list.csv", rows))


def test_a_csv_without_split_column_is_divided_as_the_folders_are_for_classification_too(root):
    rows = [(path.relative_to(root).as_posix(), path.parent.name) for path in root.rglob("*.jpg")]
    listed = classify(write_csv(root / "list.csv", rows, header=("path", "label")))
    walked = classify(root)
    assert listed.train.keys == walked.train.keys
    assert listed.query.keys == walked.query.keys
    assert np.array_equal(listed.query.labels, walked.query.labels)


def test_a_csv_whose_pictures_lie_elsewhere_says_where_paths_begin(make_class_folders, tmp_path):
    make_class_folders(tmp_path / "photos", ["ant", "bee"], 2)
    (tmp_path / "list.csv").write_text("path,label\nant/ant_0.jpg,ant\nbee/bee_0.jpg,bee\n", encoding="utf-8")
    with pytest.raises(KeMetricError, match=r"2 of the 2 images .* relative to the folder of the CSV file"):
        folder.read(Data(benchmark="folder", root=str(tmp_path / "list.csv")))
