"""Oxford Flowers102."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from ke_metric.benchmarks import official_lists
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data

KEYS = ("trnid", "valid", "tstid")


@pytest.fixture
def root(make_flowers, tmp_path):
    return make_flowers(tmp_path / "flowers")


def read(root, **fields):
    return official_lists.read_flowers(
        Data(benchmark="flowers", root=str(root), **{"verify_counts": False, **fields})
    )


def refused(root, **fields):
    with pytest.raises(KeMetricError) as raised:
        read(root, **fields)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


def rewrite(path, **arrays):
    content = {name: array for name, array in loadmat(path).items() if not name.startswith("__")}
    savemat(path, {**content, **arrays})


def parts_of(benchmark):
    return dict(zip(KEYS, (benchmark.train, benchmark.validation, benchmark.query), strict=True))


def test_the_fixture_lists_its_images_in_no_order(root):
    for key in KEYS:
        numbers = loadmat(root / "setid.mat", squeeze_me=True)[key].tolist()
        assert numbers != sorted(numbers)


def test_every_image_has_the_label_at_its_number_less_one(root):
    labels = loadmat(root / "imagelabels.mat")["labels"][0]
    for images in parts_of(read(root)).values():
        for key, label in zip(images.keys, images.labels, strict=True):
            assert label == int(labels[int(key[6:11]) - 1]) - 1


def test_classes_are_named_by_their_number_in_the_file(root):
    assert read(root).train.class_names == tuple(f"class {number}" for number in range(1, 7))


@settings(max_examples=30, deadline=None)
@given(
    st.permutations(range(1, 13)),
    st.lists(st.integers(1, 102), min_size=2, max_size=2, unique=True),
)
def test_any_division_and_any_classes_are_read_back(tmp_path_factory, numbers, classes):
    root = tmp_path_factory.mktemp("flowers")
    (root / "jpg").mkdir()
    for number in numbers:
        (root / "jpg" / f"image_{number:05d}.jpg").touch()
    # Every part has both classes, wherever its images stand.
    labels = np.zeros(12, dtype=np.uint8)
    parts = dict(zip(KEYS, (numbers[:4], numbers[4:8], numbers[8:]), strict=True))
    for part in parts.values():
        labels[np.array(part) - 1] = [*classes, *classes]
    savemat(root / "imagelabels.mat", {"labels": labels[None]})
    savemat(root / "setid.mat", {key: np.array([part], dtype=np.uint16) for key, part in parts.items()})
    for key, images in parts_of(read(root)).items():
        assert [int(name[6:11]) for name in images.keys] == sorted(parts[key])
        found = [int(images.class_names[label].removeprefix("class ")) for label in images.labels]
        assert found == labels[np.array(sorted(parts[key])) - 1].tolist()


@pytest.mark.parametrize("wrong", [0, 103])
def test_a_class_out_of_range_is_named_with_its_image(root, wrong):
    labels = loadmat(root / "imagelabels.mat")["labels"]
    labels[0, 4] = wrong
    rewrite(root / "imagelabels.mat", labels=labels)
    message = refused(root)
    assert f"imagelabels.mat: labels, image 5: class {wrong}" in message
    assert "from 1 to 102" in message


@pytest.mark.parametrize("wrong", [0, 50])
def test_an_image_without_a_class_is_named_with_its_part(root, wrong):
    numbers = loadmat(root / "setid.mat")["valid"]
    numbers[0, 3] = wrong
    rewrite(root / "setid.mat", valid=numbers)
    message = refused(root)
    assert f"setid.mat: valid: image {wrong}" in message
    assert "images 1 to 49" in message


def test_an_image_in_two_parts_is_named(root):
    numbers = loadmat(root / "setid.mat")
    tests = numbers["tstid"]
    tests[0, 0] = numbers["trnid"][0, 0]
    rewrite(root / "setid.mat", tstid=tests)
    assert f"image_{tests[0, 0]:05d}.jpg" in refused(root)


def test_a_missing_part_is_named(root):
    savemat(root / "setid.mat", {"trnid": np.arange(1, 5)[None]})
    assert "no array 'valid'" in refused(root)


def test_pictures_that_are_still_packed_are_recognized(root):
    (root / "jpg").rename(root.parent / "elsewhere")
    (root / "102flowers.tgz").touch()
    message = refused(root)
    assert "102flowers.tgz is there but not unpacked" in message
    assert "missing: jpg/" in message


def test_the_smaller_benchmark_is_recognized(tmp_path):
    (tmp_path / "jpg").mkdir()
    (tmp_path / "datasplits.mat").touch()
    assert "Flowers17" in refused(tmp_path)


def test_other_counts_come_with_the_official_parts(root):
    assert "trnid, valid and tstid" in refused(root, verify_counts=True)
