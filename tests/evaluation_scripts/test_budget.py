"""Strategies at one budget: equal epochs, equal measured time, and a table that holds what was run."""

import pytest
import torch
import yaml
from budget import ROOT, equal_compute, markdown, read_grid, recipes_of, seconds_per_epoch

from ke_metric import Lineage
from ke_metric.generation import Generation, Provenance, Scorecard

SHIPPED = sorted((ROOT / "eval" / "budgets").glob("*.yaml"))
GRID = {
    "recipe": "recipes/glyphs_resnet18.yaml", "epochs": 12, "reference": "plain", "slim_reference": "alone",
    "strategies": {
        "plain": {"generations": 1},
        "alone": {"generations": 1, "set": ["method.name=slim_alone"]},
        "ke": {"generations": 3, "set": ["split.rate=0.8"]},
    },
}  # fmt: skip


@pytest.fixture
def grid_of(tmp_path):
    def write(**changes):
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**GRID, **changes}), encoding="utf-8")
        return read_grid(path)

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_strategy_of_a_shipped_grid_is_a_recipe_of_equal_epochs(path):
    grid = read_grid(path)
    assert len(grid.strategies) >= 8
    for found in recipes_of(grid, path.stem, [0, 1]).values():
        assert [recipe.seed for recipe in found] == [0, 1]
        assert {recipe.generations * recipe.training.epochs for recipe in found} == {grid.epochs}


def test_a_strategy_is_the_recipe_with_its_changes(grid_of):
    (recipe,) = recipes_of(grid_of(set=["data.test_classes=20"]), "g", [4])["ke"]
    assert (recipe.name, recipe.seed, recipe.split.rate) == ("g-ke", 4, 0.8)
    assert (recipe.generations, recipe.training.epochs, recipe.data.test_classes) == (3, 4, 20)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reference": "plian"}, "reference = 'plian' is no strategy"),
        ({"slim_reference": "x"}, "slim_reference = 'x' is no strategy"),
        ({"epoch": 3}, "epoch is unknown"),
        ({"strategies": {"plain": {"set": []}}}, r"strategies\.plain has \['set'\]"),
    ],
)
def test_files_that_are_no_grids(changes, told, grid_of):
    with pytest.raises(SystemExit, match=told):
        grid_of(**changes)


def test_epochs_that_do_not_divide(grid_of):
    with pytest.raises(SystemExit, match="ke: 13 epochs do not divide among 3 generations"):
        recipes_of(grid_of(epochs=13), "g", [0])


def test_equal_compute_spends_the_time_of_the_reference(grid_of):
    """12 epochs of 2 seconds: 24 seconds buy 24 epochs of one second, and three generations of 3 at 2.7 seconds."""
    grid = grid_of()
    assert equal_compute(grid, {"plain": 2.0, "alone": 1.0, "ke": 2.7}) == {"plain": 12, "alone": 24, "ke": 9}
    assert equal_compute(grid, {"plain": 2.0, "alone": 1.0, "ke": 1000.0})["ke"] == 3


@pytest.fixture
def grow(tmp_path):
    def grown(recipe, recalls, seconds=30.0):
        lineage = Lineage.create(tmp_path / f"{recipe.name}-s{recipe.seed}", recipe, text="x", command="ke-metric")
        for number, recall in enumerate(recalls, start=1):
            slim = {"recall@1": recall / 2} if recipe.has_slim else None
            card = Scorecard({"recall@1": recall}, slim, 9, 3 if slim else None)
            provenance = Provenance("x", None if number == 1 else "x", recipe.seed, {}, {}, {"training": seconds})
            lineage.append(Generation(number, {"w": torch.zeros(1)}, {}, "{}", {}, card, (), {}, provenance))
        return lineage

    return grown


def test_time_per_epoch_is_measured(grid_of, grow):
    (recipe,) = recipes_of(grid_of(), "g", [0])["ke"]
    assert seconds_per_epoch([grow(recipe, [0.1, 0.2, 0.3], 10.0)]) == pytest.approx(30 / 12)


def test_the_table(grid_of, grow):
    grid = grid_of()
    recipes = recipes_of(grid, "g", [0, 1])
    found = {
        "plain": [grow(recipe, [recall]) for recipe, recall in zip(recipes["plain"], (0.5, 0.6), strict=True)],
        "alone": [grow(recipe, [recall]) for recipe, recall in zip(recipes["alone"], (0.2, 0.2), strict=True)],
        "ke": [grow(recipe, [0.1, 0.2, recall]) for recipe, recall in zip(recipes["ke"], (0.54, 0.66), strict=True)],
    }
    lines = [line.strip("| ").split(" | ") for line in markdown(grid, found).splitlines()]
    assert lines[2] == ["plain", "1 x 12", "12", "0.5", "2", "55.0 ± 7.1", "", "27.5 ± 3.5", "+7.5 [+5.0, +10.0]"]
    assert lines[3] == ["alone", "1 x 12", "12", "0.5", "2", "", "", "20.0 ± 0.0"]
    assert lines[4] == [
        "ke", "3 x 4", "12", "1.5", "2", "60.0 ± 8.5", "+5.0 [+4.0, +6.0]", "30.0 ± 4.2", "+10.0 [+7.0, +13.0]",
    ]  # fmt: skip


def test_what_was_not_run_has_no_row(grid_of, grow):
    grid = grid_of()
    recipes = recipes_of(grid, "g", [0])
    table = markdown(grid, {"plain": [], "ke": [grow(recipes["ke"][0], [0.1, 0.2, 0.3])]})
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["ke"]
    assert "[" not in table
