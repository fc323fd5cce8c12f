"""What happens to a training picture: cut or moved, flipped, coloured, each by its own uniform numbers.

Shapes: B images in a batch, H and W height and width, S image size in pixels, U numbers per picture.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from ke_metric.arrays import DoubleArray, PixelArray
from ke_metric.images.preparation import numbers_on
from ke_metric.recipe.schema import Augmentation

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
        by_torch: Whether crops are resized by torch in place of Pillow, in a third of the time: up to one value in
            fifty differs by a level.

    Attributes:
        size: S.
        geometry_draws: U, how many numbers each picture needs for its geometry.
    """

    def __init__(self, augmentation: Augmentation, size: int, *, by_torch: bool = False) -> None:
        self._augmentation = augmentation
        self.size = size
        self._by_torch = by_torch
        self.geometry_draws = _CROP_DRAWS if augmentation.geometry == "crop" else _AFFINE_DRAWS

    def __call__(self, picture: PixelArray, draws: DoubleArray) -> PixelArray:
        """Cut or move a picture uint8 [H, W, 3] by draws [U], uniform in [0, 1), then flip it: uint8 [S, S, 3]."""
        flips = bool(draws[0] < self._augmentation.flip)
        if self._augmentation.geometry == "affine":
            result = self._affine(picture, draws)
        else:
            top, left, height, width = crop_box(picture.shape, draws, self._augmentation)
            # Cut before resizing, as torchvision does: Pillow's own `box` looks at pixels outside of it. Of a mapped
            # store nothing but these rows is read.
            cut = picture[top : top + height, left : left + width]
            if self._by_torch:
                return self._resized_by_torch(cut, flips)
            image = Image.frombytes("RGB", (width, height), cut.tobytes())
            result = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if flips:
            # By Pillow: NumPy copies a mirrored picture many times slower.
            result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.frombuffer(result.tobytes(), np.uint8).reshape(self.size, self.size, 3)

    def _resized_by_torch(self, cut: PixelArray, flips: bool) -> PixelArray:
        # The first axis must be torch's: NumPy's has no stride, and torch then answers in another order of memory.
        image = torch.from_numpy(cut.copy()).unsqueeze(0).permute(0, 3, 1, 2)
        result = interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)
        pixels: PixelArray = (result.flip(3) if flips else result).permute(0, 2, 3, 1).numpy()[0]
        return pixels

    @property
    def changes_colours(self) -> bool:
        """Whether `colour` does anything."""
        return bool(self._augmentation.brightness or self._augmentation.contrast)

    def colour(self, batch: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Change brightness and contrast of every picture by its own factors.

        Brightness multiplies. Contrast scales the distance to the mean over all pixels and channels of the
        brightened picture. The result is clamped to [0, 1].

        Args:
            batch: float [B, 3, H, W] in [0, 1]; returned itself when the recipe changes no colours.
            draws: [B, COLOUR_DRAWS] uniform in [0, 1).
        """
        if not self.changes_colours:
            return batch
        largest = numbers_on((self._augmentation.brightness, self._augmentation.contrast), draws.device)
        factors = (1 + largest * (2 * draws - 1)).to(batch)
        brightness, contrast = factors[:, :, None, None, None].unbind(dim=1)
        bright = (batch * brightness).clamp_(max=1)
        mean = bright.mean(dim=(1, 2, 3), keepdim=True)
        return torch.lerp(mean, bright, contrast).clamp_(0, 1)

    def _affine(self, picture: PixelArray, draws: DoubleArray) -> Image.Image:
        move = affine_move(picture, draws, self._augmentation, size=self.size)
        return move.image.transform(
            (self.size, self.size),
            Image.Transform.AFFINE,
            move.matrix,
            Image.Resampling.BILINEAR,
            fillcolor=move.ground,
        )


class AffineMove(NamedTuple):
    """How a picture is rotated, zoomed, moved and sheared about its centre; what lies outside gets a ground.

    Without any change the result is the central square, reduced to S x S, as in evaluation.

    Attributes:
        image: What is sampled: the picture, or averages of its blocks.
        matrix: a, b, c, d, e, f: the place (x, y) of the result, in pixels, shows the place
            (a x + b y + c, d x + e y + f) of `image`; the centres of pixels lie at halves.
        ground: Red, green, blue of what lies outside.
    """

    image: Image.Image
    matrix: tuple[float, ...]
    ground: tuple[int, ...]


def affine_move(picture: PixelArray, draws: DoubleArray, augmentation: Augmentation, *, size: int) -> AffineMove:
    """Return the move of a picture uint8 [H, W, 3] by draws [U] to a result of S x S pixels."""
    height, width = picture.shape[:2]
    matrix, shrink = _affine_matrix(draws[1:].tolist(), augmentation, side=min(height, width), size=size)
    image = Image.fromarray(picture)
    # Sampling four neighbours is sharp and free of aliases up to a shrink of 2; beyond, average blocks first.
    factor = max(1, math.ceil(shrink / 2))
    if factor > 1:
        image = image.reduce(factor)
    a, b, x, c, d, y = (value / factor for value in matrix)
    matrix = (a, b, x + width / factor / 2, c, d, y + height / factor / 2)
    return AffineMove(image, matrix, border_colour(picture))


def _affine_matrix(
    values: list[float], augmentation: Augmentation, *, side: int, size: int
) -> tuple[tuple[float, ...], float]:
    """Return the map from result to picture, both seen from the centre of the picture, and how far it shrinks."""
    rotation, zoom, shift_x, shift_y, shear = values
    angle = math.radians(augmentation.rotation * (2 * rotation - 1))
    slant = math.tan(math.radians(augmentation.shear * (2 * shear - 1)))
    shrink = side / size / (augmentation.scale[0] + (augmentation.scale[1] - augmentation.scale[0]) * zoom)
    cos, sin = math.cos(angle) * shrink, math.sin(angle) * shrink
    a, b, c, d = cos - slant * sin, sin + slant * cos, -sin, cos
    centre_x = size * (0.5 + augmentation.translation * (2 * shift_x - 1))
    centre_y = size * (0.5 + augmentation.translation * (2 * shift_y - 1))
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


def border_colour(picture: PixelArray) -> tuple[int, ...]:
    """Return the median of each channel over the picture's outermost pixels: white for a glyph on white paper."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    middle = len(border) // 2
    return tuple(np.partition(border.T.copy(), middle, axis=1)[:, middle].tolist())
