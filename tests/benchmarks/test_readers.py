"""What holds for every reader of files: labels, splits, order, decoding, counts."""

import numpy as np
import pytest

from ke_metric.benchmarks import cub_and_cars, products
from ke_metric.benchmarks.registry import BENCHMARKS, load_benchmark
from ke_metric.benchmarks.table import PublishedCounts
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data

CASES = {
    "cub": ("cub", "make_cub", {}),
    "cars A": ("cars", "make_cars", {"layout": "A"}),
    "cars A nested": ("cars", "make_cars", {"layout": "A", "nested": True}),
    "cars B": ("cars", "make_cars", {"layout": "B"}),
    "cars B nested": ("cars", "make_cars", {"layout": "B", "nested": True}),
    "cars C": ("cars", "make_cars", {"layout": "C"}),
    "cars C nested": ("cars", "make_cars", {"layout": "C", "nested": True}),
    "sop": ("sop", "make_sop", {}),
    "inshop Img/img": ("inshop", "make_inshop", {"prefix": "Img/img"}),
    "inshop img": ("inshop", "make_inshop", {"prefix": "img"}),
    "inshop img_highres": ("inshop", "make_inshop", {"prefix": "img_highres"}),
    "folder": ("folder", "make_class_folders", {}),
}
COUNTS = {"cub": "CUB_COUNTS", "cars": "CARS_COUNTS"}
PUBLISHED = [case for case in CASES if case != "folder"]
CLASSIFIED = [case for case, (name, _, _) in CASES.items() if name in BENCHMARKS["classification"]]


def set_counts(monkeypatch, name, counts):
    if name in COUNTS:
        monkeypatch.setattr(cub_and_cars, COUNTS[name], counts)
    else:
        monkeypatch.setitem(products.COUNTS, name, counts)


@pytest.fixture
def data_of(request, tmp_path):
    """Write the files of a case and return the recipe section that reads them."""

    def write(case, **fields):
        benchmark, factory, arguments = CASES[case]
        root = request.getfixturevalue(factory)(tmp_path / "data", **arguments)
        return Data(benchmark=benchmark, root=str(root), **{"verify_counts": False, **fields})

    return write


@pytest.mark.parametrize("case", CASES)
def test_labels_run_from_0_without_gaps(data_of, case):
    benchmark = load_benchmark(data_of(case))
    for images in (benchmark.train, benchmark.query, benchmark.gallery):
        assert np.unique(images.labels).tolist() == list(range(len(images.class_names)))


@pytest.mark.parametrize("case", CASES)
def test_training_and_test_classes_are_disjoint(data_of, case):
    benchmark = load_benchmark(data_of(case))
    assert not set(benchmark.train.class_names) & set(benchmark.query.class_names)
    assert not set(benchmark.train.keys) & {*benchmark.query.keys, *benchmark.gallery.keys}


@pytest.mark.parametrize("case", CLASSIFIED)
def test_for_classification_all_parts_share_the_classes_and_no_image(data_of, case):
    data = data_of(case, validation_fraction=0.3)
    benchmark = load_benchmark(data, "classification")
    parts = (benchmark.train, benchmark.validation, benchmark.query)
    assert [len(images) for images in parts] == [7, 7, 14]
    for images in parts:
        assert images.class_names == benchmark.train.class_names
        assert np.unique(images.labels).tolist() == list(range(7))
    keys = [key for images in parts for key in images.keys]
    assert len(keys) == len(set(keys))
    retrieval = load_benchmark(data.model_copy(update={"validation_fraction": 0.0}))
    assert set(keys) == {*retrieval.train.keys, *retrieval.query.keys}
    assert set(benchmark.train.class_names) == {*retrieval.train.class_names, *retrieval.query.class_names}


@pytest.mark.parametrize("case", CLASSIFIED)
def test_for_classification_reading_twice_gives_the_same_order(data_of, case):
    data = data_of(case, validation_fraction=0.3)
    first, second = load_benchmark(data, "classification"), load_benchmark(data, "classification")
    for part in ("train", "validation", "query"):
        assert getattr(first, part).keys == getattr(second, part).keys
        assert np.array_equal(getattr(first, part).labels, getattr(second, part).labels)


@pytest.mark.parametrize("case", CASES)
def test_one_test_set_searches_itself_except_in_inshop(data_of, case):
    benchmark = load_benchmark(data_of(case))
    assert benchmark.leave_one_out == (benchmark.name != "inshop")
    assert benchmark.query.class_names == benchmark.gallery.class_names


@pytest.mark.parametrize("case", CASES)
def test_reading_twice_gives_the_same_order(data_of, case):
    data = data_of(case)
    first, second = load_benchmark(data), load_benchmark(data)
    for part in ("train", "query", "gallery"):
        assert getattr(first, part).keys == getattr(second, part).keys
        assert np.array_equal(getattr(first, part).labels, getattr(second, part).labels)


@pytest.mark.parametrize("case", CASES)
def test_every_picture_decodes_to_rgb(data_of, case):
    benchmark = load_benchmark(data_of(case))
    for images in (benchmark.train, benchmark.query, benchmark.gallery):
        assert {images.read(index).mode for index in range(len(images))} == {"RGB"}


@pytest.mark.parametrize("case", CASES)
def test_there_is_enough_to_train_one_step(data_of, case):
    benchmark = load_benchmark(data_of(case))
    sizes = np.bincount(benchmark.train.labels)
    assert (sizes >= 4).sum() >= 3
    assert len(benchmark.query.class_names) >= 3


@pytest.mark.parametrize("case", PUBLISHED)
def test_fixtures_do_not_pass_for_the_published_benchmark(data_of, case):
    with pytest.raises(KeMetricError, match="expected") as raised:
        load_benchmark(data_of(case, verify_counts=True))
    assert raised.value.exit_code is ExitCode.DATA


@pytest.mark.parametrize("case", PUBLISHED)
def test_the_right_counts_pass_and_one_image_more_does_not(data_of, monkeypatch, case):
    data = data_of(case, verify_counts=True)
    parts = (
        {"train": (17, 5), "query": (6, 3), "gallery": (6, 3)}
        if data.benchmark == "inshop"
        else {
            "train": (16, 4),
            "test": (12, 3),
        }
    )
    set_counts(monkeypatch, data.benchmark, PublishedCounts(parts))
    assert load_benchmark(data).train.class_names
    for part, (images, classes) in parts.items():
        set_counts(monkeypatch, data.benchmark, PublishedCounts({**parts, part: (images + 1, classes)}))
        with pytest.raises(KeMetricError, match=f"{part} images: expected {images + 1}, found {images}"):
            load_benchmark(data)


@pytest.mark.parametrize("case", PUBLISHED)
def test_a_listed_picture_that_is_gone_is_named(data_of, case):
    data = data_of(case)
    benchmark = load_benchmark(data)
    key = benchmark.query.keys[1]
    (benchmark.query.source.root / key).unlink()
    with pytest.raises(KeMetricError) as raised:
        load_benchmark(data)
    assert raised.value.exit_code is ExitCode.DATA
    assert key in str(raised.value)
    assert "unpacked completely" in str(raised.value)


@pytest.mark.parametrize("case", PUBLISHED)
def test_the_parent_folder_is_accepted_as_root(data_of, case):
    data = data_of(case)
    inner = load_benchmark(data)
    outer = load_benchmark(data.model_copy(update={"root": data.root.rpartition("/")[0]}))
    assert outer.train.keys == inner.train.keys
    assert outer.query.keys == inner.query.keys


@pytest.mark.parametrize("benchmark", ["cub", "cars", "sop", "inshop"])
def test_missing_files_name_the_layouts_the_place_and_the_command(tmp_path, benchmark):
    with pytest.raises(KeMetricError) as raised:
        load_benchmark(Data(benchmark=benchmark, root=str(tmp_path)))
    message = str(raised.value)
    assert raised.value.exit_code is ExitCode.DATA
    assert str(tmp_path) in message
    assert f"ke-metric data prepare {benchmark} --from PATH" in message
    wanted = {
        "cub": ["images.txt", "image_class_labels.txt", "classes.txt", "images/"],
        "cars": ["cars_annos.mat", "car_ims/", "cars_test_annos_withlabels.mat", "anno_train.csv"],
        "sop": ["Ebay_train.txt", "Ebay_test.txt"],
        "inshop": ["Eval/list_eval_partition.txt", "Img/img/"],
    }
    assert all(name in message for name in wanted[benchmark])


@pytest.mark.parametrize("benchmark", ["cub", "cars", "sop", "inshop", "folder"])
def test_the_root_defaults_to_data_and_the_name(tmp_path, monkeypatch, benchmark):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeMetricError, match=f"data/{benchmark}") as raised:
        load_benchmark(Data(benchmark=benchmark))
    assert raised.value.exit_code is ExitCode.DATA
