"""Splits of our own: of classes, of the images of every class, and of the validation part."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.benchmarks.own_splits import (
    arrange_parts,
    arrange_validation,
    draw_of_every_class,
    draw_share,
    split_classes,
)
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import Benchmark, labelled_set
from ke_metric.recipe.schema import Data

ids = st.sets(st.integers(0, 10_000), min_size=2, max_size=60)
fractions = st.floats(0.01, 0.99)


@given(ids, fractions)
def test_every_class_is_on_exactly_one_side(class_ids: set[int], fraction: float) -> None:
    train, test = split_classes(class_ids, fraction, "any")
    assert set(train) | set(test) == class_ids
    assert not set(train) & set(test)
    assert train
    assert test
    assert list(train) == sorted(train)
    assert list(test) == sorted(test)


@given(ids, fractions)
def test_share_of_test_classes_is_right_to_one_class(class_ids: set[int], fraction: float) -> None:
    _, test = split_classes(class_ids, fraction, "any")
    assert abs(len(test) - fraction * len(class_ids)) <= 1


@given(ids, fractions, st.randoms())
def test_order_and_repetitions_do_not_matter(class_ids: set[int], fraction: float, random) -> None:
    shuffled = list(class_ids) * 2
    random.shuffle(shuffled)
    assert split_classes(shuffled, fraction, "any") == split_classes(class_ids, fraction, "any")


@given(ids, fractions, fractions)
def test_a_larger_fraction_keeps_the_test_classes(class_ids: set[int], one: float, other: float) -> None:
    _, fewer = split_classes(class_ids, min(one, other), "any")
    _, more = split_classes(class_ids, max(one, other), "any")
    assert set(fewer) <= set(more)


@given(ids, st.integers(10_001, 10_100))
def test_an_added_class_moves_at_most_one_other(class_ids: set[int], added: int) -> None:
    _, before = split_classes(class_ids, 0.5, "any")
    _, after = split_classes(class_ids | {added}, 0.5, "any")
    assert len((set(before) ^ set(after)) - {added}) <= 1


def test_the_split_is_drawn_and_belongs_to_the_benchmark() -> None:
    train, test = split_classes(range(100), 0.5, "one")
    assert split_classes(range(100), 0.5, "another") != (train, test)
    assert 15 < sum(class_id < 50 for class_id in test) < 35


def test_the_split_never_changes() -> None:
    # Written down once: scores of different versions are only comparable on the same test classes.
    assert split_classes(["1f600", "1f601", "1f602", "1f603", "1f604", "1f605"], 0.5, "emoji") == (
        ("1f602", "1f604", "1f605"),
        ("1f600", "1f601", "1f603"),
    )


@pytest.mark.parametrize("class_ids", [[], ["only"], ["only", "only"]])
def test_fewer_than_two_classes_cannot_be_split(class_ids: list[str]) -> None:
    with pytest.raises(KeMetricError, match=r"benchmark tiny: [01] class.*at least 2") as caught:
        split_classes(class_ids, 0.5, "tiny")
    assert caught.value.exit_code == ExitCode.DATA


@settings(deadline=None)
@given(st.sets(st.text(max_size=5), max_size=40), fractions, st.randoms())
def test_a_share_of_anything_is_drawn_and_one_of_two_stays(ids: set[str], share: float, random) -> None:
    shuffled = sorted(ids) * 2
    random.shuffle(shuffled)
    left, drawn = draw_share(shuffled, share, "any")
    assert set(left) | set(drawn) == ids
    assert not set(left) & set(drawn)
    assert (list(left), list(drawn)) == (sorted(left), sorted(drawn))
    assert len(drawn) == (min(max(round(share * len(ids)), 1), len(ids) - 1) if len(ids) > 1 else 0)


def test_every_purpose_draws_differently_and_for_ever() -> None:
    assert draw_share("abcdefgh", 0.25, "one")[1] != draw_share("abcdefgh", 0.25, "another")[1]
    assert draw_share("abcdefgh", 0.25, "faces") == (("b", "c", "d", "e", "g", "h"), ("a", "f"))


CLASSES = st.lists(st.integers(0, 6), min_size=1, max_size=40)
SHARES = st.floats(0.01, 0.99)
unhurried = settings(max_examples=50, deadline=None)
NAMES = {number: f"class {number}" for number in range(9)}


class Nowhere:
    """A source that is equal to itself only and never asked."""


SOURCE = Nowhere()


def images(prefix, classes):
    return labelled_set([f"{prefix}{number}.jpg" for number in range(len(classes))], classes, NAMES, SOURCE)


def benchmark(train=(0, 0, 0, 1, 1, 2, 2, 2), validation=None):
    test = images("test/", sorted(set(train)))
    held = None if validation is None else images("val/", validation)
    return Benchmark("mine", images("train/", train), test, test, {"split": "x"}, held, "classification")


def refused(whole, exit_code=ExitCode.RECIPE, **fields):
    with pytest.raises(KeMetricError) as raised:
        arrange_validation(whole, Data(**fields))
    assert raised.value.exit_code is exit_code
    return str(raised.value)


@unhurried
@given(CLASSES, SHARES)
def test_the_share_of_every_class_is_drawn_and_one_image_of_it_stays(classes, share):
    keys = [f"{number}" for number in range(len(classes))]
    drawn = draw_of_every_class(keys, classes, share=share, purpose="any")
    assert drawn <= set(keys)
    counts = Counter(number for key, number in zip(keys, classes, strict=True) if key in drawn)
    for number, size in Counter(classes).items():
        assert counts[number] == (min(max(round(share * size), 1), size - 1) if size > 1 else 0)


@unhurried
@given(CLASSES, SHARES, st.randoms())
def test_the_order_of_the_images_does_not_matter(classes, share, random):
    pairs = [(f"{number}", of_class) for number, of_class in enumerate(classes)]
    expected = draw_of_every_class(*zip(*pairs, strict=True), share=share, purpose="any")
    random.shuffle(pairs)
    assert draw_of_every_class(*zip(*pairs, strict=True), share=share, purpose="any") == expected


def test_an_image_of_another_class_moves_nothing():
    keys = [f"{number}" for number in range(20)]
    before = draw_of_every_class(keys, [0] * 20, share=0.3, purpose="any")
    after = draw_of_every_class([*keys, "a", "b"], [0] * 20 + [1, 1], share=0.3, purpose="any")
    assert before == {key for key in after if key not in ("a", "b")}
    assert before != draw_of_every_class(keys, [0] * 20, share=0.3, purpose="another")


def test_without_a_wish_the_parts_stay():
    plain = benchmark()
    assert arrange_validation(plain, Data()) is plain
    whole = benchmark(validation=(0, 1, 2))
    apart = arrange_validation(whole, Data())
    assert apart.validation is whole.validation
    assert apart.train is whole.train
    assert apart.notes == {"split": "x", "validation": "official part, kept apart"}


def test_the_validation_part_is_joined_to_the_training_part():
    whole = benchmark(validation=(2, 0, 1, 2))
    joined = arrange_validation(whole, Data(train_on="trainval"))
    assert joined.validation is None
    assert joined.train.keys == whole.train.keys + whole.validation.keys
    assert joined.train.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 0, 1, 2]
    assert joined.train.class_names == whole.train.class_names
    assert joined.query is joined.gallery is whole.query
    assert joined.notes["validation"] == "official part of 4 images, joined to the training part"


@unhurried
@given(st.lists(st.integers(0, 5), min_size=2, max_size=40).filter(lambda ids: len(ids) > len(set(ids))), SHARES)
def test_images_held_out_are_of_every_class_and_keep_their_labels(classes, fraction):
    whole = benchmark(train=classes)
    cut = arrange_validation(whole, Data(validation_fraction=fraction))
    assert cut.train.class_names == cut.validation.class_names == whole.train.class_names
    label_of = dict(zip(whole.train.keys, whole.train.labels, strict=True))
    for part in (cut.train, cut.validation):
        assert part.labels.tolist() == [label_of[key] for key in part.keys]
        assert list(part.keys) == [key for key in whole.train.keys if key in set(part.keys)]
    assert sorted(cut.train.keys + cut.validation.keys) == sorted(whole.train.keys)
    assert set(cut.train.labels) == set(whole.train.labels)
    lone = np.bincount(whole.train.labels) == 1
    assert ((np.bincount(cut.validation.labels, minlength=len(lone)) == 0) == lone).all()
    assert f"{len(cut.validation)} training images held out" in cut.notes["validation"]


def test_a_larger_fraction_holds_out_all_of_a_smaller_one():
    whole = benchmark(train=[0] * 30 + [1] * 7)
    held = [
        set(arrange_validation(whole, Data(validation_fraction=share)).validation.keys) for share in (0.1, 0.3, 0.9)
    ]
    assert held[0] < held[1] < held[2]


def test_what_is_held_out_never_changes():
    # Written down once: validation scores of different versions are only comparable on the same images.
    cut = arrange_validation(benchmark(train=[0] * 6 + [1] * 6), Data(validation_fraction=0.34))
    assert cut.validation.keys == ("train/4.jpg", "train/5.jpg", "train/6.jpg", "train/8.jpg")


def test_no_validation_part_can_be_joined_where_there_is_none():
    message = refused(benchmark(), train_on="trainval")
    assert "data.train_on = 'trainval': the benchmark 'mine' has no validation part" in message
    assert "allowed: 'train'" in message


@pytest.mark.parametrize("train_on", ["train", "trainval"])
def test_nothing_is_held_out_beside_an_official_validation_part(train_on):
    message = refused(benchmark(validation=(0, 1, 2)), train_on=train_on, validation_fraction=0.1)
    assert "data.validation_fraction = 0.1" in message
    assert "has a validation part of its own (3 images); allowed: 0" in message


def test_nothing_can_be_held_out_of_classes_with_one_image():
    message = refused(benchmark(train=(0, 1, 2)), ExitCode.DATA, validation_fraction=0.5)
    assert "no training class of 'mine' has two images" in message


def retrieval(train=(0, 0, 0, 1, 1, 2, 2, 2)):
    """Its test classes are others, and have other names."""
    test = labelled_set(["test/0.jpg", "test/1.jpg"], [90, 90], {90: "of the test"}, SOURCE)
    return Benchmark("mine", images("train/", train), test, test, {"split": "x"})


def names_of(part):
    """Return key to the name of its class."""
    return {key: part.class_names[label] for key, label in zip(part.keys, part.labels, strict=True)}


@unhurried
@given(st.lists(st.integers(0, 8), min_size=12, max_size=60), st.floats(0.17, 0.8), st.integers(0, 3))
def test_classes_held_out_are_whole_and_nobody_elses(classes, fraction, noise):
    classes = [*classes, *range(9), *range(9)]
    whole = retrieval(classes)
    cut = arrange_parts(whole, Data(validation_fraction=fraction, label_noise=noise / 10))
    train, held = set(cut.train.class_names), set(cut.validation.class_names)
    assert train | held == set(whole.train.class_names)
    assert not train & held
    assert not held & set(cut.query.class_names)
    assert len(held) == round(9 * fraction)
    name_of = names_of(whole.train)
    for part in (cut.train, cut.validation):
        assert set(part.labels) == set(range(len(part.class_names)))
        assert list(part.keys) == [key for key in whole.train.keys if key in set(part.keys)]
    # Wrong labels are learnt from, never validated with.
    assert names_of(cut.validation).items() <= name_of.items()
    assert {name_of[key] for key in cut.validation.keys} == held
    assert {name_of[key] for key in cut.train.keys} == train
    assert (cut.query, cut.gallery) == (whole.query, whole.gallery)
    assert cut.notes["validation"] == f"{len(held)} of 9 training classes held out (data.validation_fraction)"


def test_a_larger_fraction_holds_out_all_classes_of_a_smaller_one():
    whole = retrieval(list(range(9)) * 2)
    held = [
        set(arrange_validation(whole, Data(validation_fraction=share)).validation.class_names)
        for share in (0.2, 0.4, 0.7)
    ]
    assert held[0] < held[1] < held[2]


def test_classes_that_are_held_out_never_change():
    # Written down once: validation scores of different versions are only comparable on the same classes.
    cut = arrange_validation(retrieval(list(range(9)) * 2), Data(validation_fraction=0.34))
    assert cut.validation.class_names == ("class 2", "class 3", "class 4")


def test_classes_are_held_out_of_those_that_are_kept():
    cut = arrange_parts(retrieval(list(range(9)) * 2), Data(validation_fraction=0.5, train_classes=4))
    assert (len(cut.train.class_names), len(cut.validation.class_names)) == (2, 2)


def test_without_a_fraction_a_retrieval_is_as_it_was():
    whole = retrieval()
    assert arrange_parts(whole, Data()) is whole


@pytest.mark.parametrize(("fraction", "left", "held"), [(0.9, 1, 8), (0.1, 8, 1)])
def test_two_classes_are_left_to_learn_from_and_two_to_validate_with(fraction, left, held):
    """Whatever a network is like, a picture of the only class there is finds one of its own."""
    message = refused(retrieval(list(range(9)) * 2), validation_fraction=fraction)
    assert (
        f"data.validation_fraction = {fraction}: the training part of 'mine' has 9 classes, of which that leaves "
        f"{left} to learn from and {held} to validate with; there must be 2 of each at least"
    ) in message


def test_classes_of_one_image_find_nothing():
    message = refused(retrieval((0, 1, 2, 3)), ExitCode.DATA, validation_fraction=0.5)
    assert "data.validation_fraction = 0.5: no class of 'mine' that is held out has two images" in message
