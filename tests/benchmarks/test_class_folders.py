"""Which files in class folders are pictures, and what is said about the others."""

import os
import sys

import pytest

from ke_metric.benchmarks.folder import scan_class_folders
from ke_metric.benchmarks.listings import LabelledPath
from ke_metric.errors import ExitCode, KeMetricError


def refused(root):
    with pytest.raises(KeMetricError) as raised:
        scan_class_folders(root)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


@pytest.fixture
def root(make_class_folders, tmp_path):
    return make_class_folders(tmp_path / "pictures", ["ant", "bee"], 2)


def test_pictures_are_listed_with_their_class(root):
    pictures, notes, _ = scan_class_folders(root)
    assert sorted(pictures) == [
        LabelledPath("ant/ant_0.jpg", "ant", None),
        LabelledPath("ant/ant_1.jpg", "ant", None),
        LabelledPath("bee/bee_0.jpg", "bee", None),
        LabelledPath("bee/bee_1.jpg", "bee", None),
    ]
    assert notes == {"layout": "a folder per class"}


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tif", "a.TIFF"])
def test_extensions_of_images_count_in_any_case(root, name):
    (root / "ant" / name).write_bytes(b"")
    pictures, notes, _ = scan_class_folders(root)
    assert f"ant/{name}" in {picture.path for picture in pictures}
    assert "files skipped" not in notes


@pytest.mark.parametrize(
    "name", ["Thumbs.db", "._ant_0.jpg", ".hidden.jpg", ".DS_Store", "notes.txt", "jpg", "a.jpg.part"]
)
def test_other_files_are_passed_over_and_counted(root, name):
    (root / "ant" / name).write_bytes(b"")
    pictures, notes, skipped = scan_class_folders(root)
    assert len(pictures) == 4
    assert notes["files skipped"] == "1"
    assert skipped == {"files": (f"ant/{name}",)}


def test_files_beside_and_folders_inside_class_folders_are_counted(root):
    (root / "loose.jpg").write_bytes(b"")
    (root / "ant" / "older").mkdir()
    pictures, notes, skipped = scan_class_folders(root)
    assert len(pictures) == 4
    assert notes["files skipped"] == "1"
    assert notes["folders skipped"] == "1"
    assert skipped == {"files": ("loose.jpg",), "folders": ("ant/older",)}


@pytest.mark.parametrize("name", [".git", "__MACOSX"])
def test_hidden_folders_are_no_classes(root, name):
    (root / name).mkdir()
    pictures, _, _ = scan_class_folders(root)
    assert {picture.label for picture in pictures} == {"ant", "bee"}


def test_train_and_test_with_class_folders_are_a_split(make_class_folders, tmp_path):
    for split in ("train", "test", "val"):
        make_class_folders(tmp_path / split, ["ant"], 1)
    (tmp_path / "test" / "loose.jpg").write_bytes(b"")
    (tmp_path / "loose.heic").write_bytes(b"")
    pictures, notes, skipped = scan_class_folders(tmp_path)
    assert skipped == {"files": ("loose.heic", "test/loose.jpg"), "folders": ("val",)}
    assert pictures == [
        LabelledPath("train/ant/ant_0.jpg", "ant", "train"),
        LabelledPath("test/ant/ant_0.jpg", "ant", "test"),
    ]
    assert notes == {"layout": "class folders below train and test", "files skipped": "2", "folders skipped": "1"}


def test_val_is_a_part_where_validation_is_wanted(make_class_folders, tmp_path):
    for split in ("train", "test", "val", "other"):
        make_class_folders(tmp_path / split, ["ant"], 1)
    pictures, notes, _ = scan_class_folders(tmp_path, validation=True)
    assert pictures == [LabelledPath(f"{split}/ant/ant_0.jpg", "ant", split) for split in ("train", "val", "test")]
    assert notes == {"layout": "class folders below train, val and test", "folders skipped": "1"}


def test_val_need_not_be_there_but_must_have_classes(make_class_folders, tmp_path):
    for split in ("train", "test"):
        make_class_folders(tmp_path / split, ["ant"], 1)
    assert scan_class_folders(tmp_path, validation=True) == scan_class_folders(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(KeMetricError, match=r"val has no class folders"):
        scan_class_folders(tmp_path, validation=True)


def test_train_and_test_with_pictures_are_two_classes(make_class_folders, tmp_path):
    make_class_folders(tmp_path, ["train", "test"], 1)
    pictures, _, _ = scan_class_folders(tmp_path)
    assert {picture.label for picture in pictures} == {"train", "test"}


def test_an_empty_folder_says_what_is_expected(tmp_path):
    message = refused(tmp_path)
    assert "no class folders" in message
    assert f"{tmp_path.name}/<class>/<image>" in message
    assert f"{tmp_path.name}/train" in message


def test_empty_classes_are_named(root):
    (root / "cat").mkdir()
    (root / "dog").mkdir()
    (root / "dog" / "notes.txt").write_text("no image")
    message = refused(root)
    assert "2 class folders have no images: cat, dog" in message
    assert ".webp" in message


def test_a_split_with_other_names_is_explained(make_class_folders, tmp_path):
    for split in ("train", "val"):
        make_class_folders(tmp_path / split, ["ant"], 1)
    message = refused(tmp_path)
    assert "train (holds only folders), val (holds only folders)" in message
    assert "must be called train and test" in message


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not let such names exist")
def test_a_file_name_that_is_not_utf8_is_refused(root):
    with open(os.fsencode(root / "ant") + b"/caf\xe9.jpg", "wb"):  # noqa: PTH123 - pathlib takes no bytes
        pass
    message = refused(root)
    assert "not UTF-8" in message
    message.encode()
