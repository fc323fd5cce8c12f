"""A real lineage and a real index: what is shown is what was scored, and what they cannot show is said."""

import shutil
import sys
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from drawn_collection import encode, picture_of, running_explorer

sys.path.append(str(Path(__file__).parents[1]))  # scored_lineages

from scored_lineages import CLASSES, FIELDS, grow_scored

from ke_metric import Lineage
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.explorer.collection import NO_CLASS
from ke_metric.explorer.exploration import Exploration
from ke_metric.explorer.index_collection import IndexCollection
from ke_metric.explorer.lineage_collection import LineageCollection
from ke_metric.lineage.files import WEIGHTS
from ke_metric.report.vectors import LineageVectors
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.index import Index
from ke_metric.stores.contract import Item


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    changed = {"split": {"rates": [0.25]}, "evaluation": FIELDS["evaluation"] | {"slim_repair": "statistics"}}
    changed["data"] = FIELDS["data"] | {"train_classes": 16}
    return grow_scored(tmp_path_factory.mktemp("explored") / "<b>lineage", **changed)


@pytest.fixture
def lineage(grown, tmp_path):
    return Lineage(shutil.copytree(grown.folder, tmp_path / grown.folder.name))


def test_scores_are_those_of_the_scorecards_and_means_over_the_queries(grown):
    collection = LineageCollection.open(grown)
    assert [(each.generation, each.name) for each in collection.networks] == [
        (number, name) for number in (1, 2) for name in ("dense", "slim", "slim 0.25")
    ]
    for network in collection.networks:
        stored = grown.scorecard(network.generation).networks[network.name]
        assert network.scores == {"recall@1": stored["recall@1"], "map@r": stored["map@r"]}
        outcomes = collection.outcomes(network)
        for name, value in network.scores.items():
            assert np.nanmean(outcomes.scores[name]) == pytest.approx(value, abs=1e-9)
    assert collection.title == "<b>lineage"
    assert collection.notes == ()


def test_a_picture_that_is_dropped_is_seen_as_it_was_when_it_was_scored(grown):
    collection = LineageCollection.open(grown)
    for network in collection.networks:
        own = collection.vectors(network)[1]
        for position in (0, 17):
            pixels = collection.prepare(collection.picture("gallery", position), 10**6)
            np.testing.assert_allclose(collection.embed(network, pixels), own[position], atol=1e-4)


def test_a_lineage_is_explored_over_http(grown):
    with running_explorer(LineageCollection.open(grown)) as explorer:
        state = explorer.get("/api/state").document
        position = 5
        picture = explorer.exploration.collection.picture("gallery", position)
        number = explorer.upload(encode(picture)).document["upload"]
        for network in state["networks"]:
            named = urlencode({"generation": network["generation"], "network": network["name"]})
            found = explorer.get(f"/api/neighbors?{named}&part=upload&position={number}").document["neighbors"]
            assert found[0]["position"] == position
            assert found[0]["similarity"] == pytest.approx(1, abs=1e-4)
            places = np.frombuffer(explorer.get(f"/api/map?{named}").body, "<f4")
            assert len(places) == 1 + 2 * len(state["parts"]["gallery"])
            assert 0 < places[0] <= 1
            assert np.abs(places[1:]).max() <= 1.001


def test_generations_without_weights_are_told_with_how_to_keep_them(lineage):
    (lineage.generation_folder(1) / WEIGHTS).unlink()
    collection = LineageCollection.open(lineage)
    assert {each.generation for each in collection.networks} == {2}
    (note,) = collection.notes
    assert "Generations that can be shown: 2." in note
    assert "weights of generation 1 were not kept" in note
    assert "keep: all" in note
    assert "evaluation.keep_vectors: true" in note
    exploration = Exploration(collection)
    exploration.networks.start()
    assert exploration.neighbors(collection.networks[0], "gallery", 0)["neighbors"]


def test_data_that_have_changed_are_told(grown):
    opened = LineageVectors.open(grown)
    changed = LineageVectors(grown, opened.pictures, ["3 pictures are other ones"])
    assert LineageCollection(changed).notes == ("3 pictures are other ones",)


def test_a_lineage_without_any_weights_cannot_be_shown(lineage):
    for number in (1, 2):
        (lineage.generation_folder(number) / WEIGHTS).unlink()
    with pytest.raises(KeMetricError, match=r"nothing can be shown.*keep: all") as caught:
        LineageCollection.open(lineage)
    assert caught.value.exit_code == ExitCode.LINEAGE


def test_a_classification_is_sent_to_the_report(tmp_path):
    lineage = grow_scored(tmp_path / "classes", **CLASSES)
    with pytest.raises(KeMetricError, match="ke-metric report") as caught:
        LineageCollection.open(lineage)
    assert caught.value.exit_code == ExitCode.LINEAGE


@pytest.fixture(scope="module")
def embedder(grown):
    return Embedder.load(grown.folder, 2, "dense")


@pytest.fixture
def index(embedder, tmp_path):
    """An index of twelve pictures; some have no label, one is gone, one is no picture, one is special."""
    items = []
    for number in range(12):
        path = tmp_path / f"{number} ü<b>.png"
        picture_of(number, (60, 50)).save(path)
        items.append(Item(f"birds/{number}", str(path), "" if number == 4 else f"<i>class {number % 3}"))
    vectors = embedder([item.path for item in items])
    Path(items[5].path).unlink()
    Path(items[6].path).write_text("<svg onload='alert(1)'/>")
    items[7] = Item(items[7].id, "/dev/zero", items[7].label)
    items[8] = Item(items[8].id, "", items[8].label)
    with Index.create(tmp_path / "index", embedder=embedder) as made:
        made.add(items, vectors, digest=embedder.digest)
    return tmp_path / "index"


def test_an_index_is_explored_by_the_numbers_of_its_items(index):
    collection = IndexCollection(index)
    with running_explorer(collection) as explorer:
        state = explorer.get("/api/state").document
        assert state["kind"] == "index"
        assert state["classes"] == [f"<i>class {number}" for number in range(3)]
        assert [each["generation"] for each in state["networks"]] == [0]
        address = f"/api/neighbors?generation=0&network={state['networks'][0]['name'].replace(' ', '+')}"
        found = explorer.get(f"{address}&part=gallery&position=3").document
        assert found["query"]["name"] == "birds/3"
        gallery = collection.vectors(collection.networks[0])[1]
        order = [each for each in np.argsort(-gallery @ gallery[3]).tolist() if each != 3][:10]
        assert [each["position"] for each in found["neighbors"]] == order
        assert [each["right"] for each in found["neighbors"]] == [
            None if each == 4 else each % 3 == 0 for each in order
        ]
        for number in (5, 6, 7, 8):
            assert explorer.get(f"{state['pictures']}/gallery/{number}").status == 404, number
        for number in (0, 4, 11):
            assert explorer.get(f"{state['pictures']}/gallery/{number}").status == 200, number
        assert collection.parts["gallery"].classes[4] == NO_CLASS
        number = explorer.upload(encode(picture_of(2, (60, 50)))).document["upload"]
        own = explorer.get(f"{address}&part=upload&position={number}").document["neighbors"][0]
        assert own["position"] == 2
        assert own["similarity"] == pytest.approx(1, abs=1e-4)
        refused = explorer.get(f"/api/queries?{address.partition('?')[2]}&change=mended&since=0")
        assert "no generations" in refused.document["error"]


def test_an_index_of_vectors_alone_cannot_look_at_a_new_picture(tmp_path, embedder):
    vectors = np.eye(4, 8, dtype=np.float32)
    with Index.create(tmp_path / "index", digest="d" * 64, dimension=8) as made:
        made.add([Item(str(number)) for number in range(4)], vectors, digest="d" * 64)
    with running_explorer(IndexCollection(tmp_path / "index")) as explorer:
        assert "vectors alone" in explorer.get("/api/state").document["notes"][0]
        assert "vectors alone" in explorer.upload(encode(picture_of(1))).document["refused"]
        assert explorer.get("/api/state").status == 200


def test_an_empty_index_and_one_too_large_are_refused(tmp_path, index, monkeypatch):
    Index.create(tmp_path / "empty", digest="d" * 64, dimension=8).close()
    with pytest.raises(KeMetricError, match="holds no items"):
        IndexCollection(tmp_path / "empty")
    monkeypatch.setattr("ke_metric.explorer.index_collection.MOST_NUMBERS", 95)
    with pytest.raises(KeMetricError, match="at most 95 numbers"):
        IndexCollection(index)


def test_vectors_that_cannot_be_stored_are_told(lineage, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    shutil.rmtree(lineage.folder / "vectors", ignore_errors=True)
    monkeypatch.setattr("ke_metric.report.vectors.write_bytes", full)
    collection = LineageCollection.open(lineage)
    assert collection.notes == ()
    collection.vectors(collection.networks[0])
    (note,) = collection.notes
    assert "could not be stored" in note


def test_a_lineage_that_is_trained_anew_is_not_mixed_with_what_it_was(lineage):
    """Its new network would look at a dropped picture, and search with what it sees among the old one's vectors."""
    collection = LineageCollection.open(lineage)
    first, second = (network for network in collection.networks if network.name == "dense")
    collection.vectors(second)
    pixels = collection.prepare(collection.picture("gallery", 0), 10**6)
    for name in (WEIGHTS, "split.json"):
        shutil.copy(lineage.generation_folder(1) / name, lineage.generation_folder(2) / name)
    with pytest.raises(KeMetricError, match="has changed since it was opened"):
        collection.embed(second, pixels)
    with pytest.raises(KeMetricError, match="has changed since it was opened"):
        collection.embed(second, pixels)
    assert collection.embed(first, pixels).shape == (8,)


def test_a_lineage_that_is_gone_is_told(grown, tmp_path):
    folder = shutil.copytree(grown.folder, tmp_path / "gone", ignore=shutil.ignore_patterns("vectors"))
    with running_explorer(LineageCollection.open(Lineage(folder))) as explorer:
        number = explorer.upload(encode(picture_of(1))).document["upload"]
        shutil.rmtree(folder)
        for name in ("dense", "slim", "slim+0.25"):
            for asked in ("part=gallery&position=0", f"part=upload&position={number}"):
                answer = explorer.get(f"/api/neighbors?generation=1&network={name}&{asked}")
                # What was computed before is answered still.
                assert answer.status in (200, 404), answer.document
        assert answer.status == 404
        assert explorer.get("/api/state").status == 200


def test_networks_that_do_not_fit_into_memory_are_left_out_and_named(grown, monkeypatch):
    items = len(LineageCollection.open(grown).parts["gallery"])
    monkeypatch.setattr("ke_metric.explorer.lineage_collection.MOST_NUMBERS", 3 * items * 8)
    collection = LineageCollection.open(grown)
    # The last and the first generation, which the page shows first, before the rest.
    assert [(each.generation, each.name) for each in collection.networks] == [
        (1, "dense"), (2, "dense"), (2, "slim"),
    ]  # fmt: skip
    (note,) = collection.notes
    assert "3 of 6 networks" in note
    monkeypatch.setattr("ke_metric.explorer.lineage_collection.MOST_NUMBERS", items * 8 - 1)
    with pytest.raises(KeMetricError, match=f"{items:,} vectors of 8 numbers"):
        LineageCollection.open(grown)
