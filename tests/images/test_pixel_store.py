from __future__ import annotations

import multiprocessing
import os
import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images import pixel_store as pixels_module
from ke_metric.images import preparation
from ke_metric.images.decoding import LOOK_AHEAD
from ke_metric.images.image_set import FolderSource, labelled_set
from ke_metric.images.pixel_store import PixelStore
from ke_metric.images.preparation import Preparation, unit_range

SIZES = ((64, 48), (30, 30), (20, 90), (33, 32), (40, 41))


def write_pictures(folder, sizes=SIZES):
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    keys = [f"{number}.png" for number in range(len(sizes))]
    return labelled_set(keys, [0] * len(keys), {0: "noise"}, FolderSource(folder))


@pytest.fixture
def images(tmp_path):
    return write_pictures(tmp_path)


def resized(image, size, filter_):
    scale = size / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), filter_)


def seen(store, index, *, resize, size):
    """What a scoring shows the network of a picture of the store."""
    how = Preparation(resize=resize, image_size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return how.cut(store.picture(index))


def contents(store):
    return [store.picture(index).copy() for index in range(len(store))]


def test_every_picture_is_the_resized_file(images):
    store = PixelStore.build(images, 32)
    assert len(store) == len(images)
    for index in range(len(images)):
        expected = np.asarray(resized(images.read(index), 32, Image.Resampling.BICUBIC))
        assert np.array_equal(store.picture(index), expected)
        assert min(store.picture(index).shape[:2]) == 32
    assert store.nbytes == sum(picture.nbytes for picture in contents(store))


def test_square_pictures_are_the_files_squashed(images):
    store = PixelStore.build(images, 32, shape="square")
    for index in range(len(images)):
        expected = images.read(index).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.array_equal(store.picture(index), np.asarray(expected))
    assert store.nbytes == 5 * 32 * 32 * 3


def test_a_strip_that_would_explode_is_no_problem_when_it_is_squashed(tmp_path):
    store = PixelStore.build(write_pictures(tmp_path, [(4000, 1)]), 256, shape="square")
    assert store.picture(0).shape == (256, 256, 3)


@pytest.mark.parametrize("resize", [32, 24])
def test_evaluation_sees_the_centre_of_the_square(images, resize):
    store = PixelStore.build(images, 32, shape="square")
    cut = seen(store, 2, resize=resize, size=20)
    square = images.read(2).resize((32, 32), Image.Resampling.BICUBIC)
    if resize != 32:
        square = square.resize((resize, resize), Image.Resampling.BILINEAR)
    edge = (resize - 20) // 2
    assert np.array_equal(cut, np.asarray(square)[edge : edge + 20, edge : edge + 20])


def test_a_picture_is_a_read_only_view(images):
    store = PixelStore.build(images, 32)
    assert np.shares_memory(store.picture(1), store.picture(1))
    with pytest.raises(ValueError, match="read-only"):
        store.picture(1)[0, 0, 0] = 0


def test_progress_counts_every_picture(images):
    seen = []
    PixelStore.build(images, 32, progress=lambda *done: seen.append(done))
    assert seen == [(number, 5) for number in (1, 2, 3, 4, 5)]


def test_a_store_larger_than_the_memory_limit_lies_in_a_file_and_is_the_same(images, monkeypatch):
    in_memory = PixelStore.build(images, 32)
    monkeypatch.setattr(pixels_module, "MEMORY_LIMIT", 4000)
    moved = []
    original = pixels_module._temporary_file
    monkeypatch.setattr(pixels_module, "_temporary_file", lambda content: moved.append(1) or original(content))
    in_file = PixelStore.build(images, 32)
    assert moved == [1]
    assert in_file.nbytes == in_memory.nbytes
    for left, right in zip(contents(in_memory), contents(in_file), strict=True):
        assert np.array_equal(left, right)


def test_a_picture_that_cannot_be_decoded_is_named(images, tmp_path):
    (tmp_path / "2.png").write_bytes(b"no picture")
    with pytest.raises(KeMetricError, match=r"2\.png: cannot be decoded") as caught:
        PixelStore.build(images, 32)
    assert caught.value.exit_code is ExitCode.DATA


def test_a_strip_that_would_explode_is_refused(tmp_path):
    images = write_pictures(tmp_path, [(4000, 1)])
    with pytest.raises(KeMetricError, match=r"0\.png: 4000x1 pixels .* data\.store_size = 256") as caught:
        PixelStore.build(images, 256)
    assert caught.value.exit_code is ExitCode.DATA


@dataclass
class CountingSource:
    """Counts the pictures asked for; every one is grey."""

    asked: list[str] = field(default_factory=list)

    def read(self, key):
        self.asked.append(key)
        return Image.new("RGB", (8, 8), (int(key) % 256,) * 3)


def test_decoding_runs_ahead_by_a_bounded_number_and_stops_on_interruption(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    source = CountingSource()
    images = labelled_set([str(number) for number in range(200)], [0] * 200, {0: "grey"}, source)

    def interrupted(done, _total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PixelStore.build(images, 8, progress=interrupted)
    assert len(source.asked) <= 3 + 2 * LOOK_AHEAD + 1


def test_an_empty_set_gives_an_empty_store():
    empty = labelled_set([], [], {}, CountingSource())
    assert len(PixelStore.build(empty, 32)) == 0


@pytest.mark.parametrize("limit", [0, 10**9])
def test_pickling_sends_no_pixels(images, monkeypatch, limit):
    monkeypatch.setattr(pixels_module, "MEMORY_LIMIT", limit)
    store = PixelStore.build(images, 64)
    assert len(pickle.dumps(store)) < 2000 < store.nbytes
    received = pickle.loads(pickle.dumps(store))
    for left, right in zip(contents(store), contents(received), strict=True):
        assert np.array_equal(left, right)


def _checksum(store, queue):
    queue.put(sum(int(store.picture(index).sum()) for index in range(len(store))))


@pytest.mark.slow
def test_a_spawned_process_reads_the_store(images):
    context = multiprocessing.get_context("spawn")
    store, queue = PixelStore.build(images, 32), context.Queue()
    process = context.Process(target=_checksum, args=(store, queue))
    process.start()
    assert queue.get(timeout=60) == sum(int(picture.sum()) for picture in contents(store))
    process.join()


def test_evaluation_sees_the_central_cut_of_the_resized_picture(images):
    store = PixelStore.build(images, 32)
    for index in (4, 0, 2):
        cut = seen(store, index, resize=24, size=20)
        assert cut.shape == (20, 20, 3)
        whole = resized(Image.fromarray(store.picture(index)), 24, Image.Resampling.BILINEAR)
        left, top = (whole.width - 20) // 2, (whole.height - 20) // 2
        assert np.array_equal(cut, np.asarray(whole)[top : top + 20, left : left + 20])


def test_evaluation_at_the_stored_size_takes_the_stored_pixels(images):
    store = PixelStore.build(images, 32)
    assert np.array_equal(seen(store, 1, resize=32, size=32), store.picture(1))


@pytest.mark.parametrize("at_once", [1, 3, 50])
@pytest.mark.parametrize("channels_last", [True, False])
def test_normalize_is_the_formula_in_the_memory_format_asked_for(channels_last, at_once, monkeypatch):
    monkeypatch.setattr(preparation, "CACHED_NUMBERS", at_once * 8 * 9 * 3)
    pixels = torch.randint(0, 256, (4, 8, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std, device = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), torch.device("cpu")
    how = Preparation(image_size=8, mean=mean, std=std)
    result = how.tensor(pixels.numpy(), device=device, channels_last=channels_last)
    expected = (pixels.numpy() / 255 - np.array(mean)) / np.array(std)
    assert result.dtype == torch.float32
    assert np.allclose(result.permute(0, 2, 3, 1), expected, atol=1e-6)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=memory_format)
    unit = unit_range(pixels, device=device, channels_last=channels_last)
    assert unit.min() >= 0
    assert unit.max() <= 1
    kept = unit.clone()
    assert torch.equal(how.standardize(unit), result)
    assert torch.equal(unit, kept)
    centre, spread = (torch.tensor(each).view(3, 1, 1) for each in (mean, std))
    assert torch.equal(result, (unit - centre) / spread), "to the last bit, whatever the memory format"
    overwritten = how.standardize(unit, in_place=True)
    assert torch.equal(overwritten, result)
    assert overwritten.data_ptr() == unit.data_ptr()
