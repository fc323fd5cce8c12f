"""Scores of neighbour lists; with ties, means over all orders of equally similar items, whoever searches."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ke_metric.evaluation import retrieval
from ke_metric.evaluation.backend import Backend, Neighbors, search
from ke_metric.evaluation.embeddings import Embeddings, number_rows
from ke_metric.evaluation.recall import (
    Places,
    count_relevant,
    equally_similar,
    find_hits,
    level,
    map_at_r,
    r_precision,
    recall_at_k,
    score_places,
)
from ke_metric.evaluation.retrieval import Scoring, score_retrieval

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


in_a_hurry = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def by(backend):
    """Scoring by each backend, without k-means."""
    return Scoring(backend=backend.name, kmeans_seeds=())


def over_all_orders(vectors, labels, ranks):
    """Every query, every order in which the other items could be stored: sort them, score them, take the mean."""
    units = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities = (units @ units.T).round(6)
    sums, scored = {}, 0
    for query, label in enumerate(labels):
        others = [item for item in range(len(labels)) if item != query]
        relevant = sum(labels[item] == label for item in others)
        if not relevant:
            continue
        scored += 1
        orders = list(itertools.permutations(others))
        for order in orders:
            hits = [labels[item] == label for item in sorted(order, key=lambda item: -similarities[query, item])]
            values = {f"recall@{k}": float(any(hits[:k])) for k in ranks}
            values["r_precision"] = sum(hits[:relevant]) / relevant
            values["map@r"] = sum(sum(hits[: i + 1]) / (i + 1) for i in range(relevant) if hits[i]) / relevant
            sums = {name: sums.get(name, 0) + value / len(orders) for name, value in values.items()}
    return {name: value / scored for name, value in sums.items()}


@in_a_hurry
@given(
    st.lists(st.sampled_from([(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1), (1, 1, 0)]), min_size=3, max_size=7),
    st.data(),
)
def test_scores_are_means_over_all_orders(by, vectors, data):
    """Copies, and different embeddings that are equally similar; some ties reach beyond the longest list."""
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(vectors), max_size=len(vectors)))
    ranks = (1, 2, 5)
    expected = over_all_orders(vectors, labels, ranks)
    found = score_retrieval(np.array(vectors, float), labels, ranks, scoring=by)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def copies(seed=0):
    """Twenty pictures, six times each, in two classes that have nothing to do with what is on them."""
    generator = np.random.default_rng(seed)
    return np.repeat(generator.normal(size=(20, 16)), 6, axis=0), generator.integers(0, 2, 120)


@pytest.mark.parametrize("ranks", [(1,), (1, 2, 4, 8), (1, 100)])
def test_copies_score_the_same_in_any_order_with_any_ks_and_by_any_backend(by, ranks):
    vectors, labels = copies()
    expected = score_retrieval(vectors, labels, (1, 2, 4, 8), scoring=Scoring("torch", kmeans_seeds=()))
    assert 0.4 < expected["recall@1"] < 0.6
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(120)
        found = score_retrieval(vectors[order], labels[order], ranks, scoring=by)
        shared = found.keys() & expected.keys()
        assert {"recall@1", "map@r", "r_precision"} <= shared
        assert {name: found[name] for name in shared} == pytest.approx({name: expected[name] for name in shared})


def test_copies_of_a_gallery_that_holds_the_query(by):
    """Three copies of one picture, one of them the query: two are left, one of them of its class."""
    gallery = Embeddings([[1, 0], [1, 0], [1, 0], [0, 1]], [0, 0, 1, 1], ["a", "b", "c", "d"])
    found = score_retrieval([[1.0, 0.0]], [0], (1, 2), gallery=gallery, ids=["a"], scoring=by)
    assert found == {"recall@1": 0.5, "recall@2": 1, "map@r": 0.5, "r_precision": 0.5, "queries": 1,
                     "queries_without_match": 0}  # fmt: skip
    stranger = score_retrieval([[1.0, 0.0]], [0], (1,), gallery=gallery, ids=["e"], scoring=by)
    assert stranger["recall@1"] == pytest.approx(2 / 3)


def test_a_network_that_gives_one_embedding_to_all_is_guessing(by):
    """More of them than any tie of different embeddings is followed."""
    count = retrieval.LONGEST_TIE + 904
    labels = np.arange(count) % 50
    found = score_retrieval(np.ones((count, 8)), labels, (1, 2), scoring=by)
    chance = (count / 50 - 1) / (count - 1)
    assert found["recall@1"] == pytest.approx(chance)
    assert found["r_precision"] == pytest.approx(chance)
    assert found["recall@2"] == pytest.approx(1 - (1 - chance) * (1 - chance * (count - 1) / (count - 2)))


@pytest.mark.parametrize("longest", [1, 7, 4096])
def test_a_tie_of_different_embeddings_is_followed_to_its_end(by, monkeypatch, longest):
    """Sixty items at one similarity, 15 of them hits; a tie that is too long is taken as far as it was seen."""
    monkeypatch.setattr(retrieval, "LONGEST_TIE", longest)
    gallery = Embeddings(np.eye(60), [1, 0, 0, 0] * 15)
    found = score_retrieval(np.ones((30, 60)), [1] * 30, (1,), gallery=gallery, scoring=by)
    if longest == 4096:
        assert found["recall@1"] == pytest.approx(1 / 4)
        assert found["r_precision"] == pytest.approx(1 / 4)
    assert 0 < found["r_precision"] < 1


@pytest.mark.parametrize("queries", [1, 2])
def test_a_tie_of_different_embeddings_across_the_end_of_a_list_counts_whoever_comes_first(by, queries):
    """Places 2 and 3 are tied, one of them a hit, and nothing before them is; the second query has no tie at all."""
    rows = [[0.9, 0.1, 0.1], [0.5, 0.5, 0], [0.5, -0.5, 0], [0.1, 0.9, 0]]
    query = np.array([[1, 0, 0], [1, 0.2, 0.1]], float)[:queries]
    alone = {"recall@1": 0, "recall@2": 0.5, "recall@3": 1, "map@r": 0.125, "r_precision": 0.25}
    followed = {"recall@1": 0, "recall@2": 0.75, "recall@3": 1, "map@r": 0.1875, "r_precision": 0.375}
    expected = alone if queries == 1 else followed
    for order in itertools.permutations(range(4)):
        gallery = Embeddings([rows[item] for item in order], [[1, 0, 1, 0][item] for item in order])
        for ranks in [(1, 2), (2,), (1, 2, 3), (1, 2, 4)]:
            found = score_retrieval(query, [0] * queries, ranks, gallery=gallery, scoring=by)
            shared = found.keys() & expected.keys()
            assert {name: found[name] for name in shared} == pytest.approx({name: expected[name] for name in shared})


def test_a_long_list_without_any_hit_and_a_short_gallery(by):
    gallery = Embeddings([[1, 0], [1, 0], [0, 1]], [0, 1, 2])
    found = score_retrieval([[1.0, 0.0], [0.0, 1.0]], [2, 2], (1, 2, 3, 9), gallery=gallery, scoring=by)
    assert [found[f"recall@{k}"] for k in (1, 2, 3, 9)] == [0.5, 0.5, 1, 1]


@in_a_hurry
@given(seed=st.integers(0, 999), count=st.integers(20, 120))
def test_without_ties_nothing_changes_to_the_last_bit(backend, hard_vectors, seed, count):
    """Against the scores of the plain lists, block by block as they are cut."""
    items = Embeddings(hard_vectors(count, seed), np.random.default_rng(seed).integers(0, 9, count))
    own = np.arange(count)
    relevant = count_relevant(items.labels, items.labels, own)
    scored = np.flatnonzero(relevant)
    scored = scored[np.argsort(np.maximum(relevant, 4)[scored], kind="stable")]
    depth = int(max(4, relevant.max()))
    found = search(items.vectors[scored], items.vectors, depth, backend=backend, self_match=scored)
    hits = find_hits(found, items.labels[scored], items.labels)
    expected = {f"recall@{k}": recall_at_k(hits, k) for k in (1, 4)}
    expected |= {"map@r": map_at_r(hits, relevant[scored]), "r_precision": r_precision(hits, relevant[scored])}
    scores = score_retrieval(items.vectors, items.labels, (1, 4), scoring=Scoring(backend.name, kmeans_seeds=()))
    for name, values in expected.items():
        assert scores[name] == math.fsum(values) / len(scored), name


def test_rows_are_numbered_as_they_come():
    rows = np.array([[1, 0], [2, 2], [1, -0.0], [2, 2], [0, 1]], np.float32)
    assert number_rows([rows[:2], rows[2:]]).tolist() == [0, 1, 0, 1, 2]
    assert number_rows([]).tolist() == []
    wide = np.repeat(np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32), 3, axis=0)
    assert number_rows([wide[:, ::-1]]).tolist() == np.repeat(np.arange(40), 3).tolist()


def test_equal_rows_are_levelled_within_their_query():
    similarities = np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, -np.inf]], np.float32)
    rows = np.array([[3, 1, 3, 1], [1, 3, 2, 1]])
    expected = [[0.9, 0.8, 0.9, 0.8], [0.9, 0.8, 0.7, -np.inf]]
    np.testing.assert_array_equal(level(similarities, rows), np.array(expected, np.float32))


def test_only_what_reaches_the_ranks_looked_at_must_be_settled():
    tied = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 0]], np.bool_)
    sizes = np.array([[1, 1, 1]] * 3 + [[1, 1, 0]])
    places = Places(sizes, np.zeros((4, 3), np.int64), tied)
    assert places.settled(1).tolist() == [True, True, False, True]
    assert places.settled(2).tolist() == [False, True, False, True]


def test_a_tie_beyond_the_ranks_is_not_averaged():
    """Its last item is beyond, so that the mean over a tie that was not seen whole would be wrong."""
    tied = np.array([[False, False, False, True]])
    places = Places(np.ones((1, 4), np.int64), np.array([[0, 1, 1, 0]]), tied)
    found = score_places(places, np.array([2]), (1, 2), 2)
    assert {name: values.tolist() for name, values in found.items()} == {
        "recall@1": [0], "recall@2": [1], "map@r": [0.25], "r_precision": [0.5],
    }  # fmt: skip


def test_what_float32_cannot_tell_apart_is_no_tie():
    """Two embeddings a hair apart, a third that is a mirror image of the second."""
    query = np.array([[1, 0]], np.float32)
    vectors = np.array([[0.5, 0.5], [np.nextafter(np.float32(0.5), np.float32(0)), 0.5], [0.5, -0.5]], np.float32)
    similarities = np.array([[0.5, 0.5, 0.5, -np.inf]], np.float32)
    for order, expected in (([0, 1, 2, -1], [0, 0, 0, 0]), ([1, 0, 2, -1], [0, 0, 1, 0])):
        found = equally_similar(similarities, np.array([order]), query, vectors.__getitem__)
        assert found.tolist() == [[bool(each) for each in expected]]
