"""From rows to a benchmark: numbering and the checks that all readers share."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.benchmarks.listings import key_below
from ke_metric.benchmarks.table import Table, TableRow, build_benchmark, build_classification, split_at
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data

MINE = Data(benchmark="mine")
NAMES = {class_id: f"class {class_id}" for class_id in range(100)}


@pytest.fixture
def build(tmp_path):
    """Write an (empty) file for every key and build the benchmark."""

    def write(train, query, gallery=None, class_names=NAMES):
        for item in [*train, *query, *(gallery or [])]:
            (tmp_path / item.key).touch()
        return build_benchmark(
            MINE, Table(tmp_path / "list.txt", tmp_path, train, query, gallery, class_names, {"layout": "a list"})
        )

    return write


@pytest.fixture
def classify(tmp_path):
    """Write an (empty) file for every key and build the benchmark for classification."""

    def write(train, query, validation=None, *, class_names=NAMES, source=None):
        for item in [*train, *query, *(validation or [])]:
            (tmp_path / item.key).touch()
        notes = {"layout": "a list"}
        table = Table(tmp_path / "list.txt", tmp_path, train, query, None, class_names, notes, validation)
        return build_classification(MINE, table, source=source)

    return write


def refused(build, *arguments, **named):
    with pytest.raises(KeMetricError) as raised:
        build(*arguments, **named)
    assert raised.value.exit_code is ExitCode.DATA
    assert "list.txt" in str(raised.value)
    return str(raised.value)


@given(
    class_ids=st.lists(st.integers(0, 30), min_size=4, max_size=40),
    boundary=st.integers(0, 30),
)
def test_labels_are_the_ranks_of_the_class_ids(tmp_path_factory, class_ids, boundary):
    items = [TableRow(f"{number}.jpg", class_id) for number, class_id in enumerate(class_ids)]
    train, test = split_at(items, boundary)
    if not train or not test:
        return
    folder = tmp_path_factory.mktemp("pictures")
    for item in items:
        (folder / item.key).touch()
    benchmark = build_benchmark(MINE, Table(folder, folder, train, test, None, NAMES))
    for images, part in ((benchmark.train, train), (benchmark.query, test)):
        ranks = [sum(other < item.class_id for other in {it.class_id for it in part}) for item in part]
        assert images.labels.tolist() == ranks
        assert images.labels.dtype == np.int64
        assert [images.class_names[label] for label in images.labels] == [NAMES[item.class_id] for item in part]
        assert images.keys == tuple(item.key for item in part)


def test_the_last_training_class_still_trains():
    items = [TableRow("a", 3), TableRow("b", 1), TableRow("c", 2), TableRow("d", 4), TableRow("e", 2)]
    train, test = split_at(items, 2)
    assert train == [items[1], items[2], items[4]]
    assert test == [items[0], items[3]]


def test_without_gallery_query_and_gallery_are_one_object(build):
    benchmark = build([TableRow("a", 1)], [TableRow("b", 2), TableRow("c", 2)])
    assert benchmark.query is benchmark.gallery
    assert benchmark.notes["layout"] == "a list"


def test_query_and_gallery_are_numbered_together(build):
    benchmark = build([TableRow("a", 1)], [TableRow("b", 9), TableRow("c", 5)], [TableRow("d", 7), TableRow("e", 9)])
    assert benchmark.query.class_names == benchmark.gallery.class_names == ("class 5", "class 7", "class 9")
    assert benchmark.query.labels.tolist() == [2, 0]
    assert benchmark.gallery.labels.tolist() == [1, 2]


def test_lone_items_are_counted(build):
    benchmark = build(
        [TableRow("a", 1), TableRow("b", 2), TableRow("c", 2)], [TableRow("d", 3), TableRow("e", 4), TableRow("f", 4)]
    )
    assert benchmark.notes["training classes with one image"] == "1"
    assert benchmark.notes["queries without any match"] == "1"


def test_no_note_is_made_of_nothing(build):
    benchmark = build([TableRow("a", 1), TableRow("b", 1)], [TableRow("c", 2), TableRow("d", 2)])
    assert dict(benchmark.notes) == {"layout": "a list"}


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (([], [TableRow("a", 1)]), "train"),
        (([TableRow("a", 1)], []), "test"),
        (([TableRow("a", 1)], [], [TableRow("b", 2)]), "query"),
        (([TableRow("a", 1)], [TableRow("b", 2)], []), "gallery"),
    ],
)
def test_an_empty_part_is_refused(build, parts, name):
    assert f"the {name} part has no images" in refused(build, *parts)


def test_a_repeated_item_is_refused(build):
    message = refused(build, [TableRow("a", 1), TableRow("a", 1)], [TableRow("b", 2)])
    assert "more than once in the train part: a" in message


def test_a_shared_class_is_refused_with_its_name(build):
    message = refused(build, [TableRow("a", 1), TableRow("b", 2)], [TableRow("c", 3)], [TableRow("d", 2)])
    assert "1 classes are both trained on and tested on: class 2" in message


def test_a_class_without_name_is_refused(build):
    assert "no name: 2; 1 classes" in refused(build, [TableRow("a", 1)], [TableRow("b", 2)], class_names={1: "one"})


def test_a_missing_picture_is_refused(tmp_path):
    table = Table(tmp_path / "list.txt", tmp_path, [TableRow("x/a.jpg", 1)], [TableRow("x/b.jpg", 2)], None, NAMES)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jpg").touch()
    message = refused(build_benchmark, MINE, table)
    assert "1 of the 2 images" in message
    assert "x/b.jpg" in message


def test_a_missing_folder_counts_as_missing_pictures(tmp_path):
    table = Table(tmp_path / "list.txt", tmp_path, [TableRow("x/a.jpg", 1)], [TableRow("x/b.jpg", 2)], None, NAMES)
    assert "2 of the 2 images" in refused(build_benchmark, MINE, table)


@pytest.mark.parametrize(("path", "plain"), [("a/b.jpg", "a/b.jpg"), ("./a//b.jpg", "a/b.jpg"), ("a..b/c", "a..b/c")])
def test_a_path_gets_its_plain_form(path, plain):
    assert key_below(path, "here") == plain


@pytest.mark.parametrize("path", ["/a", "..", "a/../b", "C:/a", "c:a", "a\\..\\b", "\\a"])
def test_a_path_that_leaves_is_refused(path):
    with pytest.raises(KeMetricError, match="here: the path") as raised:
        key_below(path, "here")
    assert raised.value.exit_code is ExitCode.DATA


def test_the_origin_and_the_folder_may_differ(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    benchmark = build_benchmark(
        MINE, Table(Path("list"), tmp_path, [TableRow("a", 1)], [TableRow("b", 2)], None, NAMES)
    )
    assert benchmark.train.source.root == tmp_path


@settings(max_examples=40, deadline=None)
@given(
    learnt=st.lists(st.integers(0, 9), min_size=1, max_size=20),
    others=st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=9), min_size=2, max_size=2),
)
def test_for_classification_all_parts_have_the_numbering_of_the_training_part(tmp_path_factory, learnt, others):
    folder = tmp_path_factory.mktemp("pictures")
    ids = sorted(set(learnt))
    classes = {
        "train": learnt,
        **{part: [ids[n % len(ids)] for n in of] for part, of in zip("vt", others, strict=True)},
    }
    parts = {
        part: [TableRow(f"{part}{number}", of) for number, of in enumerate(found)] for part, found in classes.items()
    }
    for item in (item for items in parts.values() for item in items):
        (folder / item.key).touch()
    table = Table(folder, folder, parts["train"], parts["t"], None, NAMES, {}, parts["v"])
    benchmark = build_classification(MINE, table)
    assert benchmark.task == "classification"
    assert benchmark.gallery is benchmark.query
    for images, part in ((benchmark.train, "train"), (benchmark.validation, "v"), (benchmark.query, "t")):
        assert images.class_names == tuple(NAMES[class_id] for class_id in ids)
        assert images.labels.tolist() == [ids.index(item.class_id) for item in parts[part]]
        assert images.labels.dtype == np.int64
        assert images.keys == tuple(item.key for item in parts[part])


def test_parts_by_name(tmp_path):
    one, two, three = ([TableRow(name, 1)] for name in "abc")
    without = Table(tmp_path, tmp_path, one, two, None, NAMES)
    assert without.parts == {"train": one, "test": two}
    assert list(Table(tmp_path, tmp_path, one, two, None, NAMES, {}, three).parts.items()) == [
        ("train", one),
        ("validation", three),
        ("test", two),
    ]


def test_without_a_validation_part_there_is_none(classify):
    benchmark = classify([TableRow("a", 1)], [TableRow("b", 1)])
    assert benchmark.validation is None
    assert dict(benchmark.notes) == {"layout": "a list"}


def test_classes_without_a_test_image_are_counted(classify):
    benchmark = classify(
        [TableRow("a", 1), TableRow("b", 2), TableRow("c", 3)], [TableRow("d", 2)], [TableRow("e", 3)]
    )
    assert benchmark.query.class_names == ("class 1", "class 2", "class 3")
    assert benchmark.query.labels.tolist() == [1]
    assert benchmark.notes["classes without a test image"] == "2"


def test_a_source_of_its_own_decodes_every_part(classify):
    source = object()
    benchmark = classify([TableRow("a", 1)], [TableRow("b", 1)], [TableRow("c", 1)], source=source)
    assert benchmark.train.source is benchmark.query.source is benchmark.validation.source is source


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (([], [TableRow("a", 1)]), "the train part has no images"),
        (([TableRow("a", 1)], []), "the test part has no images"),
        (([TableRow("a", 1)], [TableRow("b", 1)], []), "the validation part has no images"),
        (
            ([TableRow("a", 1)], [TableRow("b", 1)], [TableRow("c", 1)] * 2),
            "more than once in the validation part: c",
        ),
        (([TableRow("a", 1)], [TableRow("a", 1)]), "1 images are in more than one of the parts train, test: a"),
        (
            ([TableRow("a", 1)], [TableRow("b", 1)], [TableRow("b", 1)]),
            "in more than one of the parts train, validation, test: b",
        ),
        (([TableRow("a", 1)], [TableRow("b", 2)]), "1 classes of the test part have no training image: class 2"),
        (
            ([TableRow("a", 1)], [TableRow("b", 1)], [TableRow("c", 7)]),
            "of the validation part have no training image: class 7",
        ),
        (([TableRow("a", 1)], [TableRow("b", 100)]), "no name: 100"),
        (([TableRow("a", 1)], [TableRow("b", 1)], [TableRow("c", 101)]), "no name: 101"),
    ],
)
def test_what_is_wrong_with_a_classification_table(classify, parts, said):
    assert said in refused(classify, *parts)


@pytest.mark.parametrize("gone", ["a", "b", "c"])
def test_a_picture_missing_from_any_part_is_refused(tmp_path, gone):
    for name in {"a", "b", "c"} - {gone}:
        (tmp_path / name).touch()
    table = Table(
        tmp_path / "list.txt", tmp_path, [TableRow("a", 1)], [TableRow("b", 1)], None, NAMES, {}, [TableRow("c", 1)]
    )
    assert f"1 of the 3 images that {tmp_path / 'list.txt'} lists are not there: {gone}" in refused(
        build_classification, MINE, table
    )
