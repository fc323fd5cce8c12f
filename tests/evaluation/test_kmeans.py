import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation import kmeans
from ke_metric.evaluation.backend import Backend, choose_backend
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.evaluation.kmeans import Items, assign_clusters, draw_start, move


def start_of(vectors, clusters, seed):
    """The items drawn and the nearest of them to each item."""
    return draw_start(Items(vectors, torch.from_numpy(vectors), 1024), clusters, seed)


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
    start = blobs.vectors[start_of(blobs.vectors, 6, 3)[0]]
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
    """FAISS's own k-means looks at 256 items per cluster only; two clusters of 1,200 items must not be sampled."""
    vectors = np.tile(blobs.vectors, (8, 1))
    found = {name: assign_clusters(vectors, 2, 0, backend=choose_backend(name)) for name in ("torch", "faiss-cpu")}
    assert squared_distance(vectors, found["faiss-cpu"]) == pytest.approx(
        squared_distance(vectors, found["torch"]), rel=1e-4
    )


def test_fewer_different_items_than_clusters(backend):
    vectors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    found = assign_clusters(vectors, 5, 0, backend=backend)
    assert set(found) <= set(range(5))


def test_says_nothing(backend, blobs, capfd):
    assign_clusters(blobs.vectors[:20], 6, 0, backend=backend)
    assert capfd.readouterr() == ("", "")


def test_vectors_are_not_changed(backend, blobs):
    before = blobs.vectors.copy()
    assign_clusters(blobs.vectors, 6, 0, backend=backend)
    np.testing.assert_array_equal(blobs.vectors, before)


def on_the_sphere(count, dimension, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def exact_chance(vectors, drawn):
    """The chance of k-means++ to draw these items in this order."""
    chance = 1 / len(vectors)
    for count in range(1, len(drawn)):
        squared = ((vectors[:, None] - vectors[list(drawn[:count])]) ** 2).sum(axis=2).min(axis=1)
        chance *= squared[drawn[count]] / squared.sum()
    return chance


@pytest.mark.parametrize("proposals", [1, 2, 256])
def test_start_has_the_distribution_of_kmeans_plus_plus(proposals, monkeypatch):
    """Four of five items, two of which are close; in blocks of any length."""
    monkeypatch.setattr(kmeans, "PROPOSALS", proposals)
    angles = np.array([0, 0.1, 0.8, 2, 4])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    drawn = [tuple(start_of(vectors, 4, seed)[0].tolist()) for seed in range(4000)]
    orders = list(itertools.permutations(range(5), 4))
    chances = np.array([exact_chance(vectors.astype(np.float64), order) for order in orders])
    assert chances.sum() == pytest.approx(1)
    found = np.array([drawn.count(order) for order in orders])
    # Orders that hardly occur are taken together.
    rare = chances * len(drawn) < 10
    expected = np.append(chances[~rare], chances[rare].sum()) * len(drawn)
    assert chisquare(np.append(found[~rare], found[rare].sum()), expected).pvalue > 1e-3


def test_start_never_draws_an_item_twice_while_others_are_left():
    vectors = on_the_sphere(40, 4, 0)
    for seed in range(20):
        assert len(set(start_of(vectors, 30, seed)[0].tolist())) == 30


def test_start_where_all_items_are_the_same():
    drawn, _ = start_of(np.tile(np.float32([[0, 1]]), (5, 1)), 4, 0)
    assert len(drawn) == 4
    assert set(drawn.tolist()) <= set(range(5))


def test_start_knows_the_nearest_of_what_was_drawn():
    vectors = on_the_sphere(900, 16, 0)
    drawn, nearest = start_of(vectors, 600, 1)
    nearness = vectors.astype(np.float64) @ vectors[drawn].T.astype(np.float64) - 0.5
    np.testing.assert_array_equal(nearest.cluster, nearness.argmax(axis=1))
    best = np.sort(nearness, axis=1)
    np.testing.assert_allclose(nearest.own, best[:, -1], atol=1e-6)
    np.testing.assert_allclose(nearest.others, best[:, -2], atol=1e-6)


def lloyd_in_loops(vectors, centroids):
    """Every item with every centroid in every iteration."""
    vectors, centroids, clusters = vectors.astype(np.float64), centroids.astype(np.float64), None
    for _ in range(kmeans.ITERATIONS + 1):
        before = clusters
        clusters = np.array([((vector - centroids) ** 2).sum(axis=1).argmin() for vector in vectors])
        if before is not None and (before == clusters).all():
            break
        for cluster in set(clusters.tolist()):
            centroids[cluster] = vectors[clusters == cluster].mean(axis=0)
    return clusters


@pytest.mark.parametrize(
    ("count", "dimension", "clusters"), [(300, 3, 60), (300, 16, 60), (400, 3, 5), (200, 2, 150), (500, 8, 25)]
)
@pytest.mark.parametrize("seed", range(4))
def test_bounds_change_nothing(count, dimension, clusters, seed, backend):
    vectors = on_the_sphere(count, dimension, seed)
    expected = lloyd_in_loops(vectors, vectors[start_of(vectors, clusters, seed)[0]])
    np.testing.assert_array_equal(assign_clusters(vectors, clusters, seed, backend=backend), expected)


def test_no_other_centroid_is_nearer_than_the_bound(monkeypatch):
    vectors, compare, looks = on_the_sphere(400, 3, 7), kmeans._compare, []

    def checked(items, centroids, moved, nearest):
        compare(items, centroids, moved, nearest)
        nearness = vectors @ centroids.T - (centroids**2).sum(axis=1) / 2
        np.testing.assert_allclose(nearest.own, nearness.max(axis=1), atol=1e-6)
        nearness[np.arange(400), nearest.cluster] = -np.inf
        assert (nearness.max(axis=1) <= nearest.others + 1e-6).all()
        assert (nearest.others <= nearest.own + 1e-6).all()
        looks.append(len(moved))

    monkeypatch.setattr(kmeans, "_compare", checked)
    assign_clusters(vectors, 80, 0, backend=Backend("torch"))
    assert len(looks) > 3
    assert looks[-1] < looks[0]


def test_clusters_do_not_depend_on_the_backend(blobs):
    found = [assign_clusters(blobs.vectors, 20, 0, backend=choose_backend(name)) for name in ("torch", "faiss-cpu")]
    np.testing.assert_array_equal(*found)


def test_means_of_what_changed_and_an_empty_cluster_keeps_its_centroid():
    centroids = np.array([[1, 0], [0, 1], [-1, 0], [5, 5]], dtype=np.float32)
    vectors = np.array([[0, 1], [1, 0], [0, -1], [0.5, 0.5], [7, 7]], dtype=np.float32)
    moved = move(centroids, vectors, np.array([2, 0, 2, 0, 3]), np.array([0, 1, 2]))
    np.testing.assert_allclose(centroids, [[0.75, 0.25], [0, 1], [0, 0], [5, 5]])
    assert moved.tolist() == [0, 2]


@pytest.mark.parametrize("clusters", [3, 40])
@pytest.mark.parametrize("summed", [1, 64, 100, 10_000])
def test_means_do_not_depend_on_how_many_items_are_looked_up_at_once(clusters, summed, monkeypatch):
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(3000, 33)).astype(np.float32)
    cluster = generator.integers(clusters, size=3000)
    rows = np.argsort(cluster, kind="stable")
    first = np.flatnonzero(np.diff(cluster[rows], prepend=-1))
    sums = np.add.reduceat(vectors[rows], first, axis=0)
    centroids = np.zeros((clusters, 33), np.float32)
    monkeypatch.setattr(kmeans, "SUMMED", summed)
    move(centroids, vectors, cluster, np.arange(clusters))
    np.testing.assert_array_equal(centroids, sums / np.bincount(cluster)[:, None].astype(np.float32))


def test_vectors_are_not_copied():
    generator = np.random.default_rng(0)
    vectors = Embeddings(generator.normal(size=(20_000, 256)), range(20_000)).vectors
    tracemalloc.start()
    move(vectors[:20].copy(), vectors, generator.integers(20, size=20_000), np.arange(20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < vectors.nbytes / 3


def test_a_centroid_that_is_its_only_item_does_not_move():
    vectors = np.eye(2, dtype=np.float32)
    assert move(vectors.copy(), vectors, np.array([0, 1]), np.array([0, 1])).tolist() == []


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
