import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from ke_metric.errors import KeMetricError
from ke_metric.evaluation.clustering import ClusterScores, assign_clusters, score_clusters
from ke_metric.evaluation.embeddings import Embeddings


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


def test_one_score_per_seed_and_the_library_is_named(items, backend):
    scores = score_clusters(items.vectors, items.labels, (3, 1, 3), backend=backend)
    assert len(scores.nmi) == len(scores.ami) == 3
    assert scores.nmi[0] == scores.nmi[2]
    assert scores.library == {"faiss-cpu": "faiss", "torch": "torch"}[backend.name]


def test_summary():
    scores = ClusterScores(nmi=(0.5, 0.6, 0.7), ami=(0.1, 0.1, 0.4), library="torch").summary()
    assert scores == pytest.approx({"nmi": 0.6, "nmi_std": 0.1, "ami": 0.2, "ami_std": math.sqrt(0.03)})
    assert all(type(value) is float for value in scores.values())


def test_one_seed_has_no_deviation():
    assert ClusterScores((0.5,), (0.4,), "torch").summary() == {"nmi": 0.5, "ami": 0.4}


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
