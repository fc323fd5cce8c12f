"""Whole batches on the device: the boxes, moves and flips of the single pictures, pixels equal but for rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as v2

from ke_metric.images.augmentation import Augmenter, crop_box
from ke_metric.images.batch_augmentation import BatchAugmenter, resize_weights
from ke_metric.images.batches import TrainingEpochs
from ke_metric.images.image_set import Benchmark, labelled_set
from ke_metric.images.pixel_store import Pictures
from ke_metric.recipe.schema import Augmentation, Recipe

AFFINE = {"geometry": "affine", "scale": (0.6, 1.6), "rotation": 40, "translation": 0.2, "shear": 15}


def pictures_of(count, seed=0, smallest=20, largest=70):
    """Pictures of different shapes: noise, made smooth, so that a wrong place shows as well as a wrong weight."""
    generator = np.random.default_rng(seed)
    for height, width in generator.integers(smallest, largest, (count, 2)).tolist():
        noise = Image.fromarray(generator.integers(0, 256, (height // 3 + 2, width // 3 + 2, 3), dtype=np.uint8))
        yield np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))


def by_batch(augmentation, size, pictures, draws):
    """Return the batch [B, S, S, 3] in levels as a GPU makes it."""
    whole = BatchAugmenter(augmentation, size)
    batch = whole(*map(torch.from_numpy, whole.cuts(pictures, draws)))
    assert batch.shape == (len(pictures), 3, size, size)
    assert batch.dtype == torch.float32
    return batch.permute(0, 2, 3, 1).numpy() * 255


def singly(augmentation, size, pictures, draws, by_torch=False):
    augmenter = Augmenter(augmentation, size, by_torch=by_torch)
    made = np.stack([augmenter(picture, row) for picture, row in zip(pictures, draws, strict=True)])
    assert made.dtype == np.uint8
    return made.astype(np.float64)


def by_torch(augmentation, size, pictures, draws):
    """Return the batch [B, S, S, 3] in levels as a CPU makes it where it is the device."""
    return singly(augmentation, size, pictures, draws, by_torch=True)


def both(augmentation, size, pictures, seed=0, way=by_batch):
    """Return the batch [B, S, S, 3] in levels, as Pillow makes it and by another way."""
    draws = np.random.default_rng(seed).random((len(pictures), Augmenter(augmentation, size).geometry_draws))
    return singly(augmentation, size, pictures, draws), way(augmentation, size, pictures, draws)


@pytest.mark.parametrize("size", [12, 32, 64])
@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("way", [by_batch, by_torch])
def test_crops_differ_by_rounding_alone(size, flip, way):
    expected, found = both(Augmentation(flip=flip), size, list(pictures_of(40)), way=way)
    difference = np.abs(expected - found)
    # Pillow rounds after each of its two passes.
    assert difference.max() <= 1.01
    assert difference.mean() < 0.3


@pytest.mark.parametrize("size", [12, 32, 64])
@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_moves_differ_by_rounding_alone(size, flip):
    expected, found = both(Augmentation(flip=flip, **AFFINE), size, list(pictures_of(40)))
    difference = np.abs(expected - found)
    # Pillow cuts fractions off; and a place on the very edge may lie inside for one and outside for the other.
    assert np.mean(difference > 1.01) < 1e-4
    assert difference.mean() < 0.6


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([{"scale": (0.01, 1.0), "ratio": (0.1, 10.0)}, AFFINE | {"rotation": 180, "shear": 60}]),
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5),
    st.integers(1, 40),
    st.integers(0, 10**6),
)
def test_pictures_of_any_shape_share_a_batch_and_do_not_see_each_other(augmentation, shapes, size, seed):
    pictures = [np.full((*shape, 3), 40 * number + 20, np.uint8) for number, shape in enumerate(shapes)]
    for way in (by_batch, by_torch):
        expected, found = both(Augmentation(**augmentation), size, pictures, seed, way)
        assert np.allclose(expected, found, atol=0.01)


def test_a_resize_is_that_of_torchvision():
    picture = next(pictures_of(1, smallest=60, largest=61))
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].to(torch.float32)
    for size in (7, 30, 60, 90):
        weights = resize_weights(torch.tensor([60.0]), 64, size)[0]
        assert torch.allclose(weights.sum(dim=1), torch.ones(size))
        assert not weights[:, 60:].any()
        expected = v2.resize(image, [size, size], antialias=True)
        found = weights[:, :60] @ image @ weights[:, :60].T
        assert torch.allclose(found, expected, atol=1e-2)


def test_pixels_and_boxes_are_those_of_random_resized_crop():
    """The boxes by a two-sample test, the pixels by torchvision's own function for the same boxes."""
    augmentation, size, count = Augmentation(flip=0.0), 24, 2000
    picture = next(pictures_of(1, smallest=50, largest=60))
    draws = np.random.default_rng(1).random((count, Augmenter(augmentation, size).geometry_draws))
    boxes = [crop_box(picture.shape, row, augmentation) for row in draws]
    whole = BatchAugmenter(augmentation, size)
    batch = whole(*map(torch.from_numpy, whole.cuts([picture] * 50, draws[:50]))) * 255
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1).to(torch.float32)
    for found, box in zip(batch, boxes[:50], strict=True):
        assert torch.allclose(found, v2.resized_crop(image, *box, [size, size], antialias=True), atol=1e-2)
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    means = [[v2.crop(image, *box).mean() for box in sample] for sample in (boxes, theirs)]
    # Kolmogorov-Smirnov: 1.95 sqrt(2 / n) is exceeded once in a thousand equal pairs.
    assert largest_gap(*means) < 1.95 * math.sqrt(2 / count)
    for position in range(4):
        ours, other = ([box[position] for box in sample] for sample in (boxes, theirs))
        assert largest_gap(ours, other) < 1.95 * math.sqrt(2 / count)


def largest_gap(left, right):
    left, right = np.sort(left), np.sort(right)
    values = np.union1d(left, right)
    cumulative = [np.searchsorted(sample, values, side="right") / len(sample) for sample in (left, right)]
    return np.abs(cumulative[0] - cumulative[1]).max()


class Drawn:
    def read(self, key):
        return Image.fromarray(next(pictures_of(1, int(key), 40, 60)))


def epochs(where, **options):
    keys = [str(number) for number in range(24)]
    images = labelled_set(keys, [number // 6 for number in range(24)], dict.fromkeys(range(4), "x"), Drawn())
    benchmark = Benchmark("drawn", images, images, images)
    recipe = Recipe.model_validate(
        {
            "name": "drawn",
            "data": {"image_size": 24, "store_size": 32, "workers": options.pop("workers", 0)},
            "augmentation": {"where": where, "brightness": 0.3, **options},
            "batches": {"size": 8, "images_per_class": 2},
        }
    )
    return TrainingEpochs(Pictures.decode(benchmark, 32), recipe, generation=1, device=torch.device("cpu"))


@pytest.mark.parametrize("options", [{}, AFFINE, {"workers": 1}])
def test_the_recipe_says_where_and_the_batches_are_the_same_ones(options):
    pairs = list(zip(epochs("loader", **options).epoch(1), epochs("device", **options).epoch(1), strict=True))
    assert len(pairs) == 3
    for one, whole in pairs:
        assert one.keys == whole.keys
        assert torch.equal(one.labels, whole.labels)
        assert whole.images.is_contiguous(memory_format=torch.channels_last)
        difference = (one.images - whole.images).abs()
        # A level is 1 / 255 / 0.224 of a standardised picture.
        assert difference.mean() < 0.6 / 255 / 0.224
        assert not torch.equal(one.images, whole.images), "this could not fail if both were the loader's"
