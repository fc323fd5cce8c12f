"""In-Shop Clothes Retrieval."""

import pytest

from ke_metric.benchmarks import products
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data

LIST = "Eval/list_eval_partition.txt"


@pytest.fixture
def root(make_inshop, tmp_path):
    return make_inshop(tmp_path / "inshop")


def read(root, **fields):
    return products.read_inshop(Data(benchmark="inshop", root=str(root), **{"verify_counts": False, **fields}))


def refused(root, **fields):
    with pytest.raises(KeMetricError) as raised:
        read(root, **fields)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


def replace_text(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("prefix", ["Img/img", "img", "Img/img_highres", "img_highres"])
def test_every_place_of_the_pictures_gives_the_same_keys(make_inshop, tmp_path, prefix):
    benchmark = read(make_inshop(tmp_path / "inshop", prefix))
    assert benchmark.train.keys[0] == "WOMEN/Dresses/id_00000001/00_1_front.jpg"
    assert benchmark.notes["pictures"] == prefix


def test_the_small_pictures_are_preferred(make_inshop, tmp_path):
    for prefix in ("img_highres", "img"):
        make_inshop(tmp_path / "inshop", prefix)
    assert read(tmp_path / "inshop").notes["pictures"] == "img"


def test_query_and_gallery_share_one_numbering(root):
    benchmark = read(root)
    assert benchmark.query.class_names == benchmark.gallery.class_names
    for images in (benchmark.query, benchmark.gallery):
        for key, label in zip(images.keys, images.labels, strict=True):
            assert images.class_names[label] == key.split("/")[2]


def test_a_numbering_is_shared_even_where_the_first_item_is_only_in_the_gallery(root):
    text = (root / LIST).read_text().splitlines()
    kept = [line for line in text[2:] if not ("id_00000006" in line and line.endswith("query"))]
    (root / LIST).write_text("\n".join([str(len(kept)), text[1], *kept]))
    benchmark = read(root)
    assert benchmark.query.labels.min() == 1
    assert benchmark.query.class_names[1] == benchmark.gallery.class_names[1] == "id_00000007"


def test_a_query_without_match_is_noted(root):
    text = (root / LIST).read_text().splitlines()
    kept = [line for line in text[2:] if not ("id_00000006" in line and line.endswith("gallery"))]
    (root / LIST).write_text("\n".join([str(len(kept)), text[1], *kept]))
    assert read(root).notes["queries without any match"] == "2"


def test_an_item_with_one_training_picture_is_kept_and_noted(root):
    benchmark = read(root)
    assert "id_00000005" in benchmark.train.class_names
    assert benchmark.notes["training classes with one image"] == "1"


def test_the_list_may_lie_beside_the_pictures(root):
    (root / LIST).rename(root / "list_eval_partition.txt")
    assert len(read(root).query) == 6


def test_a_list_with_one_row_too_few_is_refused_without_verified_counts(root):
    lines = (root / LIST).read_text().splitlines(keepends=True)
    (root / LIST).write_text("".join([*lines[:2], *lines[3:]]))
    message = refused(root)
    assert "promises 29 images, but 28 follow" in message


def test_a_benchmark_with_one_image_too_few_is_called_off_by_one():
    parts = products.COUNTS["inshop"].parts
    assert sum(images for images, _ in parts.values()) - 1 in products.COUNTS["inshop"].suspects
    assert "one line too many" in products.COUNTS["inshop"].suspects[52711]
    assert parts["train"][1] + parts["query"][1] == 7982
    assert parts["query"][1] == parts["gallery"][1]


def test_an_unknown_status_is_refused_with_the_closest(root):
    replace_text(root / LIST, "query", "querry")
    message = refused(root)
    assert "did you mean 'query'" in message
    assert "line " in message


def test_a_path_that_does_not_begin_with_img_is_refused(root):
    replace_text(root / LIST, "img/WOMEN", "pictures/WOMEN")
    assert "img/ or img_highres/" in refused(root)


def test_an_item_id_without_number_is_refused(root):
    replace_text(root / LIST, "  id_00000001", "  id_one")
    message = refused(root)
    assert "item_id" in message
    assert "'one'" in message


def test_pictures_that_are_still_packed_are_recognized(root):
    (root / "Img" / "img").rename(root.parent / "elsewhere")
    (root / "Img" / "img.zip").write_bytes(b"")
    message = refused(root)
    assert "img.zip" in message
    assert "not unpacked" in message
