"""Random erasing: a rectangle of a standardised picture becomes 0, the mean colour.

Zhong et al.: Random Erasing Data Augmentation, AAAI 2020; boxes as torchvision's RandomErasing draws them.

Shapes: B images in a batch, S image size in pixels.
"""

from __future__ import annotations

import math

from torch import Tensor

from ke_metric.arrays import DoubleArray

ERASING_TRIES = 10
ERASING_DRAWS = 3 + 2 * ERASING_TRIES
"""Numbers per picture: whether, top, left, an area and a ratio per try."""
AREAS = (0.02, 0.33)
"""Range of the rectangle's share of the picture, uniform."""
RATIOS = (0.3, 3.3)
"""Range of its height / width, log-uniform."""


def erase(images: Tensor, draws: DoubleArray, probability: float) -> Tensor:
    """Set a box of each picture of a batch float32 [B, 3, S, S] to 0 with a probability, in place; return the batch.

    Args:
        images: Standardised, so that 0 is the mean colour.
        draws: [B, ERASING_DRAWS] uniform in [0, 1).
        probability: That a picture is erased in.
    """
    for image, row in zip(images, draws, strict=True):
        box = erasing_box(row, images.shape[3]) if row[0] < probability else None
        if box is not None:
            top, left, height, width = box
            image[:, top : top + height, left : left + width].zero_()
    return images


def erasing_box(draws: DoubleArray, size: int) -> tuple[int, int, int, int] | None:
    """Return top, left, height and width in pixels of what is erased in a picture of S x S, or that no try fits.

    The first of ERASING_TRIES pairs of area and ratio whose sides are both shorter than the picture's is taken and
    placed uniformly.
    """
    _, down, right, *tries = draws.tolist()
    low, high = (math.log(limit) for limit in RATIOS)
    for area_draw, ratio_draw in zip(tries[:ERASING_TRIES], tries[ERASING_TRIES:], strict=True):
        area = size * size * (AREAS[0] + (AREAS[1] - AREAS[0]) * area_draw)
        ratio = math.exp(low + (high - low) * ratio_draw)
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < size and width < size:
            return int(down * (size - height + 1)), int(right * (size - width + 1)), height, width
    return None
