"""Mixup and CutMix: drawn as by torchvision v2, pixels and labels as there, the same ones for all processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from ke_metric.images.batches import TrainingEpochs
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.mixing import BatchMixer, Mix, draw_mix
from ke_metric.images.pixel_store import Pictures
from ke_metric.images.samplers import ClassBalancedBatches, ShuffledBatches
from ke_metric.recipe.schema import Augmentation, Recipe

CPU = torch.device("cpu")
DRAWS = 10_000
SIZE, CLASSES = 32, 5
# Two samples of one distribution are further apart than that in one test of a thousand.
UNLIKELY = 1e-3


def recipe_of(sampler="shuffled", size=8, workers=0, **augmentation):
    return Recipe.model_validate(
        {
            "name": "mixed",
            "task": "classification",
            "data": {"image_size": 16, "store_size": 16, "workers": workers},
            "augmentation": augmentation,
            "batches": {"sampler": sampler, "size": size, "images_per_class": 2},
            "evaluation": {"resize": 16},
        }
    )


def drawn(**alphas):
    generator = np.random.default_rng(5)
    return [draw_mix(Augmentation(**alphas), SIZE, generator) for _ in range(DRAWS)]


def drawn_by_v2(transform):
    images = [torch.zeros(2, 3, SIZE, SIZE)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return [transform.make_params(images) for _ in range(DRAWS)]


def assert_of_one_distribution(ours, theirs):
    """Means and spreads differ by four standard errors at most, and so does the whole of what was drawn."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    assert abs(ours.mean() - theirs.mean()) <= 4 * np.hypot(ours.std(), theirs.std()) / np.sqrt(DRAWS)
    squares = (ours - ours.mean()) ** 2, (theirs - theirs.mean()) ** 2
    assert abs(squares[0].mean() - squares[1].mean()) <= 4 * np.hypot(*(each.std() for each in squares)) / np.sqrt(
        DRAWS
    )
    assert ks_2samp(ours, theirs).pvalue > UNLIKELY


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_of_mixup_are_drawn_as_by_torchvision(alpha):
    mixes = drawn(mixup=alpha)
    assert {mix.box for mix in mixes} == {None}
    theirs = [each["lam"] for each in drawn_by_v2(v2.MixUp(alpha=alpha, num_classes=2))]
    assert_of_one_distribution([mix.share for mix in mixes], theirs)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_boxes_of_cutmix_are_drawn_as_by_torchvision(alpha):
    mixes, theirs = drawn(cutmix=alpha), drawn_by_v2(v2.CutMix(alpha=alpha, num_classes=2))
    assert_of_one_distribution([mix.share for mix in mixes], [each["lam_adjusted"] for each in theirs])
    for side in range(4):
        assert_of_one_distribution([mix.box[side] for mix in mixes], [each["box"][side] for each in theirs])
    widths, widths_there = (
        [right - left for left, _, right, _ in boxes]
        for boxes in ([mix.box for mix in mixes], [each["box"] for each in theirs])
    )
    assert_of_one_distribution(widths, widths_there)


def test_a_batch_draws_one_of_both_with_equal_chance():
    mixes = drawn(mixup=0.2, cutmix=1.0)
    blends = [mix.share for mix in mixes if mix.box is None]
    assert abs(len(blends) - DRAWS / 2) <= 4 * np.sqrt(DRAWS) / 2
    # Each with its own alpha: Beta(a, a) has the variance 1 / (4 (2 a + 1)).
    assert np.var(blends) == pytest.approx(1 / (4 * 1.4), rel=0.05)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, SIZE, SIZE, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.tensor([0, 3, 3, 4, 1, 0])


def mixed(batch, mix):
    mixer = BatchMixer(recipe_of(mixup=1.0), generation=1, classes=CLASSES)
    images, labels = batch
    kept = images.clone()
    found = mixer(images, labels, torch.arange(len(images)).roll(1), mix)
    assert torch.equal(images, kept)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    return found


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_blend_is_torchvisions(share, batch):
    images, labels = mixed(batch, Mix(share, None))
    transform = v2.MixUp(num_classes=CLASSES)
    params = {"lam": share, "labels": batch[1], "batch_size": len(labels)}
    torch.testing.assert_close(images, transform.transform(batch[0], params), rtol=0, atol=1e-6)
    torch.testing.assert_close(labels, transform.transform(batch[1], params), rtol=0, atol=1e-7)


@pytest.mark.parametrize("seed", range(20))
def test_a_cut_is_torchvisions_and_labels_are_shared_by_area_to_the_last_bit(seed, batch):
    mix = draw_mix(Augmentation(cutmix=1.0), SIZE, np.random.default_rng(seed))
    images, labels = mixed(batch, mix)
    transform = v2.CutMix(num_classes=CLASSES)
    params = {"box": mix.box, "lam_adjusted": mix.share, "labels": batch[1], "batch_size": len(labels)}
    assert torch.equal(images, transform.transform(batch[0], params))
    torch.testing.assert_close(labels, transform.transform(batch[1], params), rtol=0, atol=1e-7)
    for number, (own, partner) in enumerate(zip(batch[1], batch[1].roll(1), strict=True)):
        covered = int((images[number] != batch[0][number]).any(dim=0).sum())
        expected = np.zeros(CLASSES)
        expected[own] += SIZE**2 - covered
        expected[partner] += covered
        assert labels[number].double().numpy().tolist() == (expected / SIZE**2).tolist()


def test_a_mix_is_a_function_of_seed_generation_epoch_and_step():
    recipe = recipe_of(mixup=1.0, cutmix=1.0)

    def mix(seed=0, generation=1, epoch=1, step=0):
        mixer = BatchMixer(recipe.model_copy(update={"seed": seed}), generation=generation, classes=CLASSES)
        return mixer.of_step(epoch, step)

    assert mix() == mix()
    assert len({mix(), mix(seed=1), mix(generation=2), mix(epoch=2), mix(step=1)}) == 5


SHAPES = st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(0, 40))


@settings(deadline=None)
@given(SHAPES)
def test_pairs_are_the_same_ones_however_many_processes_share_a_batch(shape):
    processes, each, count = shape
    count += 2 * processes
    seen = []
    for rank in range(processes):
        order = ShuffledBatches(
            count, batch_size=each * processes, seed=0, generation=1, rank=rank, processes=processes, mixed=True
        )
        places, rows = order.share_with_partners(count)
        own = order.share(count)
        assert places[: len(own)].tolist() == own.tolist()
        assert len(set(places.tolist())) == len(places) <= len(own) + 1
        seen += list(zip(own.tolist(), places[rows].tolist(), strict=True))
    assert seen == [(place, (place - 1) % count) for place in range(count)]


def test_partners_in_balanced_batches_are_of_another_class():
    labels = np.repeat(np.arange(8), 6)
    for processes in (1, 2):
        order = ClassBalancedBatches(
            labels, classes_per_batch=4, images_per_class=3, seed=0, generation=1, processes=processes, mixed=True
        )
        for whole in order.whole():
            places, rows = order.share_with_partners(len(whole))
            own = labels[whole[order.share(len(whole))]]
            assert (labels[whole[places[rows]]] != own).all()


def test_a_batch_of_one_class_has_partners_too():
    order = ClassBalancedBatches(
        np.zeros(6, int), classes_per_batch=1, images_per_class=6, seed=0, generation=1, mixed=True
    )
    places, rows = order.share_with_partners(6)
    assert places[rows].tolist() == [5, 0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    keys = tuple(f"{label}/{item}" for label in range(4) for item in range(5))
    noise = {key: Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for key in keys}
    images = ImageSet(keys, np.repeat(np.arange(4), 5), tuple("abcd"), Noise(noise))
    return Pictures.decode(Benchmark("noise", images, images, images, {}, None, "classification"), 16)


class Noise:
    def __init__(self, pictures):
        self.read = pictures.__getitem__


def batches_of(pictures, recipe, epoch=2, **process):
    return list(TrainingEpochs(pictures, recipe, generation=1, device=CPU, **process).epoch(epoch))


BOTH = {"mixup": 0.4, "cutmix": 1.0, "brightness": 0.2}


def test_every_batch_is_mixed_after_everything_else(pictures):
    plain, both = batches_of(pictures, recipe_of(brightness=0.2)), batches_of(pictures, recipe_of(**BOTH))
    mixer = BatchMixer(recipe_of(**BOTH), generation=1, classes=4)
    assert [len(batch.keys) for batch in both] == [8, 8, 4]
    for step, (before, after) in enumerate(zip(plain, both, strict=True)):
        partners = torch.arange(len(before.keys)).roll(1)
        images, labels = mixer(before.images, before.labels, partners, mixer.of_step(2, step))
        assert after.keys == before.keys
        assert torch.equal(after.images, images)
        assert torch.equal(after.labels, labels)
        assert not torch.equal(after.images, before.images)


@pytest.mark.parametrize("sampler", ["shuffled", "class_balanced"])
@pytest.mark.parametrize("more", [{}, {"where": "device"}, {"policy": "trivial_augment_wide", "erasing": 0.5}])
def test_processes_and_workers_change_nothing(sampler, more, pictures):
    whole = batches_of(pictures, recipe_of(sampler, **BOTH, **more))
    for batch, other in zip(whole, batches_of(pictures, recipe_of(sampler, workers=2, **BOTH, **more)), strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.labels, other.labels)
    shares = [batches_of(pictures, recipe_of(sampler, **BOTH, **more), rank=rank, processes=2) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sum((part.keys for part in parts), ()) == batch.keys
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
