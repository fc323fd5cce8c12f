import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation import recall, retrieval
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.evaluation.recall import blocks_of_queries
from ke_metric.evaluation.retrieval import Scoring, score_each_query, score_retrieval

RANKED = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision")
NO_CLUSTERS = Scoring(backend="torch", kmeans_seeds=())
in_a_hurry = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def by(backend):
    """Scoring by each backend, without k-means."""
    return Scoring(backend=backend.name, kmeans_seeds=())


def uneven_labels(count, classes=7, seed=0):
    """Class sizes from one to many."""
    shares = 1 / np.arange(1, classes + 1) ** 1.5
    return np.random.default_rng(seed).choice(classes, size=count, p=shares / shares.sum())


def score_in_loops(query, gallery, ranks):
    """The whole protocol as one would explain it; query and gallery are lists of (id, label, unit vector)."""
    sums, scored, lone = {}, 0, 0
    for item, label, vector in query:
        others = [(-float(vector @ v), other == label) for other_id, other, v in gallery if other_id != item]
        relevant = sum(same for _, same in others)
        if not relevant:
            lone += 1
            continue
        scored += 1
        hits = [same for _, same in sorted(others, key=lambda pair: pair[0])]
        values = {f"recall@{k}": float(any(hits[:k])) for k in ranks}
        values["r_precision"] = sum(hits[:relevant]) / relevant
        values["map@r"] = sum(sum(hits[: i + 1]) / (i + 1) for i in range(relevant) if hits[i]) / relevant
        sums = {name: sums.get(name, 0) + value for name, value in values.items()}
    means = {name: value / scored for name, value in sums.items()}
    return means | {"queries": scored, "queries_without_match": lone}


def as_list(items):
    return list(zip(items.ids, items.labels.tolist(), items.vectors.astype(float), strict=True))


@pytest.mark.parametrize("ranks", [(1, 2, 4, 8), (1,), (3, 500), ()])
def test_agrees_with_plain_loops(by, hard_vectors, ranks):
    items = Embeddings(hard_vectors(150), uneven_labels(150), range(150))
    found = score_retrieval(items.vectors, items.labels, ranks, scoring=by)
    assert found == pytest.approx(score_in_loops(as_list(items), as_list(items), ranks), abs=1e-9)
    assert set(found) == {*(f"recall@{k}" for k in ranks), "map@r", "r_precision", "queries", "queries_without_match"}


def test_agrees_with_plain_loops_for_query_and_gallery_that_share_pictures(by, hard_vectors):
    vectors, labels = hard_vectors(130), uneven_labels(130)
    query = Embeddings(vectors[:60], labels[:60], range(60))
    gallery = Embeddings(vectors[40:], labels[40:], range(40, 130))
    found = score_retrieval(query.vectors, query.labels, gallery=gallery, ids=query.ids, scoring=by)
    assert found == pytest.approx(score_in_loops(as_list(query), as_list(gallery), (1, 2, 4, 8)), abs=1e-9)


def theirs(*arguments):
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r", "r_precision"), device=torch.device("cpu")
    )
    return calculator.get_accuracy(*arguments)


def assert_agree(ours, scores):
    names = {"recall@1": "precision_at_1", "map@r": "mean_average_precision_at_r", "r_precision": "r_precision"}
    assert {name: ours[name] for name in names} == pytest.approx({name: scores[names[name]] for name in names})


def test_agrees_with_pytorch_metric_learning(by, hard_vectors):
    vectors, labels = hard_vectors(300), uneven_labels(300, classes=40)
    found = score_retrieval(vectors, labels, scoring=by)
    assert found["queries_without_match"] > 0, "the lone queries are part of the comparison"
    assert_agree(found, theirs(vectors, labels))


def test_agrees_with_pytorch_metric_learning_for_query_and_gallery(by, hard_vectors):
    query, gallery = hard_vectors(80, seed=1), hard_vectors(200, seed=2)
    labels = uneven_labels(80, seed=1), uneven_labels(200, seed=2)
    found = score_retrieval(query, labels[0], gallery=Embeddings(gallery, labels[1]), scoring=by)
    assert_agree(found, theirs(query, labels[0], gallery, labels[1]))


def test_query_and_gallery_that_are_the_same_pictures_score_as_one_set(by, hard_vectors):
    vectors, labels, ids = hard_vectors(90), uneven_labels(90), [f"picture {n}" for n in range(90)]
    order = np.random.default_rng(0).permutation(90)
    shuffled = Embeddings(vectors[order], labels[order], [ids[n] for n in order])
    assert score_retrieval(vectors, labels, gallery=shuffled, ids=ids, scoring=by) == score_retrieval(
        vectors, labels, scoring=by
    )


def test_clusters_are_those_of_the_gallery(hard_vectors):
    gallery = Embeddings(hard_vectors(80, seed=2), uneven_labels(80, seed=2))
    alone = score_retrieval(gallery.vectors, gallery.labels)
    found = score_retrieval(hard_vectors(20), uneven_labels(20), gallery=gallery)
    for name in ("nmi", "ami", "nmi_std", "ami_std"):
        assert found[name] == alone[name]


def test_all_numbers_of_a_plain_call(hard_vectors):
    found = score_retrieval(hard_vectors(60), uneven_labels(60), recall_at=(1, 2, 4, 8))
    assert set(found) == {*RANKED, "queries", "queries_without_match", "nmi", "ami", "nmi_std", "ami_std"}
    counts = ("queries", "queries_without_match")
    assert all(type(found[name]) is (int if name in counts else float) for name in found)
    assert found["queries"] + found["queries_without_match"] == 60
    assert all(found[name] >= (-0.5 if name == "ami" else 0) for name in found)


@pytest.mark.parametrize(
    "convert",
    [np.asarray, torch.from_numpy, np.ndarray.tolist, lambda values: torch.tensor(values, dtype=torch.float64)],
    ids=["array", "tensor", "list", "f64 tensor"],
)
def test_kinds_of_input(by, hard_vectors, convert):
    vectors, labels = hard_vectors(40), uneven_labels(40)
    expected = score_retrieval(vectors, labels, scoring=by)
    assert score_retrieval(convert(vectors), torch.from_numpy(labels), scoring=by) == expected


def test_bit_for_bit_the_same_again(backend, hard_vectors):
    scoring = Scoring(backend=backend.name)
    first, second = (score_retrieval(hard_vectors(200), uneven_labels(200), scoring=scoring) for _ in range(2))
    assert first == second


def test_backends_agree(backend, hard_vectors):
    vectors, labels = hard_vectors(200), uneven_labels(200)
    found = score_retrieval(vectors, labels, scoring=Scoring(backend=backend.name))
    expected = score_retrieval(vectors, labels, scoring=Scoring(backend="torch"))
    assert {name: found[name] for name in RANKED} == {name: expected[name] for name in RANKED}
    assert found["nmi"] == pytest.approx(expected["nmi"], abs=0.02)


@given(seed=st.integers(0, 1000), exponents=st.lists(st.integers(-30, 30), min_size=30, max_size=30))
@in_a_hurry
def test_scale_does_not_matter(hard_vectors, seed, exponents):
    vectors, labels = hard_vectors(30, seed=seed), uneven_labels(30, seed=seed)
    scaled = vectors.astype(float) * 2.0 ** np.array(exponents)[:, None]
    assert score_retrieval(scaled, labels, scoring=NO_CLUSTERS) == score_retrieval(
        vectors, labels, scoring=NO_CLUSTERS
    )


@given(seed=st.integers(0, 1000))
@in_a_hurry
def test_order_of_items_and_names_of_classes_do_not_matter(hard_vectors, seed):
    generator = np.random.default_rng(seed)
    vectors, labels, order = hard_vectors(50, seed=seed), uneven_labels(50, seed=seed), generator.permutation(50)
    renamed = generator.permutation(100)[:7] - 50
    expected = score_retrieval(vectors, labels, scoring=NO_CLUSTERS)
    assert score_retrieval(vectors[order], renamed[labels[order]], scoring=NO_CLUSTERS) == expected


@given(seed=st.integers(0, 1000), count=st.integers(2, 40), classes=st.integers(1, 8))
@in_a_hurry
def test_shares_lie_between_0_and_1_and_recall_never_falls(hard_vectors, seed, count, classes):
    labels = np.random.default_rng(seed).integers(0, classes, size=count)
    found = score_retrieval(hard_vectors(count, seed=seed), labels, range(1, 6), scoring=NO_CLUSTERS)
    assume(found["queries"])
    recalls = [found[f"recall@{k}"] for k in range(1, 6)]
    assert recalls == sorted(recalls)
    assert all(0 <= found[name] <= 1 for name in (*(f"recall@{k}" for k in range(1, 6)), "map@r", "r_precision"))
    assert found["map@r"] <= found["r_precision"] + 1e-12


@given(seed=st.integers(0, 1000))
@in_a_hurry
def test_a_duplicate_of_every_picture_makes_recall_perfect(hard_vectors, seed):
    vectors, labels = hard_vectors(25, seed=seed), uneven_labels(25, seed=seed)
    found = score_retrieval(np.tile(vectors, (2, 1)), np.tile(labels, 2), scoring=NO_CLUSTERS)
    assert found["recall@1"] == 1
    assert found["queries"] == 50


def test_perfectly_separated_classes_score_1_throughout(backend):
    labels = np.repeat(np.arange(6), 12)
    noise = np.random.default_rng(0).normal(scale=0.01, size=(72, 6))
    found = score_retrieval(np.eye(6)[labels] + noise, labels, scoring=Scoring(backend=backend.name))
    assert {name: found[name] for name in (*RANKED, "nmi", "ami")} == pytest.approx(
        dict.fromkeys((*RANKED, "nmi", "ami"), 1.0)
    )


def test_a_k_beyond_the_gallery_looks_at_all_neighbours(by):
    found = score_retrieval([[1, 0], [0, 1], [-1, 0]], [0, 1, 0], (1, 2, 1000), scoring=by)
    assert {name: found[name] for name in ("recall@1", "recall@2", "recall@1000")} == {
        "recall@1": 0.0,
        "recall@2": 1.0,
        "recall@1000": 1.0,
    }
    assert (found["queries"], found["queries_without_match"]) == (2, 1)


def test_nothing_to_find_is_counted_and_nothing_is_made_up(by):
    assert score_retrieval(np.eye(3), [0, 1, 2], scoring=by) == {"queries": 0, "queries_without_match": 3}


def test_a_single_item(by):
    assert score_retrieval([[1.0]], [0], scoring=by) == {"queries": 0, "queries_without_match": 1}


@pytest.mark.parametrize("labels", [[4, 4, 4, 4], [0, 1, 2, 3]], ids=["one class", "a class per item"])
def test_clusters_that_cannot_be_scored_are_absent(backend, labels):
    found = score_retrieval(np.eye(4), labels, scoring=Scoring(backend=backend.name))
    assert not {"nmi", "ami", "nmi_std", "ami_std"} & set(found)


def test_one_seed_has_no_deviation(hard_vectors):
    found = score_retrieval(hard_vectors(30), uneven_labels(30), scoring=Scoring(kmeans_seeds=(0,)))
    assert {"nmi", "ami"} <= set(found)
    assert not {"nmi_std", "ami_std"} & set(found)


@pytest.mark.parametrize("cells", [1, 50, 333, 10**9])
def test_blocks_do_not_matter(by, hard_vectors, monkeypatch, cells):
    vectors, labels = hard_vectors(90), uneven_labels(90)
    expected = score_retrieval(vectors, labels, scoring=by)
    monkeypatch.setattr(recall, "CELLS_AT_A_TIME", cells)
    assert score_retrieval(vectors, labels, scoring=by) == pytest.approx(expected, abs=1e-12)


def test_the_scores_of_each_query_have_the_mean_that_is_reported(by, hard_vectors):
    """Ties, queries in the gallery and a class of one item, which has nothing to find, included."""
    vectors, labels = hard_vectors(90), np.append(uneven_labels(89), 1000)
    gallery = Embeddings(vectors[:60], labels[:60], [str(item) for item in range(60)])
    ids = [str(item) for item in range(90)]
    for apart in ({}, {"gallery": gallery, "ids": ids}):
        each = score_each_query(vectors, labels, scoring=by, **apart)
        expected = score_retrieval(vectors, labels, scoring=by, **apart)
        assert set(each) == {"recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision"}
        for name, values in each.items():
            assert values.shape == (90,)
            assert np.isnan(values).sum() == expected["queries_without_match"] > 0
            assert np.nanmean(values) == pytest.approx(expected[name], abs=1e-12)


def test_no_query_has_a_score_where_none_has_anything_to_find(by, hard_vectors):
    assert score_each_query(hard_vectors(4), [0, 1, 2, 3], scoring=by) == {}


@pytest.fixture
def searched(monkeypatch):
    """(queries, k) of every search."""
    calls = []
    plain_search = retrieval.search

    def recording(query, gallery, k, **rest):
        calls.append((len(query), k))
        return plain_search(query, gallery, k, **rest)

    monkeypatch.setattr(retrieval, "search", recording)
    return calls


def test_no_more_neighbours_are_asked_for_than_there_are(hard_vectors, searched):
    score_retrieval(hard_vectors(20), [0, 1] * 10, (1, 10**6), scoring=NO_CLUSTERS)
    assert searched == [(20, 20)]


def test_memory_is_bounded_where_one_class_is_large(hard_vectors, monkeypatch, searched):
    """90 of 100 items in one class: neighbour lists are cut to the block, and small classes keep short lists."""
    monkeypatch.setattr(recall, "CELLS_AT_A_TIME", 200)
    score_retrieval(hard_vectors(100), [0] * 90 + [1, 2] * 5, (1, 2), scoring=NO_CLUSTERS)
    assert searched[0] == (10, 5)
    assert all(rows * k <= 200 for rows, k in searched)
    assert sum(rows for rows, _ in searched) == 100


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60), st.data())
@settings(deadline=None)
def test_blocks_hold_every_query_once_and_fit(depth, cells, data):
    queries = sorted(data.draw(st.sets(st.integers(0, len(depth) - 1))))
    blocks = list(blocks_of_queries(np.array(queries, dtype=np.int64), np.array(depth), cells))
    assert sorted(query for block in blocks for query in block.tolist()) == queries
    assert all(len(block) == 1 or len(block) * max(np.array(depth)[block]) <= cells for block in blocks)


def refused(exit_code, match, *arguments, **named):
    with pytest.raises(KeMetricError, match=match) as caught:
        score_retrieval(*arguments, **named)
    assert caught.value.exit_code == exit_code


@pytest.mark.parametrize("k", [0, -1, 1.5, "1", True])
def test_bad_rank(k):
    refused(ExitCode.RECIPE, "every K must be an integer of at least 1", np.eye(2), [0, 0], (1, k))


def test_ranks_may_be_numpy_integers(by):
    assert score_retrieval(np.eye(2), [0, 0], np.array([1, 2]), scoring=by)["recall@2"] == 1


@pytest.mark.parametrize(("value", "match"), [(0.0, "item 1 is all zero"), (math.nan, "item 1 holds a value")])
def test_embeddings_that_cannot_be_compared(value, match):
    refused(ExitCode.DATA, match, [[1.0, 1.0], [value, value]], [0, 0])


def test_lengths_differ():
    refused(
        ExitCode.DATA, "length 2, the gallery of length 3", np.eye(2), [0, 0], gallery=Embeddings(np.eye(3), [0] * 3)
    )


@pytest.mark.parametrize(("ids", "gallery_ids"), [(None, "ab"), ("ab", None), ("ab", [0, 1])])
def test_ids_on_one_side_only(ids, gallery_ids):
    gallery = Embeddings(np.eye(2), [0, 0], gallery_ids)
    refused(ExitCode.DATA, "item ids of the queries", np.eye(2), [0, 0], gallery=gallery, ids=ids)


def test_one_picture_with_two_labels():
    gallery = Embeddings(np.eye(2), [0, 1], ["cat", "dog"])
    refused(
        ExitCode.DATA, "'dog' has label 0 among the queries and 1 in the gallery", np.eye(2), [0, 0],
        gallery=gallery, ids=["cat", "dog"],
    )  # fmt: skip


def test_unknown_backend():
    refused(ExitCode.RECIPE, "did you mean 'torch'", np.eye(2), [0, 0], scoring=Scoring(backend="torhc"))


def test_device_comes_from_the_embeddings(monkeypatch, hard_vectors):
    asked = []
    plain = retrieval.choose_backend
    monkeypatch.setattr(
        retrieval, "choose_backend", lambda name, device: (asked.append(device), plain("torch", "cpu"))[1]
    )
    vectors = torch.from_numpy(hard_vectors(4))
    score_retrieval(vectors, [0, 0, 1, 1])
    score_retrieval(vectors, [0, 0, 1, 1], scoring=Scoring(device="cuda:1"))
    score_retrieval(vectors.numpy(), [0, 0, 1, 1])
    assert asked == [torch.device("cpu"), "cuda:1", None]


@pytest.mark.gpu
def test_on_a_gpu(hard_vectors):
    vectors, labels = torch.from_numpy(hard_vectors(300)), uneven_labels(300)
    first, second = (score_retrieval(vectors.cuda(), labels) for _ in range(2))
    assert first == second
    expected = score_retrieval(vectors, labels, scoring=Scoring(backend="torch"))
    assert first == pytest.approx(expected, abs=0.01)
