"""CUB-200-2011."""

import pytest

from ke_metric.benchmarks import cub_and_cars as readers
from ke_metric.benchmarks.table import PublishedCounts
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data


@pytest.fixture
def root(make_cub, tmp_path):
    return make_cub(tmp_path)


def read(root, **fields):
    return readers.read_cub(Data(benchmark="cub", root=str(root), **{"verify_counts": False, **fields}))


def classify(root, **fields):
    return readers.read_cub_classification(
        Data(benchmark="cub", root=str(root), **{"verify_counts": False, **fields})
    )


def refused(root, reader=read, **fields):
    with pytest.raises(KeMetricError) as raised:
        reader(root, **fields)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


def replace_line(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_classes_up_to_100_train_and_the_official_flag_does_not_matter(root):
    before = read(root)
    flags = (root / "train_test_split.txt").read_text().splitlines()
    (root / "train_test_split.txt").write_text("".join(f"{line[:-1]}{1 - int(line[-1])}\n" for line in flags))
    after = read(root)
    assert before.train.keys == after.train.keys
    assert before.train.class_names == ("001.Bird_1", "002.Bird_2", "003.Bird_3", "100.Bird_100")
    assert before.query.class_names == ("101.Bird_101", "102.Bird_102", "200.Bird_200")


def test_items_are_in_the_order_of_the_image_ids_however_the_lists_are_sorted(root):
    rows = [line.split() for line in (root / "images.txt").read_text().splitlines()]
    listed = [path for _, path in rows]
    assert listed != sorted(listed)
    for name in ("images.txt", "image_class_labels.txt"):
        lines = (root / name).read_text().splitlines(keepends=True)
        (root / name).write_text("".join(sorted(lines, key=lambda line: line[::-1])))
    benchmark = read(root)
    assert [*benchmark.query.keys, *benchmark.train.keys] == listed


def test_labels_follow_the_folder_numbers(root):
    benchmark = read(root)
    for images in (benchmark.train, benchmark.query):
        for key, label in zip(images.keys, images.labels, strict=True):
            assert images.class_names[label] == key.partition("/")[0]


def test_crlf_and_trailing_empty_lines_change_nothing(root):
    before = read(root)
    for name in ("images.txt", "image_class_labels.txt", "classes.txt"):
        (root / name).write_bytes((root / name).read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    after = read(root)
    assert before.train.keys == after.train.keys
    assert before.train.class_names == after.train.class_names


def test_files_that_are_not_listed_are_not_read(root):
    benchmark = read(root)
    assert not [key for key in (*benchmark.train.keys, *benchmark.query.keys) if "._" in key]


def test_an_image_without_class_is_refused(root):
    lines = (root / "image_class_labels.txt").read_text().splitlines(keepends=True)
    (root / "image_class_labels.txt").write_text("".join(lines[:-1]))
    message = refused(root)
    assert "same image ids" in message
    assert str(len(lines)) in message


def test_an_image_id_given_twice_is_refused(root):
    replace_line(root / "images.txt", "2 ", "1 ")
    assert "image_id 1 is given twice" in refused(root)


def test_a_class_that_contradicts_the_folder_is_refused(root):
    replace_line(root / "image_class_labels.txt", "1 200", "1 199")
    message = refused(root)
    assert "class_id 199" in message
    assert "class 200" in message


def test_a_class_without_name_is_refused(root):
    replace_line(root / "classes.txt", "3 003.Bird_3\n", "")
    assert "no name: 3" in refused(root)


def test_a_path_out_of_the_folder_is_refused(root):
    replace_line(root / "images.txt", "200.Bird_200/", "../images/200.Bird_200/")
    message = refused(root)
    assert "images.txt, line 1" in message
    assert "leaves" in message


def test_an_id_that_is_no_number_is_refused(root):
    replace_line(root / "images.txt", "2 ", "two ")
    message = refused(root)
    assert "images.txt, line 2" in message
    assert "'two'" in message


def test_the_archive_of_2010_is_recognized_by_its_files(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "files.txt").write_text("001.Black_footed_Albatross/a.jpg\n")
    message = refused(tmp_path)
    assert "CUB-200 of 2010" in message
    assert "6,033" in message


def test_the_archive_of_2010_is_recognized_by_its_count(root, monkeypatch):
    monkeypatch.setattr(
        readers,
        "CUB_COUNTS",
        PublishedCounts(readers.CUB_COUNTS.parts, suspects={28: readers.CUB_COUNTS.suspects[6033]}),
    )
    assert "CUB-200 of 2010" in refused(root, verify_counts=True)


def test_the_published_counts_add_up():
    (train, train_classes), (test, test_classes) = (
        readers.CUB_COUNTS.parts["train"],
        readers.CUB_COUNTS.parts["test"],
    )
    assert train + test == 11788
    assert train_classes + test_classes == 200


def test_for_classification_the_official_flag_divides_the_images_of_every_class(root):
    benchmark = classify(root)
    listed = [line.split()[1] for line in (root / "images.txt").read_text().splitlines()]
    flags = [line.split()[1] for line in (root / "train_test_split.txt").read_text().splitlines()]
    assert benchmark.train.keys == tuple(path for path, flag in zip(listed, flags, strict=True) if flag == "1")
    assert benchmark.query.keys == tuple(path for path, flag in zip(listed, flags, strict=True) if flag == "0")
    assert benchmark.gallery is benchmark.query
    assert benchmark.validation is None
    assert benchmark.train.class_names == benchmark.query.class_names
    assert len(benchmark.train.class_names) == 7
    assert benchmark.notes["split"] == "official: train_test_split.txt"


def test_flags_belong_to_image_ids_not_to_lines(root):
    before = classify(root)
    lines = (root / "train_test_split.txt").read_text().splitlines(keepends=True)
    (root / "train_test_split.txt").write_text("".join(reversed(lines)))
    after = classify(root)
    assert before.train.keys == after.train.keys
    assert before.query.keys == after.query.keys


def test_classification_labels_follow_the_folder_numbers(root):
    benchmark = classify(root)
    for images in (benchmark.train, benchmark.query):
        for key, label in zip(images.keys, images.labels, strict=True):
            assert images.class_names[label] == key.partition("/")[0]


def test_only_classification_needs_the_official_split(root):
    (root / "train_test_split.txt").unlink()
    assert read(root).train.keys
    assert "missing: train_test_split.txt" in refused(root, classify)


def test_an_image_without_flag_is_refused(root):
    lines = (root / "train_test_split.txt").read_text().splitlines(keepends=True)
    (root / "train_test_split.txt").write_text("".join(lines[1:]))
    message = refused(root, classify)
    assert "images.txt and train_test_split.txt do not have the same image ids; 1 are in one only: 1" in message


@pytest.mark.parametrize("flag", ["2", "-1", "train"])
def test_a_flag_that_is_neither_0_nor_1_is_refused(root, flag):
    replace_line(root / "train_test_split.txt", "2 0\n", f"2 {flag}\n")
    message = refused(root, classify)
    assert "train_test_split.txt, line 2" in message
    assert repr(flag) in message


def test_a_class_that_is_only_tested_on_is_refused(root):
    lines = (root / "train_test_split.txt").read_text().splitlines()
    # Images 1 to 4 are those of class 200.
    lines = [f"{line[:-1]}0" if int(line.split()[0]) <= 4 else line for line in lines]
    (root / "train_test_split.txt").write_text("\n".join(lines))
    assert "no training image: 200.Bird_200" in refused(root, classify)


def test_the_official_counts_are_verified(root, monkeypatch):
    assert readers.OFFICIAL_CUB_COUNTS.parts == {"train": (5994, 200), "test": (5794, 200)}
    assert readers.OFFICIAL_CUB_COUNTS.class_sizes == (41, 60)
    message = refused(root, classify, verify_counts=True)
    assert "train images: expected 5,994, found 14" in message
    assert "test images: expected 5,794, found 14" in message
    monkeypatch.setattr(readers, "OFFICIAL_CUB_COUNTS", PublishedCounts({"train": (14, 7), "test": (14, 7)}))
    assert len(classify(root, verify_counts=True).train) == 14
