"""Colours, blur and erasing, and all further steps in the batches of a training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest, chisquare, ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ke_metric.images import further_steps
from ke_metric.images.augmentation import Augmenter
from ke_metric.images.batches import TrainingEpochs
from ke_metric.images.erasing import ERASING_DRAWS, ERASING_TRIES, erase, erasing_box
from ke_metric.images.further_steps import FurtherSteps, blurred
from ke_metric.images.image_set import Benchmark, labelled_set
from ke_metric.images.pixel_store import Pictures
from ke_metric.recipe.schema import Augmentation, Recipe

DRAWN = 10_000
# Seeds are fixed; equal distributions would fail one comparison in a thousand seeds.
LEAST = 1e-3
ALL = {
    "policy": "rand_augment",
    "policy_operations": 3,
    "policy_magnitude": 12,
    "brightness": 0.2,
    "contrast": 0.3,
    "saturation": 0.4,
    "hue": 0.2,
    "grayscale": 0.3,
    "blur": 0.5,
    "blur_sigma": (0.2, 1.5),
    "erasing": 0.6,
}
AFFINE = {"geometry": "affine", "scale": (0.6, 1.6), "rotation": 40, "translation": 0.2, "shear": 15}


def are_alike(ours, theirs):
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=5 * np.std(theirs) / len(theirs) ** 0.5)
    assert np.std(ours) == pytest.approx(np.std(theirs), rel=0.05)
    return ks_2samp(ours, theirs).pvalue > LEAST


# Erasing.


@pytest.mark.parametrize("size", [16, 32, 224])
def test_boxes_are_drawn_as_torchvision_draws_them(size):
    rows = np.random.default_rng(1).random((DRAWN, ERASING_DRAWS))
    ours = np.array([erasing_box(row, size) for row in rows])
    torch.manual_seed(2)
    erasing, image = v2.RandomErasing(), torch.empty(3, size, size)
    drawn = [erasing.make_params([image]) for _ in range(DRAWN)]
    theirs = np.array([[each[name] for name in "ijhw"] for each in drawn])
    for column in range(4):
        assert are_alike(ours[:, column], theirs[:, column])
    assert are_alike(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert are_alike(np.log(ours[:, 2] / ours[:, 3]), np.log(theirs[:, 2] / theirs[:, 3]))
    assert np.corrcoef(ours[:, :3].T) == pytest.approx(np.corrcoef(theirs[:, :3].T), abs=0.05)


def test_where_no_try_fits_nothing_is_erased():
    """A picture of one pixel has no side shorter than its own that is not 0; torchvision erases nothing either."""
    row = np.full(ERASING_DRAWS, 0.99)
    images = torch.ones(1, 3, 1, 1)
    assert erasing_box(row, 1) is None
    assert torch.equal(erase(images.clone(), row[None], 1.0), images)
    torch.manual_seed(0)
    assert v2.RandomErasing(p=1.0, scale=(0.33, 0.33), ratio=(3.3, 3.3))(images[0]).tolist() == images[0].tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6), st.booleans())
def test_what_is_erased_is_the_box_and_becomes_zero(size, seed, is_channels_last):
    generator = np.random.default_rng(seed)
    rows = generator.random((4, ERASING_DRAWS))
    images = torch.from_numpy(generator.random((4, 3, size, size)).astype(np.float32) + 1)
    images = images.contiguous(memory_format=torch.channels_last) if is_channels_last else images
    expected = images.clone()
    for image, row in zip(expected, rows, strict=True):
        box = erasing_box(row, size)
        if row[0] < 0.5 and box is not None:
            image.copy_(functional.erase(image, *box, torch.zeros(1, 1, 1)))
    assert erase(images, rows, 0.5) is images
    assert torch.equal(images, expected)


def test_the_probability_of_erasing():
    rows = np.random.default_rng(3).random((2000, ERASING_DRAWS))
    erased = (erase(torch.ones(2000, 3, 8, 8), rows, 0.25) == 0).flatten(1).any(dim=1)
    assert binomtest(int(erased.sum()), 2000, 0.25).pvalue > LEAST


def test_tries_are_used_one_after_the_other():
    """The first of them that fits: tall boxes of a third do not."""
    row = np.full(ERASING_DRAWS, 0.5)
    fits = erasing_box(row, 20)
    row[3], row[3 + ERASING_TRIES] = 1, 1
    assert erasing_box(row, 20) == fits
    row[3 + ERASING_TRIES] = 0.5
    assert erasing_box(row, 20) != fits


# Colours.


def steps_of(**options):
    return FurtherSteps(Augmentation(**options), 16)


def draws_of(steps, count, seed=0):
    return np.random.default_rng(seed).random((count, sum(steps.columns.values())))


def test_factors_and_widths_are_drawn_as_torchvision_draws_them(monkeypatch):
    seen = {"adjust_saturation": [], "adjust_hue": [], "gaussian_blur": []}
    for name, values in seen.items():

        def write_down(image, *given, into=values):
            into.append(given[-1][0] if isinstance(given[-1], list) else given[-1])
            return image

        monkeypatch.setattr(further_steps.v2, name, write_down)
    steps = steps_of(saturation=0.4, hue=0.1, blur=1.0)
    steps.colour(torch.rand(DRAWN, 3, 2, 2), draws_of(steps, DRAWN))
    torch.manual_seed(3)
    jitter, blur = v2.ColorJitter(saturation=0.4, hue=0.1), v2.GaussianBlur(3)
    drawn = [jitter.make_params([]) for _ in range(DRAWN)]
    assert are_alike(seen["adjust_saturation"], [each["saturation_factor"] for each in drawn])
    assert are_alike(seen["adjust_hue"], [each["hue_factor"] for each in drawn])
    widths = [blur.make_params([])["sigma"][0] for _ in range(DRAWN)]
    assert are_alike(seen["gaussian_blur"][::2], widths), "twice for each picture: rows, columns"
    assert abs(np.corrcoef(seen["adjust_saturation"], seen["adjust_hue"])[0, 1]) < 0.05


def test_chances_of_grey_and_blur_are_their_own():
    steps = steps_of(grayscale=0.3, blur=0.5)
    images = torch.rand(4000, 3, 3, 3)
    found = steps.colour(images.clone(), draws_of(steps, 4000))
    is_grey = (found.amax(dim=1) - found.amin(dim=1)).flatten(1).amax(dim=1) < 1e-6
    greyed = functional.rgb_to_grayscale(images, 3)
    is_sharp = torch.where(is_grey[:, None, None, None], found == greyed, found == images).flatten(1).all(dim=1)
    counts = torch.bincount(2 * is_grey.long() + is_sharp.long(), minlength=4)
    expected = 4000 * np.array([0.7 * 0.5, 0.7 * 0.5, 0.3 * 0.5, 0.3 * 0.5])
    assert chisquare(counts.numpy(), expected).pvalue > LEAST


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 10**6),
)
def test_colours_are_those_of_torchvisions_kernels_in_the_order_that_is_said(saturation, hue, grayscale, blur, seed):
    if not any((saturation, hue, grayscale, blur)):
        return
    steps = steps_of(saturation=saturation, hue=hue, grayscale=grayscale, blur=blur)
    rows = draws_of(steps, 3, seed)
    images = torch.from_numpy(np.random.default_rng(seed).random((3, 3, 16, 16)).astype(np.float32))
    for each in (images, images.contiguous(memory_format=torch.channels_last)):
        found = steps.colour(each.clone(), rows)
        assert found.is_contiguous(memory_format=torch.channels_last) == each.is_contiguous(
            memory_format=torch.channels_last
        )
        for image, row, result in zip(images, rows, found, strict=True):
            expected = functional.adjust_saturation(image, 1 + saturation * (2 * row[0] - 1))
            expected = functional.adjust_hue(expected, hue * (2 * row[1] - 1))
            if row[2] < grayscale:
                expected = functional.rgb_to_grayscale(expected, 3)
            if row[3] < blur:
                expected = functional.gaussian_blur(expected, [13, 13], [0.1 + 1.9 * row[4]] * 2)
            assert torch.allclose(result, expected, atol=4e-3)


@pytest.mark.parametrize("sigma", [1e-300, 0.05, 0.1, 0.4, 1.0, 2.0, 50.0])
@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_a_blur_is_that_of_torchvision_for_any_width_and_size(sigma, size):
    image = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    found = blurred(image, sigma)
    assert found.isfinite().all()
    side = 2 * min(int(np.ceil(3 * sigma)), size - 1) + 1
    assert torch.allclose(found, functional.gaussian_blur(image, [side, side], [max(sigma, 1e-3)] * 2), atol=1e-6)
    if sigma == 0.05:
        assert torch.equal(found, image)


# Batches of a training.


class Drawn:
    def read(self, key):
        generator = np.random.default_rng(int(key))
        height, width = generator.integers(40, 60, 2).tolist()
        rough = generator.integers(0, 256, (height // 3, width // 3, 3), dtype=np.uint8)
        return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pictures():
    keys = [str(number) for number in range(24)]
    images = labelled_set(keys, [number // 6 for number in range(24)], dict.fromkeys(range(4), "x"), Drawn())
    return Pictures.decode(Benchmark("drawn", images, images, images), 32)


def epochs(pictures, *, workers=0, rank=0, processes=1, device="cpu", **augmentation):
    recipe = Recipe.model_validate(
        {
            "name": "drawn",
            "data": {"image_size": 24, "store_size": 32, "workers": workers},
            "augmentation": augmentation,
            "batches": {"size": 8, "images_per_class": 2},
        }
    )
    return TrainingEpochs(pictures, recipe, generation=1, device=torch.device(device), rank=rank, processes=processes)


def images_of(found, number=1):
    return torch.cat([batch.images for batch in found.epoch(number)])


@pytest.mark.parametrize("where", ["loader", "device"])
@pytest.mark.parametrize("geometry", [{}, AFFINE], ids=["crop", "affine"])
def test_workers_processes_and_resumes_change_no_picture(pictures, where, geometry):
    options = {"where": where, **ALL, **geometry}
    whole = epochs(pictures, **options)
    first, second = images_of(whole, 1), images_of(whole, 2)
    assert not torch.equal(first, second)
    assert torch.equal(images_of(epochs(pictures, **options), 2), second), "a resume begins with the second epoch"
    with_workers = epochs(pictures, workers=2, **options)
    assert torch.equal(images_of(with_workers, 1), first)
    assert torch.equal(images_of(with_workers, 2), second)
    shares = [epochs(pictures, rank=rank, processes=2, **options).epoch(1) for rank in (0, 1)]
    joined = [torch.cat([part.images for part in parts]) for parts in zip(*shares, strict=True)]
    assert torch.allclose(torch.cat(joined), first, atol=1e-6)


@pytest.mark.parametrize("geometry", [{}, AFFINE], ids=["crop", "affine"])
def test_the_device_makes_the_pictures_of_the_loader(pictures, geometry):
    """All but a few: of another level by rounding, an operation with a threshold makes quite another one."""
    options = ALL | {"erasing": 0.0, "hue": 0.0, "policy": "trivial_augment_wide"} | geometry
    del options["policy_operations"], options["policy_magnitude"]
    one, whole = (images_of(epochs(pictures, where=where, **options)) for where in ("loader", "device"))
    difference = (one - whole).abs().flatten(1).mean(dim=1)
    if geometry:
        assert not difference.any()
        return
    # A level is 1 / 255 / 0.224 of a standardised picture.
    assert torch.quantile(difference, 0.8) < 2 / 255 / 0.224
    assert difference.any()
    other = images_of(epochs(pictures, where="device", **options), 2)
    assert (one - other).abs().mean() > 10 * difference.mean()


@pytest.mark.parametrize("geometry", [{}, AFFINE], ids=["crop", "affine"])
def test_the_device_makes_them_without_a_policy(pictures, geometry):
    options = {name: value for name, value in ALL.items() if not name.startswith("policy")} | geometry
    one, whole = (images_of(epochs(pictures, where=where, **options)) for where in ("loader", "device"))
    assert torch.equal(one == 0, whole == 0)
    assert 0 < (one - whole).abs().mean() < 1 / 255 / 0.224


@pytest.mark.parametrize("geometry", ["crop", "affine"])
def test_on_a_gpu_a_policy_gets_pictures_that_the_processor_cut(pictures, geometry):
    made = [
        epochs(pictures, device="cuda", geometry=geometry, where="device", **policy)
        for policy in ({}, {"policy": "trivial_augment_wide"})
    ]
    assert [each._for_device is None for each in made] == [False, True]
    assert made[1]._augmenter._by_torch == (geometry == "crop")


@pytest.mark.parametrize("where", ["loader", "device"])
def test_each_step_leaves_the_draws_of_all_others_alone(pictures, where):
    plain = images_of(epochs(pictures, where=where))
    erased = images_of(epochs(pictures, where=where, erasing=0.5))
    is_box = (erased == 0).all(dim=1, keepdim=True)
    assert 0.02 < is_box.float().mean() < 0.3
    assert torch.equal(torch.where(is_box, 0, plain), erased)
    with_more = images_of(epochs(pictures, where=where, erasing=0.5, grayscale=1.0, policy="trivial_augment_wide"))
    assert torch.equal((with_more == 0).all(dim=1, keepdim=True), is_box)
    policed, both = (
        images_of(epochs(pictures, where=where, policy="trivial_augment_wide", **more))
        for more in ({}, {"hue": 1e-9})
    )
    assert (policed - both).abs().max() < 1e-3
    assert (policed - plain).abs().flatten(1).amax(dim=1).gt(0.01).float().mean() > 0.5


def test_policies_see_the_picture_before_its_colours_change(pictures):
    """Contrast 0.9 after a solarised picture is another one than before it."""
    options = {"policy": "rand_augment", "policy_operations": 2, "contrast": 0.9}
    found = images_of(epochs(pictures, **options))
    policed = images_of(epochs(pictures, **options | {"contrast": 0.0}))
    recipe = Recipe.model_validate({"name": "x"})
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.data.mean, recipe.data.std))
    batches = epochs(pictures, **options)
    augmenter = Augmenter(Augmentation(contrast=0.9), 24)
    draws = torch.cat([batch.colour_draws for batch in batches._batches.epoch(0)])
    assert torch.allclose((augmenter.colour(policed * std + mean, draws) - mean) / std, found, atol=1e-4)


def test_a_recipe_without_them_draws_nothing_more(pictures):
    found = epochs(pictures, brightness=0.3)
    assert found._further is None
    assert all(batch.further_draws.shape == (8, 0) for batch in found._batches.epoch(0))
    assert not Augmentation(brightness=0.5, contrast=0.5, where="device").has_further_steps
    for one in ("saturation", "hue", "grayscale", "blur", "erasing"):
        assert Augmentation(**{one: 0.1}).has_further_steps
    with_all = epochs(pictures, **ALL)
    for bare, full in zip(found._batches.epoch(0), with_all._batches.epoch(0), strict=True):
        assert torch.equal(bare.colour_draws, full.colour_draws)
