"""The geometry of whole batches on the training device (`augmentation.where: device`).

A processor that is the device crops picture by picture nevertheless (`Augmenter`, by torch): products with matrices
that are mostly zero took it three to seven times as long as Pillow.

The draws are those of `Augmenter`, and so are boxes, matrices and flips; pixels differ from its by rounding, a level
or two. The loader only cuts out what each picture needs.

Shapes: B images in a batch, H and W height and width of the largest cut of the batch, S image size in pixels, U
numbers per picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ke_metric.arrays import DoubleArray, FloatArray, PixelArray
from ke_metric.images.augmentation import affine_move, crop_box
from ke_metric.recipe.schema import Augmentation


class BatchAugmenter:
    """What `Augmenter` does to single pictures, for all pictures of a batch at once.

    Args:
        augmentation: The recipe's section.
        size: S.
    """

    def __init__(self, augmentation: Augmentation, size: int) -> None:
        self._augmentation, self._size = augmentation, size

    def cuts(self, pictures: Sequence[PixelArray], draws: DoubleArray) -> tuple[PixelArray, FloatArray]:
        """Return what the device needs of pictures uint8 [H, W, 3] with draws [B, U].

        Returns:
            The cuts, uint8 [B, H, W, 3], each in the upper left corner, zeros beside it; and what is to become of
            each, float32 [B, 3 or 12]: whether it is flipped, its height and width, and for affine the six numbers of
            `AffineMove.matrix` and the three of `AffineMove.ground`.
        """
        found = [self._cut(picture, row) for picture, row in zip(pictures, draws, strict=True)]
        height, width = (max(cut.shape[axis] for cut, _ in found) for axis in (0, 1))
        cuts = np.zeros((len(found), height, width, 3), np.uint8)
        for place, (cut, _) in zip(cuts, found, strict=True):
            place[: cut.shape[0], : cut.shape[1]] = cut
        flips = draws[:, 0] < self._augmentation.flip
        facts = [[flip, *cut.shape[:2], *move] for flip, (cut, move) in zip(flips, found, strict=True)]
        return cuts, np.array(facts, np.float32)

    def _cut(self, picture: PixelArray, draws: DoubleArray) -> tuple[PixelArray, tuple[float, ...]]:
        if self._augmentation.geometry == "crop":
            top, left, height, width = crop_box(picture.shape, draws, self._augmentation)
            return picture[top : top + height, left : left + width], ()
        move = affine_move(picture, draws, self._augmentation, size=self._size)
        return np.asarray(move.image), (*move.matrix, *move.ground)

    def __call__(self, cuts: Tensor, facts: Tensor) -> Tensor:
        """Return float32 [B, 3, S, S] in [0, 1] for what `cuts` gave, on its device."""
        images = cuts.permute(0, 3, 1, 2).to(torch.float32).div_(255)
        return (self._resized if self._augmentation.geometry == "crop" else self._moved)(images, facts)

    def _resized(self, images: Tensor, facts: Tensor) -> Tensor:
        flips, heights, widths = facts.unbind(dim=1)
        rows = resize_weights(heights, images.shape[2], self._size)
        columns = resize_weights(widths, images.shape[3], self._size)
        columns = torch.where(flips[:, None, None] > 0, columns.flip(1), columns)
        return rows[:, None] @ (images @ columns[:, None].transpose(2, 3))

    def _moved(self, images: Tensor, facts: Tensor) -> Tensor:
        flips, heights, widths, a, b, c, d, e, f, *ground = facts[:, :, None, None].unbind(dim=1)
        centres = torch.arange(self._size, device=facts.device) + 0.5
        x, y = torch.where(flips > 0, self._size - centres, centres), centres[:, None]
        right, down = a * x + b * y + c, d * x + e * y + f
        inside = (right >= 0) & (right < widths) & (down >= 0) & (down < heights)
        # The border of a picture goes on for half a pixel; what lies beside it in the batch is never seen.
        right, down = (
            2 * torch.minimum(place.clamp(min=0.5), side - 0.5) / all_have - 1
            for place, side, all_have in ((right, widths, images.shape[3]), (down, heights, images.shape[2]))
        )
        sampled = grid_sample(
            images, torch.stack([right, down], dim=3), mode="bilinear", padding_mode="border", align_corners=False
        )
        return torch.where(inside[:, None], sampled, torch.stack(ground, dim=1) / 255)


def resize_weights(sides: Tensor, longest: int, size: int) -> Tensor:
    """Return the antialiased bilinear resize of lines of pixels to S pixels as matrices [B, S, longest].

    It is Pillow's and torchvision's: a triangle as wide as the shrink, at least of radius 1, cut off at the ends of
    the line, and of sum 1.

    Args:
        sides: [B] how many pixels each line has; what lies behind them gets no weight.
        longest: Pixels of the longest line.
        size: S.
    """
    shrink = (sides / size)[:, None, None]
    pixels = torch.arange(longest, device=sides.device) + 0.5
    centres = (torch.arange(size, device=sides.device) + 0.5)[:, None] * shrink
    weights = (1 - (pixels - centres).abs() / shrink.clamp(min=1)).clamp_(min=0)
    weights = weights * (pixels < sides[:, None, None])
    return weights / weights.sum(dim=2, keepdim=True)
