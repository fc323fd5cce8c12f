from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from ke_metric.images.augmentation import COLOUR_DRAWS, Augmenter, crop_box
from ke_metric.recipe.schema import Augmentation

WIDE = {"scale": (0.5, 2.0), "rotation": 180, "translation": 0.5, "shear": 60}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def middle(augmenter, **changed):
    """A row of draws that changes nothing in affine, but for the columns given."""
    draws = np.full(augmenter.geometry_draws, 0.5)
    names = ("flip", "rotation", "zoom", "shift_x", "shift_y", "shear")
    for name, value in changed.items():
        draws[names.index(name)] = value
    return draws


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["crop", "affine"]),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(1, 40),
    st.integers(0, 10**6),
)
def test_any_picture_gives_the_size_asked_for_and_the_same_again(geometry, shape, size, seed):
    wide = WIDE if geometry == "affine" else {"scale": (0.01, 1.0), "ratio": (0.1, 10.0)}
    augmenter = Augmenter(Augmentation(geometry=geometry, **wide), size)
    picture, draws = noise(*shape), np.random.default_rng(seed).random(augmenter.geometry_draws)
    kept, kept_draws = picture.copy(), draws.copy()
    result = augmenter(picture, draws)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8
    assert np.array_equal(result, augmenter(picture, draws))
    assert np.array_equal(picture, kept)
    assert np.array_equal(draws, kept_draws)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_a_whole_crop_without_flip_is_the_plain_resize(seed):
    augmenter = Augmenter(Augmentation(scale=(1, 1), ratio=(1, 1), flip=0), 24)
    picture = noise(48, 48)
    expected = np.asarray(Image.fromarray(picture).resize((24, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(augmenter(picture, np.random.default_rng(seed).random(augmenter.geometry_draws)), expected)


@pytest.mark.parametrize("geometry", ["crop", "affine"])
def test_flip_mirrors_with_its_probability(geometry):
    always, never = (Augmenter(Augmentation(geometry=geometry, flip=flip), 16) for flip in (1, 0))
    half = Augmenter(Augmentation(geometry=geometry, flip=0.5), 16)
    draws = np.random.default_rng(0).random((200, never.geometry_draws))
    picture = noise(30, 40)
    mirrored = 0
    for row in draws:
        straight, flipped = never(picture, row), always(picture, row)
        assert np.array_equal(flipped, straight[:, ::-1])
        mirrored += np.array_equal(half(picture, row), flipped)
    assert 75 <= mirrored <= 125


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 100), (300, 60)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.9)])
def test_crops_are_distributed_as_those_of_torchvision(height, width, scale):
    augmentation, count = Augmentation(scale=scale), 3000
    generator = np.random.default_rng(1)
    ours = [crop_box((height, width, 3), generator.random(23), augmentation) for _ in range(count)]
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(image, list(scale), list(augmentation.ratio)) for _ in range(count)]
    for feature in (
        lambda top, left, h, w: h * w,
        lambda top, left, h, w: w / h,
        lambda top, left, h, w: top,
        lambda top, left, h, w: left,
    ):
        # Kolmogorov-Smirnov: 1.95 sqrt(2 / n) is exceeded once in a thousand equal pairs.
        assert largest_gap([feature(*box) for box in ours], [feature(*box) for box in theirs]) < 1.95 * math.sqrt(
            2 / count
        )


def largest_gap(left, right):
    left, right = np.sort(left), np.sort(right)
    values = np.union1d(left, right)
    cumulative = [np.searchsorted(sample, values, side="right") / len(sample) for sample in (left, right)]
    return np.abs(cumulative[0] - cumulative[1]).max()


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 10**6))
def test_a_crop_lies_inside_the_picture(height, width, seed):
    top, left, crop_height, crop_width = crop_box(
        (height, width, 3), np.random.default_rng(seed).random(23), Augmentation(ratio=(0.2, 5.0))
    )
    assert 0 <= top <= top + crop_height <= height
    assert 0 <= left <= left + crop_width <= width
    assert crop_height > 0
    assert crop_width > 0


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (50, 50)])
def test_where_no_crop_fits_the_central_one_is_that_of_torchvision(height, width):
    # A ratio of exactly 2 of the whole area never fits these shapes.
    augmentation = Augmentation(scale=(1, 1), ratio=(2, 2))
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [2.0, 2.0])
    assert crop_box((height, width, 3), np.random.default_rng(0).random(23), augmentation) == tuple(expected)


def affine(size, **changes):
    return Augmenter(Augmentation(**({"geometry": "affine", "scale": (1, 1), "flip": 0} | changes)), size)


def test_affine_without_change_is_the_central_square():
    picture = noise(32, 50)
    augmenter = affine(32, rotation=90, translation=0.2, shear=30)
    assert np.array_equal(augmenter(picture, middle(augmenter)), picture[:, 9:41])


def test_affine_by_half_averages_blocks_of_four():
    picture = noise(64, 64)
    augmenter = affine(32)
    blocks = picture.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(augmenter(picture, middle(augmenter)) - blocks).max() <= 1


def test_affine_averages_whole_blocks_where_it_shrinks_much():
    picture = noise(96, 96)
    augmenter = affine(12)
    blocks = picture.reshape(12, 8, 12, 8, 3).mean(axis=(1, 3))
    assert np.abs(augmenter(picture, middle(augmenter)) - blocks).max() <= 2


def test_a_quarter_turn_is_that_of_numpy():
    picture = noise(20, 20)
    augmenter = affine(20, rotation=90)
    turned = augmenter(picture, middle(augmenter, rotation=0.0)).astype(int)
    # Pillow cuts fractions off, so that a rounding error of the cosine may cost one level.
    assert np.abs(turned - np.rot90(picture)).max() <= 1


def test_translation_moves_by_a_share_of_the_side():
    picture = noise(20, 20)
    augmenter = affine(20, translation=0.25)
    moved = augmenter(picture, middle(augmenter, shift_x=1.0, shift_y=0.0))
    assert np.array_equal(moved[:15, 5:], picture[5:, :15])


def test_zoom_enlarges_about_the_centre():
    picture = noise(40, 40)
    augmenter = affine(40, scale=(1, 2))
    zoomed = augmenter(picture, middle(augmenter, zoom=1.0))
    expected = Image.fromarray(picture).transform(
        (40, 40), Image.Transform.EXTENT, (10, 10, 30, 30), Image.Resampling.BILINEAR
    )
    assert np.array_equal(zoomed, np.asarray(expected))


def test_shear_slants_the_rows_about_the_middle():
    picture = np.full((41, 41, 3), 255, np.uint8)
    picture[:, 20] = 0
    augmenter = affine(41, shear=45)
    slanted = augmenter(picture, middle(augmenter, shear=1.0))[..., 0]
    columns = slanted.argmin(axis=1)
    assert columns[20] == 20
    assert set(np.abs(np.diff(columns[5:36]))) == {1}


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_what_lies_outside_gets_the_colour_of_the_border(seed):
    picture = np.full((40, 40, 3), (250, 240, 230), np.uint8)
    picture[15:25, 15:25] = 0
    picture[0, :12] = 90
    augmenter = Augmenter(Augmentation(geometry="affine", **WIDE), 32)
    result = augmenter(picture, np.random.default_rng(seed).random(augmenter.geometry_draws))
    assert (result <= (250, 240, 230)).all()


def test_a_blank_picture_stays_blank_under_any_affine():
    augmenter = Augmenter(Augmentation(geometry="affine", **WIDE), 32)
    picture = np.full((30, 50, 3), (250, 240, 230), np.uint8)
    for draws in np.random.default_rng(0).random((50, augmenter.geometry_draws)):
        assert (augmenter(picture, draws) == (250, 240, 230)).all()


def colour_twin(picture, draws, augmentation):
    """The rule written out for one picture [3, H, W]."""
    brightness = 1 + augmentation.brightness * (2 * draws[0] - 1)
    contrast = 1 + augmentation.contrast * (2 * draws[1] - 1)
    bright = np.minimum(picture * brightness, 1)
    return np.clip(bright.mean() + contrast * (bright - bright.mean()), 0, 1)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([0, 0.3, 0.9]), st.sampled_from([0, 0.3, 0.9]), st.integers(0, 100))
def test_every_picture_gets_its_own_brightness_and_contrast(brightness, contrast, seed):
    augmentation = Augmentation(brightness=brightness, contrast=contrast)
    generator = np.random.default_rng(seed)
    batch, draws = generator.random((3, 3, 5, 6)), generator.random((3, COLOUR_DRAWS))
    kept = batch.copy()
    result = Augmenter(augmentation, 8).colour(torch.from_numpy(batch).float(), torch.from_numpy(draws).float())
    assert result.dtype == torch.float32
    expected = [colour_twin(*pair, augmentation) for pair in zip(batch, draws, strict=True)]
    assert np.allclose(result, expected, atol=1e-5)
    assert np.array_equal(batch, kept)


def test_without_colour_the_batch_is_left_alone():
    batch = torch.rand(2, 3, 4, 4)
    assert Augmenter(Augmentation(), 4).colour(batch, torch.rand(2, COLOUR_DRAWS)) is batch
