"""A fingerprint names what was added, removed or changed, in every part, and survives its file."""

import json

import pytest

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import DataFingerprint, PartFingerprint, class_name_changes
from ke_metric.lineage.files import read_fingerprint


def part(*rows):
    """Rows of key, class name and content."""
    names = tuple(sorted({name for _, name, _ in rows}))
    keys, classes, contents = zip(*rows, strict=True) if rows else ((), (), ())
    return PartFingerprint(keys, tuple(names.index(name) for name in classes), names, contents)


TRAIN = (("crow/1", "crow", "a"), ("crow/2", "crow", "b"), ("jay/1", "jay", "c"))
TEST = (("owl/1", "owl", "d"), ("owl/2", "owl", "e"))


def data(train=TRAIN, query=TEST, task="retrieval", **others):
    parts = {"train": train, "query": query, **others}
    return DataFingerprint({name: part(*rows) for name, rows in parts.items()}, task)


def test_the_same_data_have_no_changes():
    assert data().changes(data()) == []
    assert data().describe() == data().describe()


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (data(train=(*TRAIN, ("jay/2", "jay", "z"))), ["training part: 1 picture added (jay/2)"]),
        (data(train=TRAIN[1:]), ["training part: 1 picture removed (crow/1)"]),
        (
            data(train=TRAIN[:2]),
            ["training part: 1 picture removed (jay/1), class gone: jay"],
        ),
        (
            data(train=(*TRAIN[:2], ("jay/1", "crow", "c"))),
            ["training part: 1 picture of another class (jay/1 (crow, was jay)), class gone: jay"],
        ),
        (data(query=(TEST[0], ("owl/2", "owl", "!"))), ["test part: 1 picture with other content (owl/2)"]),
        (data(train=TRAIN[::-1]), ["training part: the same pictures in another order"]),
        (
            data(query=(("jay/1", "jay", "c"), *TEST), train=TRAIN[:2]),
            [
                "classes that were trained on are now tested on: jay",
                "training part: 1 picture removed (jay/1), class gone: jay",
                "test part: 1 picture added (jay/1), class new: jay",
            ],
        ),
        (
            data(gallery=(("owl/3", "owl", "f"),)),
            ["gallery: 1 picture added (owl/3), class new: owl"],
        ),
        (
            data(train=tuple((f"{key}{n}", name, "y") for key, name, _ in TRAIN for n in range(2))),
            [
                "training part: 6 pictures added (crow/10, crow/11, crow/20 and 3 more), "
                "3 pictures removed (crow/1, crow/2, jay/1)"
            ],
        ),
    ],
)
def test_every_change_is_named(now, told):
    assert data().changes(now) == told
    assert data().describe() != now.describe()


def test_contents_are_compared_where_both_have_them():
    unread = DataFingerprint({name: part_without(rows) for name, rows in (("train", TRAIN), ("query", TEST))})
    assert data().changes(unread) == unread.changes(data()) == []


def part_without(rows):
    known = part(*rows)
    return PartFingerprint(known.keys, known.labels, known.class_names)


def test_a_renamed_class_of_a_classification_is_named():
    rows = tuple((key, {"crow": "zz"}.get(name, name), content) for key, name, content in TRAIN)
    told = data(task="classification", query=TRAIN).changes(data(train=rows, query=rows, task="classification"))
    assert "class gone: crow, class new: zz" in told[0]
    assert class_name_changes(("crow", "jay"), ("jay", "zz")) == "2 classes then, 2 now; gone: crow, new: zz"
    assert class_name_changes(("a", "b"), ("b", "a")) == "2 classes then, 2 now; in another order"
    assert class_name_changes(("a", "b"), ("a", "b")) == ""


def test_names_that_are_no_text_and_a_damaged_file(tmp_path):
    odd = data(train=(("b\udcff/\n,1", "b\udcff", "a"),))
    path = tmp_path / "data.json"
    path.write_text(json.dumps(odd.to_json()))
    assert read_fingerprint(path).describe() == odd.describe()
    assert read_fingerprint(path).changes(odd) == []
    for broken in ("{}", '{"task": "retrieval", "parts": {"train": {"keys": ["a"]}}}', "[1]", "{"):
        path.write_text(broken)
        with pytest.raises(KeMetricError, match="damaged") as raised:
            read_fingerprint(path)
        assert raised.value.exit_code == ExitCode.LINEAGE
