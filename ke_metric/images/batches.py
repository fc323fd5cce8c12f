"""From decoded pictures to batches: the augmented ones of every epoch of a training, and those that are scored.

A training picture is cut, moved and coloured by its own row of uniform numbers, which depends on the picture's
place in the epoch alone: the batches are the same ones whatever the number of worker processes, and after an
interruption. Shapes: N pictures, B images of this process in a batch, H and W height and width, S image size in
pixels, U numbers per picture.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ke_metric.arrays import DoubleArray, IntArray, PixelArray
from ke_metric.images.image_set import NO_ITEMS, Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.images.preparation import Preparation, unit_range
from ke_metric.images.samplers import BatchOwner, ClassBalancedBatches, IndexBatches, PairedBatches, ShuffledBatches
from ke_metric.randomness import numpy_generator
from ke_metric.recipe.schema import Augmentation, Recipe

COLOUR_DRAWS = 2
"""Numbers per picture of the colour step: brightness, contrast."""

# As many as torchvision's RandomResizedCrop makes before it takes the centre.
CROP_TRIES = 10

# A row of draws is flip, then for crop: top, left, an area and a ratio per try; for affine: its five values.
_AREAS = slice(3, 3 + CROP_TRIES)
_RATIOS = slice(3 + CROP_TRIES, 3 + 2 * CROP_TRIES)
_CROP_DRAWS = 3 + 2 * CROP_TRIES
_AFFINE_DRAWS = 6


class Augmenter:
    """The augmentation of a recipe, for pictures of a training batch.

    Args:
        augmentation: The recipe's section.
        size: S, height and width in pixels of the result.

    Attributes:
        geometry_draws: U, how many numbers each picture needs for its geometry.
    """

    def __init__(self, augmentation: Augmentation, size: int) -> None:
        self._augmentation = augmentation
        self._size = size
        self.geometry_draws = _CROP_DRAWS if augmentation.geometry == "crop" else _AFFINE_DRAWS

    def __call__(self, picture: PixelArray, draws: DoubleArray) -> PixelArray:
        """Cut or move a picture uint8 [H, W, 3] by draws [U], uniform in [0, 1), then flip it: uint8 [S, S, 3]."""
        flip, *values = draws.tolist()
        if self._augmentation.geometry == "crop":
            top, left, height, width = crop_box(picture.shape, draws, self._augmentation)
            # Cut before resizing, as torchvision does: Pillow's own `box` looks at pixels outside of it.
            cut = Image.fromarray(picture[top : top + height, left : left + width])
            result = np.asarray(cut.resize((self._size, self._size), Image.Resampling.BILINEAR))
        else:
            result = self._affine(picture, values)
        return result[:, ::-1] if flip < self._augmentation.flip else result

    def colour(self, batch: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Change brightness and contrast of every picture by its own factors.

        Brightness multiplies. Contrast scales the distance to the mean over all pixels and channels of the
        brightened picture. The result is clamped to [0, 1].

        Args:
            batch: float [B, 3, H, W] in [0, 1]; returned itself when the recipe changes no colours.
            draws: [B, COLOUR_DRAWS] uniform in [0, 1).
        """
        if not (self._augmentation.brightness or self._augmentation.contrast):
            return batch
        largest = draws.new_tensor([self._augmentation.brightness, self._augmentation.contrast])
        factors = (1 + largest * (2 * draws - 1)).to(batch)
        brightness, contrast = factors[:, :, None, None, None].unbind(dim=1)
        bright = (batch * brightness).clamp_(max=1)
        mean = bright.mean(dim=(1, 2, 3), keepdim=True)
        return torch.lerp(mean, bright, contrast).clamp_(0, 1)

    def _affine(self, picture: PixelArray, values: list[float]) -> PixelArray:
        """Rotate, zoom, move and shear about the centre; what lies outside gets the colour of the border.

        Without any change this is the central square, reduced to S x S, as in evaluation.
        """
        height, width = picture.shape[:2]
        matrix, shrink = self._affine_matrix(values, min(height, width))
        image = Image.fromarray(picture)
        # Sampling four neighbours is sharp and free of aliases up to a shrink of 2; beyond, average blocks first.
        factor = max(1, math.ceil(shrink / 2))
        if factor > 1:
            image = image.reduce(factor)
        a, b, x, c, d, y = (value / factor for value in matrix)
        moved = image.transform(
            (self._size, self._size),
            Image.Transform.AFFINE,
            (a, b, x + width / factor / 2, c, d, y + height / factor / 2),
            Image.Resampling.BILINEAR,
            fillcolor=_border_colour(picture),
        )
        return np.asarray(moved)

    def _affine_matrix(self, values: list[float], side: int) -> tuple[tuple[float, ...], float]:
        """Return the map from result to picture, both seen from the centre of the picture, and how far it shrinks."""
        rotation, zoom, shift_x, shift_y, shear = values
        recipe = self._augmentation
        angle = math.radians(recipe.rotation * (2 * rotation - 1))
        slant = math.tan(math.radians(recipe.shear * (2 * shear - 1)))
        shrink = side / self._size / (recipe.scale[0] + (recipe.scale[1] - recipe.scale[0]) * zoom)
        cos, sin = math.cos(angle) * shrink, math.sin(angle) * shrink
        a, b, c, d = cos - slant * sin, sin + slant * cos, -sin, cos
        centre_x = self._size * (0.5 + recipe.translation * (2 * shift_x - 1))
        centre_y = self._size * (0.5 + recipe.translation * (2 * shift_y - 1))
        return (a, b, -a * centre_x - b * centre_y, c, d, -c * centre_x - d * centre_y), shrink


def crop_box(shape: tuple[int, ...], draws: DoubleArray, augmentation: Augmentation) -> tuple[int, int, int, int]:
    """Return the random resized crop of a picture, with the distribution of torchvision's RandomResizedCrop.

    The area's share is uniform, the ratio log-uniform; the first of CROP_TRIES pairs that fits is taken and placed
    uniformly. When none fits: the largest central cut whose ratio is allowed.

    Args:
        shape: (H, W, ...) of the picture.
        draws: [U] uniform in [0, 1).
        augmentation: Its `scale` and `ratio` are used.

    Returns:
        top, left, height and width in pixels.
    """
    height, width = shape[:2]
    low, high = augmentation.scale
    log_low, log_high = math.log(augmentation.ratio[0]), math.log(augmentation.ratio[1])
    for area_draw, ratio_draw in zip(draws[_AREAS].tolist(), draws[_RATIOS].tolist(), strict=True):
        area = height * width * (low + (high - low) * area_draw)
        ratio = math.exp(log_low + (log_high - log_low) * ratio_draw)
        crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = int(draws[1] * (height - crop_height + 1)), int(draws[2] * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    return _central_box(height, width, augmentation.ratio)


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    crop_height, crop_width = height, width
    if width < height * ratio[0]:
        crop_height = round(width / ratio[0])
    elif width > height * ratio[1]:
        crop_width = round(height * ratio[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _border_colour(picture: PixelArray) -> tuple[int, ...]:
    """Return the median of each channel over the picture's outermost pixels: white for a glyph on white paper."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    border.sort(axis=0)
    return tuple(border[len(border) // 2].tolist())


class Batch(NamedTuple):
    """The augmented pictures of one step.

    Attributes:
        indices: int64 [B] picture numbers.
        pixels: uint8 [B, S, S, 3].
        labels: int64 [B] class numbers.
        colour_draws: float32 [B, COLOUR_DRAWS] uniform in [0, 1], for `Augmenter.colour` on the device.
    """

    indices: Tensor
    pixels: Tensor
    labels: Tensor
    colour_draws: Tensor


class _Request(NamedTuple):
    """What a worker process is told: picture numbers [B] and their draws [B, U + COLOUR_DRAWS]."""

    indices: IntArray
    draws: DoubleArray


@dataclass(frozen=True)
class _AugmentedDataset(Dataset[Batch]):
    """Makes the batch of a request; the data set of torch's DataLoader, in this process or in a worker."""

    store: PixelStore
    labels: IntArray
    augmenter: Augmenter

    def __getitem__(self, request: _Request) -> Batch:
        columns = self.augmenter.geometry_draws
        pictures = [
            self.augmenter(self.store.picture(index), draws)
            for index, draws in zip(request.indices.tolist(), request.draws[:, :columns], strict=True)
        ]
        return Batch(
            indices=torch.from_numpy(request.indices.copy()),
            pixels=torch.from_numpy(np.stack(pictures)),
            labels=torch.from_numpy(self.labels[request.indices]),
            colour_draws=torch.from_numpy(request.draws[:, columns:].astype(np.float32)),
        )


class TrainingBatches:
    """The augmented batches of every epoch.

    Args:
        store: N decoded pictures.
        labels: [N] class numbers.
        batches: Which pictures share a batch; its seed and generation also give the augmentation's draws.
        augmenter: What happens to a picture.
        workers: Processes that augment ahead, kept over the epochs; 0: a thread of this process, one batch ahead.
    """

    def __init__(
        self, store: PixelStore, labels: IntArray, *, batches: IndexBatches, augmenter: Augmenter, workers: int = 0
    ) -> None:
        assert len(store) == len(labels), (len(store), len(labels))
        self._batches = batches
        self._columns = augmenter.geometry_draws + COLOUR_DRAWS
        self._dataset = _AugmentedDataset(store, labels, augmenter)
        self._requests: list[_Request] = []
        self._loader = self._started(workers) if workers else None

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch, counted from 0."""
        self._batches.set_epoch(epoch)
        if self._loader is None:
            yield from _one_ahead(self._dataset, self._epoch_requests(epoch))
        else:
            # Filled in place: the DataLoader holds this very list as its sampler.
            self._requests[:] = self._epoch_requests(epoch)
            yield from self._loader

    def _epoch_requests(self, epoch: int) -> Iterator[_Request]:
        """Yield the requests of an epoch; a picture's draws are found by its place among those of all processes."""
        batches = self._batches
        generator = numpy_generator(batches.seed, batches.generation, f"augmentation-{epoch}")
        draws = generator.random((len(batches) * batches.batch_size, self._columns))
        for step, indices in enumerate(batches):
            share = len(indices) // batches.parts
            # A part holds the shares of all processes, one after another.
            starts = (np.arange(batches.parts) * batches.processes + batches.rank) * share
            places = step * batches.batch_size + starts[:, None] + np.arange(share)
            yield _Request(indices, draws[places.ravel()])

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


def _one_ahead(dataset: _AugmentedDataset, requests: Iterator[_Request]) -> Iterator[Batch]:
    """Make the next batch in a thread while the caller trains on this one: Pillow and torch both release the GIL."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(dataset.__getitem__, next(requests))
        for request in requests:
            ready, upcoming = upcoming, thread.submit(dataset.__getitem__, request)
            yield ready.result()
        yield upcoming.result()


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
            batches=_index_batches(
                images, recipe, seed=recipe.seed, generation=generation, rank=rank, processes=processes
            ),
            augmenter=self._augmenter,
            workers=recipe.data.workers,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int) -> Iterator[DeviceBatch]:
        """Yield the batches of epoch `number` (from 1); the same ones whenever it is asked."""
        how, channels_last = Preparation.of_recipe(self._recipe), self._recipe.training.channels_last
        for batch in self._batches.epoch(number - 1):
            images = unit_range(batch.pixels, device=self._device, channels_last=channels_last)
            images = self._augmenter.colour(images, batch.colour_draws.to(self._device))
            keys = tuple(self._images.keys[index] for index in batch.indices.tolist())
            yield DeviceBatch(how.standardize(images), batch.labels.to(self._device), keys)


def _index_batches(images: ImageSet, recipe: Recipe, **owner: Unpack[BatchOwner]) -> IndexBatches:
    size, each = recipe.batches.size, recipe.batches.images_per_class
    if recipe.batches.sampler == "shuffled":
        return ShuffledBatches(len(images), batch_size=size, **owner)
    if recipe.batches.sampler == "paired":
        return PairedBatches(images.labels, pairs=size, **owner)
    return ClassBalancedBatches(images.labels, classes_per_batch=size // each, images_per_class=each, **owner)


def first_pictures(benchmark: Benchmark, recipe: Recipe) -> tuple[Pictures, int]:
    """Decode only what the first training batch needs, to try a recipe.

    Returns:
        The pictures, whose training part is that batch, whose test part is empty and which have no validation part;
        and the number of batches in an epoch of the whole benchmark.

    Raises:
        KeMetricError: The recipe's batches cannot be made, or a picture cannot be decoded.
    """
    batches = _index_batches(benchmark.train, recipe, seed=recipe.seed, generation=1)
    part = benchmark.train.at(np.unique(next(iter(batches))))
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
