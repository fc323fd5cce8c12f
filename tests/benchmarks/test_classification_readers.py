"""What holds for every reader of a classification benchmark: parts, labels, order, decoding, counts."""

import pickle
import shutil

import numpy as np
import pytest

from ke_metric.benchmarks.official_lists import COUNTS
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.benchmarks.table import PublishedCounts
from ke_metric.datasets.pictures import check_images, load_for_check
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data

PUBLISHED = {
    "flowers": {"train": (1020, 102), "validation": (1020, 102), "test": (6149, 102)},
    "aircraft": {"train": (3334, 100), "validation": (3333, 100), "test": (3333, 100)},
    "mit67": {"train": (5360, 67), "test": (1340, 67)},
    "dogs": {"train": (12000, 120), "test": (8580, 120)},
}
TOTALS = {"flowers": 8189, "aircraft": 10000, "mit67": 6700, "dogs": 20580}
WITH_VALIDATION = [name for name, parts in PUBLISHED.items() if "validation" in parts]
WITHOUT_VALIDATION = [name for name in PUBLISHED if name not in WITH_VALIDATION]
FIXTURE_SIZES = {"train": 24, "validation": 12, "test": 12}

every_benchmark = pytest.mark.parametrize("name", PUBLISHED)


@pytest.fixture
def data_of(request, tmp_path):
    """Write the files of a benchmark and return the recipe section that reads them."""

    def write(name, **fields):
        root = request.getfixturevalue(f"make_{name}")(tmp_path / "data")
        return Data(benchmark=name, root=str(root), **{"verify_counts": False, **fields})

    return write


def read(data):
    return load_benchmark(data, "classification")


def parts_of(benchmark):
    parts = {"train": benchmark.train, "validation": benchmark.validation, "test": benchmark.query}
    return {part: images for part, images in parts.items() if images is not None}


def refused(data):
    with pytest.raises(KeMetricError) as raised:
        read(data)
    return str(raised.value), raised.value.exit_code


@every_benchmark
def test_every_part_has_the_same_classes_and_labels_without_gaps(data_of, name):
    benchmark = read(data_of(name))
    assert benchmark.gallery is benchmark.query
    assert len(set(benchmark.train.class_names)) == 6
    for images in parts_of(benchmark).values():
        assert images.class_names == benchmark.train.class_names
        assert np.unique(images.labels).tolist() == list(range(6))


@every_benchmark
def test_the_parts_are_the_official_ones_and_share_no_image(data_of, name):
    parts = parts_of(read(data_of(name)))
    assert list(parts) == list(PUBLISHED[name])
    assert {part: len(images) for part, images in parts.items()} == {part: FIXTURE_SIZES[part] for part in parts}
    keys = [key for images in parts.values() for key in images.keys]
    assert len(keys) == len(set(keys))


@every_benchmark
def test_reading_twice_gives_the_same_order_which_is_that_of_the_bytes(data_of, name):
    data = data_of(name)
    first, second = parts_of(read(data)), parts_of(read(data))
    for part, images in first.items():
        assert images.keys == second[part].keys
        assert np.array_equal(images.labels, second[part].labels)
        assert list(images.keys) == sorted(images.keys, key=str.encode)


@every_benchmark
def test_every_picture_decodes_to_rgb_also_in_another_process(data_of, name):
    for images in parts_of(read(data_of(name))).values():
        travelled = pickle.loads(pickle.dumps(images))
        assert {travelled.read(index).mode for index in range(len(travelled))} == {"RGB"}


@every_benchmark
def test_files_that_are_in_no_list_are_not_read(data_of, name):
    benchmark = read(data_of(name))
    folder = benchmark.train.source.root
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    listed = {key for images in parts_of(benchmark).values() for key in images.keys}
    assert len(on_disk - listed) == 1
    assert listed < on_disk


@every_benchmark
def test_a_listed_picture_that_is_gone_is_named(data_of, name):
    data = data_of(name)
    benchmark = read(data)
    (benchmark.query.source.root / benchmark.query.keys[1]).unlink()
    message, exit_code = refused(data)
    assert exit_code is ExitCode.DATA
    assert benchmark.query.keys[1] in message


@every_benchmark
def test_the_parent_folder_is_accepted_as_root(data_of, name):
    data = data_of(name)
    inner = read(data)
    outer = read(data.model_copy(update={"root": data.root.rpartition("/")[0]}))
    assert outer.train.keys == inner.train.keys
    assert outer.query.keys == inner.query.keys


@every_benchmark
def test_missing_files_name_the_layout_the_place_and_the_command(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message, exit_code = refused(Data(benchmark=name))
    assert exit_code is ExitCode.DATA
    assert f"data/{name}" in message
    assert f"ke-metric data prepare {name} --from PATH" in message
    wanted = {
        "flowers": ["imagelabels.mat", "setid.mat", "jpg/"],
        "aircraft": ["variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt"],
        "mit67": ["TrainImages.txt", "TestImages.txt", "Images/"],
        "dogs": ["train_list.mat", "test_list.mat", "Images/"],
    }
    assert all(file in message for file in wanted[name])


@every_benchmark
def test_the_published_counts_are_those_of_the_official_parts(name):
    counts = COUNTS[name]
    assert counts.parts == PUBLISHED[name]
    assert sum(images for images, _ in counts.parts.values()) == TOTALS[name]
    assert TOTALS[name] not in counts.suspects


@every_benchmark
def test_fixtures_do_not_pass_for_the_published_benchmark(data_of, name):
    message, exit_code = refused(data_of(name, verify_counts=True))
    assert exit_code is ExitCode.DATA
    images, classes = PUBLISHED[name]["train"]
    assert f"train images: expected {images:,}, found 24" in message
    assert f"train classes: expected {classes:,}, found 6" in message


@every_benchmark
def test_the_right_counts_pass_and_one_image_more_does_not(data_of, monkeypatch, name):
    data = data_of(name, verify_counts=True)
    parts = {part: (FIXTURE_SIZES[part], 6) for part in PUBLISHED[name]}
    monkeypatch.setitem(COUNTS, name, PublishedCounts(parts))
    assert len(read(data).train) == 24
    for part, (images, classes) in parts.items():
        monkeypatch.setitem(COUNTS, name, PublishedCounts({**parts, part: (images + 1, classes)}))
        assert f"{part} images: expected {images + 1}, found {images}" in refused(data)[0]


@pytest.mark.parametrize("name", ["flowers", "aircraft", "dogs"])
def test_the_sizes_of_classes_are_verified(data_of, monkeypatch, name):
    assert COUNTS[name].class_sizes == {"flowers": (40, 258), "aircraft": (100, 100), "dogs": (148, 252)}[name]
    parts = {part: (FIXTURE_SIZES[part], 6) for part in PUBLISHED[name]}
    monkeypatch.setitem(COUNTS, name, PublishedCounts(parts, class_sizes=(9, 10)))
    assert "expected 9 to 10, found" in refused(data_of(name, verify_counts=True))[0]


@pytest.mark.parametrize("name", WITH_VALIDATION)
def test_the_official_validation_part_can_be_joined_to_the_training_part(data_of, monkeypatch, name):
    # Counts are those of the official parts, whatever is trained on.
    parts = {part: (FIXTURE_SIZES[part], 6) for part in PUBLISHED[name]}
    monkeypatch.setitem(COUNTS, name, PublishedCounts(parts))
    apart = read(data_of(name, verify_counts=True))
    joined = read(data_of(name, verify_counts=True, train_on="trainval"))
    assert joined.validation is None
    assert set(joined.train.keys) == {*apart.train.keys, *apart.validation.keys}
    assert joined.train.class_names == apart.train.class_names
    assert joined.query.keys == apart.query.keys


@pytest.mark.parametrize("name", WITHOUT_VALIDATION)
def test_trainval_means_nothing_without_an_official_validation_part(data_of, name):
    message, exit_code = refused(data_of(name, train_on="trainval"))
    assert exit_code is ExitCode.RECIPE
    assert "data.train_on" in message
    assert name in message


@pytest.mark.parametrize("name", WITHOUT_VALIDATION)
def test_validation_images_can_be_held_out_of_every_class(data_of, name):
    whole, cut = read(data_of(name)), read(data_of(name, validation_fraction=0.25))
    assert np.bincount(cut.validation.labels).tolist() == [1] * 6
    assert {*cut.train.keys, *cut.validation.keys} == set(whole.train.keys)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "aircraft"])
def test_only_aircraft_pictures_have_a_banner(data_of, name):
    message, exit_code = refused(data_of(name, crop_banner=True))
    assert exit_code is ExitCode.RECIPE
    assert "aircraft" in message


@every_benchmark
def test_a_check_looks_at_every_part_and_finds_a_test_image_that_is_trained_on(data_of, monkeypatch, name):
    data = data_of(name)
    monkeypatch.setitem(COUNTS, name, PublishedCounts({part: (FIXTURE_SIZES[part], 6) for part in PUBLISHED[name]}))
    report = check_images(load_for_check(name, root=data.root), workers=1)
    assert report.problems == ()
    assert {part: counts.images for part, counts in report.counts.items()} == {
        part: FIXTURE_SIZES[part] for part in PUBLISHED[name]
    }
    benchmark = read(data)
    folder = benchmark.train.source.root
    shutil.copyfile(folder / benchmark.train.keys[0], folder / benchmark.query.keys[0])
    report = check_images(load_for_check(name, root=data.root), workers=1)
    assert [(problem.kind, problem.paths) for problem in report.problems] == [
        ("same image in training and test", (benchmark.train.keys[0], benchmark.query.keys[0]))
    ]
