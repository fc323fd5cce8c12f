"""Policies: operations against those that torchvision draws, pixels against its kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chi2_contingency, chisquare, ks_2samp
from torchvision.transforms import v2

from ke_metric.images.augmentation import border_colour
from ke_metric.images.policies import BINS, OPERATIONS, Policy, PolicyOperation, changed
from ke_metric.recipe.schema import Augmentation

WIDE = Augmentation(policy="trivial_augment_wide")
NARROW = Augmentation(policy="rand_augment", policy_operations=2, policy_magnitude=17)
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
DRAWN = 10_000
# Seeds are fixed; equal distributions would fail one comparison in a thousand seeds.
LEAST = 1e-3


class Recorder:
    """Has torchvision's policies write down what they would do."""

    def __init__(self):
        self.seen = []

    def _apply_image_or_video_transform(self, image, transform_id, magnitude, **_):
        self.seen.append((transform_id, magnitude))
        return image


class RecordedWide(Recorder, v2.TrivialAugmentWide):
    def __init__(self):
        v2.TrivialAugmentWide.__init__(self)
        Recorder.__init__(self)


class RecordedNarrow(Recorder, v2.RandAugment):
    def __init__(self):
        v2.RandAugment.__init__(self, num_ops=2, magnitude=17)
        Recorder.__init__(self)


def noise(size, seed=0):
    rough = np.random.default_rng(seed).integers(0, 256, (size // 3 + 2, size // 3 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(rough).resize((size, size), Image.Resampling.BICUBIC))


def glyph(size=32):
    """A dark square on white paper, not in its middle."""
    picture = np.full((size, size, 3), 255, np.uint8)
    picture[size // 4 : size // 2, size // 3 : size - 4] = (10, 40, 90)
    return picture


def drawn(augmentation, size):
    policy = Policy(augmentation, size)
    rows = np.random.default_rng(5).random((DRAWN, policy.draws))
    return [list(policy.operations(row)) for row in rows]


def recorded(kind, size):
    torch.manual_seed(7)
    policy, image = kind(), Image.new("RGB", (size, size))
    for _ in range(DRAWN):
        policy(image)
    return policy.seen


def are_alike(ours, theirs):
    """Compare how often each value comes: p of a chi-square test, 1 where there is one value."""
    values = sorted({*ours, *theirs})
    if len(values) == 1:
        return 1.0
    counts = [[list(sample).count(value) for value in values] for sample in (ours, theirs)]
    return chi2_contingency(counts).pvalue


@pytest.mark.parametrize(("augmentation", "kind", "size"), [(WIDE, RecordedWide, 224), (NARROW, RecordedNarrow, 64)])
def test_operations_magnitudes_and_signs_are_drawn_as_torchvision_draws_them(augmentation, kind, size):
    ours = [operation for picture in drawn(augmentation, size) for operation in picture]
    theirs = recorded(kind, size)
    assert len(ours) == len(theirs)
    assert are_alike(*([name for name, _ in sample] for sample in (ours, theirs))) > LEAST
    for name in OPERATIONS:
        left, right = ([by for each, by in sample if each == name] for sample in (ours, theirs))
        assert ks_2samp(left, right).pvalue > LEAST, name
        assert are_alike(np.sign(left), np.sign(right)) > LEAST, name
        assert set(np.abs(left)) == set(np.abs(right)), name
        scale = max(np.std(right), 1e-9) / len(right) ** 0.5
        assert abs(np.mean(left) - np.mean(right)) < 5 * scale, name
        assert np.std(left) == pytest.approx(np.std(right), rel=0.1), name


def test_each_of_the_31_steps_is_as_likely_as_torchvision_has_it():
    """Over all operations together: of one alone, 700 pictures do not tell."""
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    stepped = [name for name in OPERATIONS if space[name][0](BINS, 224, 224) is not None and name != "Posterize"]
    steps = {name: space[name][0](BINS, 224, 224).tolist() for name in stepped}

    def places(sample):
        return [steps[name].index(abs(by)) for name, by in sample if name in steps]

    ours = places([operation for picture in drawn(WIDE, 224) for operation in picture])
    assert chisquare(np.bincount(ours, minlength=BINS)).pvalue > LEAST
    assert are_alike(ours, places(recorded(RecordedWide, 224))) > LEAST


def test_two_operations_of_a_picture_are_drawn_apart():
    pairs = np.zeros((len(OPERATIONS), len(OPERATIONS)), int)
    for first, second in drawn(NARROW, 64):
        pairs[OPERATIONS.index(first.name), OPERATIONS.index(second.name)] += 1
    assert chi2_contingency(pairs).pvalue > LEAST


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("kind", [v2.TrivialAugmentWide, v2.RandAugment])
def test_every_step_of_every_operation_is_that_of_torchvision(size, kind):
    wide = kind is v2.TrivialAugmentWide
    assert set(kind._AUGMENTATION_SPACE) == set(OPERATIONS)
    for number, name in enumerate(OPERATIONS):
        steps, is_signed = kind._AUGMENTATION_SPACE[name]
        expected = steps(BINS, size, size)
        for step in range(BINS):
            narrow = Augmentation(policy="rand_augment", policy_operations=1, policy_magnitude=step)
            policy = Policy(WIDE if wide else narrow, size)
            draws = np.array([(number + 0.5) / len(OPERATIONS), (step + 0.5) / BINS, 0.7])
            magnitude = 0.0 if expected is None else float(expected[step])
            assert policy.operations(draws) == [PolicyOperation(name, magnitude)]
            draws[2] = 0.2
            assert policy.operations(draws) == [PolicyOperation(name, -magnitude if is_signed else magnitude)]


def of_torchvision(image, operation, fill):
    kernel = v2.TrivialAugmentWide()._apply_image_or_video_transform
    fill = {type(image): fill}
    return kernel(image, *operation, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)


@settings(max_examples=150, deadline=None)
@given(st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3), st.sampled_from([4, 31, 32, 64]), st.integers(0, 99))
def test_pixels_are_those_of_torchvisions_kernels(draws, size, seed):
    image = Image.fromarray(noise(size, seed))
    (operation,) = Policy(WIDE, size).operations(np.array(draws))
    fill = list(border_colour(np.asarray(image)))
    assert np.array_equal(changed(image, operation), of_torchvision(image, operation, fill))
    assert np.array_equal(Policy(WIDE, size)(np.asarray(image), np.array(draws)), changed(image, operation))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_step_of_every_operation_makes_torchvisions_pixels(name):
    for step in range(BINS):
        draws = np.array([(OPERATIONS.index(name) + 0.5) / len(OPERATIONS), (step + 0.5) / BINS, step % 2])
        (operation,) = Policy(WIDE, 48).operations(draws)
        image = Image.fromarray(noise(48, step))
        expected = of_torchvision(image, operation, list(border_colour(np.asarray(image))))
        assert np.array_equal(changed(image, operation), expected)


@pytest.mark.parametrize("name", MOVES)
def test_what_a_move_uncovers_has_the_colour_of_the_border(name):
    """White paper stays white; torchvision's own default makes it black."""
    for magnitude in (-0.9, 0.3) if name.startswith("Shear") else (-18.0, 10.0, 20.0):
        operation, picture = PolicyOperation(name, magnitude), glyph()
        moved = np.asarray(changed(Image.fromarray(picture), operation))
        assert (moved >= (9, 39, 89)).all()
        assert (moved[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
        assert not np.asarray(of_torchvision(Image.fromarray(picture), operation, None)).max(axis=2).all()


def test_the_ground_is_that_of_the_picture_as_it_is_then():
    """What was inverted before it is turned lies on its own ground."""
    white = Image.new("RGB", (16, 16), (255, 255, 255))
    black = changed(white, PolicyOperation("Solarize", 0.5))
    assert np.asarray(black).max() == 0
    assert np.asarray(changed(black, PolicyOperation("Rotate", 30.0))).max() == 0
