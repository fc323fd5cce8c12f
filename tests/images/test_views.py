"""Averaged views: moved by one pixel, the edge repeated, and one view is the network itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import normalize

from ke_metric.errors import KeMetricError
from ke_metric.images.preparation import MOVES, AveragedViews, Preparation, views_of
from ke_metric.recipe.file import load_recipe

HOW = {"image_size": 8, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def moved(images, down, right):
    """The slow twin: pixel by pixel."""
    height, width = images.shape[2:]
    result = torch.empty_like(images)
    for row in range(height):
        for column in range(width):
            above, left = min(max(row - down, 0), height - 1), min(max(column - right, 0), width - 1)
            result[:, :, row, column] = images[:, :, above, left]
    return result


@settings(deadline=None)
@given(st.sampled_from([1, 2, 5]), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 999))
def test_views_are_the_picture_moved(views, count, height, width, seed):
    images = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    found = list(views_of(images, views))
    assert len(found) == views
    assert torch.equal(found[0], images)
    for view, (down, right) in zip(found, MOVES[views], strict=True):
        assert torch.equal(view, moved(images, down, right))
    assert len(set(MOVES[views])) == views
    assert all(max(map(abs, move)) <= 1 for move in MOVES[views])


def aliasing(seed=0):
    """A network that subsamples: it sees every other pixel alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))


@pytest.mark.parametrize("views", [2, 5])
@pytest.mark.parametrize("unit_length", [True, False])
def test_the_output_is_the_mean_over_the_views(views, unit_length):
    network = aliasing()
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        total = sum(network(moved(images, down, right)).double() for down, right in MOVES[views])
        wanted = total / views
        found = Preparation(**HOW, views=views).in_views(network, unit_length=unit_length)(images)
    torch.testing.assert_close(found.double(), normalize(wanted, dim=1) if unit_length else wanted, atol=1e-6, rtol=0)
    if unit_length:
        np.testing.assert_allclose(found.norm(dim=1), 1, atol=1e-6)


def test_one_view_is_the_network_itself():
    network = aliasing()
    assert Preparation(**HOW).in_views(network, unit_length=True) is network
    assert isinstance(Preparation(**HOW, views=2).in_views(network, unit_length=True), AveragedViews)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_network_stays(training):
    network = aliasing().train(training)
    assert Preparation(**HOW, views=5).in_views(network, unit_length=True).training == training
    assert network[0].training == training


@pytest.mark.parametrize("value", ["3", "0", "true", "'2'", "null"])
def test_a_recipe_with_other_views_is_refused(value, tmp_path):
    (tmp_path / "r.yaml").write_text(f"embedding: {{views: {value}}}\n", encoding="utf-8")
    with pytest.raises(KeMetricError, match=r"embedding\.views"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("value", [3, 0, True, "2", None])
def test_a_preparation_with_other_views_is_refused(value):
    with pytest.raises(ValueError, match="views"):
        Preparation(**HOW, views=value)


def test_a_recipe_tells_its_preparation():
    recipe = load_recipe("recipes/glyphs_resnet18.yaml", ["embedding.views=5"])
    assert Preparation.of_recipe(recipe).views == 5
    plain = load_recipe("recipes/glyphs_resnet18.yaml")
    assert Preparation.of_recipe(plain).views == 1
    assert recipe.digest != plain.digest
