"""Query expansion and k-reciprocal re-ranking over a store, beside their rules written out in loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval import ranking as query_expansion
from ke_metric.retrieval import ranking as reranking
from ke_metric.retrieval.ranking import Expansion, Reranking, expand_queries, ranked_search
from ke_metric.stores.contract import Item, Where

COUNT = 90
in_a_hurry = settings(max_examples=25, deadline=None)


def clustered(count, seed=0, dimension=12, classes=9):
    """Unit vectors in overlapping clusters, so that some neighbours are mutual and some are not."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, dimension))
    vectors = centres[np.arange(count) % classes] + generator.normal(size=(count, dimension)) * 0.8
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def store(memory_store):
    """90 items of three labels."""
    return memory_store([Item(f"i{n}", label="abc"[n % 3]) for n in range(COUNT)], clustered(COUNT))


QUERIES = clustered(5, seed=5)


def test_all_ids_of_a_query_are_left_out(store):
    ids = [item.id for item in store.items]
    exclude = [ids[:3], [], ids[0], {ids[5], "no such id"}]
    hits = ranked_search(store, store.vectors[[0, 1, 0, 5]], 20, exclude=exclude)
    for entry, items in zip(exclude, hits.items(), strict=True):
        assert len(items) == 20
        assert not {item.id for item in items} & ({entry} if isinstance(entry, str) else set(entry))


def rerank_in_loops(query, gallery, *, k1, k2, weight):
    """The authors' rule for one query, as the paper tells it: the final distance to each of the gallery."""
    everything = np.vstack([query[None], gallery]).astype(float)
    distances = np.array([((everything - one) ** 2).sum(axis=1) for one in everything])
    distances /= distances.max(axis=1, keepdims=True)
    members = range(len(everything))
    lists = [sorted(members, key=lambda other, i=i: (other != i, distances[i, other])) for i in members]

    def reciprocal(i, k):
        return {other for other in lists[i][: k + 1] if i in lists[other][: k + 1]}

    encodings = np.zeros_like(distances)
    for i in members:
        first = reciprocal(i, k1)
        tied = set(first)
        for other in first:
            half = reciprocal(other, int(np.around(k1 / 2)))
            if len(half & first) > 2 / 3 * len(half):
                tied |= half
        for other in tied:
            encodings[i, other] = np.exp(-distances[i, other])
        encodings[i] /= encodings[i].sum()
    averaged = [np.mean([encodings[other] for other in lists[i][:k2]], axis=0) for i in members]
    final = []
    for i in members[1:]:
        jaccard = 1 - np.minimum(averaged[0], averaged[i]).sum() / np.maximum(averaged[0], averaged[i]).sum()
        final.append((1 - weight) * jaccard + weight * distances[0, i])
    return np.array(final)


def expand_in_loops(store, query, *, neighbors, alpha, own=None, label=None):
    total = query.astype(float)
    found = sorted(
        ((float(np.dot(query, vector)), n) for n, vector in enumerate(store.vectors) if store.items[n].id != own),
        reverse=True,
    )
    found = [(similarity, n) for similarity, n in found if label in (None, store.items[n].label)]
    for similarity, n in found[:neighbors]:
        total = total + max(similarity, 0) ** alpha * store.vectors[n]
    return total / np.linalg.norm(total)


def assert_ranked_like(hits, numbers, final):
    """Every row of hits, best first, has the candidates of the twin with 1 - its final distance."""
    for row, (candidates, distances) in enumerate(zip(numbers, final, strict=True)):
        expected = dict(zip(candidates, 1 - distances, strict=True))
        found = [(n, s) for n, s in zip(hits.numbers[row], hits.similarities[row], strict=True) if n >= 0]
        assert len({n for n, _ in found}) == len(found)
        np.testing.assert_allclose([s for _, s in found], [expected[n] for n, _ in found], atol=2e-6)
        best = sorted(expected.values(), reverse=True)[: len(found)]
        np.testing.assert_allclose([s for _, s in found], best, atol=2e-6)


RULES = [(20, 6, 0.3), (5, 2, 0.3), (4, 1, 0.0), (7, 3, 0.8), (1, 1, 0.5), (3, 9, 0.1), (40, 6, 0.3)]


@pytest.mark.parametrize(("k1", "k2", "weight"), RULES)
def test_reranking_of_everything_is_the_authors_rule(store, k1, k2, weight):
    rule = Reranking(k1, k2, weight, depth=COUNT)
    hits = ranked_search(store, QUERIES, COUNT, rerank=rule)
    assert bool((hits.numbers >= 0).all())
    final = [rerank_in_loops(query, store.vectors, k1=k1, k2=k2, weight=weight) for query in QUERIES]
    assert_ranked_like(hits, [range(COUNT)] * len(QUERIES), final)


@pytest.mark.parametrize(("k1", "k2", "weight"), RULES[:4])
def test_reranking_of_candidates_is_the_authors_rule_among_them(store, k1, k2, weight):
    rule = Reranking(k1, k2, weight, depth=30)
    hits = ranked_search(store, QUERIES, 10, rerank=rule)
    assert hits.numbers.shape == (len(QUERIES), 10)
    near = store.search(QUERIES, 30).numbers
    final = [
        rerank_in_loops(query, store.vectors[candidates], k1=k1, k2=k2, weight=weight)
        for query, candidates in zip(QUERIES, near, strict=True)
    ]
    assert_ranked_like(hits, near, final)


def test_the_querys_own_picture_takes_no_part(store):
    """As if it were not in the store: neither a hit, nor a neighbour, nor the largest distance."""
    own = [3, 50, COUNT - 1]
    rule = Reranking(8, 3, 0.3, depth=COUNT)
    hits = ranked_search(store, store.vectors[own], COUNT, rerank=rule, exclude=[f"i{n}" for n in own])
    others = [[n for n in range(COUNT) if n != own_number] for own_number in own]
    final = [
        rerank_in_loops(store.vectors[n], store.vectors[rest], k1=8, k2=3, weight=0.3)
        for n, rest in zip(own, others, strict=True)
    ]
    assert hits.numbers[:, -1].tolist() == [-1, -1, -1]
    assert_ranked_like(hits, others, final)


@pytest.mark.parametrize(("k1", "k2"), [(9, 4), (27, 4), (9, 50)])
def test_fewer_candidates_than_asked_for(store, k1, k2):
    """What is missing changes nothing: the rule among the 30 items that the condition leaves."""
    where = Where.parse('label == "b"')
    hits = ranked_search(store, QUERIES, 60, where=where, rerank=Reranking(k1, k2, 0.3, depth=80))
    members = [n for n in range(COUNT) if n % 3 == 1]
    final = [rerank_in_loops(query, store.vectors[members], k1=k1, k2=k2, weight=0.3) for query in QUERIES]
    assert (hits.numbers >= 0).sum(axis=1).tolist() == [30] * len(QUERIES)
    assert_ranked_like(hits, [members] * len(QUERIES), final)


@pytest.mark.parametrize("exclude", [None, ["i3", "i4", "no such id", "i5", "i6"]])
def test_a_depth_beyond_the_gallery_costs_and_changes_nothing(store, monkeypatch, exclude):
    seen = []
    plain = reranking._distances
    monkeypatch.setattr(
        reranking, "_distances", lambda vectors, there: seen.append(there.shape[1]) or plain(vectors, there)
    )
    deep, fitting = (
        ranked_search(store, QUERIES, COUNT, rerank=Reranking(40, 3, 0.3, depth=depth), exclude=exclude)
        for depth in (4000, COUNT)
    )
    np.testing.assert_array_equal(deep.numbers, fitting.numbers)
    np.testing.assert_array_equal(deep.similarities, fitting.similarities)
    assert max(seen) <= COUNT + 1
    none = ranked_search(store, QUERIES, 3, rerank=Reranking(5, 3), where=Where.parse('label == "z"'))
    assert (none.numbers == -1).all()
    assert np.isneginf(none.similarities).all()


@pytest.mark.parametrize("cells", [1, 4000, 2**21])
def test_a_query_does_not_depend_on_the_others(store, cells, monkeypatch):
    monkeypatch.setattr(reranking, "_CELLS_AT_A_TIME", cells)
    monkeypatch.setattr(query_expansion, "_VALUES_AT_A_TIME", cells)
    options = {"expand": Expansion(3, 1), "rerank": Reranking(6, 3, 0.3, depth=20)}
    together = ranked_search(store, QUERIES, 10, **options)
    alone = [ranked_search(store, query[None], 10, **options) for query in QUERIES]
    np.testing.assert_array_equal(together.numbers, np.concatenate([hits.numbers for hits in alone]))
    np.testing.assert_allclose(
        together.similarities, np.concatenate([hits.similarities for hits in alone]), atol=1e-6
    )


def test_a_weight_of_one_keeps_the_order(store):
    plain = store.search(QUERIES, 20)
    hits = ranked_search(store, QUERIES, 20, rerank=Reranking(5, 3, 1.0, depth=20))
    np.testing.assert_array_equal(hits.numbers, plain.numbers)
    assert float(hits.similarities.min()) == pytest.approx(0, abs=1e-6), "the farthest candidate"


def test_mutual_neighbours_overtake_a_nearer_loner(memory_store):
    """Seen from the query the loner is nearer; but it is at home in a crowd that does not know the query."""
    angles = [12, 13, 14, -10, -16, -16.2, -16.4, -16.6]
    vectors = np.array([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in angles], np.float32)
    names = ["friend", "friend2", "friend3", "loner", *"wxyz"]
    store = memory_store([Item(name) for name in names], vectors)
    query = np.array([[1, 0]], np.float32)
    assert ranked_search(store, query, 1).items()[0][0].id == "loner"
    assert ranked_search(store, query, 1, rerank=Reranking(3, 1, 0.1, depth=8)).items()[0][0].id == "friend"


@pytest.mark.parametrize(("k1", "k2"), [(2, 1), (2, 2), (4, 3)])
def test_an_item_comes_before_its_duplicates(memory_store, k1, k2):
    """Of four equal pictures, one of them the query, each is its own nearest neighbour; the rest keep their order."""
    vectors = np.repeat(clustered(12), 3, axis=0)
    store = memory_store([Item(str(n)) for n in range(36)], vectors)
    queries = vectors[[0, 16]]
    hits = ranked_search(store, queries, 36, rerank=Reranking(k1, k2, 0.3, depth=36))
    near = store.search(queries, 36).numbers
    final = [
        rerank_in_loops(query, vectors[numbers], k1=k1, k2=k2, weight=0.3)
        for query, numbers in zip(queries, near, strict=True)
    ]
    assert_ranked_like(hits, near, final)


def test_duplicates_are_ranked_without_trouble(memory_store):
    one = np.array([[0.6, 0.8]], np.float32)
    store = memory_store([Item(str(n)) for n in range(6)], np.repeat(one, 6, axis=0))
    hits = ranked_search(store, one, 6, rerank=Reranking(3, 2, 0.3, depth=6))
    assert sorted(hits.numbers[0].tolist()) == list(range(6))
    assert np.isfinite(hits.similarities).all()


def test_what_is_found_can_be_read(store):
    options = {"expand": Expansion(2), "rerank": Reranking(5, 2, 0.3, depth=15)}
    hits = ranked_search(store, QUERIES, 4, **options)
    assert [[item.id for item in row] for row in hits.items()] == [[f"i{n}" for n in row] for row in hits.numbers]
    np.testing.assert_array_equal(hits.vectors(), store.vectors[hits.numbers])


def test_a_search_without_options_is_the_stores_own(store):
    plain, hits = store.search(QUERIES, 5), ranked_search(store, QUERIES, 5)
    np.testing.assert_array_equal(hits.numbers, plain.numbers)
    np.testing.assert_array_equal(hits.similarities, plain.similarities)


def test_no_queries_give_no_hits(store):
    options = {"expand": Expansion(2), "rerank": Reranking(5, 2, 0.3, depth=15)}
    assert ranked_search(store, QUERIES[:0], 4, exclude=[], **options).numbers.shape == (0, 4)


@in_a_hurry
@given(
    neighbors=st.integers(1, 150),
    alpha=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    own=st.sampled_from([None, 0, 77]),
    label=st.sampled_from([None, "a", "c"]),
)
def test_expansion_agrees_with_plain_loops(memory_store, neighbors, alpha, own, label):
    store = memory_store([Item(f"i{n}", label="abc"[n % 3]) for n in range(COUNT)], clustered(COUNT))
    queries = QUERIES if own is None else store.vectors[[own]]
    found = expand_queries(
        store,
        queries,
        Expansion(neighbors, alpha),
        exclude=None if own is None else [f"i{own}"],
        where=None if label is None else Where.parse(f'label == "{label}"'),
    )
    own_id = None if own is None else f"i{own}"
    expected = [
        expand_in_loops(store, query, neighbors=neighbors, alpha=alpha, own=own_id, label=label) for query in queries
    ]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_second_search_is_with_the_expanded_queries(store):
    expanded = expand_queries(store, QUERIES, Expansion(4, 1))
    hits, expected = ranked_search(store, QUERIES, 9, expand=Expansion(4, 1)), store.search(expanded, 9)
    np.testing.assert_array_equal(hits.numbers, expected.numbers)
    np.testing.assert_array_equal(hits.similarities, expected.similarities)
    assert (hits.numbers != store.search(QUERIES, 9).numbers).any(), "expansion changed nothing here: a poor example"


def test_a_query_whose_sum_is_nothing_stays(memory_store):
    store = memory_store([Item("opposite")], np.array([[-1, 0]], np.float32))
    query = np.array([[1, 0]], np.float32)
    np.testing.assert_array_equal(expand_queries(store, query, Expansion(1, 0)), query)


@pytest.mark.parametrize(
    ("text", "expected"), [("4", Expansion(4)), ("4:0", Expansion(4, 0)), ("16:2.5", Expansion(16, 2.5))]
)
def test_expansion_is_read(text, expected):
    assert Expansion.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20:6:0.3", Reranking(20, 6, 0.3)),
        ("5:3:0.3", Reranking()),
        ("5:1:0:50", Reranking(5, 1, 0.0, 50)),
        ("2:2:1:2", Reranking(2, 2, 1, 2)),
    ],
)
def test_reranking_is_read(text, expected):
    assert Reranking.parse(text) == expected


@pytest.mark.parametrize("text", ["", "x", "4:", "4:3:2", "2.5", "0", "-1:3", "4:-1", "4:nan", "4:inf", "1025"])
def test_no_expansion(text):
    with pytest.raises(KeMetricError, match=r"query expansion = .*must be N or N:ALPHA") as caught:
        Expansion.parse(text)
    assert caught.value.exit_code == ExitCode.USAGE


BAD_RERANKINGS = ["", "20", "20:6", "a:6:0.3", "0:6:0.3", "6:0:0.3", "6:2:1.1", "6:2:-0.1", "6:2:nan", "20:6:0.3:19"]


@pytest.mark.parametrize("text", [*BAD_RERANKINGS, "2:9:0.3:8", "20:6:0.3:4097", "20:6:0.3:100:1", "20:6:0.3:x"])
def test_no_reranking(text):
    with pytest.raises(KeMetricError, match=r"re-ranking = .*must be K1:K2:LAMBDA") as caught:
        Reranking.parse(text)
    assert caught.value.exit_code == ExitCode.USAGE


def test_more_neighbours_than_candidates_are_refused(store):
    with pytest.raises(KeMetricError, match=r"31 neighbours .* 30 candidates") as caught:
        ranked_search(store, QUERIES, 31, rerank=Reranking(5, 2, 0.3, depth=30))
    assert caught.value.exit_code == ExitCode.USAGE
