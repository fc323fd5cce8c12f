"""Every kind of store does the same. The kinds are in store_kinds.py; a new one is one line there."""

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from store_kinds import EACH, STORES
from store_twin import Twin, assert_same_answers, assert_same_content, filled, refused, some_items, unit_vectors

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.ranking import ranked_search, search_others
from ke_metric.stores.contract import LONGEST_TEXT, Condition, Item, Where

D = 16
ODD_TEXTS = (
    "",
    "crow",
    "Crow",
    "crow ",
    '"',
    "'",
    "'; DROP TABLE items; --",
    "\\",
    '\\"',
    "a\\nb",
    "a\nb",
    "\t",
    "%",
    "_",
    "c%w",
    "ćrów",
    "c\u0301row",
    "\u0107row",
    "🐦‍⬛",
    "乌鸦",
    "غراب",
    "\u202e",
    "\ufeff",
    "null",
    "1",
    "1.0",
    "{}",
    '["crow"]',
    "x" * LONGEST_TEXT,
    "🐦" * LONGEST_TEXT,
)


@pytest.fixture(params=EACH)
def kind(request):
    return STORES[request.param]


@pytest.fixture
def open_store(kind, tmp_path):
    """Open the store in the test's folder; it is closed when the test ends."""
    opened = []

    def make(*, writing=True, dimension=D):
        opened.append(kind.make(tmp_path / "store", dimension, writing))
        return opened[-1]

    yield make
    for store in reversed(opened):
        store.close()
    kind.remove(tmp_path / "store")


@pytest.fixture
def store(open_store):
    return open_store()


def compare(kind, store, twin, k=5, *, where=None, queries=None):
    queries = unit_vectors(4, D, seed=99) if queries is None else queries
    assert_same_answers(
        store, twin, queries, k, where=where, exact=kind.exact, ordered=kind.ordered, tolerance=kind.tolerance
    )


def test_an_empty_store(kind, store, open_store):
    assert store.dimension == D
    for _ in range(2):
        assert_same_content(store, Twin())
        compare(kind, store, Twin())
        compare(kind, store, Twin(), where=Where.parse('label == "crow"'))
        store.add([], np.empty((0, D), np.float32))
        store.remove([])
        store.flush()
        assert store.known([]) == set()
        assert store.known_labels(["crow", ""]) == store.known_labels([]) == set()
        assert store.items_at(["crow.jpg", ""]) == store.items_at([]) == {}
        assert store.count(Where.parse('label != "crow"')) == 0
        assert store.get([]) == []
        assert list(store.read()) == []
        store.close()
        store = open_store()


def test_what_was_added_is_found(kind, store):
    twin = filled(store)
    assert_same_content(store, twin)
    compare(kind, store, twin)
    store.flush()
    assert_same_content(store, twin)
    compare(kind, store, twin)


def test_the_best_comes_first_and_its_opposite_last(kind, store):
    axes = np.eye(D, dtype=np.float32)
    vectors = np.concatenate([axes[:1], -axes[:1], (axes[:1] + axes[1:2]) / np.float32(2**0.5)])
    store.add([Item("same"), Item("opposite"), Item("between")], vectors)
    hits = store.search(axes[:1], 3)
    if kind.exact:
        assert [item.id for item in hits.items()[0]] == ["same", "between", "opposite"]
        np.testing.assert_allclose(hits.similarities, [[1, 0.5**0.5, -1]], atol=kind.tolerance)


def test_more_neighbours_than_there_are(kind, store):
    twin = filled(store, 6)
    compare(kind, store, twin, k=50)
    compare(kind, store, twin, k=50, where=Where.parse('label == "class-1"'))


@pytest.mark.parametrize("where", [None, Where.parse('label == "class-1"')])
def test_no_queries(store, where):
    filled(store)
    hits = store.search(np.empty((0, D), np.float32), 3, where=where)
    assert hits.similarities.shape == hits.numbers.shape == (0, 3)
    assert hits.items() == []
    assert hits.vectors().shape == (0, 3, D)


def test_many_queries_answer_as_each_alone(kind, store):
    filled(store, 200)
    queries = unit_vectors(300, D, seed=5)
    together = store.search(queries, 3)
    if kind.exact:
        alone = np.concatenate([store.search(query[None], 3).similarities for query in queries[::50]])
        np.testing.assert_allclose(together.similarities[::50], alone, atol=1e-6)


def test_equal_items_have_equal_numbers(store):
    filled(store, 3)
    hits = store.search(unit_vectors(6, D, seed=1), 3)
    names = {}
    for numbers, items in zip(hits.numbers, hits.items(), strict=True):
        for number, item in zip(numbers, items, strict=False):
            assert names.setdefault(number, item) == item


def test_ties(kind, store):
    twin = Twin()
    items, vectors = some_items(40), np.repeat(unit_vectors(4, D, seed=3), 10, axis=0)
    store.add(items, vectors)
    twin.add(items, vectors)
    for k in (1, 4, 10, 15, 40):
        compare(kind, store, twin, k=k, queries=vectors[::10])


def test_few_neighbours_are_the_beginning_of_many(kind, store):
    """However many are asked for, by however many queries, with a condition or without, before and after changes."""
    if not kind.ordered:
        pytest.skip("the order of ties is not promised (docs/stores.md)")
    twin, draw = Twin(), np.random.default_rng(2)
    pool = unit_vectors(30, D, seed=3)
    near = np.nextafter(pool[:10], np.float32(2))  # nearly the same: products differ in the last bits, or not at all
    vectors = np.concatenate([pool, np.repeat(pool[:2], 60, 0), near, near[::-1], pool])
    vectors = vectors[draw.permutation(len(vectors))]
    items = some_items(len(vectors), classes=3)
    for step, rows in enumerate((slice(0, 90), slice(90, 150), slice(150, 200))):
        store.add(items[rows], vectors[rows])
        twin.add(items[rows], vectors[rows])
        gone = [item.id for item in items[rows][::5]]
        store.remove(gone)
        twin.remove(gone)
        if step < 2:
            store.flush()
    for where in (None, Where.parse('label != "class-1"')):
        for queries in (pool[:1], np.concatenate([pool[1:13], near])):
            for k in (1, 3, 40, 199):
                compare(kind, store, twin, k=k, where=where, queries=queries)


def test_recall_among_clusters(kind, store):
    twin = Twin()
    items, vectors = some_items(3000), unit_vectors(3000, D, seed=7, spread=0.5, centres=30)
    for rows in (slice(0, 2500), slice(2500, 3000)):
        store.add(items[rows], vectors[rows])
        twin.add(items[rows], vectors[rows])
        store.flush()
    queries = unit_vectors(50, D, seed=8, spread=0.5, centres=30)
    hits = store.search(queries, 10)
    found = 0
    for query, found_items in zip(queries, hits.items(), strict=True):
        expected = twin.similarities(query)
        worst = sorted(expected.values(), reverse=True)[9] - 1e-6
        found += sum(expected[item.id] >= worst for item in found_items)
    assert found / 500 >= kind.recall


def test_removed_items_are_gone(kind, store):
    twin = filled(store)
    gone = [f"id-{n}" for n in range(0, 60, 2)]
    store.remove(gone)
    twin.remove(gone)
    assert store.known(gone) == set()
    assert_same_content(store, twin)
    compare(kind, store, twin, k=40)
    store.flush()
    compare(kind, store, twin, k=40)
    store.remove(list(twin.content))
    assert_same_content(store, Twin())
    compare(kind, store, Twin())


def test_a_removed_item_may_come_again(kind, store):
    twin = filled(store)
    store.remove(["id-3"])
    store.add([Item("id-3", "elsewhere.jpg", "jay")], unit_vectors(1, D, seed=5))
    twin.add([Item("id-3", "elsewhere.jpg", "jay")], unit_vectors(1, D, seed=5))
    assert_same_content(store, twin)
    compare(kind, store, twin)


def test_an_item_named_twice_is_removed_once(store):
    twin = filled(store)
    store.remove(["id-3", "id-3"])
    twin.remove(["id-3"])
    assert_same_content(store, twin)


def test_replacing(kind, store):
    twin = filled(store)
    items = [Item("id-5", "new.jpg", "jay"), Item("new"), Item("id-59", "", "class-3")]
    vectors = unit_vectors(3, D, seed=6)
    store.add(items, vectors, replace=True)
    twin.add(items, vectors)
    assert_same_content(store, twin)
    compare(kind, store, twin, k=70)
    compare(kind, store, twin, where=Where.parse('label == "jay"'))
    store.flush()
    compare(kind, store, twin, k=70)


def test_without_replace_an_item_that_is_there_is_refused_and_the_others_with_it(kind, store):
    twin = filled(store)
    with refused("'id-5'"):
        store.add([Item("new"), Item("id-5")], unit_vectors(2, D, seed=6))
    assert_same_content(store, twin)
    compare(kind, store, twin, k=70)


def test_an_unknown_id_is_refused_and_changes_nothing(kind, store):
    twin = filled(store)
    for unknown in ("", "id-60", "ID-1", "id-1 ", "id-1\0", "\ud800", "%"):
        with refused("no item"):
            store.remove(["id-1", unknown])
        with refused("no item"):
            store.get(["id-1", unknown])
        assert store.known(["id-1", unknown]) == {"id-1"}
    assert_same_content(store, twin)
    compare(kind, store, twin)


def test_a_text_is_no_collection_of_texts(store):
    store.add([Item(name) for name in ("1", "2", "12")], np.eye(3, D, dtype=np.float32))
    for wrong in ("12", b"12", 1, [1, 2], ["1", 2], "", None):
        for ask in (store.remove, store.known, store.get, store.known_labels, store.items_at):
            with refused("must be a collection of texts|must be text"):
                ask(wrong)
    for wrong in ("12", b"12", 1, [1], [b"12"], [["1", 2]], "", ["1", "2"]):
        with refused("must be an id, or a collection|must be a collection|must be text"):
            search_others(store, np.eye(1, D, dtype=np.float32), 1, exclude=wrong)
    assert store.known(["1", "2", "12"]) == {"1", "2", "12"}


def test_a_k_that_is_no_number_of_neighbours_is_refused(store):
    filled(store, 3)
    query = np.eye(1, D, dtype=np.float32)
    for k in (0, -1, 1.5, True, None, "3"):
        for where in (None, Where.parse('label == "class-1"')):
            with refused("k = .*must be a whole number of at least 1", ExitCode.USAGE):
                store.search(query, k, where=where)
            with refused("k = .*must be a whole number of at least 1", ExitCode.USAGE):
                ranked_search(store, query, k, where=where)
    assert store.search(query, np.int64(2)).numbers.shape == (1, 2)
    with refused("batch_size = 0", ExitCode.USAGE):
        list(store.read(0))


@pytest.mark.parametrize("k", [10**9, 2**70, np.int64(2**62)])
def test_more_neighbours_than_items_take_no_memory(kind, store, k):
    query = unit_vectors(1, D, seed=1)
    assert store.search(query, k).numbers.tolist() == [[-1]]
    twin = filled(store, 6)
    where = Where.parse('label == "class-1"')
    for search in (store.search, partial(ranked_search, store)):
        assert search(query, k).numbers.shape == (1, 6)
        hits = search(query, k, where=where)
        assert len(hits.items()[0]) == len(twin.similarities(query[0], where))


def test_a_condition_must_be_one(store):
    text = 'label == "class-1"'
    for ask in (store.matching, store.count):
        with refused("is str, must be a Where", ExitCode.USAGE):
            ask(text)
    with refused("is str, must be a Where", ExitCode.USAGE):
        store.search(np.eye(1, D, dtype=np.float32), 1, where=text)


def test_what_is_added_must_be_items(store):
    for items in (Item("new"), ["new"], [None]):
        with refused("must be a sequence of items"):
            store.add(items, np.eye(1, D, dtype=np.float32))
    assert len(store) == 0


def test_an_item_of_something_else_is_refused():
    for fields, words in (
        ({"id": 3}, "id = 3 is int, must be text"),
        ({"id": "n", "label": 3}, "item 'n': label = 3 is int, must be text: label='3'"),
        ({"id": "n", "path": Path("a/1.jpg")}, "path = .* must be text: path='a/1.jpg'"),
        ({"id": "n", "label": None}, "label = None is NoneType"),
    ):
        with refused(words):
            Item(**fields)


def test_the_items_for_which_a_condition_holds(store):
    twin = filled(store)
    store.remove(["id-8", "id-2"])
    twin.remove(["id-8", "id-2"])
    for where in ('label == "class-1"', 'label != "class-1"', 'id in ["id-3", "no"]', 'path != "x"', 'label == "no"'):
        condition = Where.parse(where)
        found = store.matching(condition)
        assert {item.id for item in found} == set(twin.matching(condition))
        assert found == [item for items, _ in store.read() for item in items if item.id in twin.matching(condition)]
        assert store.count(condition) == len(found)


def test_which_labels_there_are(store):
    filled(store)
    asked = [
        "class-1",
        "class-1",
        "class-2",
        "class-3",
        "class-9",
        "",
        "CLASS-1",
        "class-%",
        "a\0b",
        "\ud800",
        "x" * 2000,
    ]
    assert store.known_labels(asked) == {"class-1", "class-2", "class-3"}
    store.add([Item("unlabelled")], unit_vectors(1, D, seed=1))
    store.remove([f"id-{n}" for n in range(1, 60, 7)])
    assert store.known_labels(asked) == {"class-2", "class-3", ""}


def test_which_items_have_a_path(store):
    filled(store)
    again = [Item(name, "folder/3.jpg", "jay") for name in ("id-33", "a", "z")]
    store.add([*again, Item("nowhere")], unit_vectors(4, D, seed=1), replace=True)
    store.remove(["id-5"])
    asked = ["folder/3.jpg", "folder/7.jpg", "folder/7.jpg", "folder/5.jpg", "", "folder/33.jpg", "a\0b", "\ud800"]
    found = store.items_at(asked)
    assert found.keys() == {"folder/3.jpg", "folder/7.jpg", ""}
    assert [item.id for item in found["folder/7.jpg"]] == ["id-7"]
    assert found[""] == [Item("nowhere")]
    read = [item for items, _ in store.read() for item in items]
    assert found["folder/3.jpg"] == [item for item in read if item.path == "folder/3.jpg"]
    assert {item.id for item in found["folder/3.jpg"]} == {"id-3", "id-33", "a", "z"}


def test_more_paths_than_a_request_holds(store, monkeypatch):
    monkeypatch.setattr("ke_metric.stores.milvus_collection.REQUEST_BYTES", 4096)
    filled(store, 400)
    found = store.items_at([f"folder/{n}.jpg" for n in range(100, 1000)])
    assert {path: [item.id for item in items] for path, items in found.items()} == {
        f"folder/{n}.jpg": [f"id-{n}"] for n in range(100, 400)
    }


def test_get_keeps_the_order(store):
    twin = filled(store)
    names = ["id-7", "id-2", "id-7", "id-50"]
    assert store.get(names) == [twin.content[name][0] for name in names]


BAD_VECTORS = {
    "another dimension": np.eye(2, D + 1, dtype=np.float32),
    "one vector": np.eye(1, D, dtype=np.float32)[0],
    "float64": np.eye(2, D),
    "integers": np.eye(2, D, dtype=np.int64),
    "too few": np.eye(1, D, dtype=np.float32),
    "too long": np.eye(2, D, dtype=np.float32) * 2,
    "zeros": np.zeros((2, D), np.float32),
    "NaN": np.full((2, D), np.nan, np.float32),
    "infinite": np.full((2, D), np.inf, np.float32),
}
BAD_TEXTS = {"NUL": "a\0b", "a lone surrogate": "a\udcffb", "too long": "x" * (LONGEST_TEXT + 1)}


@pytest.mark.parametrize("vectors", BAD_VECTORS.values(), ids=BAD_VECTORS)
def test_bad_vectors_are_refused_and_change_nothing(kind, store, vectors):
    twin = filled(store)
    for replace in (False, True):
        with refused("vector"):
            store.add([Item("id-1" if replace else "new"), Item("new-2")], vectors, replace=replace)
    assert_same_content(store, twin)
    compare(kind, store, twin)


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS)
@pytest.mark.parametrize("field", ["id", "path", "label"])
def test_bad_texts_are_refused_and_change_nothing(kind, store, field, text):
    twin = filled(store)
    with refused(field):
        store.add([Item("new"), Item(**({"id": "new-2"} | {field: text}))], np.eye(2, D, dtype=np.float32))
    assert_same_content(store, twin)


@pytest.mark.parametrize("items", [[Item("new"), Item("")], [Item("new"), Item("new")]], ids=["empty", "twice"])
def test_bad_ids_are_refused_and_change_nothing(store, items):
    twin = filled(store)
    for replace in (False, True):
        with refused("item"):
            store.add(items, np.eye(2, D, dtype=np.float32), replace=replace)
    assert_same_content(store, twin)


@pytest.mark.parametrize("name", sorted(BAD_VECTORS.keys() - {"too few"}))
def test_bad_queries_are_refused(kind, store, name):
    twin = filled(store)
    with refused("vector"):
        store.search(BAD_VECTORS[name], 3)
    compare(kind, store, twin)


def test_odd_texts_come_back_as_they_were(kind, store, open_store):
    twin = Twin()
    items = [Item(text or "empty", text, text) for text in ODD_TEXTS]
    vectors = unit_vectors(len(items), D, seed=4)
    store.add(items, vectors)
    twin.add(items, vectors)
    assert_same_content(store, twin)
    store.close()
    store = open_store()
    assert_same_content(store, twin)
    for item in items:
        for field in ("id", "path", "label"):
            for within in (True, False):
                where = Where((Condition(field, within, (getattr(item, field),)),))
                compare(kind, store, twin, k=3, where=where, queries=vectors[:1])
    store.remove([item.id for item in items])
    assert len(store) == 0


def test_no_text_of_a_filter_is_taken_for_another(store):
    filled(store)
    for text in ("a\0b", "class-1\0", "\ud800", "x" * 2000, "class-%", "class-_", "CLASS-1"):
        where = Where((Condition("label", True, (text,)),))
        assert store.search(unit_vectors(1, D, seed=0), 5, where=where).items() == [[]]


@pytest.mark.parametrize(
    "where",
    [
        'label == "class-1"',
        'label != "class-1"',
        'label in ["class-1", "class-2", "nothing"]',
        'label == "class-1" and id != "id-1"',
        'label == "class-1" and label == "class-2"',
        'path == "folder/7.jpg"',
        'id in ["id-1", "id-2", "id-3"] and label != "class-2" and path != "folder/1.jpg"',
        'label == "nothing"',
    ],
)
def test_filters(kind, store, where):
    twin = filled(store)
    store.remove(["id-8", "id-2"])
    twin.remove(["id-8", "id-2"])
    for k in (1, 5, 100):
        compare(kind, store, twin, k=k, where=Where.parse(where))


def test_a_filter_of_many_values(kind, store):
    twin = filled(store, 400)
    where = Where((Condition("id", True, tuple(f"id-{n}" for n in range(100, 5000))),))
    compare(kind, store, twin, where=where)
    compare(kind, store, twin, where=Where((Condition("id", False, where.conditions[0].values),)))


def test_more_ids_than_a_statement_has_places(store):
    count = 40_000
    store.add(some_items(count), unit_vectors(count, D, seed=1))
    names = [f"id-{n}" for n in range(count)]
    assert store.known([*names, "x"]) == set(names)
    assert [item.id for item in store.get(names[::-1])] == names[::-1]
    store.remove(names[1:])
    assert store.known(names) == {"id-0"}


def test_opened_again_it_answers_the_same(kind, open_store):
    store = open_store()
    twin = filled(store)
    store.remove(["id-0"])
    twin.remove(["id-0"])
    store.close()
    for writing in (False, True):
        store = open_store(writing=writing)
        assert_same_content(store, twin)
        compare(kind, store, twin)
        store.close()


def test_closing_twice_is_once(store):
    store.close()
    store.close()


def test_another_dimension_is_refused(open_store):
    store = open_store()
    twin = filled(store)
    store.close()
    for writing in (False, True):
        with refused(f"dimension.*{D}", ExitCode.LINEAGE):
            open_store(writing=writing, dimension=2 * D)
    assert_same_content(open_store(), twin)


def test_a_store_that_is_not_there_is_not_opened_for_reading(open_store, tmp_path):
    with pytest.raises(KeMetricError):
        open_store(writing=False)
    assert not list(tmp_path.rglob("*.*"))


def test_a_second_writer_is_refused(kind, store, open_store):
    if not kind.locked:
        pytest.skip("a second writer is not refused (docs/milvus.md)")
    twin = filled(store)
    with refused("another process", ExitCode.LINEAGE):
        open_store()
    store.add([Item("more")], unit_vectors(1, D, seed=2))
    twin.add([Item("more")], unit_vectors(1, D, seed=2))
    store.close()
    assert_same_content(open_store(), twin)


def test_a_reader_beside_the_writer_sees_what_is_acknowledged(kind, store, open_store):
    if not kind.beside:
        pytest.skip("no reader may be open beside the writer")
    twin = filled(store)
    reader = open_store(writing=False)
    for step in range(4):
        assert_same_content(reader, twin)
        compare(kind, reader, twin, k=80)
        compare(kind, reader, twin, where=Where.parse('label == "class-1"'))
        items, vectors = some_items(10, first=55 + 5 * step), unit_vectors(10, D, seed=step)
        store.add(items, vectors, replace=True)
        twin.add(items, vectors)
        store.remove([f"id-{step}"])
        twin.remove([f"id-{step}"])
        if step % 2:
            store.flush()


def test_what_it_says_of_itself_is_plain(kind, store):
    filled(store)
    facts = json.loads(json.dumps(dict(store.describe())))
    assert facts["items"] == 60
    # As long as there are too few items for an approximate index, everything is searched exactly.
    assert facts["exact"] is (kind.exact or "exactly" in facts.get("reason", ""))
    assert isinstance(facts["kind"], str)


TEXTS = st.sampled_from(("a", "A", "b", "", "'", '"', "%", "\\", "é", "🐦‍⬛", "a\nb")) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5
)
IDS = st.sampled_from([f"id {n}" for n in range(8)]) | TEXTS.filter(bool)
ITEMS = st.lists(st.builds(Item, IDS, TEXTS, TEXTS), max_size=6, unique_by=lambda item: item.id)
CONDITIONS = st.builds(
    Condition,
    st.sampled_from(("id", "path", "label")),
    st.booleans(),
    st.lists(TEXTS | IDS, min_size=1, max_size=3).map(tuple),
)
FILTERS = st.none() | st.lists(CONDITIONS, min_size=1, max_size=3).map(lambda parts: Where(tuple(parts)))
SEEDS = st.integers(0, 10)  # few: the same vectors come again, so there are ties


class Sequence(RuleBasedStateMachine):
    """A store and its twin through the same calls."""

    kind = None

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.twin = Twin()
        self.store = self.kind.make(self.folder / "store", D, True)

    def teardown(self):
        self.store.close()
        self.kind.remove(self.folder / "store")
        shutil.rmtree(self.folder)

    @rule(items=ITEMS, seed=SEEDS, replace=st.booleans())
    def add(self, items, seed, replace):
        vectors = unit_vectors(len(items), D, seed=seed)
        if not replace and {item.id for item in items} & set(self.twin.content):
            with refused("item"):
                self.store.add(items, vectors)
        else:
            self.store.add(items, vectors, replace=replace)
            self.twin.add(items, vectors)

    @rule(ids=st.lists(IDS, max_size=3))
    def remove(self, ids):
        if set(ids) <= set(self.twin.content):
            self.store.remove(ids)
            self.twin.remove(ids)
        else:
            with refused("item"):
                self.store.remove(ids)

    @precondition(lambda self: self.twin.content)
    @rule(data=st.data())
    def remove_what_is_there(self, data):
        ids = data.draw(st.lists(st.sampled_from(sorted(self.twin.content)), max_size=4))
        self.store.remove(ids)
        self.twin.remove(ids)

    @rule(seed=SEEDS, queries=st.integers(0, 3), k=st.integers(1, 12), where=FILTERS)
    def search(self, seed, queries, k, where):
        compare(self.kind, self.store, self.twin, k, where=where, queries=unit_vectors(queries, D, seed=seed))

    @rule(ids=st.lists(IDS, max_size=4))
    def known(self, ids):
        assert self.store.known(ids) == set(ids) & set(self.twin.content)

    @rule(texts=st.lists(TEXTS, max_size=4), where=FILTERS)
    def ask(self, texts, where):
        items = [item for item, _ in self.twin.content.values()]
        assert self.store.known_labels(texts) == {item.label for item in items} & set(texts)
        at = {path: {item for item in items if item.path == path} for path in texts}
        assert {path: set(found) for path, found in self.store.items_at(texts).items()} == {
            path: there for path, there in at.items() if there
        }
        if where:
            assert self.store.count(where) == len(self.twin.matching(where))

    @rule(batch_size=st.integers(1, 5))
    def read(self, batch_size):
        assert_same_content(self.store, self.twin, batch_size)

    @rule()
    def flush(self):
        self.store.flush()

    @rule()
    def close_and_open(self):
        self.store.close()
        self.store = self.kind.make(self.folder / "store", D, True)

    @invariant()
    def length(self):
        assert len(self.store) == len(self.twin.content)


def try_sequences(kind, examples):
    few = settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(type("Sequence", (Sequence,), {"kind": kind}), settings=few)


def test_any_sequence_of_calls(kind):
    try_sequences(kind, kind.examples)


@pytest.mark.slow
def test_any_of_many_sequences_of_calls(kind):
    try_sequences(kind, 20 * kind.examples)
