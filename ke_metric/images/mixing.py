"""Mixup and CutMix: pictures of a training batch mixed in pairs, and their labels with them.

After everything else that happens to a picture. A batch draws one mix, from (seed, generation, epoch, step) alone, as
torchvision's `v2.MixUp` and `v2.CutMix` do from torch's global stream; where a recipe has both, it draws first which
one, with equal chance. Shapes: B pictures of this process in a batch, N of them and what is mixed into them, S image
size in pixels, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ke_metric.randomness import numpy_generator
from ke_metric.recipe.schema import Augmentation, Recipe


class Mix(NamedTuple):
    """How the pictures of a batch are mixed.

    Attributes:
        share: How much of the result is the picture itself; the rest is its partner.
        box: left, top, right and bottom in pixels of what the partner covers; None: both are blended everywhere.
    """

    share: float
    box: tuple[int, int, int, int] | None


def draw_mix(augmentation: Augmentation, size: int, generator: np.random.Generator) -> Mix:
    """Draw the mix of a batch.

    mixup: the share is Beta(alpha, alpha) (Zhang et al., ICLR 2018). CutMix: a square of 1 - Beta(alpha, alpha) of
    the picture's area, about a uniform centre, is cut off at the picture's border, and the share is the area that
    it leaves (Yun et al., ICCV 2019).

    Args:
        augmentation: Its `mixup` and `cutmix`, at least one above 0.
        size: S.
        generator: Where the numbers are from.
    """
    kinds = [(alpha, cuts) for alpha, cuts in ((augmentation.mixup, False), (augmentation.cutmix, True)) if alpha]
    alpha, cuts = kinds[generator.integers(len(kinds))]
    share = float(generator.beta(alpha, alpha))
    return _cut(share, size, generator) if cuts else Mix(share, None)


def _cut(share: float, size: int, generator: np.random.Generator) -> Mix:
    half = int(0.5 * math.sqrt(1 - share) * size)
    x, y = generator.integers(size, size=2).tolist()
    left, top, right, bottom = max(x - half, 0), max(y - half, 0), min(x + half, size), min(y + half, size)
    return Mix(1.0 - (right - left) * (bottom - top) / size**2, (left, top, right, bottom))


class BatchMixer:
    """Mixes the batches of a generation.

    Args:
        recipe: One that mixes.
        generation: Counted from 1.
        classes: C.
    """

    def __init__(self, recipe: Recipe, *, generation: int, classes: int) -> None:
        self._recipe, self._generation, self._classes = recipe, generation, classes

    def of_step(self, epoch: int, step: int) -> Mix:
        """Return the mix of step `step` (from 0) of epoch `epoch` (from 1), the same one in all processes."""
        generator = numpy_generator(self._recipe.seed, self._generation, f"mixing-{epoch}-{step}")
        return draw_mix(self._recipe.augmentation, self._recipe.data.image_size, generator)

    def __call__(self, images: Tensor, labels: Tensor, partners: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
        """Return mixed pictures, float32 [B, 3, S, S], and the share of every class in each, float32 [B, C].

        Args:
            images: float32 [N, 3, S, S], those of this process first.
            labels: int64 [N].
            partners: int64 [B]: row of the picture that is mixed into each.
            mix: The same for all.
        """
        shares = one_hot(labels, self._classes).to(torch.float32)
        mixed = blended(images, partners, mix.share) if mix.box is None else covered(images, partners, mix.box)
        return mixed, blended(shares, partners, mix.share)


def blended(values: Tensor, partners: Tensor, share: float) -> Tensor:
    """Return share * own + (1 - share) * partner for the first B of N rows."""
    return values[partners].lerp_(values[: len(partners)], share)


def covered(images: Tensor, partners: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Return the first B of N pictures [N, 3, S, S], each with a box of its partner in its place."""
    left, top, right, bottom = box
    result = images[: len(partners)].clone()
    result[..., top:bottom, left:right] = images[partners, :, top:bottom, left:right]
    return result
