"""Comparing counts with those of the published benchmark."""

from pathlib import Path

import pytest

from ke_metric.benchmarks.table import PublishedCounts, Table, TableRow
from ke_metric.errors import ExitCode, KeMetricError

COUNTS = PublishedCounts(
    {"train": (4, 2), "test": (3, 1)}, class_sizes=(1, 3), suspects={6: "This looks like the old archive."}
)


def table(train_classes, test_classes):
    def items(part, class_ids):
        return [TableRow(f"{part}/{number}", class_id) for number, class_id in enumerate(class_ids)]

    return Table(Path("list.txt"), Path(), items("train", train_classes), items("test", test_classes), None, {})


def refused(counts, *parts):
    with pytest.raises(KeMetricError) as raised:
        counts.verify(table(*parts))
    assert raised.value.exit_code is ExitCode.DATA
    assert "list.txt" in str(raised.value)
    assert "data.verify_counts = false" in str(raised.value)
    return str(raised.value)


def test_the_published_counts_pass():
    COUNTS.verify(table([1, 1, 2, 2], [3, 3, 3]))


def test_every_wrong_count_is_said_with_both_numbers():
    message = refused(COUNTS, [1, 1, 1], [3, 4, 4, 4])
    assert "train images: expected 4, found 3" in message
    assert "train classes: expected 2, found 1" in message
    assert "test images: expected 3, found 4" in message
    assert "test classes: expected 1, found 2" in message


def test_a_right_count_is_not_complained_about():
    message = refused(COUNTS, [1, 1, 2, 2], [3, 3])
    assert "train" not in message
    assert "test classes" not in message


def test_the_likely_wrong_archive_is_named_by_its_total():
    assert "old archive" in refused(COUNTS, [1, 2, 2], [3, 3, 3])
    assert "old archive" not in refused(COUNTS, [1, 2], [3, 3, 3])


def test_class_sizes_are_checked_where_totals_are_right():
    counts = PublishedCounts({"train": (4, 2), "test": (3, 1)}, class_sizes=(2, 3))
    message = refused(counts, [1, 1, 1, 2], [3, 3, 3])
    assert "images of class 2: expected 2 to 3, found 1" in message
    assert "class 1" not in message


def test_without_published_class_sizes_any_size_passes():
    PublishedCounts({"train": (4, 2), "test": (3, 1)}).verify(table([1, 1, 1, 2], [3, 3, 3]))


def test_a_remark_is_added_to_every_mismatch():
    counts = PublishedCounts({"train": (4, 2), "test": (3, 1)}, remark="Seven in all.")
    assert "Seven in all." in refused(counts, [1, 2], [3, 3, 3])
