"""What a generation takes is measured on real steps; the plan that fits a time is the longest one that is useful."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.recipe.schema import Recipe
from ke_metric.suggestion import cost as module
from ke_metric.suggestion.choices import Plan, fewest_epochs, most_epochs, plan_of
from ke_metric.suggestion.cost import GenerationCost, fitting_plan, is_ample, measure
from ke_metric.suggestion.survey import survey_pictures


@given(st.floats(0.001, 5), st.integers(1, 500), st.floats(0.01, 100), st.floats(1, 1e5))
def test_a_plan_that_fits_ends_in_time(step, batches, scoring, seconds):
    cost = GenerationCost(step, batches, scoring, (1, 1), {})
    plan, fits = fitting_plan(cost, seconds)
    assert fits == (plan.generations * cost.seconds(plan.epochs) <= 0.9 * seconds * (1 + 1e-9)) or not fits
    assert fewest_epochs(batches) <= plan.epochs <= most_epochs(batches)
    if not fits:
        assert plan == Plan(1, fewest_epochs(batches))
        assert cost.seconds(plan.epochs) > 0.9 * seconds * (1 - 1e-9)


def test_more_time_gives_more_generations_then_more_epochs(cost):
    """A generation of the fewest epochs, 15, takes 17 seconds here."""
    plans = [fitting_plan(cost, seconds) for seconds in (10, 20, 40, 60, 120, 100_000)]
    assert [plan.generations for plan, _ in plans] == [1, 1, 2, 3, 3, 3]
    assert [fits for _, fits in plans] == [False, True, True, True, True, True]
    assert plans[-2][0].epochs > plans[-3][0].epochs
    assert plans[-1][0].epochs == most_epochs(10)
    assert fitting_plan(cost, None) == (plan_of(10), True)


def test_a_plan_with_few_steps_is_not_ample(cost):
    assert is_ample(Plan(3, 30), cost)
    assert not is_ample(Plan(3, 29), cost)
    assert not is_ample(Plan(2, 100), cost)


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_real_steps_are_taken_and_both_networks_scored(folders, task, monkeypatch):
    monkeypatch.setattr(module, "STEPS_TIMED", (2, 2))
    benchmark = survey_pictures(folders["pairs"], task=task).benchmark
    recipe = Recipe(
        name="x",
        task=task,
        data={"benchmark": "folder", "root": str(folders["pairs"]), "image_size": 32, "store_size": 32},
        network={"backbone": "timm/test_resnet"},
        split={"rates": [0.5]},
        loss={"name": "CrossEntropyLoss" if task == "classification" else "MultiSimilarityLoss"},
        batches={"size": 8, "images_per_class": 2},
        evaluation={"slim_repair": "auto", "resize": 32},
    )
    found = measure(recipe, benchmark, "cpu")
    assert found.step_seconds > 0
    assert found.scoring_seconds > 0
    # 14 classes with a picture each to learn from, or 7 with two.
    assert found.batches in (1, 2)
    assert found.parameters[1] < found.parameters[0] / 3
    assert found.seconds(10) == pytest.approx(10 * found.batches * found.step_seconds + found.scoring_seconds)
    assert found.engine["device"] == "cpu"
