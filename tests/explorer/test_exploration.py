"""What is answered equals a recomputation by brute force."""

import numpy as np
import pytest
from drawn_collection import CLASSES, DrawnCollection, picture_of

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.explorer.exploration import MOST_UPLOADS, Exploration, Listing
from ke_metric.explorer.layout import turned_onto


@pytest.fixture(params=[False, True], ids=["one part", "queries apart"])
def collection(request):
    return DrawnCollection(apart=request.param)


def brute_force(collection, network, vector, own=None):
    gallery = collection.vectors(network)[1].astype(np.float64)
    similarities = gallery @ vector.astype(np.float64)
    order = [position for position in np.argsort(-similarities, kind="stable").tolist() if position != own]
    return order[:10], similarities


def first_right(collection, network, position):
    """Return whether the first neighbour of a query is of its class."""
    vectors = collection.vectors(network)[0]
    own = None if collection.apart else position
    first = brute_force(collection, network, vectors[position], own)[0][0]
    part = "query" if collection.apart else "gallery"
    return collection.parts["gallery"].classes[first] == collection.parts[part].classes[position]


def test_neighbors_are_those_of_a_brute_force(collection, exploration):
    for network in collection.networks[::3]:
        for part, rows in zip(("query", "gallery"), collection.vectors(network), strict=True):
            if part not in collection.parts:
                continue
            for position in range(0, len(rows), 7):
                found = exploration.neighbors(network, part, position)
                own = position if part == "gallery" else None
                order, similarities = brute_force(collection, network, rows[position], own)
                assert [each["position"] for each in found["neighbors"]] == order
                labels = collection.parts["gallery"].classes
                own_label = collection.parts[part].classes[position]
                for each in found["neighbors"]:
                    assert each["similarity"] == pytest.approx(similarities[each["position"]], abs=1e-5)
                    assert each["class"] == labels[each["position"]]
                    assert each["right"] == (each["class"] == own_label)


def test_scores_of_a_query_are_those_of_its_outcomes(collection, exploration):
    network = collection.networks[0]
    outcomes = collection.outcomes(network)
    found = exploration.neighbors(network, exploration.query_part, 3)
    assert found["scores"] == {name: values[3] for name, values in outcomes.scores.items()}
    assert found["query"]["class"] == 3 // (2 if collection.apart else 8)


def test_an_upload_is_searched_with_and_is_of_no_class(collection, exploration):
    network = collection.networks[-1]
    number = exploration.add_upload(picture_of(77), 10**6)
    found = exploration.neighbors_of_upload(network, number)
    vector = collection.embed(network, collection.prepare(picture_of(77), 0))
    assert [each["position"] for each in found["neighbors"]] == brute_force(collection, network, vector)[0]
    assert {each["right"] for each in found["neighbors"]} == {None}


def test_the_oldest_upload_is_forgotten(collection, exploration):
    numbers = [exploration.add_upload(picture_of(1), 10**6) for _ in range(MOST_UPLOADS + 1)]
    assert exploration.uploads == numbers[1:]
    with pytest.raises(KeMetricError, match="drop it again"):
        exploration.neighbors_of_upload(collection.networks[0], numbers[0])


@pytest.mark.parametrize("name", ["dense", "slim"])
def test_mended_and_broken_are_those_of_a_brute_force(collection, exploration, name):
    before, after = exploration.find(1, name), exploration.find(3, name)
    many = range(len(collection.parts[exploration.query_part]))
    was = [first_right(collection, before, position) for position in many]
    is_now = [first_right(collection, after, position) for position in many]
    mended = [position for position in many if is_now[position] and not was[position]]
    broken = [position for position in many if was[position] and not is_now[position]]
    assert mended, "nothing to be compared"
    assert exploration.listed(after, Listing("mended", since=1)).tolist() == mended
    assert exploration.listed(after, Listing("broken", since=1)).tolist() == broken
    assert exploration.listed(after, Listing("mended", since=3)).tolist() == []


def test_a_class_and_a_text_narrow_the_list(collection, exploration):
    network, table = collection.networks[0], collection.parts[exploration.query_part]
    of_crows = np.flatnonzero(table.classes == 1).tolist()
    assert exploration.listed(network, Listing()).tolist() == list(range(len(table)))
    assert exploration.listed(network, Listing(label=1)).tolist() == of_crows
    assert exploration.listed(network, Listing(text=" CROW ")).tolist() == of_crows
    assert (
        exploration.listed(network, Listing(text="ünknown")).tolist() == np.flatnonzero(table.classes == 4).tolist()
    )
    assert exploration.listed(network, Listing(label=1, text="owl")).tolist() == []
    assert exploration.listed(network, Listing(text=f"{exploration.query_part}/7<")).tolist() == [7]


def test_filters_join(collection, exploration):
    after = exploration.find(3, "dense")
    mended = exploration.listed(after, Listing("mended", since=1)).tolist()
    classes = collection.parts[exploration.query_part].classes
    label = int(classes[mended[0]])
    joined = exploration.listed(after, Listing("mended", 1, label, CLASSES[label][:4])).tolist()
    assert joined == [position for position in mended if classes[position] == label]


def test_a_network_that_is_not_there_is_named(exploration):
    with pytest.raises(KeMetricError, match="no generation 4 dense; there are: generation 1 dense") as caught:
        exploration.find(4, "dense")
    assert caught.value.exit_code == ExitCode.USAGE


def test_what_is_asked_for_is_computed_first():
    collection = DrawnCollection()
    exploration = Exploration(collection)
    exploration.networks.ask(exploration.find(2, "slim"))
    exploration.networks.start()
    exploration.networks.ask(exploration.find(1, "slim")).result(20)
    assert (collection.computed[0].generation, collection.computed[0].name) == (2, "slim")
    exploration.networks.close(20)


def test_without_a_question_the_last_and_the_first_generation_are_computed_first(collection, exploration):
    for network in collection.networks:
        exploration.networks.ask(network).result(20)
    order = list(dict.fromkeys(Exploration(collection).networks._futures))
    assert [(each.generation, each.name) for each in order[:2]] == [(3, "dense"), (1, "dense")]
    assert len(order) == len(collection.networks)


def test_a_network_that_fails_does_not_take_others_along(collection, exploration):
    failing = Exploration(collection)
    bad = failing.find(3, "dense")
    vectors = collection.vectors

    def refuse(network):
        if network == bad:
            raise KeMetricError("its file is damaged", ExitCode.LINEAGE)
        return vectors(network)

    collection.vectors = refuse
    failing.networks.start()
    with pytest.raises(KeMetricError, match="damaged"):
        failing.neighbors(bad, "gallery", 0)
    assert failing.neighbors(failing.find(2, "dense"), "gallery", 0)["neighbors"]


def test_who_waits_when_it_ends_is_told():
    exploration = Exploration(DrawnCollection())
    exploration.networks.stop()
    with pytest.raises(KeMetricError, match="stopping"):
        exploration.neighbors(exploration.find(1, "slim"), "gallery", 0)


def test_the_map_of_a_long_lineage(monkeypatch):
    """More generations than calls may lie within each other; the maps turn onto each other all the same."""
    collection = DrawnCollection(generations=1200)
    collection.networks = tuple(network for network in collection.networks if network.name == "dense")
    monkeypatch.setattr(collection, "outcomes", lambda network: None)
    exploration = Exploration(collection)
    exploration.networks.start()
    first, second = (exploration.map(exploration.find(number, "dense")) for number in (1, 2))
    assert first.positions.shape == (40, 2)
    np.testing.assert_array_equal(turned_onto(first, second).positions.round(4), first.positions.round(4))
    exploration.networks.close(20)
