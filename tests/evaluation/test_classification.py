"""Accuracies: the mean over all orders in which tied classes could be stored, worked out by brute force.

Beside them what they are held against: the largest class, and every class by itself.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.classification import score_classes, score_classification


def naive(logits, labels, rank):
    """Sort the classes and look at the first ones; among equal logits the class stored first wins."""
    hits = 0
    for row, label in zip(logits, labels, strict=True):
        likeliest_first = sorted(range(len(row)), key=[-value for value in row].__getitem__)
        hits += label in likeliest_first[:rank]
    return hits / len(labels)


def over_all_orders(logits, labels, rank):
    values = []
    for order in itertools.permutations(range(len(logits[0]))):
        moved = [[row[k] for k in order] for row in logits]
        values.append(naive(moved, [order.index(label) for label in labels], rank))
    return sum(values) / len(values)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(1, 3), st.data())
def test_ties_are_shared_as_if_classes_were_stored_in_any_order(classes, items, data):
    row = st.lists(st.sampled_from([-1.5, 0.0, 2.0]), min_size=classes, max_size=classes)
    logits = data.draw(st.lists(row, min_size=items, max_size=items))
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=items, max_size=items))
    scores = score_classification(logits, labels)
    assert scores.keys() == {"top1", "balanced_accuracy", "majority_baseline"}
    assert scores["top1"] == pytest.approx(over_all_orders(logits, labels, 1))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.integers(1, 40), st.integers(10, 30))
def test_without_ties_they_are_the_usual_scores(seed, items, classes):
    generator = np.random.default_rng(seed)
    logits, labels = generator.standard_normal((items, classes)), generator.integers(0, classes, items)
    scores = score_classification(logits, labels)
    assert scores["top1"] == pytest.approx(np.mean(logits.argmax(axis=1) == labels))
    for name, rank in (("top1", 1), ("top5", 5)):
        assert scores[name] == pytest.approx(naive(logits.tolist(), labels.tolist(), rank))
    assert 0 <= scores["top1"] <= scores["top5"] <= 1
    # Order, scale and shift are all that logits say; the order of the items says nothing.
    turned = generator.permutation(items)
    assert score_classification(3 * logits[turned] + 7, labels[turned]) == scores


def test_a_network_that_cannot_tell_is_guessing():

    def tops(logits, labels):
        scores = score_classification(logits, labels)
        return scores["top1"], scores["top5"]

    assert tops(torch.zeros(16, 16), torch.arange(16)) == (1 / 16, 5 / 16)
    # A tie for the last place of five, for the first place, and none at all.
    row = [9, 8, 7, 6, 1, 1, 0, 0, 0, 0]
    assert tops([row], [5]) == (0, 0.5)
    assert tops([[3, 3, 1, 1, 1, 1, 0, 0, 0, 0]], [0]) == (0.5, 1)
    assert tops([row], [6]) == (0, 0)


def test_the_order_of_the_items_does_not_matter_to_the_last_bit():
    """Sums of thirds, sixths, sevenths, ... are rounded differently in another order."""
    logits = np.array([[0.0] * tied + [-1.0] * (10 - tied) for tied in [3, 6, 7, 10, 2, 1] * 5])
    labels = np.zeros(30, np.int64)
    assert score_classification(logits, labels) == score_classification(
        logits[np.argsort(logits.sum(axis=1))], labels
    )


@pytest.mark.parametrize(
    ("classes", "names"), [(1, set()), (2, {"top1"}), (6, {"top1"}), (9, {"top1"}), (10, {"top1", "top5"})]
)
def test_a_score_that_says_little_is_absent(classes, names):
    scores = score_classification(np.ones((3, classes)), [0, 0, 0])
    assert {name for name in scores if name.startswith("top")} == names
    assert bool(scores) == bool(names)


def test_what_says_nothing_but_the_largest_class_is_told_by_balanced_accuracy_and_baseline():
    """Two classes of 13 and 7 pictures, a third without any; the network knows nothing but the first."""
    labels = [0] * 13 + [1] * 7
    scores = score_classification([[1.0, 0.0, 0.0]] * 20, labels)
    assert scores == {"top1": 0.65, "balanced_accuracy": 0.5, "majority_baseline": 0.65}


def test_every_class_by_itself_against_counting():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 60)
    logits = generator.standard_normal((60, 5)) + 2 * np.eye(5)[labels]
    names = ("ant", "bee", "cat", "dog", "elk")
    found = score_classes(logits, labels, names)
    counted = {name: {} for name in names[:4]}
    for row, label in zip(logits, labels, strict=True):
        answer = names[max(range(5), key=row.__getitem__)]
        counted[names[label]][answer] = counted[names[label]].get(answer, 0) + 1
    assert found.confusion == counted
    expected = {name: others.get(name, 0) / sum(others.values()) for name, others in counted.items()}
    assert found.accuracy == pytest.approx(expected)
    assert score_classification(logits, labels)["balanced_accuracy"] == pytest.approx(
        sum(expected.values()) / len(expected)
    )
    assert 0 < min(expected.values()) < max(expected.values())


def test_of_equally_high_logits_the_first_is_the_answer_and_the_accuracy_is_the_chance():
    found = score_classes([[1, 1, 0], [1, 1, 0]], [0, 1], ("a", "b", "c"))
    assert found.confusion == {"a": {"a": 1}, "b": {"a": 1}}
    assert found.accuracy == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_tensors_of_any_type_are_welcome(kind):
    logits = torch.tensor([[1, 3, 2], [5, 4, 0]], dtype=kind)
    assert score_classification(logits, torch.tensor([1, 1], dtype=torch.int32))["top1"] == 0.5


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros((0, 3)), [], "at least 1"),
        (np.zeros(3), [0], r"shape \[3\]"),
        (np.array([["a", "b"]]), [0], "real numbers"),
        (np.zeros((2, 3)), [0], r"must be \[2\] integers"),
        (np.zeros((2, 3)), [0.0, 1.0], "float64"),
        (np.zeros((2, 3)), [0, 3], "label of item 1 is 3, must be one of the 3 classes, 0 to 2"),
        (np.zeros((2, 3)), [-1, 0], "label of item 0 is -1"),
        ([[0, 1], [0, np.nan]], [0, 0], "item 1 .* not finite"),
        ([[np.inf, 1], [0, 2]], [0, 0], "item 0 .* not finite"),
    ],
)
def test_what_cannot_be_scored(logits, labels, words):
    with pytest.raises(KeMetricError, match=words) as caught:
        score_classification(logits, labels)
    assert caught.value.exit_code is ExitCode.DATA
