import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.benchmarks.own_splits import draw_share, split_classes
from ke_metric.errors import ExitCode, KeMetricError

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
