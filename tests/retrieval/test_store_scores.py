"""A benchmark scored through a store: the numbers of `score_retrieval`, and what it refuses."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.retrieval.index import StoreSettings, open_store
from ke_metric.retrieval.ranking import Expansion, Reranking, ranked_search
from ke_metric.retrieval.scores import require_depth, score_through
from ke_metric.stores.contract import Hits, Item

EXACT = Scoring(backend="torch", kmeans_seeds=())
# Several times what a similarity near 1 is rounded by in float32.
ROUNDED = 3e-7
in_a_hurry = settings(max_examples=20, deadline=None)


def drawn(count, seed=0, classes=9):
    """Unit vectors around class centres, classes of uneven size, an id for each."""
    generator = np.random.default_rng(seed)
    labels = (classes * generator.random(count) ** 2).astype(int)
    vectors = np.random.default_rng(99).normal(size=(classes, 12))[labels] + generator.normal(size=(count, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), labels, [f"picture {number}" for number in range(count)]


def require_one_order(vectors, queries):
    """Pass over drawn sets in which two similarities are so close that NumPy and torch may round them differently."""
    similarities = np.sort(queries.astype(np.float64) @ vectors.astype(np.float64).T)
    assume(np.diff(similarities).min(initial=1) > ROUNDED)


def stored(memory_store, vectors, labels, ids):
    return memory_store(
        [Item(item, label=f"class {label}") for item, label in zip(ids, labels, strict=True)], vectors
    )


def named(labels):
    return [f"class {label}" for label in labels]


@in_a_hurry
@given(seed=st.integers(0, 10**6), ranks=st.lists(st.integers(1, 200), max_size=4), count=st.integers(2, 110))
def test_every_item_queries_all_others(memory_store, seed, ranks, count):
    vectors, labels, ids = drawn(count, seed)
    require_one_order(vectors, vectors)
    found = score_through(stored(memory_store, vectors, labels, ids), vectors, named(labels), ranks, ids=ids)
    assert found == score_retrieval(vectors, labels, ranks, scoring=EXACT)


@pytest.mark.parametrize("kind", ["memory", "memmap", "faiss"])
def test_copies_score_as_without_a_store(memory_store, tmp_path, kind):
    """Twenty pictures six times each in two classes: whichever copy a store names first."""
    generator = np.random.default_rng(0)
    order = generator.permutation(120)
    vectors = Embeddings(np.repeat(generator.normal(size=(20, 16)), 6, axis=0)[order], np.zeros(120, int)).vectors
    labels, ids = generator.integers(0, 2, 120), [f"picture {number}" for number in range(120)]
    if kind == "memory":
        store = stored(memory_store, vectors, labels, ids)
    else:
        store = open_store(tmp_path, 16, StoreSettings(kind=kind), writing=True)
        store.add([Item(item, label=f"class {label}") for item, label in zip(ids, labels, strict=True)], vectors)
    expected = score_retrieval(vectors, labels, (1, 3), scoring=EXACT)
    assert score_through(store, vectors, named(labels), (1, 3), ids=ids) == pytest.approx(expected)
    for ranks in ((1,), (1, 3, 50)):
        assert score_through(store, vectors, named(labels), ranks, ids=ids)["recall@1"] == expected["recall@1"]
    # With re-ranking copies are as alike as without it; the candidates end where its depth does.
    reranked = score_through(store, vectors, named(labels), (1,), ids=ids, rerank=Reranking(5, 3, 0.3, depth=80))
    assert reranked["recall@1"] == pytest.approx(expected["recall@1"])


@pytest.mark.parametrize("kind", ["memmap", "faiss"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 2, 1, 3]])
def test_a_tie_across_the_end_of_a_list_counts_whoever_comes_first(tmp_path, kind, order):
    """Different embeddings, equally similar to the query, at places 2 and 3; one of them is a hit."""
    rows = [[0.9, 0.1, 0.1], [0.5, 0.5, 0], [0.5, -0.5, 0], [0.1, 0.9, 0]]
    vectors = Embeddings([rows[item] for item in order], [0] * 4).vectors
    store = open_store(tmp_path, 3, StoreSettings(kind=kind), writing=True)
    store.add([Item(str(item), label=str([1, 0, 1, 0][item])) for item in order], vectors)
    query = np.array([[1, 0, 0]], np.float32)
    expected = {"recall@2": 0.5, "map@r": 0.125, "r_precision": 0.25, "queries": 1, "queries_without_match": 0}
    assert score_through(store, query, ["0"], (2,)) == pytest.approx(expected)
    assert score_through(store, query, ["0"], (2, 3)) == pytest.approx(expected | {"recall@3": 1})


@in_a_hurry
@given(seed=st.integers(0, 10**6), first=st.integers(0, 130), queries=st.integers(1, 60))
def test_query_and_gallery_that_may_share_pictures(memory_store, seed, first, queries):
    """Some queries are in the gallery and some are not, or all, or none; some have nothing to find."""
    vectors, labels, ids = drawn(140, seed)
    gallery = Embeddings(vectors[first:], labels[first:], ids[first:])
    require_one_order(gallery.vectors, vectors[:queries])
    store = stored(memory_store, gallery.vectors, gallery.labels, gallery.ids)
    found = score_through(store, vectors[:queries], named(labels[:queries]), ids=ids[:queries])
    expected = score_retrieval(vectors[:queries], labels[:queries], gallery=gallery, ids=ids[:queries], scoring=EXACT)
    assert found == expected


def test_without_ids_every_item_may_be_found(memory_store):
    vectors, labels, ids = drawn(80)
    store = stored(memory_store, vectors, labels, ids)
    found = score_through(store, vectors, named(labels))
    assert found == score_retrieval(vectors, labels, gallery=Embeddings(vectors, labels), scoring=EXACT)
    assert found["recall@1"] == 1, "every query is its own nearest neighbour"


@pytest.mark.parametrize(
    ("expand", "rerank"),
    [(Expansion(3, 1), None), (None, Reranking(6, 3, 0.3, depth=90)), (Expansion(2), Reranking(5, 1, 0.2, depth=90))],
)
def test_the_options_are_those_of_the_search(memory_store, expand, rerank):
    """Scores of lists from `ranked_search` itself, query by query, in loops."""
    vectors, labels, ids = drawn(80)
    store = stored(memory_store, vectors, labels, ids)
    values = {"recall@1": [], "r_precision": []}
    for query in range(80):
        relevant = int((labels == labels[query]).sum()) - 1
        if not relevant:
            continue
        options = {"expand": expand, "rerank": rerank, "exclude": [ids[query]]}
        [items] = ranked_search(store, vectors[[query]], relevant, **options).items()
        hits = [item.label == f"class {labels[query]}" for item in items]
        values["recall@1"].append(hits[0])
        values["r_precision"].append(np.mean(hits))
    found = score_through(store, vectors, named(labels), (1,), ids=ids, expand=expand, rerank=rerank)
    assert {name: found[name] for name in values} == pytest.approx({name: np.mean(v) for name, v in values.items()})
    assert found != score_through(store, vectors, named(labels), (1,), ids=ids), "the options changed nothing"


def test_an_approximate_store_scores_less(memory_store):
    """One that never finds the nearest neighbour, and finds fewer than were asked for."""

    class Approximate(memory_store):
        def search(self, queries, k, *, where=None):
            hits = super().search(queries, k + 2, where=where)
            numbers, similarities = hits.numbers[:, 2:].copy(), hits.similarities[:, 2:].copy()
            numbers[:, k // 2 + 1 :], similarities[:, k // 2 + 1 :] = -1, -np.inf
            return Hits(similarities, numbers, hits.read_items, hits.read_vectors)

    vectors, labels, ids = drawn(80)
    exact = score_retrieval(vectors, labels, scoring=EXACT)
    found = score_through(stored(Approximate, vectors, labels, ids), vectors, named(labels), ids=ids)
    assert all(found[name] < exact[name] for name in ("recall@1", "map@r", "r_precision"))


def test_a_stores_numbers_are_its_own(memory_store):
    """One that reads its items in another order than it numbers them."""

    class Reversed(memory_store):
        def read(self, batch_size=8192):
            for items, vectors in super().read(batch_size):
                yield items[::-1], vectors[::-1]

    vectors, labels, ids = drawn(70)
    found = score_through(stored(Reversed, vectors, labels, ids), vectors, named(labels), ids=ids)
    assert found == score_retrieval(vectors, labels, scoring=EXACT)


def test_an_item_without_a_label_is_of_no_class(memory_store):
    vectors, labels, ids = drawn(60)
    items = [Item(item, label=f"class {label}") for item, label in zip(ids, labels, strict=True)]
    unlabelled = [Item(f"unknown {number}") for number in range(60)]
    store = memory_store([*unlabelled, *items], np.concatenate([drawn(60, seed=4)[0], vectors]))
    found = score_through(store, vectors, named(labels), ids=ids)
    numbers = np.concatenate([np.arange(1000, 1060), labels])
    gallery = Embeddings(store.vectors, numbers, [item.id for item in store.items])
    assert found == score_retrieval(vectors, labels, gallery=gallery, ids=ids, scoring=EXACT)


def test_an_empty_store_has_nothing_to_find(memory_store):
    vectors, labels, ids = drawn(5)
    empty = memory_store([], np.empty((0, 12), np.float32))
    assert score_through(empty, vectors, named(labels), ids=ids) == {"queries": 0, "queries_without_match": 5}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"labels": ["", *"abcd"]}, ExitCode.DATA, "query 0 has no label"),
        ({"labels": [*"abcd", "x"], "ids": list("01234")}, ExitCode.DATA, "query 4 has label 'x' .* 'e'"),
        ({"recall_at": (1, 0)}, ExitCode.RECIPE, "recall_at"),
        (
            {"recall_at": (4,), "rerank": Reranking(2, 1, 0.3, depth=3)},
            ExitCode.USAGE,
            "4 are needed for Recall@4",
        ),
    ],
)
def test_what_cannot_be_scored(memory_store, change, code, words):
    vectors, _, _ = drawn(5)
    store = memory_store([Item(str(n), label="abcde"[n]) for n in range(5)], vectors)
    arguments = {"labels": list("abcde")} | change
    with pytest.raises(KeMetricError, match=words) as caught:
        score_through(store, vectors, **arguments)
    assert caught.value.exit_code == code


def test_the_depth_that_re_ranking_needs():
    """A class of 121 and one of a single picture, which has nothing to find; and one larger than any depth."""
    rerank = Reranking(5, 3, 0.3)
    relevant = np.array([120] * 121 + [0])
    require_depth(rerank, np.array([100] * 101), (1, 100), gallery_size=101)
    require_depth(rerank, np.array([0]), (1, 200), gallery_size=300)
    with pytest.raises(KeMetricError, match=r"120 are needed for MAP@R, .* has 120 other pictures; take 5:3:0.3:120"):
        require_depth(rerank, relevant, (1, 8), gallery_size=122)
    with pytest.raises(KeMetricError, match=r"5,000 are needed .*; 4,096 are the most there can be"):
        require_depth(rerank, np.array([5000]), (1,), gallery_size=6000)
