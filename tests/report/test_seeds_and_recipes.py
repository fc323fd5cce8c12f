"""Gains are those of the same seeds, every recipe has one short name, and what is left out is said."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.lineage.store import Lineage
from ke_metric.recipe.schema import Recipe
from ke_metric.report.page_parts import DataTable
from ke_metric.report.score_sections import headline, scores_section
from ke_metric.report.subject import LONGEST_NAME, Subject

LAST = "Gain over generation 1"
BASELINE = "Gain over the long baseline"
LONG = {"name": "long", "generations": 1, "training": {"epochs": 300}}


@pytest.fixture
def grow(tmp_path):
    """Store a lineage with the Recall@1 given, generation by generation, and half of them for the slim network."""
    count = itertools.count()

    def grown(recalls, **fields):
        recipe = Recipe.model_validate({"name": "x", "generations": 3, **fields})
        lineage = Lineage.create(tmp_path / str(next(count)), recipe, text="x", command="ke-metric train x.yaml")
        for number, recall in enumerate(recalls, start=1):
            slim = {"recall@1": recall / 2} if recipe.has_slim else None
            card = Scorecard({"recall@1": recall}, slim, 9, 3 if recipe.has_slim else None)
            provenance = Provenance("x", None if number == 1 else "x", recipe.seed, {}, {}, {})
            lineage.append(
                Generation(number, {"w": torch.zeros(1)}, {}, "{}", {}, card, (), {}, provenance),
            )
        return lineage

    return grown


def told(lineages, title, baselines=()):
    return next(each for each in headline(Subject.of(lineages, baselines)) if each.title == title)


def test_a_gain_is_that_of_the_seeds_that_have_both_generations(grow):
    lineages = [grow([0.5, 0.55, 0.62], seed=0), grow([0.1], seed=1)]
    gain = told(lineages, LAST)
    assert gain.number.value == pytest.approx(0.12)
    assert "seed 0 alone (seed 1 left out)" in gain.note
    assert "50.0" in gain.note
    lead = scores_section(Subject.of(lineages)).lead
    assert any("seed 1 ends at generation 1" in sentence for sentence in lead)


def test_of_complete_seeds_none_is_left_out(grow):
    gain = told([grow([0.5, 0.5, 0.6], seed=0), grow([0.3, 0.3, 0.5], seed=1)], LAST)
    assert gain.number.value == pytest.approx(0.15)
    assert "mean of 2 seeds" in gain.note
    assert "left out" not in gain.note


def test_an_unfinished_lineage_is_told_its_own_last_generation(grow):
    short, long = grow([0.1, 0.2], seed=1), grow([0.5, 0.6, 0.9], seed=0)
    found = headline(Subject.of([short, long]))
    assert found[0].number.value == pytest.approx(0.4)
    assert found[0].note.startswith("generation 2, ")
    assert found[0].number.key == "2/dense/recall@1"
    assert told([short, long], LAST).number.value == pytest.approx(0.1)
    alone = grow([0.4], seed=2)
    assert [each.title for each in headline(Subject.of([alone, long]))] == ["Recall@1, dense", "Recall@1, slim"]


def test_a_gain_over_the_baseline_is_that_of_the_seeds_that_both_have(grow):
    lineages = [grow([0.5, 0.5, 0.6], seed=seed) for seed in (0, 1)]
    gain = told(lineages, BASELINE, [grow([0.55], seed=1, **LONG), grow([0.9], seed=2, **LONG)])
    assert gain.number.value == pytest.approx(0.05)
    assert "seed 1 alone (seeds 0, 2 left out)" in gain.note
    other = told(lineages, BASELINE, [grow([0.4], seed=7, **LONG)])
    assert other.number.value == pytest.approx(0.2)
    assert "other seeds (7, not 0, 1)" in other.note


def test_vectors_that_are_kept_make_no_other_recipe(grow):
    lineages = [grow([0.1], seed=0), grow([0.2], seed=1, evaluation={"keep_vectors": True})]
    assert len(Subject.of(lineages).strategies) == 1


def test_recipes_beyond_the_figures_are_counted_in_words(grow):
    lineages = [grow([0.1, 0.2], split={"rate": rate / 10}) for rate in range(2, 8)]
    section = scores_section(Subject.of(lineages))
    assert "Figures show 4 recipes; the table has 2 more." in section.lead
    assert len(section.parts[0].legend) == 8
    few = scores_section(Subject.of(lineages[:4]))
    assert not any("more" in sentence for sentence in few.lead)


def test_long_names_become_letters_with_a_table_of_what_they_are(grow):
    names = [f"a-recipe-of-quite-a-long-name-{number}" for number in range(2)]
    baseline = grow([0.1], **LONG | {"name": "one-training-of-as-many-epochs-as-all"})
    subject = Subject.of([grow([0.1, 0.2], name=name) for name in names], [baseline])
    section = scores_section(subject)
    assert list(section.parts[0].legend) == ["dense", "slim", "B, dense", "B, slim", "long baseline"]
    table = next(part for part in section.parts if isinstance(part, DataTable))
    assert [list(row) for row in table.rows] == [["A", names[0]], ["B", names[1]], ["C", baseline.recipe.name]]
    assert {row[0] for row in section.parts[0].table.rows} == {"A", "B", "C"}
    assert any(sentence.startswith("The long baseline (C)") for sentence in section.lead)


def test_short_names_stay(grow):
    subject = Subject.of([grow([0.1], name="x" * LONGEST_NAME), grow([0.1], name="y")])
    assert [each.name for each in subject.strategies] == ["x" * LONGEST_NAME, "y"]
    assert not subject.recipes


def test_no_two_lines_of_a_figure_are_alike(grow):
    section = scores_section(Subject.of([grow([0.1, 0.2], split={"rate": rate / 10}) for rate in range(2, 6)]))
    encoding = section.parts[0].specification["layer"][-1]["encoding"]
    looks = zip(encoding["color"]["scale"]["range"], encoding["strokeDash"]["scale"]["range"], strict=True)
    looks = [json.dumps(look) for look in looks]
    assert len(set(looks)) == len(looks) == 8
    # The legend of the page has no dashes.
    assert len(set(section.parts[0].legend.values())) == 8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_left_out_and_told(grow, value, monkeypatch):
    lineage = grow([0.1, 0.2, 0.3])
    stored = {number: lineage.scorecard(number) for number in lineage.numbers}
    stored[2] = replace(stored[2], dense={"recall@1": value})
    monkeypatch.setattr(Lineage, "scorecard", lambda _, number: stored[number])
    section = scores_section(Subject.of([lineage]))
    rows = section.parts[0].specification["data"]["values"]
    assert [row["x"] for row in rows if row["series"] == "dense"] == [1, 3]
    assert any("recall@1 of x, seed 0, generation 2, dense" in sentence for sentence in section.missing)
