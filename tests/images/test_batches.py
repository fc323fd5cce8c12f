import ctypes
import faulthandler
import mmap
import multiprocessing
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch

from ke_metric.images.augmentation import COLOUR_DRAWS, Augmenter, crop_box
from ke_metric.images.batch_augmentation import BatchAugmenter
from ke_metric.images.batches import TrainingBatches, one_ahead
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


def test_one_item_is_made_ahead_and_no_more():
    made = []
    items = one_ahead(made.append(number) or number for number in range(6))
    assert next(items) == 0
    wait_until(lambda: len(made) == 2)
    time.sleep(0.05)
    assert made == [0, 1]
    assert list(items) == [1, 2, 3, 4, 5]


def test_what_making_an_item_raises_is_raised_where_it_is_due():
    def failing():
        yield 1
        yield 2
        raise ValueError("no third")

    items = one_ahead(failing())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="no third"):
        next(items)
    assert not ahead_threads()


@pytest.mark.parametrize("end", ["close", "drop", "raise"])
def test_no_thread_is_left_behind(end):
    items = one_ahead(iter(range(10)))
    next(items)
    assert len(ahead_threads()) == 1
    if end == "close":
        items.close()
    elif end == "raise":
        with pytest.raises(RuntimeError):
            items.throw(RuntimeError("of the training"))
    del items
    assert not ahead_threads()


def ahead_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("one-ahead")]


def wait_until(happened):
    end = time.monotonic() + 10
    while not happened() and time.monotonic() < end:
        time.sleep(0.001)
    assert happened()


ROW = mmap.PAGESIZE


def _crop_with_rows_out_of_reach(top, height):
    """Augment a picture of which only so many rows may be read: any other ends the process."""
    faulthandler.disable()
    rows = 64
    memory = mmap.mmap(-1, rows * ROW)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for first, count in ((0, top), (top + height, rows - top - height)):
        if count:
            assert protect(ctypes.c_void_p(start + first * ROW), ctypes.c_size_t(count * ROW), 0) == 0
    picture = np.frombuffer(memory, np.uint8).reshape(rows, ROW)[:, :600].reshape(rows, 200, 3)
    augmentation, draws = Augmentation(scale=(0.1, 0.2)), np.full(AUGMENTER.geometry_draws, 0.5)
    Augmenter(augmentation, 16)(picture, draws)
    BatchAugmenter(augmentation, 16).cuts([picture], draws[None])


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_a_crop_reads_only_its_rows():
    """Of a store that is mapped from a file, the others need not be in memory."""
    shape = (64, 200, 3)
    top, _, height, _ = crop_box(shape, np.full(AUGMENTER.geometry_draws, 0.5), Augmentation(scale=(0.1, 0.2)))
    assert height < 64
    codes = []
    for less in (0, 1):
        process = multiprocessing.get_context("fork").Process(
            target=_crop_with_rows_out_of_reach, args=(top, height - less)
        )
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes == [0, -signal.SIGSEGV]
