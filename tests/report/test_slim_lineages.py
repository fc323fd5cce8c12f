"""Lineages whose networks are slim ones: what was trained has one name on the whole page."""

import json

import numpy as np
import pytest
from reported import Grown, Page, record_training
from scored_lineages import FIELDS, grow_scored

from ke_metric.report.map_section import laid_out

METHODS = {
    "slim_alone": ({"method": {"name": "slim_alone"}}, {1: {"slim"}, 2: {"slim"}}),
    "slim_last": (
        {"method": {"slim_last": True}, "generations": 3},
        {1: {"dense", "slim"}, 2: {"dense", "slim"}, 3: {"slim"}},
    ),
    "slim_last, no slim scores": (
        {"method": {"slim_last": True}, "evaluation": FIELDS["evaluation"] | {"slim": False}},
        {1: {"dense"}, 2: {"slim"}},
    ),
}


@pytest.fixture(scope="module", params=METHODS)
def grown(request, tmp_path_factory, short_timings):
    fields, names = METHODS[request.param]
    data = {"benchmark": "glyphs", "test_classes": 3, "image_size": 32, "store_size": 32}
    lineage = grow_scored(tmp_path_factory.mktemp("slim") / "lineage", data=data, **fields)
    return Grown.of(record_training(lineage)), names


def test_scores_and_vectors_call_a_network_alike(grown):
    report, names = grown
    keys = [key.split("/") for key, _, _ in Page(report.page).numbers if key]
    assert {number: {name for own, name, _ in keys if int(own) == number} for number in names} == names
    sides = [change[side] for change in report.gathered.changes for side in ("before", "after")]
    assert all(side["network"] in names[side["generation"]] for side in sides)
    last = max(names)
    titles = [report.section("worst-answers").parts[0].title, *(part.title for part in report.section("map").parts)]
    assert all("slim" in title for title in titles if f"eneration {last}" in title)
    assert any(f"eneration {last}" in title for title in titles)
    assert "slim" in report.section("confused-classes").parts[0].caption


def test_every_number_is_that_of_the_network_that_was_trained(grown):
    report, names = grown
    for key, value, _ in Page(report.page).numbers:
        if key:
            number, network, name = key.split("/")
            card = report.lineage.scorecard(int(number))
            stored = card.dense if names[int(number)] == {"slim"} else card.networks[network]
            assert value == pytest.approx(stored[name], abs=1e-9), key


def test_generations_are_compared_in_one_kind_of_network(grown):
    for change in grown[0].gathered.changes:
        before, after = change["before"], change["after"]
        assert before["generation"] == after["generation"] or before["network"] == after["network"]


def test_the_split_is_that_of_the_network_that_is_split(grown):
    report, names = grown
    section = report.section("split")
    stored = [json.loads(report.lineage.load(number).split)["rate"] for number in names]
    if names[1] == {"slim"}:
        assert "Nothing of this network is split" in section.lead[0]
        assert not section.parts
    else:
        assert (stored[0], stored[-1]) == (0.5, 1.0)
        assert "split rate 0.5" in section.lead[0]
        shares = [row["x"] for row in section.parts[0].specification["data"]["values"] if row["series"] == "fit"]
        assert min(shares) < 1


@pytest.mark.parametrize("shape", [(1, 4), (5, 1), (1, 1), (5, 4)])
def test_a_map_of_few_pictures_or_one_dimension_is_laid_out(shape):
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    places, told = laid_out(vectors, np.arange(shape[0]))
    assert places.shape == (shape[0], 2)
    assert np.isfinite(places).all()
    assert told.startswith("PCA")
    assert "nan" not in told


def test_a_map_of_equal_pictures_is_a_point():
    places, told = laid_out(np.ones((5, 4), np.float32), np.arange(5))
    assert not places.any()
    assert "no variance" in told
