import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.evaluation.backend import Backend, Neighbors, search
from ke_metric.evaluation.recall import count_relevant, find_hits, map_at_r, r_precision, recall_at_k

hit_rows = st.integers(1, 8).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=6)
)


def by_hand(*rows):
    return np.array([[mark == "x" for mark in row] for row in rows])


def test_recall_on_a_drawing():
    """Seven items on a quarter circle, at these angles; letters are classes.

        a     b  a     c  b     b     a
        0    20 25    51 58    75    95

    Nearest first, item by item:
        a0:  b20 a25 c51 b58 b75 a95    first a at rank 2
        b20: a25 a0 c51 b58 b75 a95     first b at rank 4
        a25: b20 a0 c51 b58 b75 a95     first a at rank 2
        c51: has no other c
        b58: c51 b75 a25 a95 b20 a0     first b at rank 2
        b75: b58 a95 c51 a25 b20 a0     first b at rank 1
        a95: b75 b58 c51 a25 b20 a0     first a at rank 4
    """
    angles = np.radians([0, 20, 25, 51, 58, 75, 95])
    labels = np.array([0, 1, 0, 2, 1, 1, 0])
    items = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = search(items, items, 6, backend=Backend("torch"), self_match=np.arange(7))
    hits = find_hits(found, labels, labels)
    first_hit = {0: 2, 1: 4, 2: 2, 4: 2, 5: 1, 6: 4}
    for k in range(1, 9):
        expected = [float(first_hit.get(item, 99) <= k) for item in range(7)]
        assert recall_at_k(hits, k).tolist() == expected, k
    assert count_relevant(labels, labels, np.arange(7)).tolist() == [2, 2, 2, 0, 2, 2, 2]


def test_map_at_r_and_r_precision_by_hand():
    hits = by_hand("x.xx", ".xxx", "....", "xxxx")
    relevant = np.array([3, 2, 1, 4])
    np.testing.assert_allclose(map_at_r(hits, relevant), [(1 + 2 / 3) / 3, (1 / 2) / 2, 0, 1])
    np.testing.assert_allclose(r_precision(hits, relevant), [2 / 3, 1 / 2, 0, 1])


def test_recall_at_k_is_not_the_recall_of_information_retrieval():
    """One of four relevant items among the first two: a hit, where the other definition says 1/4."""
    assert recall_at_k(by_hand(".x.xxx"), 2).tolist() == [1.0]


def map_at_r_in_loops(row, relevant):
    total = 0.0
    for rank in range(1, relevant + 1):
        if row[rank - 1]:
            total += sum(row[:rank]) / rank
    return total / relevant


@given(hit_rows, st.data())
@settings(deadline=None)
def test_agree_with_plain_loops(rows, data):
    width = len(rows[0])
    relevant = data.draw(st.lists(st.integers(1, width), min_size=len(rows), max_size=len(rows)))
    hits, counts = np.array(rows), np.array(relevant)
    np.testing.assert_allclose(
        map_at_r(hits, counts), [map_at_r_in_loops(*each) for each in zip(rows, relevant, strict=True)]
    )
    np.testing.assert_allclose(
        r_precision(hits, counts), [sum(row[:r]) / r for row, r in zip(rows, relevant, strict=True)]
    )
    for k in range(1, width + 2):
        assert recall_at_k(hits, k).tolist() == [float(True in row[:k]) for row in rows]


@given(hit_rows, st.data())
@settings(deadline=None)
def test_orders(rows, data):
    """Recall@K never falls as K grows, MAP@R is never above R-precision, and all lie in [0, 1]."""
    width = len(rows[0])
    relevant = np.array(data.draw(st.lists(st.integers(1, width), min_size=len(rows), max_size=len(rows))))
    hits = np.array(rows)
    recalls = np.array([recall_at_k(hits, k) for k in range(1, width + 1)])
    assert (np.diff(recalls, axis=0) >= 0).all()
    precision, average = r_precision(hits, relevant), map_at_r(hits, relevant)
    assert (average <= precision + 1e-12).all()
    assert (average >= 0).all()
    assert (precision <= 1).all()
    # What comes after rank R does not count.
    beyond = np.arange(width) >= relevant[:, None]
    np.testing.assert_array_equal(map_at_r(hits ^ beyond, relevant), average)
    np.testing.assert_array_equal(r_precision(hits ^ beyond, relevant), precision)


def test_padding_is_never_a_hit():
    """The last gallery item, where index -1 would point, is of the query's class."""
    found = Neighbors(np.array([[0, -1]]), np.array([[0.5, -np.inf]], dtype=np.float32))
    assert find_hits(found, np.array([7]), np.array([3, 7])).tolist() == [[False, False]]


@pytest.mark.parametrize("score", [map_at_r, r_precision])
def test_lists_must_reach_rank_r_and_queries_must_have_something_to_find(score):
    score(by_hand("xx"), np.array([2]))
    with pytest.raises(AssertionError):
        score(by_hand("xx"), np.array([3]))
    with pytest.raises(AssertionError):
        score(by_hand("xx"), np.array([0]))


labels_of = st.lists(st.integers(-2, 3), min_size=1, max_size=12)


@given(labels_of, labels_of)
@settings(deadline=None)
def test_relevant_between_query_and_gallery(query, gallery):
    found = count_relevant(np.array(query), np.array(gallery), None)
    assert found.tolist() == [gallery.count(label) for label in query]


@given(labels_of, st.data())
@settings(deadline=None)
def test_relevant_without_the_query_itself(gallery, data):
    own = data.draw(st.lists(st.integers(-1, len(gallery) - 1), min_size=1, max_size=12))
    query = [gallery[position] if position >= 0 else 0 for position in own]
    expected = [gallery.count(label) - (position >= 0) for label, position in zip(query, own, strict=True)]
    assert count_relevant(np.array(query), np.array(gallery), np.array(own)).tolist() == expected
