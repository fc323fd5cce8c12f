"""Stanford Online Products."""

import pytest
from PIL import Image

from ke_metric.benchmarks import products
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data


@pytest.fixture
def root(make_sop, tmp_path):
    return make_sop(tmp_path)


def read(root, **fields):
    return products.read_sop(Data(benchmark="sop", root=str(root), **{"verify_counts": False, **fields}))


def refused(root, **fields):
    with pytest.raises(KeMetricError) as raised:
        read(root, **fields)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


def test_the_split_is_the_official_one(root):
    benchmark = read(root)
    assert benchmark.train.class_names == ("bicycle 1", "chair 2", "bicycle 3", "chair 11318")
    assert benchmark.query.class_names == ("bicycle 11319", "chair 11320", "bicycle 22634")


def test_every_picture_has_the_class_of_its_row(root):
    benchmark = read(root)
    for images in (benchmark.train, benchmark.query):
        for key, label in zip(images.keys, images.labels, strict=True):
            # The fixture writes the class number into the file's name.
            assert int(images.class_names[label].split()[1]) == int(key.partition("/")[2][4:12])


def test_items_are_in_the_order_of_the_image_ids_however_the_list_is_sorted(root):
    before = read(root)
    header, *rows = (root / "Ebay_train.txt").read_text().splitlines(keepends=True)
    (root / "Ebay_train.txt").write_text("".join([header, *reversed(rows)]))
    assert read(root).train.keys == before.train.keys
    assert list(before.train.keys) != sorted(before.train.keys)


def test_a_gif_called_jpg_is_decoded(root):
    benchmark = read(root)
    with Image.open(root / benchmark.train.keys[0]) as image:
        assert image.format == "GIF"
    assert benchmark.train.keys[0].endswith(".JPG")
    assert benchmark.train.read(0).mode == "RGB"


def test_the_line_ends_of_the_two_lists_differ_in_the_fixture(root):
    assert b"\r\n" in (root / "Ebay_test.txt").read_bytes()
    assert b"\r\n" not in (root / "Ebay_train.txt").read_bytes()
    assert not [key for key in read(root).query.keys if key != key.strip()]


def test_a_list_without_header_is_refused_and_loses_no_image(root):
    lines = (root / "Ebay_train.txt").read_text().splitlines(keepends=True)
    (root / "Ebay_train.txt").write_text("".join(lines[1:]))
    message = refused(root)
    assert "header" in message
    assert "image_id class_id super_class_id path" in message


def test_all_images_as_training_list_share_classes_with_the_test(root):
    (root / "Ebay_train.txt").write_bytes((root / "Ebay_info.txt").read_bytes())
    message = refused(root)
    assert "3 classes are both trained on and tested on" in message
    assert "bicycle 11319" in message


def test_the_list_of_all_images_alone_is_recognized(root):
    (root / "Ebay_train.txt").unlink()
    assert "Ebay_info.txt lists all images without the split" in refused(root)


def test_a_mismatch_reminds_of_the_number_of_classes(root):
    message = refused(root, verify_counts=True)
    assert "train images: expected 59,551, found 16" in message
    assert "test classes: expected 11,316, found 3" in message
    assert "22,634" in message


def test_an_image_that_is_listed_twice_is_refused(root):
    lines = (root / "Ebay_train.txt").read_text().splitlines(keepends=True)
    (root / "Ebay_train.txt").write_text("".join([*lines, lines[1]]))
    message = refused(root)
    assert "more than once" in message
    assert lines[1].split()[3] in message


def test_the_published_counts_add_up():
    (train, train_classes), (test, test_classes) = products.COUNTS["sop"].parts.values()
    assert train + test == 120053
    assert train_classes + test_classes == 22634
