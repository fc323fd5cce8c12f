"""What became of every query, against the obvious way to find it out."""

import numpy as np
import pytest

from ke_metric.evaluation.backend import Backend
from ke_metric.evaluation.classification import score_classification
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.report.outcomes import broken, classification_outcomes, confused, mended, retrieval_outcomes, worst

TORCH = Backend("torch")
NAMES = ("ant", "bee", "cat", "dog")


def vectors_of(seed, count=40, noise=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    return (np.eye(4)[labels] + noise * rng.standard_normal((count, 4))).astype(np.float32), labels


def outcomes_of(seed, noise=1.0):
    vectors, labels = vectors_of(seed, noise=noise)
    return retrieval_outcomes(Embeddings(vectors, labels), None, (1, 2), backend=TORCH)


def neighbors_by_hand(query, gallery, own):
    """Every query's gallery positions, most similar first, its own picture left out, by a loop."""
    query, gallery = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (query, gallery))
    lists = []
    for position, row in enumerate(query.astype(np.float64)):
        pairs = sorted((-float(row @ other), place) for place, other in enumerate(gallery.astype(np.float64)))
        lists.append([place for _, place in pairs if place != own[position]])
    return lists


@pytest.mark.parametrize("apart", [False, True])
def test_neighbours_scores_and_predictions_equal_a_loop(apart):
    vectors, labels = vectors_of(0)
    ids = [f"p{number}" for number in range(40)]
    # The gallery has the first 25 in another order; 15 queries are not in it.
    order = np.random.default_rng(9).permutation(25)
    gallery = Embeddings(vectors[order], labels[order], [ids[place] for place in order]) if apart else None
    found = retrieval_outcomes(Embeddings(vectors, labels, ids), gallery, (1, 2), backend=TORCH)
    searched, searched_labels = (vectors[order], labels[order]) if apart else (vectors, labels)
    where = {place: row for row, place in enumerate(order)} if apart else {place: place for place in range(40)}
    lists = neighbors_by_hand(vectors, searched, [where.get(place, -1) for place in range(40)])
    assert found.neighbors.tolist() == [each[:10] for each in lists]
    assert found.predicted.tolist() == [searched_labels[each[0]] for each in lists]
    for query, each in enumerate(lists):
        hits = [searched_labels[place] == labels[query] for place in each]
        assert found.right[query].tolist() == hits[:10]
        relevant = sum(hits)
        precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(relevant) if hits[rank]]
        assert found.scores["recall@1"][query] == hits[0]
        assert found.scores["recall@2"][query] == any(hits[:2])
        assert found.scores["map@r"][query] == pytest.approx(sum(precisions) / relevant)


def test_their_means_are_the_scores():
    vectors, labels = vectors_of(3)
    found = outcomes_of(3)
    card = score_retrieval(vectors, labels, (1, 2), scoring=Scoring(backend="torch", kmeans_seeds=()))
    assert {name: values.mean() for name, values in found.scores.items()} == pytest.approx(
        {name: card[name] for name in found.scores}, abs=1e-12
    )


def test_mended_and_broken_equal_a_recomputation():
    before, after = outcomes_of(1), outcomes_of(2)
    hits = [[right[0] for right in each.right] for each in (before, after)]
    assert mended(before, after).tolist() == [q for q in range(40) if hits[1][q] and not hits[0][q]]
    assert broken(before, after).tolist() == [q for q in range(40) if hits[0][q] and not hits[1][q]]
    assert len(mended(before, after))
    assert len(broken(before, after))
    gained = len(mended(before, after)) - len(broken(before, after))
    means = [each.scores["recall@1"].mean() for each in (before, after)]
    assert gained / 40 == pytest.approx(means[1] - means[0])


def test_a_tie_is_half_mended():
    """Two pictures at one place, one of them right: their order is nobody's, and Recall@1 is a half."""
    labels = np.array([0, 0, 1])
    apart = np.array([[1, 0], [0.6, 0.8], [0.9, 0.1]], np.float32)
    tied = np.array([[1, 0], [0.6, 0.8], [0.6, 0.8]], np.float32)
    before, after = (
        retrieval_outcomes(Embeddings(rows, labels), None, (1,), backend=TORCH) for rows in (apart, tied)
    )
    assert before.scores["recall@1"][0] == 0
    assert after.scores["recall@1"][0] == 0.5
    assert 0 in mended(before, after)


def test_a_query_with_nothing_to_find_is_neither_mended_nor_worst():
    labels = np.array([0, 0, 7])
    vectors = np.eye(3, dtype=np.float32)
    found = retrieval_outcomes(Embeddings(vectors, labels), None, (1,), backend=TORCH)
    assert np.isnan(found.scores["recall@1"][2])
    assert 2 not in worst(found, 10)
    assert 2 not in mended(found, found)


def test_the_worst_come_first_and_perfect_ones_not_at_all():
    found = outcomes_of(5, noise=0.5)
    chosen = worst(found, 40)
    scores = found.scores["map@r"][chosen]
    assert (np.diff(scores) >= 0).all()
    assert (scores < 1).all()
    assert set(np.flatnonzero(found.scores["map@r"] < 1)) == set(chosen.tolist())
    assert worst(found, 3).tolist() == chosen[:3].tolist()


def test_confused_classes_are_counted():
    found = outcomes_of(6)
    labels = vectors_of(6)[1]
    expected = {}
    for own, other in zip(labels.tolist(), found.predicted.tolist(), strict=True):
        if own != other:
            expected[NAMES[own], NAMES[other]] = expected.get((NAMES[own], NAMES[other]), 0) + 1
    told = confused(found, labels, NAMES, 100)
    assert {(own, other): count for own, other, count, _ in told} == expected
    assert [count for *_, count, _ in told] == sorted(expected.values(), reverse=True)
    assert all(total == 10 for *_, total in told)
    assert confused(found, labels, NAMES, 2) == told[:2]


def test_a_classification_has_predictions_and_no_neighbours():
    logits = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    logits[0] = 0
    labels = np.arange(30) % 4
    found = classification_outcomes(logits, labels)
    assert found.neighbors.shape == (30, 0)
    assert found.scores["top1"][0] == 0.25
    assert found.scores["top1"].mean() == pytest.approx(score_classification(logits, labels)["top1"])
    assert (found.predicted == logits.argmax(1)).all()
    wrong = worst(found, 30)
    assert set(wrong.tolist()) == set(np.flatnonzero(found.scores["top1"] < 1).tolist())
