"""The shipped weights under timm's names, and the ways that are compared; nothing is fetched here."""

import pytest
import timm
import torch

from eval.starting_weights import run
from ke_metric.networks.dense import build_backbone
from ke_metric.recipe.schema import Recipe
from ke_metric.schema import Network


def as_shipped(state):
    """As the package names them: in the same order, otherwise."""
    return {f"_blocks.{number}": value for number, value in enumerate(state.values())}


def test_weights_are_renamed_in_their_order(tmp_path):
    network = timm.create_model(run.NAME)
    state = run.renamed(as_shipped(network.state_dict()), timm.create_model(run.NAME))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "weights.pth")
    backbone = build_backbone(Network(backbone=f"timm/{run.NAME}", weights=str(tmp_path / "weights.pth")))
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


def test_weights_of_another_shape_are_not():
    shipped = as_shipped(timm.create_model("tf_efficientnet_lite1").state_dict())
    with pytest.raises(AssertionError):
        run.renamed(shipped, timm.create_model(run.NAME))


def test_every_way_is_a_recipe_of_as_many_epochs(monkeypatch, tmp_path):
    recipes = []
    monkeypatch.setattr(run, "train", lambda recipe, *_: recipes.append(recipe))
    monkeypatch.setattr(run, "Lineage", lambda folder: folder)
    for way in run.WAYS:
        run.trained(way, 3, tmp_path / "weights.pth", tmp_path, epochs=6)
    assert all(isinstance(recipe, Recipe) and recipe.seed == 3 for recipe in recipes)
    assert {recipe.generations * recipe.training.epochs for recipe in recipes} == {6}
    assert len({recipe.name for recipe in recipes}) == len({recipe.digest for recipe in recipes}) == len(run.WAYS)
    starts = [recipe.network.weights for recipe in recipes]
    assert starts == [str(tmp_path / "weights.pth") if "given" in way else None for way in run.WAYS]
