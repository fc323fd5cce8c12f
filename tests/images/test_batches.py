import numpy as np
import pytest
import torch

from ke_metric.images.batches import COLOUR_DRAWS, Augmenter, TrainingBatches
from ke_metric.images.pixel_store import PixelStore
from ke_metric.images.samplers import ClassBalancedBatches
from ke_metric.randomness import numpy_generator
from ke_metric.recipe.schema import Augmentation

ORDER = {"seed": 3, "generation": 2}


@pytest.fixture(scope="module")
def store():
    generator = np.random.default_rng(0)
    heights, widths = generator.integers(20, 40, 60), generator.integers(20, 40, 60)
    pixels = generator.integers(0, 256, int((heights * widths * 3).sum()), dtype=np.uint8)
    return PixelStore(pixels, heights, widths=widths)


LABELS = np.repeat(np.arange(6), 10)
AUGMENTER = Augmenter(Augmentation(), 16)


def training(store, *, workers=0, **process):
    order = ClassBalancedBatches(LABELS, classes_per_batch=4, images_per_class=3, **ORDER, **process)
    return TrainingBatches(store, LABELS, batches=order, augmenter=AUGMENTER, workers=workers)


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_batch_holds_each_picture_augmented_by_the_draws_of_its_place(store):
    draws = numpy_generator(3, 2, "augmentation-1").random((60, AUGMENTER.geometry_draws + COLOUR_DRAWS))
    batches = list(training(store).epoch(1))
    assert len(batches) == len(training(store)) == 5
    for step, batch in enumerate(batches):
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels.shape == (12, 16, 16, 3)
        assert batch.labels.tolist() == LABELS[batch.indices].tolist()
        for slot, index in enumerate(batch.indices.tolist()):
            row = draws[12 * step + slot]
            expected = AUGMENTER(store.picture(index), row[: AUGMENTER.geometry_draws])
            assert np.array_equal(batch.pixels[slot], expected)
            assert np.allclose(batch.colour_draws[slot], row[AUGMENTER.geometry_draws :])


def test_workers_and_interruptions_change_nothing(store):
    expected = [list(training(store).epoch(epoch)) for epoch in (0, 1)]
    before = torch.get_rng_state()
    with_workers = training(store, workers=2)
    next(iter(with_workers.epoch(1)))
    for epoch in (0, 1):
        batches = list(with_workers.epoch(epoch))
        assert all(same(*pair) for pair in zip(batches, expected[epoch], strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_that_is_given_up_leaves_no_trace(store):
    batches = training(store)
    given_up = batches.epoch(0)
    next(given_up)
    given_up.close()
    assert all(same(*pair) for pair in zip(batches.epoch(1), training(store).epoch(1), strict=True))


def test_processes_share_the_augmented_batches_of_one_process(store):
    shares = [training(store, rank=rank, processes=2).epoch(1) for rank in (0, 1)]
    for whole, *parts in zip(training(store).epoch(1), *shares, strict=True):
        assert same(whole, [torch.cat(pair) for pair in zip(*parts, strict=True)])
