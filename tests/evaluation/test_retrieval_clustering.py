import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation import retrieval as kmeans
from ke_metric.evaluation.backend import Backend, choose_backend
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.evaluation.retrieval import ClusterScores, assign_clusters, draw_start, score_clusters


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


@pytest.fixture(scope="module")
def blobs():
    """[300, 16] unit vectors of 6 classes that overlap, and their classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 6
    vectors = generator.normal(size=(6, 16))[labels] + generator.normal(size=(300, 16))
    return Embeddings(vectors, labels)


def squared_distance(vectors, clusters):
    """The sum k-means makes small."""
    return sum(
        float(((vectors[clusters == cluster] - vectors[clusters == cluster].mean(axis=0)) ** 2).sum())
        for cluster in np.unique(clusters)
    )


def test_finds_separated_clusters_exactly(backend):
    corners = np.eye(8, dtype=np.float32)
    labels = np.repeat(np.arange(8), 20)
    noise = np.random.default_rng(1).normal(scale=0.02, size=(160, 8))
    vectors = Embeddings(corners[labels] + noise, labels).vectors
    for seed in range(5):
        found = assign_clusters(vectors, 8, seed, backend=backend)
        assert normalized_mutual_info_score(labels, found) == pytest.approx(1)


def test_as_good_as_scikit_learn(backend, blobs):
    reference = KMeans(6, n_init=10, random_state=0).fit(blobs.vectors).inertia_
    ours = min(
        squared_distance(blobs.vectors, assign_clusters(blobs.vectors, 6, s, backend=backend)) for s in range(10)
    )
    assert ours == pytest.approx(reference, rel=0.005)


def test_same_lloyd_as_scikit_learn_from_the_same_start(backend, blobs):
    start = blobs.vectors[draw_start(blobs.vectors, 6, 3, device="cpu")]
    expected = KMeans(6, init=start, n_init=1, max_iter=kmeans.ITERATIONS, tol=0).fit(blobs.vectors).labels_
    found = assign_clusters(blobs.vectors, 6, 3, backend=backend)
    assert normalized_mutual_info_score(expected, found) > 0.98


def test_same_seed_same_clusters(backend, blobs):
    first, second, other = (assign_clusters(blobs.vectors, 6, seed, backend=backend) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    assert first.dtype == np.int64
    assert set(first) <= set(range(6))


@pytest.mark.parametrize("chunk", [1, 7, 299, 1000])
def test_chunks_do_not_matter(blobs, chunk):
    whole = assign_clusters(blobs.vectors, 6, 0, backend=Backend("torch"))
    parts = assign_clusters(blobs.vectors, 6, 0, backend=Backend("torch", chunk=chunk))
    # The last bits of a product may differ with the shape of the matrix, so an item on a border may move.
    assert normalized_mutual_info_score(whole, parts) > 0.98


def test_all_items_count_however_large_a_class(blobs):
    """FAISS by itself looks at 256 items per cluster only; two clusters of 1,200 items must not be sampled."""
    vectors = np.tile(blobs.vectors, (8, 1))
    found = {name: assign_clusters(vectors, 2, 0, backend=choose_backend(name)) for name in ("torch", "faiss-cpu")}
    assert squared_distance(vectors, found["faiss-cpu"]) == pytest.approx(
        squared_distance(vectors, found["torch"]), rel=1e-4
    )


def test_fewer_different_items_than_clusters(backend):
    vectors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    found = assign_clusters(vectors, 5, 0, backend=backend)
    assert set(found) <= set(range(5))


def test_faiss_says_nothing(backend, blobs, capfd):
    assign_clusters(blobs.vectors[:20], 6, 0, backend=backend)
    assert capfd.readouterr() == ("", "")


def test_vectors_are_not_changed(backend, blobs):
    before = blobs.vectors.copy()
    assign_clusters(blobs.vectors, 6, 0, backend=backend)
    np.testing.assert_array_equal(blobs.vectors, before)


def test_start_is_drawn_in_proportion_to_the_squared_distance():
    """From item 0, items 1 and 2 lie at squared distances 0.2 and 1.8: drawn second 1 : 9."""
    vectors = np.array([[1, 0], [0.9, np.sqrt(0.19)], [0.1, np.sqrt(0.99)]], dtype=np.float32)
    drawn = [tuple(draw_start(vectors, 2, seed, device="cpu")) for seed in range(3000)]
    first = [pair[0] for pair in drawn]
    second = [pair[1] for pair in drawn if pair[0] == 0]
    assert np.bincount(first, minlength=3) / 3000 == pytest.approx([1 / 3] * 3, abs=0.04)
    assert np.bincount(second, minlength=3) / len(second) == pytest.approx([0, 0.1, 0.9], abs=0.04)


def test_start_never_draws_an_item_twice_while_others_are_left():
    vectors = Embeddings(np.random.default_rng(0).normal(size=(40, 4)), range(40)).vectors
    for seed in range(20):
        assert len(set(draw_start(vectors, 30, seed, device="cpu"))) == 30


def test_start_where_all_items_are_the_same():
    assert set(draw_start(np.tile(np.float32([[0, 1]]), (5, 1)), 4, 0, device="cpu")) <= set(range(5))


def test_an_empty_cluster_keeps_its_centroid():
    previous = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    vectors = np.array([[0, 1], [1, 0], [0, -1], [0.5, 0.5]], dtype=np.float32)
    means = kmeans._means(vectors, np.array([2, 0, 2, 0]), previous)
    np.testing.assert_allclose(means, [[0.75, 0.25], [0, 1], [0, 0]])
    assert previous[0].tolist() == [1, 0]


def test_training_settings_do_not_reach_the_clusters(blobs):
    expected = assign_clusters(blobs.vectors, 6, 0, backend=Backend("torch"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = assign_clusters(blobs.vectors, 6, 0, backend=Backend("torch"))
    np.testing.assert_array_equal(found, expected)


def test_negative_seed_of_one_kmeans(backend, blobs):
    with pytest.raises(KeMetricError, match="k-means seed = -1, must be at least 0") as caught:
        assign_clusters(blobs.vectors, 6, -1, backend=backend)
    assert caught.value.exit_code == ExitCode.RECIPE


@pytest.mark.parametrize("clusters", [1, 300, 301])
def test_number_of_clusters(blobs, clusters):
    with pytest.raises(AssertionError):
        assign_clusters(blobs.vectors, clusters, 0, backend=Backend("torch"))


@pytest.mark.gpu
def test_on_a_gpu(blobs):
    backend = Backend("torch", "cuda")
    found = [assign_clusters(blobs.vectors, 6, 0, backend=replace(backend, chunk=c)) for c in (100, 100, 1000)]
    np.testing.assert_array_equal(found[0], found[1])
    expected = assign_clusters(blobs.vectors, 6, 0, backend=Backend("torch"))
    assert normalized_mutual_info_score(expected, found[2]) > 0.98
