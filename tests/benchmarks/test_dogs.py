"""Stanford Dogs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from ke_metric.benchmarks import official_lists
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data


@pytest.fixture
def root(make_dogs, tmp_path):
    return make_dogs(tmp_path / "dogs")


def read(root, **fields):
    return official_lists.read_dogs(Data(benchmark="dogs", root=str(root), **{"verify_counts": False, **fields}))


def refused(root, **fields):
    with pytest.raises(KeMetricError) as raised:
        read(root, **fields)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


def write_list(path, files, labels):
    column = np.empty((len(files), 1), dtype=object)
    column[:, 0] = files
    savemat(path, {"file_list": column, "labels": np.array([labels], dtype=np.float64).T})


def change(root, part, position, *, file=None, label=None):
    content = loadmat(root / f"{part}_list.mat", squeeze_me=True)
    files, labels = content["file_list"].tolist(), content["labels"].tolist()
    files[position], labels[position] = file or files[position], label or labels[position]
    write_list(root / f"{part}_list.mat", files, labels)


def test_the_fixture_has_labels_of_two_types_that_do_not_follow_the_folders(root):
    types = [loadmat(root / f"{part}_list.mat")["labels"].dtype for part in ("train", "test")]
    assert types == [np.float64, np.uint8]
    names = read(root).train.class_names
    assert list(names) != sorted(names)


def test_labels_are_those_of_the_lists(root):
    benchmark = read(root)
    assert benchmark.train.class_names == (
        "n02085782-Japanese_spaniel",
        "n02106662-German_shepherd",
        "n02085620-Chihuahua",
        "n02116738-African_hunting_dog",
        "n02113712-miniature_poodle",
        "n02105855-Shetland_sheepdog",
    )
    for images in (benchmark.train, benchmark.query):
        for key, label in zip(images.keys, images.labels, strict=True):
            assert images.class_names[label] == key.partition("/")[0]


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.integers(1, 255), min_size=2, max_size=4, unique=True),
    numbers=st.lists(st.integers(1, 99999), min_size=2, max_size=4, unique=True),
    random=st.randoms(),
)
def test_any_labels_and_any_order_are_read_back(tmp_path_factory, labels, numbers, random):
    root = tmp_path_factory.mktemp("dogs")
    listed = {"train": {}, "test": {}}
    for position, label in enumerate(labels):
        folder = f"n0{position}-breed_{position}"
        (root / "Images" / folder).mkdir(parents=True)
        for place, number in enumerate(numbers):
            key = f"{folder}/n0{position}_{number}.jpg"
            (root / "Images" / key).touch()
            listed["test" if place == 0 else "train"][key] = label
    for part, label_of in listed.items():
        rows = list(label_of.items())
        random.shuffle(rows)
        write_list(root / f"{part}_list.mat", *zip(*rows, strict=True))
    benchmark = read(root)
    for part, images in (("train", benchmark.train), ("test", benchmark.query)):
        assert list(images.keys) == sorted(listed[part], key=str.encode)
        assert [sorted(labels)[label] for label in images.labels] == [listed[part][key] for key in images.keys]


def test_the_lists_may_lie_in_a_folder_of_their_own(root):
    before = read(root)
    (root / "lists").mkdir()
    for part in ("train", "test"):
        (root / f"{part}_list.mat").rename(root / "lists" / f"{part}_list.mat")
    assert read(root).train.keys == before.train.keys


def test_a_label_of_two_folders_is_named(root):
    change(root, "test", 0, label=1)
    message = refused(root)
    assert "test_list.mat, image 1: label 1 for a picture in n02085620-Chihuahua" in message
    assert "label 1 is n02085782-Japanese_spaniel" in message


def test_a_new_folder_with_the_label_of_another_is_named(root):
    change(root, "train", 23, file="n02116738-wolf/n02116738_1.jpg")
    message = refused(root)
    assert "train_list.mat, image 24: label 4 for a picture in n02116738-wolf" in message
    assert "label 4 is n02116738-African_hunting_dog" in message


def test_a_folder_with_two_labels_is_named(root):
    change(root, "train", 1, label=99)
    message = refused(root)
    assert "train_list.mat, image 2: label 99 for a picture in n02085620-Chihuahua" in message
    assert "that has label 3" in message


@pytest.mark.parametrize("wrong", ["n02085620_0.jpg", "Images/n02085620-Chihuahua/n02085620_0.jpg", "../x/y.jpg"])
def test_a_path_of_another_form_is_named_with_its_number(root, wrong):
    change(root, "train", 2, file=wrong)
    message = refused(root)
    assert "train_list.mat, image 3" in message
    assert repr(wrong) in message


def test_a_label_that_is_not_whole_is_named(root):
    change(root, "train", 2, label=1.5)
    assert "train_list.mat: labels, entry 3: must be a whole number, not 1.5" in refused(root)


def test_lists_of_other_lengths_are_refused(root):
    write_list(root / "test_list.mat", ["a/b.jpg", "a/c.jpg"], [1])
    assert "2 files in file_list, but 1 labels" in refused(root)


def test_an_image_in_both_lists_is_named(root):
    listed = loadmat(root / "train_list.mat", squeeze_me=True)["file_list"][0]
    change(root, "test", 0, file=listed)
    assert listed in refused(root)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (20580, 8580, "train_list.mat seems to be a copy of file_list.mat"),
        (12000, 20580, "test_list.mat seems to be a copy of file_list.mat"),
        (12000, 12000, "Both lists seem to be train_list.mat"),
        (8580, 8580, "Both lists seem to be test_list.mat"),
    ],
)
def test_wrong_lists_are_recognized_by_their_length(train, test, said):
    assert said in official_lists.COUNTS["dogs"].suspects[train + test]


def test_the_list_of_all_images_is_no_split(root):
    (root / "train_list.mat").rename(root / "file_list.mat")
    message = refused(root)
    assert "missing: train_list.mat" in message
    assert "file_list.mat lists all images without the split" in message
