"""Which pictures share a batch: as many of each of some classes, every picture once, or pictures with a partner.

The order of an epoch is a pure function of (seed, generation, epoch). Every process works out the whole order and
takes its share of every batch, so that the number of processes changes who does the work and not what is done.
Shapes: N pictures, C classes, P classes in a batch, M images of each, B images of this process in a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NotRequired, TypedDict, Unpack

import numpy as np

from ke_metric.arrays import IntArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import NO_ITEMS
from ke_metric.randomness import numpy_generator


class BatchOwner(TypedDict):
    """Whose batches they are: lineage, generation, and process number `rank` of those that share every batch.

    Where they are `mixed`, every picture is with a partner.
    """

    seed: int
    generation: int
    rank: NotRequired[int]
    processes: NotRequired[int]
    mixed: NotRequired[bool]


class IndexBatches(ABC):
    """The batches of an epoch as arrays of picture numbers.

    Args:
        batch_size: Images in a batch, over all processes.
        parts: Every batch is this many parts of one length, one after another; a process takes its share of each, and
            shares differ by one at most.
        owner: Seed, generation, process.

    Attributes:
        partner_distance: How many places before a picture its partner stands, where pictures are mixed in pairs.
    """

    partner_distance = 1

    def __init__(self, batch_size: int, parts: int, owner: BatchOwner) -> None:
        self.batch_size, self.parts = batch_size, parts
        self.seed, self.generation = owner["seed"], owner["generation"]
        self.rank, self.processes = owner.get("rank", 0), owner.get("processes", 1)
        self._is_mixed, self._epoch = owner.get("mixed", False), 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that is iterated next."""
        self._epoch = epoch

    @abstractmethod
    def __len__(self) -> int:
        """Batches in an epoch, the same number in every process."""

    @abstractmethod
    def whole(self) -> Iterator[IntArray]:
        """Yield the picture numbers of each batch, over all processes."""

    def __iter__(self) -> Iterator[IntArray]:
        """Yield the picture numbers of this process's share of each batch, [B]."""
        for batch in self.whole():
            yield batch[self.share(len(batch))]

    def _generator(self) -> np.random.Generator:
        return numpy_generator(self.seed, self.generation, f"batches-{self._epoch}")

    def share(self, count: int) -> IntArray:
        """Return which places of a batch of `count` pictures are this process's, [B]."""
        length = count // self.parts
        each, more = divmod(length, self.processes)
        start = self.rank * each + min(self.rank, more)
        own = np.arange(start, start + each + (self.rank < more))
        return (np.arange(self.parts)[:, None] * length + own).ravel()

    def share_with_partners(self, count: int) -> tuple[IntArray, IntArray]:
        """Return what this process needs of a batch of `count` pictures.

        Where they are mixed in pairs, the partner of a picture stands some places before it, and before the first
        ones come the last: the pairs are the same ones however many processes share the batch, and a process needs
        few pictures beside its own.

        Returns:
            Places in the batch [N]: those of `share`, then others whose pictures are partners only; and where among
            these N the partner of each of the first B is, nothing where they are not mixed.
        """
        own = self.share(count)
        if not self._is_mixed:
            return own, NO_ITEMS
        partners = (own - self.partner_distance) % count
        places = np.concatenate([own, np.setdiff1d(partners, own)])
        rows = np.empty(count, np.int64)
        rows[places] = np.arange(len(places))
        return places, rows[partners]


class ClassBalancedBatches(IndexBatches):
    """P different classes in every batch and M images of each; about N images in an epoch.

    Within an epoch the classes' counts differ by at most one, and so do those of the images of one class; the ones
    used once more take turns, so that over the epochs the counts stay as close. The images of a class in a batch
    are different, unless the class has fewer than M: then its images repeat.

    Args:
        labels: [N] class numbers.
        classes_per_batch: P, over all processes, each of which takes P / processes classes.
        images_per_class: M.
        owner: Seed, generation, process.

    Attributes:
        small_classes: How many classes have fewer than M images.

    Raises:
        KeMetricError: There are fewer than P classes, or the processes cannot share P evenly (RECIPE).
    """

    def __init__(
        self, labels: IntArray, *, classes_per_batch: int, images_per_class: int, **owner: Unpack[BatchOwner]
    ) -> None:
        super().__init__(classes_per_batch * images_per_class, 1, owner)
        _, counts = np.unique(labels, return_counts=True)
        _check_classes(len(counts), classes_per_batch, images_per_class, self.processes)
        self.small_classes = int(np.sum(counts < images_per_class))
        self._classes, self._images = classes_per_batch, images_per_class
        # Images of a class stand together; a partner is of the class before, if there is another one.
        self.partner_distance = images_per_class if classes_per_batch > 1 else 1
        self._length = max(1, len(labels) // self.batch_size)
        # Fixed orders in which classes, and the images of a class, take turns at being used once more.
        generator = numpy_generator(self.seed, self.generation, "batches-turns")
        self._class_order = generator.permutation(len(counts))
        # The pictures sorted by class: those of a class end where the next one's begin.
        self._sizes, self._ends = counts, np.cumsum(counts)
        self._sorted = np.argsort(labels, kind="stable")
        for size, end in zip(counts.tolist(), self._ends.tolist(), strict=True):
            generator.shuffle(self._sorted[end - size : end])

    def __len__(self) -> int:
        return self._length

    def whole(self) -> Iterator[IntArray]:
        """Yield the picture numbers of each batch, over all processes."""
        generator = self._generator()
        slots = self._length * self._classes
        start = self._epoch * (slots % len(self._class_order))
        classes = balanced_sequence(self._class_order, slots, start=start, group=self._classes, generator=generator)
        # Those used once more come first in the sequence; in the epoch they come anywhere.
        classes = generator.permutation(classes.reshape(self._length, self._classes))
        images = self._images_of(classes.ravel(), generator)
        yield from images.reshape(self._length, self.batch_size)

    def self_pairs(self) -> tuple[int, int]:
        """Return how many positive pairs of the next epoch are a picture and itself, and how many there are."""
        groups = np.concatenate(list(self)).reshape(-1, self._images)
        # Every picture is equal to itself, and every pair is counted from both sides.
        equal = (groups[:, :, None] == groups[:, None, :]).sum() - groups.size
        return int(equal) // 2, len(groups) * self._images * (self._images - 1) // 2

    def _images_of(self, classes: IntArray, generator: np.random.Generator) -> IntArray:
        """Return [len(classes), M] picture numbers, those of each class cycled through."""
        slots = np.bincount(classes, minlength=len(self._sizes))
        drawn = np.empty(len(classes) * self._images, np.int64)
        used = np.flatnonzero(slots)
        facts = (self._sizes, self._ends, slots * self._images, self._turns(len(classes)))
        begin = 0
        for size, end, length, start in zip(*(fact[used].tolist() for fact in facts), strict=True):
            _fill_balanced(
                drawn[begin : begin + length],
                self._sorted[end - size : end],
                start=start,
                # A class with fewer than M images cannot give M different ones.
                group=self._images if size >= self._images else 1,
                generator=generator,
            )
            begin += length
        images = np.empty((len(classes), self._images), np.int64)
        images[np.argsort(classes, kind="stable")] = drawn.reshape(-1, self._images)
        return images

    def _turns(self, slots: int) -> IntArray:
        """Return for each class how many of its images were used once more than others in the epochs before."""
        passes, extra = divmod(slots, len(self._class_order))
        rounds, rest = divmod(self._epoch * extra, len(self._class_order))
        once_more = np.empty(len(self._class_order), np.int64)
        once_more[self._class_order] = rounds + (np.arange(len(self._class_order)) < rest)
        in_fewer, in_more = passes * self._images % self._sizes, (passes + 1) * self._images % self._sizes
        turns: IntArray = (self._epoch - once_more) * in_fewer + once_more * in_more
        return turns


def _check_classes(classes: int, classes_per_batch: int, images_per_class: int, processes: int) -> None:
    asked = (
        f"batches.size = {classes_per_batch * images_per_class} with batches.images_per_class = {images_per_class}"
    )
    if classes < classes_per_batch:
        raise KeMetricError(
            f"{asked} asks for {classes_per_batch} classes in a batch, the training part has {classes}; allowed is "
            f"batches.size = {classes * images_per_class} or less",
            ExitCode.RECIPE,
        )
    if classes_per_batch % processes:
        raise KeMetricError(
            f"{asked} gives {classes_per_batch} classes in a batch, which {processes} processes cannot share evenly; "
            f"allowed is a multiple of {processes * images_per_class}",
            ExitCode.RECIPE,
        )


def balanced_sequence(
    items: IntArray, length: int, *, start: int, group: int, generator: np.random.Generator
) -> IntArray:
    """Return `length` of the items, each equally often (counts differ by at most one), in random order.

    Args:
        items: Different numbers.
        length: How many to return.
        start: The items used once more are those from this position on, cyclically, so that they can take turns.
        group: Each consecutive group of so many is made of different ones; at most the number of items.
        generator: Draws the order.
    """
    sequence = np.empty(length, np.int64)
    _fill_balanced(sequence, items, start=start, group=group, generator=generator)
    return sequence


def _fill_balanced(
    sequence: IntArray, items: IntArray, *, start: int, group: int, generator: np.random.Generator
) -> None:
    """Fill an array as `balanced_sequence` does: in place, since an epoch over 200,000 classes does it for each."""
    count = len(items)
    passes, done = divmod(len(sequence), count)
    if done:
        start %= count
        before_the_end = min(done, count - start)
        sequence[:before_the_end] = items[start : start + before_the_end]
        sequence[before_the_end:done] = items[: done - before_the_end]
        generator.shuffle(sequence[:done])
    for _ in range(passes):
        following = sequence[done : done + count]
        following[:] = items
        generator.shuffle(following)
        if begun := done % group:
            _complete(following, sequence[done - begun : done], group, generator)
        done += count


def _complete(shuffled: IntArray, begun: IntArray, group: int, generator: np.random.Generator) -> None:
    """Reorder shuffled items so that the first ones complete the group that was begun without repeating any of it."""
    # Lists: most classes have a handful of images, for which NumPy's sets take many times longer.
    used, found = set(begun.tolist()), shuffled.tolist()
    fresh, missing = [item for item in found if item not in used], group - len(begun)
    shuffled[:missing] = fresh[:missing]
    shuffled[missing:] = fresh[missing:] + [item for item in found if item in used]
    generator.shuffle(shuffled[missing:])


class ShuffledBatches(IndexBatches):
    """Every picture once in an epoch, in random order.

    The last batch is smaller, unless a process would get fewer than 2 images of it (batch norm needs 2): then it
    is left out.

    Args:
        count: N.
        batch_size: Images in a batch, over all processes, each of which takes batch_size / processes images.
        owner: Seed, generation, process.

    Raises:
        KeMetricError: The processes cannot share a batch evenly, or there is no batch of 2 images (RECIPE).
    """

    def __init__(self, count: int, *, batch_size: int, **owner: Unpack[BatchOwner]) -> None:
        super().__init__(batch_size, 1, owner)
        _check_images(count, batch_size, "shuffled", self.processes)
        self._count = count

    def __len__(self) -> int:
        full, last = divmod(self._count, self.batch_size)
        return full + (last >= 2 * self.processes)

    def whole(self) -> Iterator[IntArray]:
        """Yield the picture numbers of each batch, over all processes."""
        order = self._generator().permutation(self._count)
        for step in range(len(self)):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]


class PairedBatches(IndexBatches):
    """Every picture once in an epoch, in random order, and beside it a partner of its class drawn at random.

    A batch is [i_1, ..., i_n, j_1, ..., j_n] with j_k drawn uniformly from the class of i_k, i_k itself included: the
    same picture twice, then, but augmented anew. For losses that compare two pictures of a class (Yun et al., CS-KD,
    CVPR 2020). There are ceil(N / size) batches in an epoch. The last one has fewer pairs, made up with the first
    pictures of the epoch where a process would get fewer than 2 (batch norm needs 2).

    Args:
        labels: [N] class numbers.
        pairs: Pairs in a batch, over all processes; twice as many images. Each process takes pairs / processes whole
            pairs, its share of the pictures followed by their partners.
        owner: Seed, generation, process.

    Raises:
        KeMetricError: The processes cannot share a batch evenly, or there are too few images (RECIPE).
    """

    def __init__(self, labels: IntArray, *, pairs: int, **owner: Unpack[BatchOwner]) -> None:
        super().__init__(2 * pairs, 2, owner)
        _check_images(len(labels), pairs, "paired", self.processes)
        self._pairs = pairs
        # The pictures sorted by class: those of a class lie from its start on, as many as it has.
        _, self._class_of, self._counts = np.unique(labels, return_inverse=True, return_counts=True)
        self._sorted = np.argsort(labels, kind="stable")
        self._starts = np.cumsum(self._counts) - self._counts

    def __len__(self) -> int:
        return (len(self._sorted) + self._pairs - 1) // self._pairs

    def whole(self) -> Iterator[IntArray]:
        """Yield the picture numbers of each batch, over all processes."""
        generator = self._generator()
        order = generator.permutation(len(self._sorted))
        full, last = divmod(len(order), self._pairs)
        if last:
            last = max(2 * self.processes, last)
        first = np.resize(order, full * self._pairs + last)
        classes = self._class_of[first]
        partners = self._sorted[self._starts[classes] + generator.integers(0, self._counts[classes])]
        for start in range(0, len(first), self._pairs):
            batch = slice(start, start + self._pairs)
            yield np.concatenate([first[batch], partners[batch]])


def _check_images(count: int, batch_size: int, sampler: str, processes: int) -> None:
    if batch_size % processes or batch_size < 2 * processes:
        raise KeMetricError(
            f"batches.size = {batch_size} cannot be shared evenly by {processes} processes with 2 images or more "
            f"for each; allowed is a multiple of {processes} from {2 * processes} on",
            ExitCode.RECIPE,
        )
    if count < 2 * processes:
        raise KeMetricError(
            f"batches.sampler = {sampler} needs 2 training images or more for each of the {processes} processes; "
            f"the training part has {count}",
            ExitCode.RECIPE,
        )
