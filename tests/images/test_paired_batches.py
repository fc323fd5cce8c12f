"""Paired batches: every picture once, each with a partner of its class, whichever process gets them."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.augmentation import Augmenter
from ke_metric.images.batches import TrainingBatches, TrainingEpochs, first_pictures
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.images.samplers import PairedBatches
from ke_metric.recipe.schema import Augmentation, Recipe

ORDER = {"seed": 3, "generation": 2}


@st.composite
def paired(draw):
    """Labels in any order, a number of processes, and a number of pairs that they can share."""
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    processes = draw(st.integers(1, 3))
    counts[0] += max(0, 2 * processes - sum(counts))
    labels = np.repeat(np.arange(0, 3 * len(counts), 3), counts)
    np.random.default_rng(draw(st.integers(0, 3))).shuffle(labels)
    return labels, processes * draw(st.integers(2, 6)), processes


def epoch_of(batches, epoch):
    batches.set_epoch(epoch)
    return [batch.tolist() for batch in batches]


def halves(batch):
    return batch[: len(batch) // 2], batch[len(batch) // 2 :]


def authors_epoch(labels, size, draws):
    """The batches of alinlab/cs-kd (datasets.py, PairBatchSampler), written out with a generator of its own."""
    indices = list(range(len(labels)))
    draws.shuffle(indices)
    epoch = []
    for k in range((len(labels) + size - 1) // size):
        firsts = indices[k * size : (k + 1) * size]
        epoch.append(firsts + [draws.choice([j for j in indices if labels[j] == labels[i]]) for i in firsts])
    return epoch


@settings(deadline=None)
@given(paired())
def test_every_picture_once_and_partners_of_its_class(drawn):
    labels, pairs, _ = drawn
    batches = PairedBatches(labels, pairs=pairs, **ORDER)
    epoch = epoch_of(batches, 1)
    shapes = [len(batch) for batch in authors_epoch(labels, pairs, random.Random(0))]
    # A last batch of one pair is made up to two, which batch norm needs.
    assert [len(batch) for batch in epoch] == [max(4, length) for length in shapes]
    assert len(batches) == len(epoch) == -(-len(labels) // pairs)
    for batch in epoch:
        firsts, partners = halves(batch)
        assert labels[firsts].tolist() == labels[partners].tolist()
        assert len(set(firsts)) == len(firsts)
    firsts = [index for batch in epoch for index in halves(batch)[0]]
    assert sorted(firsts[: len(labels)]) == list(range(len(labels)))
    assert firsts[len(labels) :] == firsts[: len(firsts) - len(labels)]
    assert len(firsts) - len(labels) == (len(labels) % pairs == 1)


@settings(deadline=None)
@given(paired())
def test_processes_share_whole_pairs_of_the_batches_of_one_process(drawn):
    labels, pairs, processes = drawn
    whole = epoch_of(PairedBatches(labels, pairs=pairs, **ORDER), 4)
    shares = [
        epoch_of(PairedBatches(labels, pairs=pairs, **ORDER, rank=rank, processes=processes), 4)
        for rank in range(processes)
    ]
    assert {len(share) for share in shares} == {len(whole)}
    for step, (batch, *parts) in enumerate(zip(whole, *shares, strict=True)):
        assert max(map(len, parts)) - min(map(len, parts)) <= 2
        assert min(map(len, parts)) >= 4
        assert all(labels[halves(part)[0]].tolist() == labels[halves(part)[1]].tolist() for part in parts)
        shared = [[index for part in parts for index in halves(part)[half]] for half in (0, 1)]
        kept = len(halves(batch)[0])
        assert shared[0][:kept] == halves(batch)[0]
        if step < len(whole) - 1 or kept >= 2 * processes:
            assert shared[0] == halves(batch)[0]
        else:  # made up with more pairs, so that all have two
            assert len(shared[0]) == 2 * processes
        # Partners of pairs that are made up are drawn after all others.
        assert shared[1][:kept] == halves(batch)[1]
    firsts = {index for share in shares for batch in share for index in halves(batch)[0]}
    assert firsts == set(range(len(labels)))


def test_partners_are_drawn_evenly_the_picture_itself_included():
    labels = np.repeat([0, 1], [4, 1])
    batches = PairedBatches(labels, pairs=5, **ORDER)
    drawn = Counter()
    for epoch in range(600):
        firsts, partners = halves(epoch_of(batches, epoch)[0])
        drawn.update(zip(firsts, partners, strict=True))
    assert drawn[(4, 4)] == 600
    pairs = [drawn[(i, j)] for i in range(4) for j in range(4)]
    assert sum(pairs) == 2400
    # 150 expected of each, standard deviation 10.6.
    assert 100 < min(pairs) <= max(pairs) < 200


@settings(deadline=None)
@given(paired(), st.integers(0, 50))
def test_an_epoch_is_a_pure_function_of_its_number(drawn, epoch):
    labels, pairs, _ = drawn
    used = PairedBatches(labels, pairs=pairs, **ORDER)
    for other in (2, 0):
        epoch_of(used, other)
    assert epoch_of(used, epoch) == epoch_of(PairedBatches(labels, pairs=pairs, **ORDER), epoch)


def test_epochs_generations_and_seeds_differ():
    labels = np.repeat(np.arange(10), 10)
    orders = [
        epoch_of(PairedBatches(labels, pairs=16, seed=seed, generation=generation), epoch)
        for seed, generation, epoch in ((0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0))
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize(
    ("count", "pairs", "processes", "words"),
    [
        (50, 9, 2, ("size = 9", "2 processes", "multiple of 2 from 4")),
        (3, 8, 2, ("sampler = paired", "2 training images", "has 3")),
    ],
)
def test_impossible_batches_are_refused(count, pairs, processes, words):
    with pytest.raises(KeMetricError) as caught:
        PairedBatches(np.zeros(count, np.int64), pairs=pairs, **ORDER, processes=processes)
    assert caught.value.exit_code is ExitCode.RECIPE
    assert all(word in str(caught.value) for word in words)


# With pictures.

LABELS = np.repeat(np.arange(3), [5, 5, 1])


@pytest.fixture(scope="module")
def store():
    pixels = np.random.default_rng(0).integers(0, 256, 11 * 24 * 24 * 3, dtype=np.uint8)
    return PixelStore(pixels, np.full(11, 24), widths=np.full(11, 24))


def training(store, **process):
    order = PairedBatches(LABELS, pairs=4, **ORDER, **process)
    return TrainingBatches(store, LABELS, batches=order, augmenter=Augmenter(Augmentation(), 16))


def test_a_picture_that_is_its_own_partner_is_augmented_anew(store):
    own = 0
    for batch in training(store).epoch(1):
        for index, partner, picture, other in zip(
            *halves(batch.indices.tolist()), *halves(batch.pixels), strict=True
        ):
            if index == partner:
                own += 1
                assert not torch.equal(picture, other)
    assert own >= 1  # the class with a single picture


def test_the_number_of_processes_does_not_change_an_augmented_picture(store):
    one = list(training(store).epoch(1))
    two = [list(training(store, rank=rank, processes=2).epoch(1)) for rank in (0, 1)]
    # The last batch of 3 pairs is made up to 4 where two processes share it.
    for whole, *parts in list(zip(one, *two, strict=True))[:-1]:
        for tensor, *shared in zip(whole, *parts, strict=True):
            joined = torch.cat([halves(part)[half] for half in (0, 1) for part in shared])
            assert torch.equal(joined, tensor)


class Grey:
    """Pictures in one grey, that of their key."""

    def read(self, key):
        return Image.new("RGB", (24, 24), (int(Path(key).name),) * 3)


def test_keys_of_a_batch_and_the_first_batch_alone():
    images = ImageSet(tuple(f"grey/{10 * number}" for number in range(11)), LABELS, ("a", "b", "c"), Grey())
    benchmark = Benchmark("grey", images, images, images)
    recipe = Recipe.model_validate(
        {
            "name": "grey",
            "data": {"image_size": 16, "store_size": 24},
            "batches": {"sampler": "paired", "size": 4},
            "evaluation": {"resize": 24},
        }
    )
    labels = dict(zip(images.keys, LABELS.tolist(), strict=True))
    small, count = first_pictures(benchmark, recipe)
    assert count == 3
    for pictures in (Pictures.decode(benchmark, 24), small):
        epochs = TrainingEpochs(pictures, recipe, generation=1, device=torch.device("cpu"))
        batches = list(epochs.epoch(1))
        assert len(batches) == len(epochs)
        assert len(batches[0].keys) == len(batches[0].images) == 8
        for batch in batches:
            assert len(batch.keys) == len(batch.labels) == len(batch.images)
            assert batch.labels.tolist() == [labels[key] for key in batch.keys]
            firsts, partners = halves(batch.labels)
            assert torch.equal(firsts, partners)
