"""Which pictures share a batch: balanced sequences and classes, shuffled batches, pairs."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.samplers import ClassBalancedBatches, ShuffledBatches, balanced_sequence


@st.composite
def requests(draw):
    items = draw(st.integers(1, 12))
    return {
        "items": np.arange(items) * 7 + 3,
        "length": draw(st.integers(0, 60)),
        "start": draw(st.integers(0, 100)),
        "group": draw(st.integers(1, items)),
        "generator": np.random.default_rng(draw(st.integers(0, 5))),
    }


@settings(deadline=None)
@given(requests())
def test_counts_differ_by_one_at_most_and_the_turn_decides_who_gets_one_more(request_):
    items, length = request_["items"], request_["length"]
    counts = Counter(balanced_sequence(**request_).tolist())
    assert sum(counts.values()) == length
    passes, extra = divmod(length, len(items))
    once_more = {int(items[(request_["start"] + turn) % len(items)]) for turn in range(extra)}
    assert counts == Counter({int(i): passes + (int(i) in once_more) for i in items if passes or int(i) in once_more})


@settings(deadline=None)
@given(requests())
def test_a_group_never_repeats_an_item(request_):
    sequence, group = balanced_sequence(**request_).tolist(), request_["group"]
    for first in range(0, len(sequence), group):
        part = sequence[first : first + group]
        assert len(set(part)) == len(part)


def test_every_order_of_a_pass_occurs():
    items, generator = np.arange(3), np.random.default_rng(0)
    drawn = [tuple(balanced_sequence(items, 3, start=0, group=3, generator=generator)) for _ in range(600)]
    counts = Counter(drawn)
    assert len(counts) == 6
    assert min(counts.values()) > 60


def as_it_was(items, length, start, group, generator):
    """The rule of commit 059f433, whose draws stored lineages go on with."""
    passes, extra = divmod(length, len(items))
    sequence = [generator.permutation(items.take(np.arange(start, start + extra), mode="wrap"))]
    for done in range(passes):
        begun = (extra + done * len(items)) % group
        shuffled = generator.permutation(items)
        if begun:
            repeats = np.isin(shuffled, sequence[-1][len(sequence[-1]) - begun :])
            head, tail = np.split(shuffled[~repeats], [group - begun])
            shuffled = np.concatenate([head, generator.permutation(np.concatenate([tail, shuffled[repeats]]))])
        sequence.append(shuffled)
    return np.concatenate(sequence)


@settings(deadline=None)
@given(requests())
def test_the_draws_are_those_that_they_always_were(request_):
    before = as_it_was(**request_ | {"generator": np.random.default_rng(9)})
    generator = np.random.default_rng(9)
    assert np.array_equal(balanced_sequence(**request_ | {"generator": generator}), before)
    as_it_was(**request_ | {"generator": (twin := np.random.default_rng(9))})
    assert generator.random() == twin.random()


ORDER = {"seed": 3, "generation": 2}


@st.composite
def class_balanced(draw):
    """Labels in any order, and a P, M and number of processes that go with them."""
    counts = draw(st.lists(st.integers(1, 9), min_size=2, max_size=9))
    processes = draw(st.integers(1, min(3, len(counts))))
    classes = processes * draw(st.integers(1, len(counts) // processes))
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(draw(st.integers(0, 3))).shuffle(labels)
    images = draw(st.integers(1, 5))
    return labels, {"classes_per_batch": classes, "images_per_class": images, **ORDER}, processes


def epoch_of(batches, epoch):
    batches.set_epoch(epoch)
    return [batch.tolist() for batch in batches]


def spread(counts):
    return max(counts) - min(counts)


@settings(deadline=None)
@given(class_balanced())
def test_every_batch_has_p_different_classes_and_m_images_of_each(drawn):
    labels, shape, _ = drawn
    batches = ClassBalancedBatches(labels, **shape)
    epoch = epoch_of(batches, 1)
    assert len(epoch) == len(batches) == max(1, len(labels) // batches.batch_size)
    sizes = Counter(labels.tolist())
    for batch in epoch:
        assert len(batch) == batches.batch_size
        classes = Counter(labels[batch].tolist())
        assert len(classes) == shape["classes_per_batch"]
        assert set(classes.values()) == {shape["images_per_class"]}
        for label in classes:
            images = {index for index in batch if labels[index] == label}
            if sizes[label] >= shape["images_per_class"]:
                assert len(images) == shape["images_per_class"]
    assert batches.small_classes == sum(size < shape["images_per_class"] for size in sizes.values())


@settings(max_examples=50, deadline=None)
@given(class_balanced())
def test_classes_and_images_are_used_equally_often_in_an_epoch_and_over_epochs(drawn):
    labels, shape, _ = drawn
    batches = ClassBalancedBatches(labels, **shape)
    totals = np.zeros(len(labels), int)
    for epoch in range(5):
        images = np.bincount(np.concatenate(epoch_of(batches, epoch)), minlength=len(labels))
        totals += images
        for counts in (images, totals):
            per_class = [counts[labels == label] for label in np.unique(labels)]
            assert spread([class_counts.sum() // shape["images_per_class"] for class_counts in per_class]) <= 1
            assert max(spread(class_counts) for class_counts in per_class) <= 1


@settings(deadline=None)
@given(class_balanced())
def test_processes_share_the_batches_of_one_process(drawn):
    labels, shape, processes = drawn
    whole = epoch_of(ClassBalancedBatches(labels, **shape), 4)
    shares = [
        epoch_of(ClassBalancedBatches(labels, **shape, rank=rank, processes=processes), 4)
        for rank in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [index for part in parts for index in part] == batch
        classes = [set(labels[part].tolist()) for part in parts]
        assert sum(map(len, classes)) == len(set().union(*classes))


@settings(deadline=None)
@given(class_balanced(), st.integers(0, 50))
def test_an_epoch_is_a_pure_function_of_its_number(drawn, epoch):
    labels, shape, _ = drawn
    used = ClassBalancedBatches(labels, **shape)
    for other in (2, 0):
        epoch_of(used, other)
    assert epoch_of(used, epoch) == epoch_of(ClassBalancedBatches(labels, **shape), epoch)


def test_epochs_generations_and_seeds_differ():
    labels = np.repeat(np.arange(10), 10)
    shape = {"classes_per_batch": 4, "images_per_class": 4}
    orders = [
        epoch_of(ClassBalancedBatches(labels, **shape, seed=seed, generation=generation), epoch)
        for seed, generation, epoch in ((0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0))
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize(
    ("classes", "processes", "words"),
    [(6, 1, ("asks for 6 classes", "has 5", "24")), (4, 3, ("4 classes", "3 processes", "multiple of 12"))],
)
def test_impossible_class_balanced_batches_are_refused(classes, processes, words):
    labels = np.repeat(np.arange(5), 4)
    with pytest.raises(KeMetricError) as caught:
        ClassBalancedBatches(labels, classes_per_batch=classes, images_per_class=4, **ORDER, processes=processes)
    assert caught.value.exit_code is ExitCode.RECIPE
    assert all(word in str(caught.value) for word in words)


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(2, 20))
def test_shuffled_takes_every_picture_once_and_drops_only_a_last_single_one(count, size):
    batches = ShuffledBatches(count, batch_size=size, **ORDER)
    epoch = epoch_of(batches, 1)
    assert len(epoch) == len(batches)
    assert all(len(batch) == size for batch in epoch[:-1])
    seen = sorted(index for batch in epoch for index in batch)
    if count % size == 1:
        assert len(seen) == len(set(seen)) == count - 1
    else:
        assert seen == list(range(count))
    assert epoch == epoch_of(ShuffledBatches(count, batch_size=size, **ORDER), 1)
    assert count < 10 or epoch != epoch_of(batches, 2)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 40))
def test_shuffled_processes_share_the_batches_of_one_process(processes, share, more):
    count, size = 2 * processes + more, share * processes
    whole = epoch_of(ShuffledBatches(count, batch_size=size, **ORDER), 0)
    shares = [
        epoch_of(ShuffledBatches(count, batch_size=size, **ORDER, rank=rank, processes=processes), 0)
        for rank in range(processes)
    ]
    if 0 < len(whole[-1]) < 2 * processes:
        del whole[-1]
    assert [[index for part in parts for index in part] for parts in zip(*shares, strict=True)] == whole
    for parts in zip(*shares, strict=True):
        assert min(map(len, parts)) >= 2
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("count", "size", "processes", "words"),
    [
        (50, 9, 2, ("size = 9", "2 processes", "multiple of 2 from 4")),
        (50, 3, 3, ("size = 3", "3 processes", "from 6")),
        (3, 8, 2, ("2 training images", "has 3")),
    ],
)
def test_impossible_shuffled_batches_are_refused(count, size, processes, words):
    with pytest.raises(KeMetricError) as caught:
        ShuffledBatches(count, batch_size=size, **ORDER, processes=processes)
    assert caught.value.exit_code is ExitCode.RECIPE
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("counts", [[1, 2, 3, 4, 9], [4, 4, 5]])
def test_pictures_that_are_paired_with_themselves_are_counted(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    batches = ClassBalancedBatches(labels, classes_per_batch=3, images_per_class=4, **ORDER)
    expected = pairs = 0
    for batch in epoch_of(batches, 0):
        for first in range(len(batch)):
            for second in range(first):
                if labels[batch[first]] == labels[batch[second]]:
                    pairs += 1
                    expected += batch[first] == batch[second]
    assert batches.self_pairs() == (expected, pairs)
    assert (expected > 0) == (min(counts) < 4)


@pytest.mark.parametrize(
    ("counts", "classes", "images", "digest"),
    [
        ((1, 2, 3, 4, 9), 3, 4, "b69a986b2f17f60e"),
        ((7,) * 12, 4, 3, "d65c5b13e558fff8"),
        ((5, 8, 13, 2, 2, 1, 40), 2, 6, "a446ccf5770dd19b"),
        ((1,) * 30, 5, 2, "137383787002e086"),
        (tuple(range(1, 40)), 8, 4, "f91d2f1e2165c1f0"),
    ],
)
def test_the_batches_of_a_seed_are_those_of_commit_059f433(counts, classes, images, digest):
    """A lineage that was begun then goes on with the batches that it would have had."""
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(1).shuffle(labels)
    batches = ClassBalancedBatches(labels, classes_per_batch=classes, images_per_class=images, **ORDER)
    found = hashlib.sha256()
    for epoch in range(3):
        batches.set_epoch(epoch)
        for batch in batches:
            found.update(np.ascontiguousarray(batch, np.int64).tobytes())
    assert found.hexdigest()[:16] == digest
