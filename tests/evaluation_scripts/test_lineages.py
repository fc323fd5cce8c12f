"""What is left of a lineage says in tables what the lineage said."""

import json

import pytest
import torch

from eval.shared.lineages import Results, StoredResult, training_seconds
from ke_metric import Lineage
from ke_metric.errors import KeMetricError
from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.lineage.comparison import gather
from ke_metric.recipe.schema import Recipe


@pytest.fixture
def lineage_of(tmp_path):
    def grow(name, seed, recalls, *, slim=True, **fields):
        recipe = Recipe(name=name, seed=seed, generations=len(recalls), **fields)
        lineage = Lineage.create(tmp_path / f"{name}-s{seed}", recipe, text="x", command="ke-metric")
        for number, recall in enumerate(recalls, start=1):
            card = Scorecard({"recall@1": recall}, {"recall@1": recall / 2} if slim else None, 9, 3 if slim else None)
            provenance = Provenance("x", None if number == 1 else "x", seed, {}, {}, {"training": 2.5 * number})
            lineage.append(Generation(number, {"w": torch.zeros(1)}, {}, "{}", {}, card, (), {}, provenance))
        lineage.set_status("finished")
        return lineage

    return grow


@pytest.mark.parametrize("slim", [True, False])
def test_it_says_what_the_lineage_said(slim, lineage_of, tmp_path):
    lineages = [lineage_of("a", seed, [0.25, 0.5 + seed / 4], slim=slim) for seed in (0, 1)]
    results = Results(tmp_path / "new" / "results.jsonl")
    for lineage in lineages:
        results.add(lineage)
    found = [Results(tmp_path / "new" / "results.jsonl").get(lineage.recipe) for lineage in lineages]
    for stored, lineage in zip(found, lineages, strict=True):
        assert isinstance(stored, StoredResult)
        assert stored.recipe == lineage.recipe
        assert stored.numbers == lineage.numbers
        for number in (1, 2):
            assert stored.scorecard(number) == lineage.scorecard(number)
            assert training_seconds(stored, number) == training_seconds(lineage, number) == 2.5 * number
    assert gather(found) == gather(lineages)


def test_every_lineage_has_one_line_whatever_is_added_again(lineage_of, tmp_path):
    path = tmp_path / "results.jsonl"
    results, one, two = Results(path), lineage_of("b", 0, [0.5]), lineage_of("a", 0, [0.5])
    results.add(one)
    results.add(two)
    before = path.read_text()
    Results(path).add(one)
    assert path.read_text() == before
    Results(path).add(
        one, {"outputs": {"dense": {"recall@1": 0.75}, "slim": None, "dense_parameters": 18, "slim_parameters": None}}
    )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["recipe"]["name"] for line in lines] == ["a", "b"]
    assert Results(path).get(one.recipe).averages["outputs"] == Scorecard({"recall@1": 0.75}, None, 18, None)
    assert Results(path).get(two.recipe).averages == {}


def test_one_of_another_recipe_is_refused(lineage_of, tmp_path):
    results, lineage = Results(tmp_path / "results.jsonl"), lineage_of("a", 0, [0.5])
    results.add(lineage)
    assert results.get(lineage.recipe.model_copy(update={"seed": 1})) is None
    with pytest.raises(KeMetricError, match="a-s0: of another recipe: keep = 'all'"):
        results.get(lineage.recipe.model_copy(update={"keep": "all"}))


def test_a_line_of_before_a_field_existed_goes_on(lineage_of, tmp_path):
    path = tmp_path / "results.jsonl"
    lineage = lineage_of("a", 0, [0.5], data={"background": "keep", "exif_orientation": False})
    Results(path).add(lineage)
    document = json.loads(path.read_text())
    for field in ("background", "exif_orientation"):
        del document["recipe"]["data"][field]
    path.write_text(json.dumps(document) + "\n")
    stored = Results(path).get(Recipe(name="a", generations=1))
    assert stored.recipe == lineage.recipe
    with pytest.raises(KeMetricError, match=r"data\.background = '#000000', the lineage has 'keep'"):
        Results(path).get(Recipe(name="a", generations=1, data={"background": "#000000"}))
