"""Fields follow from pictures: batches can be drawn, sizes fit each other, and every recipe is a valid one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.images.image_set import Benchmark, FolderSource, ImageSet
from ke_metric.suggestion.choices import (
    BACKBONE,
    SMALL_BACKBONE,
    Plan,
    Surroundings,
    as_recipe,
    batch_of,
    batches_per_epoch,
    choices,
    fewest_epochs,
    most_epochs,
    plan_of,
    scales,
    with_plan,
)
from ke_metric.suggestion.survey import Mirrored, PictureSurvey, Quantiles


def surveyed(*, classes=20, each=10, side=64.0, aspect=1.0, grey=0.0, transparent=0.0, task="retrieval", **more):
    labels = np.repeat(np.arange(classes), each)
    source = FolderSource(Path("pictures"))
    images = ImageSet(tuple(map(str, range(len(labels)))), labels, tuple(map(str, range(classes))), source)
    facts = {
        "benchmark": Benchmark("folder", images, images, images, task=task),
        "looked_at": len(labels),
        "sides": Quantiles(side, side, side, side, side),
        "aspects": Quantiles(aspect, aspect, aspect, aspect, aspect),
        "grey": grey,
        "transparent": transparent,
        "vanished": 0,
        "turned": 0,
        "class_sizes": Quantiles(each, each, each, each, each),
        "mirrored": Mirrored(100, 0.5, 0.5),
        "problems": {},
    }
    return PictureSurvey(**facts | more)


def recipe_of(survey, *, around=None, scale=None, plan=None):
    around = around or Surroundings()
    scale = scale or scales(survey, around)[0]
    return as_recipe(with_plan(choices(survey, Path("/pictures"), scale, around), plan or Plan(3, 20), "measured"))


@given(
    classes=st.integers(2, 400),
    each=st.integers(1, 300),
    side=st.floats(8, 3000),
    aspect=st.floats(1, 8),
    task=st.sampled_from(["retrieval", "classification"]),
    on_gpu=st.booleans(),
    has_timm=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_pictures_are_every_scale_gives_a_recipe(classes, each, side, aspect, task, on_gpu, has_timm):
    survey = surveyed(classes=classes, each=min(each, 20_000 // classes), side=side, aspect=aspect, task=task)
    around = Surroundings(on_gpu=on_gpu, has_timm=has_timm)
    found = scales(survey, around)
    assert len(set(found)) == len(found)
    for scale in found:
        recipe = recipe_of(survey, around=around, scale=scale)
        assert recipe.data.store_size >= recipe.data.image_size
        assert recipe.task == task
        if task == "retrieval":
            assert recipe.batches.size // recipe.batches.images_per_class <= classes
            assert recipe.batches.images_per_class >= 2
        assert has_timm or not recipe.network.backbone.startswith("timm/")


@pytest.mark.parametrize(("side", "size"), [(20, 32), (28, 32), (64, 64), (90, 96), (120, 128), (2000, 128)])
def test_the_image_size_is_that_of_the_pictures(side, size):
    assert recipe_of(surveyed(side=side)).data.image_size == size
    assert recipe_of(surveyed(side=2000), around=Surroundings(on_gpu=True)).data.image_size == 224


@given(st.integers(2, 300), st.integers(2, 200))
def test_a_batch_is_what_classes_give(classes, each):
    size, images = batch_of(surveyed(classes=classes, each=each))
    assert size % images == 0
    assert size // images <= classes
    assert images <= max(2, each)


def test_few_classes_give_more_pictures_of_each():
    assert batch_of(surveyed(classes=3, each=100)) == (24, 8)
    assert batch_of(surveyed(classes=30, each=2)) == (32, 2)
    assert batch_of(surveyed(classes=300, each=20)) == (128, 4)


def test_small_pictures_are_moved_and_large_ones_cut():
    assert recipe_of(surveyed(side=28)).augmentation.geometry == "affine"
    assert recipe_of(surveyed(side=500)).augmentation.geometry == "crop"


def test_mirroring_follows_from_what_was_measured():
    assert recipe_of(surveyed()).augmentation.flip == 0.5
    assert recipe_of(surveyed(mirrored=Mirrored(500, 0.9, 0.2))).augmentation.flip == 0


def test_pictures_that_are_long_alike_are_squashed_others_keep_their_shape():
    assert recipe_of(surveyed(side=300, aspect=2.0)).data.store_shape == "square"
    mixed = surveyed(side=300, aspects=Quantiles(1, 1, 1.7, 3, 4))
    assert recipe_of(mixed).data.store_shape == "keep"


def test_what_does_not_show_on_white_gets_another_ground():
    assert recipe_of(surveyed(transparent=1.0)).data.background == "white"
    assert recipe_of(surveyed(transparent=1.0, vanished=3)).data.background == "#808080"


def test_the_network_follows_from_the_number_of_pictures_and_from_what_is_installed():
    few, many = surveyed(), surveyed(classes=400, each=50)
    assert recipe_of(few).network.backbone == SMALL_BACKBONE
    assert recipe_of(many).network.backbone == BACKBONE
    assert recipe_of(few, around=Surroundings(has_timm=False)).network.backbone == BACKBONE


@given(st.integers(1, 5000))
def test_more_time_never_means_fewer_epochs(batches):
    assert 1 <= fewest_epochs(batches) <= plan_of(batches).epochs <= most_epochs(batches)


def test_a_single_generation_inherits_nothing():
    recipe = recipe_of(surveyed(), plan=Plan(1, 5))
    assert (recipe.generations, recipe.method.name) == (1, type(recipe.method)().name)
    assert recipe_of(surveyed(), plan=Plan(1, 1)).training.warmup_epochs == 0


def test_every_choice_that_was_measured_says_so():
    survey = replace(surveyed(mirrored=Mirrored(500, 0.9, 0.2)), transparent=0.25)
    scale = scales(survey, Surroundings())[0]
    reasons = {each.name: each.reason for each in choices(survey, Path("x"), scale, Surroundings())}
    assert "90 %" in reasons["augmentation.flip"]
    assert "20 %" in reasons["augmentation.flip"]
    assert "25 %" in reasons["data.background"]
    assert "64 pixels" in reasons["data.image_size"]
    assert "10 pictures each" in reasons["batches.images_per_class"]
    assert batches_per_epoch(survey, 32) == 6
