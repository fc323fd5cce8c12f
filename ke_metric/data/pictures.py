"""A benchmark with its pictures decoded: what a training and a scoring draw their batches from.

Shapes: B batch, N items, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ke_metric.data.augmentation import Augmenter
from ke_metric.data.batches import ClassBalancedBatches, IndexBatches, PairedBatches, ShuffledBatches
from ke_metric.data.images import Benchmark, ImageSet
from ke_metric.data.pixels import (
    PixelStore,
    StoreShape,
    UnreadableError,
    evaluation_pixels,
    normalize,
    standardize,
    unit_range,
)
from ke_metric.data.training_batches import TrainingBatches
from ke_metric.fingerprint import DataFingerprint, PartFingerprint
from ke_metric.recipe import Recipe

NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class Pictures:
    """A benchmark and the decoded pictures of its parts.

    Attributes:
        benchmark: Keys, labels and class names.
        train: Pictures of `benchmark.train`, in its order.
        query: Pictures of `benchmark.query`.
        gallery: Pictures of `benchmark.gallery`; the same object as `query` where that is one set.
        validation: Pictures of `benchmark.validation`; None where there is no such part.
    """

    benchmark: Benchmark
    train: PixelStore
    query: PixelStore
    gallery: PixelStore
    validation: PixelStore | None = None

    @classmethod
    def decode(
        cls,
        benchmark: Benchmark,
        store_size: int,
        *,
        store_shape: StoreShape = "keep",
        progress: Callable[[int, int], None] | None = None,
    ) -> Pictures:
        """Decode all parts, shorter sides resized to `store_size` pixels.

        Args:
            benchmark: What to decode.
            store_size: Shorter side in pixels.
            store_shape: "keep": aspect ratios stay; "square": pictures are squashed to store_size x store_size.
            progress: Called with pictures done and pictures in all, for each part.

        Raises:
            UnreadableError: Pictures cannot be decoded; those of all parts are named.
            KeMetricError: See `PixelStore.build`.
        """
        unreadable: list[str] = []

        def build(images: ImageSet) -> PixelStore:
            try:
                return PixelStore.build(images, store_size, shape=store_shape, progress=progress)
            except UnreadableError as error:
                unreadable.extend(error.reasons)
                return PixelStore.undecoded(len(images))

        train = build(benchmark.train)
        validation = None if benchmark.validation is None else build(benchmark.validation)
        query = build(benchmark.query)
        gallery = query if benchmark.leave_one_out else build(benchmark.gallery)
        if unreadable:
            raise UnreadableError(unreadable)
        return cls(benchmark, train, query, gallery, validation)

    @classmethod
    def undecoded(cls, benchmark: Benchmark) -> Pictures:
        """Return a benchmark whose pictures nobody has looked at, to build what depends on its labels alone."""
        query = PixelStore.undecoded(len(benchmark.query))
        gallery = query if benchmark.leave_one_out else PixelStore.undecoded(len(benchmark.gallery))
        return cls(benchmark, PixelStore.undecoded(len(benchmark.train)), query, gallery)

    @property
    def contents(self) -> dict[str, tuple[str, ...]]:
        """Part to the digests of what its pictures were decoded from; none where they were not decoded from files."""
        stores = {"train": self.train, "query": self.query, "gallery": self.gallery, "validation": self.validation}
        return {name: store.contents for name, store in stores.items() if store is not None}

    @property
    def fingerprint(self) -> DataFingerprint:
        """Which pictures these are."""
        return fingerprint(self.benchmark, self.contents)


def fingerprint(
    benchmark: Benchmark, contents: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> DataFingerprint:
    """Return which pictures a benchmark has.

    Args:
        benchmark: Its parts.
        contents: Part to the digests of its pictures, for the parts that were decoded.
    """
    parts = {"train": benchmark.train, "query": benchmark.query, "gallery": benchmark.gallery}
    if benchmark.leave_one_out:
        del parts["gallery"]
    if benchmark.validation is not None:
        parts["validation"] = benchmark.validation
    found = {
        name: PartFingerprint(images.keys, tuple(images.labels.tolist()), images.class_names, contents.get(name, ()))
        for name, images in parts.items()
    }
    return DataFingerprint(found, benchmark.task)


def without_training(benchmark: Benchmark) -> Benchmark:
    """Return the benchmark with an empty training part, which a scoring has no need to decode; the rest stays."""
    return replace(benchmark, train=benchmark.train.at(NOTHING))


class DeviceBatch(NamedTuple):
    """One training batch on the device.

    Attributes:
        images: float32 [B, 3, S, S], standardised.
        labels: int64 [B].
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
        self._augmenter = Augmenter(recipe.augmentation, recipe.data.image_size)
        self._batches = TrainingBatches(
            pictures.train,
            images.labels,
            batches=_index_batches(images, recipe, generation=generation, rank=rank, processes=processes),
            augmenter=self._augmenter,
            workers=recipe.data.workers,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int) -> Iterator[DeviceBatch]:
        """Yield the batches of epoch `number` (from 1); the same ones whenever it is asked."""
        data, channels_last = self._recipe.data, self._recipe.training.channels_last
        for batch in self._batches.epoch(number - 1):
            images = unit_range(batch.pixels, device=self._device, channels_last=channels_last)
            images = self._augmenter.colour(images, batch.colour_draws.to(self._device))
            yield DeviceBatch(
                images=standardize(images, mean=data.mean, std=data.std),
                labels=batch.labels.to(self._device),
                keys=tuple(self._images.keys[index] for index in batch.indices.tolist()),
            )


def _index_batches(images: ImageSet, recipe: Recipe, *, generation: int, rank: int, processes: int) -> IndexBatches:
    batches = recipe.batches
    if batches.sampler == "shuffled":
        return ShuffledBatches(
            len(images),
            batch_size=batches.size,
            seed=recipe.seed,
            generation=generation,
            rank=rank,
            processes=processes,
        )
    if batches.sampler == "paired":
        return PairedBatches(
            images.labels,
            pairs=batches.size,
            seed=recipe.seed,
            generation=generation,
            rank=rank,
            processes=processes,
        )
    return ClassBalancedBatches(
        images.labels,
        classes_per_batch=batches.size // batches.images_per_class,
        images_per_class=batches.images_per_class,
        seed=recipe.seed,
        generation=generation,
        rank=rank,
        processes=processes,
    )


def first_pictures(benchmark: Benchmark, recipe: Recipe) -> tuple[Pictures, int]:
    """Decode only what the first training batch needs, to try a recipe.

    Returns:
        The pictures, whose training part is that batch, whose test part is empty and which have no validation part;
        and the number of batches in an epoch of the whole benchmark.

    Raises:
        KeMetricError: The recipe's batches cannot be made, or a picture cannot be decoded.
    """
    train = benchmark.train
    batches = _index_batches(train, recipe, generation=1, rank=0, processes=1)
    part = train.at(np.unique(next(iter(batches))))
    nothing = benchmark.query.at(NOTHING)
    small = replace(benchmark, train=part, query=nothing, gallery=nothing, validation=None)
    return Pictures.decode(small, recipe.data.store_size, store_shape=recipe.data.store_shape), len(batches)


def repeated_pictures(benchmark: Benchmark, recipe: Recipe) -> dict[str, int]:
    """Return how often pictures of the first epoch are paired with themselves; nothing where they never are.

    Returns:
        `classes`, the training classes with fewer images than batches.images_per_class; `self_pairs`, the positive
        pairs that are a picture and itself; `positive_pairs`, all of them.
    """
    batches = _index_batches(benchmark.train, recipe, generation=1, rank=0, processes=1)
    if not isinstance(batches, ClassBalancedBatches) or not batches.small_classes:
        return {}
    itself, pairs = batches.self_pairs()
    return {"classes": batches.small_classes, "self_pairs": itself, "positive_pairs": pairs}


def evaluation_batches(
    store: PixelStore, indices: Sequence[int], *, recipe: Recipe, device: torch.device
) -> Iterator[Tensor]:
    """Yield the pictures with these numbers as the network sees them when it is scored.

    Args:
        store: N pictures.
        indices: Numbers of the pictures, in the order wanted.
        recipe: Sizes, standardisation and batch size.
        device: Where the batches go.

    Yields:
        float32 [B, 3, S, S], standardised.
    """
    data, evaluation = recipe.data, recipe.evaluation
    for start in range(0, len(indices), evaluation.batch_size):
        part = indices[start : start + evaluation.batch_size]
        pixels = evaluation_pixels(store, part, resize=evaluation.resize, size=data.image_size)
        yield normalize(
            torch.from_numpy(pixels),
            mean=data.mean,
            std=data.std,
            device=device,
            channels_last=recipe.training.channels_last,
        )
