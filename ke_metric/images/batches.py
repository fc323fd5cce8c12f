"""From decoded pictures to batches: the augmented ones of every epoch of a training, and those that are scored.

A training picture is cut, moved and coloured by its own row of uniform numbers, which depends on the picture's
place in the epoch alone: the batches are the same ones whatever the number of worker processes, and after an
interruption. Shapes: N pictures, B images of this process in a batch, H and W height and width, S image size in
pixels, U numbers per picture, C classes.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ke_metric.arrays import DoubleArray, FloatArray, IntArray, PixelArray
from ke_metric.images.augmentation import COLOUR_DRAWS, Augmenter
from ke_metric.images.batch_augmentation import BatchAugmenter
from ke_metric.images.further_steps import FurtherSteps
from ke_metric.images.image_set import NO_ITEMS, Benchmark, ImageSet
from ke_metric.images.mixing import BatchMixer
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.images.preparation import Preparation, unit_range
from ke_metric.images.samplers import BatchOwner, ClassBalancedBatches, IndexBatches, PairedBatches, ShuffledBatches
from ke_metric.randomness import numpy_generator
from ke_metric.recipe.schema import Recipe

Item = TypeVar("Item")


class Batch(NamedTuple):
    """The augmented pictures of one step.

    Attributes:
        indices: int64 [B] picture numbers.
        pixels: uint8 [B, S, S, 3], or the cuts of `BatchAugmenter.cuts`.
        labels: int64 [B] class numbers.
        colour_draws: float32 [B, COLOUR_DRAWS] uniform in [0, 1], for `Augmenter.colour` on the device.
        cut_facts: What `BatchAugmenter` needs beside the cuts; float32 [B, 0] where the pictures are augmented.
        further_draws: float64 [B, F] uniform in [0, 1), for `FurtherSteps`; F is 0 where a recipe has none.
        partners: Where pictures are mixed, int64: which of the pictures is mixed into each. There are more pictures
            than partners then if some are partners only. [0] where none are mixed.
    """

    indices: Tensor
    pixels: Tensor
    labels: Tensor
    colour_draws: Tensor
    cut_facts: Tensor
    further_draws: Tensor
    partners: Tensor


class _Request(NamedTuple):
    """What a worker process is told: picture numbers [B], draws [B, U + COLOUR_DRAWS + F], and `Batch.partners`."""

    indices: IntArray
    draws: DoubleArray
    partners: IntArray


@dataclass(frozen=True)
class _AugmentedDataset(Dataset[Batch]):
    """Makes the batch of a request; the data set of torch's DataLoader, in this process or in a worker."""

    store: PixelStore
    labels: IntArray
    augmenter: Augmenter
    for_device: BatchAugmenter | None
    further: FurtherSteps | None

    def __getitem__(self, request: _Request) -> Batch:
        columns = self.augmenter.geometry_draws
        geometry, colours, further = np.split(request.draws, (columns, columns + COLOUR_DRAWS), axis=1)
        pictures = [self.store.picture(index) for index in request.indices.tolist()]
        pixels, facts = self._pixels(pictures, geometry, further)
        return Batch(
            indices=torch.from_numpy(request.indices.copy()),
            pixels=torch.from_numpy(pixels),
            labels=torch.from_numpy(self.labels[request.indices]),
            colour_draws=torch.from_numpy(colours.astype(np.float32)),
            cut_facts=torch.from_numpy(facts),
            further_draws=torch.from_numpy(further.copy()),
            partners=torch.from_numpy(request.partners),
        )

    def _pixels(
        self, pictures: Sequence[PixelArray], draws: DoubleArray, further: DoubleArray
    ) -> tuple[PixelArray, FloatArray]:
        if self.for_device is not None:
            return self.for_device.cuts(pictures, draws)
        size = self.augmenter.size
        pixels = np.empty((len(pictures), size, size, 3), np.uint8)
        for place, picture, row in zip(pixels, pictures, draws, strict=True):
            place[:] = self.augmenter(picture, row)
        if self.further is not None:
            self.further.pixels(pixels, further)
        return pixels, np.empty((len(pictures), 0), np.float32)


class TrainingBatches:
    """The augmented batches of every epoch.

    Args:
        store: N decoded pictures.
        labels: [N] class numbers.
        batches: Which pictures share a batch; its seed and generation also give the augmentation's draws.
        augmenter: What happens to a picture.
        for_device: Cuts out what the device needs, in place of what `augmenter` does to the geometry.
        further: What else happens; its policy here, unless the device cuts.
        workers: Processes that augment ahead, kept over the epochs; 0: none.
    """

    def __init__(
        self,
        store: PixelStore,
        labels: IntArray,
        *,
        batches: IndexBatches,
        augmenter: Augmenter,
        for_device: BatchAugmenter | None = None,
        further: FurtherSteps | None = None,
        workers: int = 0,
    ) -> None:
        assert len(store) == len(labels), (len(store), len(labels))
        self._batches = batches
        self._columns = {"augmentation": augmenter.geometry_draws + COLOUR_DRAWS}
        if further is not None:
            self._columns |= further.columns
        self._dataset = _AugmentedDataset(store, labels, augmenter, for_device, further)
        self._requests: list[_Request] = []
        self._loader = self._started(workers) if workers else None

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch, counted from 0."""
        self._batches.set_epoch(epoch)
        if self._loader is None:
            yield from map(self._dataset.__getitem__, self._epoch_requests(epoch))
        else:
            # Filled in place: the DataLoader holds this very list as its sampler.
            self._requests[:] = self._epoch_requests(epoch)
            yield from self._loader

    def _epoch_requests(self, epoch: int) -> Iterator[_Request]:
        """Yield the requests of an epoch; a picture's draws are found by its place among those of all processes."""
        batches = self._batches
        rows = len(batches) * batches.batch_size
        draws = np.hstack(
            [
                numpy_generator(batches.seed, batches.generation, f"{purpose}-{epoch}").random((rows, columns))
                for purpose, columns in self._columns.items()
            ]
        )
        for step, whole in enumerate(batches.whole()):
            places, partners = batches.share_with_partners(len(whole))
            yield _Request(whole[places], draws[step * batches.batch_size + places], partners)

    def _started(self, workers: int) -> DataLoader[Batch]:
        return DataLoader(
            self._dataset,
            sampler=self._requests,
            batch_size=None,
            num_workers=workers,
            persistent_workers=True,
            # Forked workers share the store's memory. Not on macOS, whose system libraries do not survive a fork.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            # Its only use is to seed workers, which draw nothing; without it torch's global stream would move on.
            generator=torch.Generator(),
        )


def one_ahead(items: Iterator[Item]) -> Generator[Item]:
    """Yield items, the next of which a thread makes meanwhile; the thread ends with this generator, however it ends.

    What making one raises is raised where that one is due. Pillow and torch release the interpreter.
    """
    with ThreadPoolExecutor(1, "one-ahead") as thread:
        end = object()
        upcoming = thread.submit(next, items, end)
        while (ready := upcoming.result()) is not end:
            upcoming = thread.submit(next, items, end)
            yield ready  # type: ignore[misc]  # `end` is no item


class DeviceBatch(NamedTuple):
    """One training batch on the device.

    Attributes:
        images: float32 [B, 3, S, S], standardised.
        labels: int64 [B]; or, where pictures are mixed, the share of every class, float32 [B, C].
        keys: The keys of the B items.
    """

    images: Tensor
    labels: Tensor
    keys: tuple[str, ...]


class TrainingEpochs:
    """The training batches of a generation, epoch by epoch, on the device.

    Args:
        pictures: Where they come from.
        recipe: Batches, augmentation, image size.
        generation: Counted from 1; every generation draws other batches.
        device: Where the batches go.
        rank: Number of this process, from 0.
        processes: How many processes share every batch.

    Raises:
        KeMetricError: The recipe's batches cannot be made from these pictures.
    """

    def __init__(
        self,
        pictures: Pictures,
        recipe: Recipe,
        *,
        generation: int,
        device: torch.device,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        images = pictures.benchmark.train
        self._images, self._recipe, self._device = images, recipe, device
        augmentation, size = recipe.augmentation, recipe.data.image_size
        # What a policy changes must be on the processor by then.
        whole, has_policy = augmentation.where == "device", augmentation.policy != "none"
        by_torch = whole and augmentation.geometry == "crop" and (device.type == "cpu" or has_policy)
        self._augmenter = Augmenter(augmentation, size, by_torch=by_torch)
        self._for_device = BatchAugmenter(augmentation, size) if whole and not (by_torch or has_policy) else None
        self._further = FurtherSteps(augmentation, size) if augmentation.has_further_steps else None
        self._changes_colours = self._augmenter.changes_colours or augmentation.changes_colours_further
        self._how = Preparation.of_recipe(recipe)
        self._mixer: BatchMixer | None = None
        if augmentation.mixes:
            self._mixer = BatchMixer(recipe, generation=generation, classes=len(images.class_names))
        self._batches = TrainingBatches(
            pictures.train,
            images.labels,
            batches=_index_batches(
                images, recipe, seed=recipe.seed, generation=generation, rank=rank, processes=processes
            ),
            augmenter=self._augmenter,
            for_device=self._for_device,
            further=self._further,
            workers=recipe.data.workers,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int) -> Iterator[DeviceBatch]:
        """Yield the batches of epoch `number` (from 1), one being made ahead; the same ones whenever it is asked."""
        batches = self._batches.epoch(number - 1)
        if self._recipe.data.workers:
            # They are ahead already, and a worker that a thread of a pool has started ends badly.
            yield from self._on_device(number, batches)
        elif self._device.type == "cuda":
            yield from one_ahead(self._on_device(number, batches))
        else:
            with closing(one_ahead(batches)) as ahead:
                # Not in the thread too: on the CPU, torch's own threads of both would keep each other waiting.
                yield from self._on_device(number, ahead)

    def _on_device(self, epoch: int, batches: Iterator[Batch]) -> Iterator[DeviceBatch]:
        for step, batch in enumerate(batches):
            images, labels = self._standardized(batch), self._moved(batch.labels)
            if self._mixer is not None:
                mix = self._mixer.of_step(epoch, step)
                images, labels = self._mixer(images, labels, self._moved(batch.partners), mix)
            keys = tuple(self._images.keys[index] for index in batch.indices[: len(labels)].tolist())
            yield DeviceBatch(images, labels, keys)

    def _standardized(self, batch: Batch) -> Tensor:
        images = self._coloured(batch)
        if self._further is not None:
            self._further.erase(images, batch.further_draws.numpy())
        return images

    def _coloured(self, batch: Batch) -> Tensor:
        channels_last, pixels = self._recipe.training.channels_last, self._moved(batch.pixels)
        if self._for_device is None and not self._changes_colours:
            return self._how.tensor(pixels, device=self._device, channels_last=channels_last)
        images = self._unit_range(pixels, self._moved(batch.cut_facts), channels_last)
        images = self._augmenter.colour(images, self._moved(batch.colour_draws))
        if self._further is not None:
            self._further.colour(images, batch.further_draws.numpy())
        return self._how.standardize(images, in_place=True)

    def _unit_range(self, pixels: Tensor, facts: Tensor, channels_last: bool) -> Tensor:
        """Return the cut or moved pictures, float32 [B, 3, S, S] in [0, 1], on the device."""
        if self._for_device is None:
            return unit_range(pixels, device=self._device, channels_last=channels_last)
        images = self._for_device(pixels, facts)
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images

    def _moved(self, tensor: Tensor) -> Tensor:
        """Move a tensor to the device; from memory that is pinned a GPU copies by itself, and nobody waits for it."""
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def _index_batches(images: ImageSet, recipe: Recipe, **owner: Unpack[BatchOwner]) -> IndexBatches:
    owner["mixed"] = bool(recipe.augmentation.mixes)
    size, each = recipe.batches.size, recipe.batches.images_per_class
    if recipe.batches.sampler == "shuffled":
        return ShuffledBatches(len(images), batch_size=size, **owner)
    if recipe.batches.sampler == "paired":
        return PairedBatches(images.labels, pairs=size, **owner)
    return ClassBalancedBatches(images.labels, classes_per_batch=size // each, images_per_class=each, **owner)


def first_pictures(benchmark: Benchmark, recipe: Recipe, least: int = 1) -> tuple[Pictures, int]:
    """Decode only what the first training batch needs, to try a recipe, or the first few with `least` pictures.

    Returns:
        The pictures, whose training part is those batches and whose test part is empty, without a validation part;
        and the number of batches in an epoch of the whole benchmark.

    Raises:
        KeMetricError: The recipe's batches cannot be made, or a picture cannot be decoded.
    """
    batches = _index_batches(benchmark.train, recipe, seed=recipe.seed, generation=1)
    chosen = NO_ITEMS
    for batch in batches:
        chosen = np.union1d(chosen, batch)
        if len(chosen) >= least:
            break
    part = benchmark.train.at(chosen)
    nothing = benchmark.query.at(NO_ITEMS)
    small = replace(benchmark, train=part, query=nothing, gallery=nothing, validation=None)
    return Pictures.decode(small, recipe.data.store_size, store_shape=recipe.data.store_shape), len(batches)


def repeated_pictures(benchmark: Benchmark, recipe: Recipe) -> dict[str, int]:
    """Return how often pictures of the first epoch are paired with themselves; nothing where they never are.

    Returns:
        `classes`, the training classes with fewer images than batches.images_per_class; `self_pairs`, the positive
        pairs that are a picture and itself; `positive_pairs`, all of them.
    """
    batches = _index_batches(benchmark.train, recipe, seed=recipe.seed, generation=1)
    if not isinstance(batches, ClassBalancedBatches) or not batches.small_classes:
        return {}
    itself, pairs = batches.self_pairs()
    return {"classes": batches.small_classes, "self_pairs": itself, "positive_pairs": pairs}


def evaluation_batches(
    store: PixelStore, indices: Sequence[int], *, recipe: Recipe, device: torch.device
) -> Iterator[Tensor]:
    """Yield the pictures with these numbers, in their order, as the network sees them when it is scored.

    Yields:
        float32 [B, 3, S, S], standardised, with B = evaluation.batch_size but for the last.
    """
    how, size = Preparation.of_recipe(recipe), recipe.evaluation.batch_size
    for start in range(0, len(indices), size):
        pixels = np.stack([how.cut(store.picture(index)) for index in indices[start : start + size]])
        yield how.tensor(pixels, device=device, channels_last=recipe.training.channels_last)
