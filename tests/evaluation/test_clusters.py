import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from ke_metric.errors import KeMetricError
from ke_metric.evaluation import clusters as cluster_scores
from ke_metric.evaluation.clusters import ClusterScores, compare_clusters, expected_mutual_information, score_clusters
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.evaluation.kmeans import assign_clusters


@pytest.fixture(scope="module")
def items():
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 5
    return Embeddings(generator.normal(size=(5, 8))[labels] + generator.normal(size=(120, 8)), labels)


def nmi_in_loops(labels, clusters):
    """Mutual information over the mean of the two entropies, by counting."""
    count = len(labels)

    def share(values, value):
        return values.count(value) / count

    def entropy(values):
        return -sum(share(values, v) * math.log(share(values, v)) for v in set(values))

    pairs = list(zip(labels, clusters, strict=True))
    mutual = sum(
        share(pairs, pair) * math.log(share(pairs, pair) / share(labels, pair[0]) / share(clusters, pair[1]))
        for pair in set(pairs)
    )
    return mutual / ((entropy(labels) + entropy(clusters)) / 2)


def test_nmi_is_the_arithmetic_one(items, backend):
    scores = score_clusters(items.vectors, items.labels, (0, 1), backend=backend)
    for seed, nmi in zip((0, 1), scores.nmi, strict=True):
        clusters = assign_clusters(items.vectors, 5, seed, backend=backend)
        assert nmi == pytest.approx(nmi_in_loops(items.labels.tolist(), clusters.tolist()))


def test_agrees_with_pytorch_metric_learning_on_the_same_clusters(items, backend):
    clusters = torch.from_numpy(assign_clusters(items.vectors, 5, 0, backend=backend))
    calculator = AccuracyCalculator(
        include=("NMI", "AMI"), kmeans_func=lambda *_: clusters, device=torch.device("cpu")
    )
    theirs = calculator.get_accuracy(items.vectors, items.labels)
    ours = score_clusters(items.vectors, items.labels, (0,), backend=backend).summary()
    assert ours == pytest.approx({"nmi": theirs["NMI"], "ami": theirs["AMI"]})


def test_one_score_per_seed(items, backend):
    scores = score_clusters(items.vectors, items.labels, (3, 1, 3), backend=backend)
    assert len(scores.nmi) == len(scores.ami) == 3
    assert scores.nmi[0] == scores.nmi[2]


def test_summary():
    scores = ClusterScores(nmi=(0.5, 0.6, 0.7), ami=(0.1, 0.1, 0.4)).summary()
    assert scores == pytest.approx({"nmi": 0.6, "nmi_std": 0.1, "ami": 0.2, "ami_std": math.sqrt(0.03)})
    assert all(type(value) is float for value in scores.values())


def test_one_seed_has_no_deviation():
    assert ClusterScores((0.5,), (0.4,)).summary() == {"nmi": 0.5, "ami": 0.4}


@pytest.mark.parametrize(
    ("labels", "seeds"),
    [([0] * 6, (0,)), ([0, 1, 2, 3, 4, 5], (0,)), ([0, 0, 0, 1, 1, 1], ())],
    ids=["one class", "a class per item", "no seeds"],
)
def test_nothing_to_compare(backend, hard_vectors, labels, seeds):
    assert score_clusters(hard_vectors(6), np.array(labels), seeds, backend=backend) is None


def test_labels_that_mean_nothing_score_about_0_when_adjusted(hard_vectors, backend):
    labels = np.random.default_rng(0).integers(0, 10, size=400)
    scores = score_clusters(hard_vectors(400), labels, (0, 1, 2), backend=backend).summary()
    assert scores["nmi"] > 0.02
    assert abs(scores["ami"]) < 0.02


def test_the_better_separated_the_higher(backend):
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 5
    corners, noise = generator.normal(size=(5, 16)), generator.normal(size=(200, 16))
    found = [
        score_clusters(
            Embeddings(corners[labels] + spread * noise, labels).vectors, labels, (0, 1, 2), backend=backend
        ).summary()["nmi"]
        for spread in (4, 1.5, 0.1)
    ]
    assert all(worse < better for worse, better in pairwise(found))
    assert found[-1] == pytest.approx(1)


def test_negative_seed(items, backend):
    with pytest.raises(KeMetricError, match="seed"):
        score_clusters(items.vectors, items.labels, (0, -3), backend=backend)


labels_and_clusters = st.integers(1, 40).flatmap(
    lambda count: st.tuples(*(st.lists(st.integers(0, count), min_size=count, max_size=count) for _ in range(2)))
)


@settings(max_examples=400, deadline=None)
@given(labels_and_clusters)
def test_equal_to_scikit_learn(both):
    labels, clusters = map(np.array, both)
    nmi, ami = compare_clusters(labels, clusters)
    assert nmi == pytest.approx(normalized_mutual_info_score(labels, clusters), abs=1e-12)
    assert ami == pytest.approx(adjusted_mutual_info_score(labels, clusters), abs=1e-9)


SINGLE, SPLIT, EACH = [0] * 6, [0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("labels", [SINGLE, SPLIT, EACH])
@pytest.mark.parametrize("clusters", [SINGLE, SPLIT, EACH])
def test_degenerate_tables_as_in_scikit_learn(labels, clusters):
    labels, clusters = np.array(labels), np.array(clusters)
    expected = normalized_mutual_info_score(labels, clusters), adjusted_mutual_info_score(labels, clusters)
    assert compare_clusters(labels, clusters) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("classes", "count"), [(3, 5000), (400, 5000), (4500, 5000)])
def test_equal_to_scikit_learn_in_larger_tables(classes, count):
    generator = np.random.default_rng(0)
    labels = generator.integers(classes, size=count)
    clusters = np.where(generator.random(count) < 0.3, generator.integers(classes, size=count), labels)
    nmi, ami = compare_clusters(labels, clusters)
    assert nmi == pytest.approx(normalized_mutual_info_score(labels, clusters), abs=1e-12)
    assert ami == pytest.approx(adjusted_mutual_info_score(labels, clusters), abs=1e-9)


def expected_in_loops(sizes, others):
    """The formula as it stands, in whole numbers as far as possible."""
    count, total = sum(sizes), 0.0
    for a in sizes:
        for b in others:
            for n in range(max(1, a + b - count), min(a, b) + 1):
                chance = math.comb(a, n) * math.comb(count - a, b - n) / math.comb(count, b)
                total += n / count * math.log(count * n / (a * b)) * chance
    return total


@pytest.mark.parametrize(
    ("sizes", "others"), [([2, 2, 3], [1, 1, 5]), ([7], [3, 4]), ([1] * 7, [2, 5]), ([30, 5, 5, 1], [20, 20, 1])]
)
def test_expected_mutual_information(sizes, others):
    found = expected_mutual_information(np.array(sizes), np.array(others))
    assert found == pytest.approx(expected_in_loops(sizes, others), abs=1e-13)


def test_a_long_clustering_is_told_beforehand(items, backend, monkeypatch):
    told = []
    score_clusters(items.vectors, items.labels, (0, 1, 2), backend=backend, tell=told.append)
    assert told == []
    monkeypatch.setattr(cluster_scores, "nearness_seconds", lambda vectors, classes, backend: 200.4)
    score_clusters(items.vectors, items.labels, (0, 1, 2), backend=backend, tell=told.append)
    score_clusters(items.vectors, items.labels, (0,), backend=backend, tell=told.append)
    assert told == [
        "k-means: 3 seeds x 120 items in 5 clusters, about 2,405 s",
        "k-means: 1 seed x 120 items in 5 clusters, about 802 s",
    ]
