"""What happens to a training picture besides geometry, brightness and contrast, where a recipe asks for it.

In this order: policy, (brightness, contrast,) saturation, hue, grayscale, blur, (standardised,) erasing. The policy,
colours and erasing have a stream of numbers each: a recipe that turns one of them on or off leaves crops and all else
as they are, draw by draw.

Shapes: B images in a batch, S image size in pixels, F numbers per picture.
"""

from __future__ import annotations

import math

from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from ke_metric.arrays import DoubleArray, PixelArray
from ke_metric.images.erasing import ERASING_DRAWS, erase
from ke_metric.images.policies import Policy
from ke_metric.recipe.schema import Augmentation

# Saturation, hue, whether grey, whether blurred, how wide.
_COLOUR_DRAWS = 5

# A Gaussian is cut off at so many standard deviations; what is left out is 0.3 % of it.
_REACH = 3
# Below it, a neighbour counts less than 1e-21.
_NARROWEST = 0.1


class FurtherSteps:
    """The steps of a recipe that asks for at least one of them.

    Args:
        augmentation: The recipe's section.
        size: S.

    Attributes:
        columns: How many numbers a picture has of each stream, in their order; F together.
    """

    def __init__(self, augmentation: Augmentation, size: int) -> None:
        self._augmentation = augmentation
        self._policy = None if augmentation.policy == "none" else Policy(augmentation, size)
        policy = self._policy.draws if self._policy else 0
        colours = _COLOUR_DRAWS if augmentation.changes_colours_further else 0
        self.columns = {
            "augmentation-policy": policy,
            "augmentation-colours": colours,
            "augmentation-erasing": ERASING_DRAWS if augmentation.erasing else 0,
        }
        self._of_policy, self._of_colours = slice(policy), slice(policy, policy + colours)
        self._of_erasing = slice(policy + colours, None)

    def pixels(self, pixels: PixelArray, draws: DoubleArray) -> None:
        """Change pictures uint8 [B, S, S, 3], in place, by the policy and draws [B, F], uniform in [0, 1)."""
        if self._policy is not None:
            for place, row in zip(pixels, draws[:, self._of_policy], strict=True):
                place[:] = self._policy(place, row)

    def colour(self, images: Tensor, draws: DoubleArray) -> Tensor:
        """Change saturation, hue, grey and blur of a batch float32 [B, 3, S, S] in [0, 1], in place; return it.

        Args:
            images: After brightness and contrast.
            draws: [B, F] uniform in [0, 1).
        """
        if self._augmentation.changes_colours_further:
            for image, row in zip(images, draws[:, self._of_colours].tolist(), strict=True):
                # torchvision's kernels are slow on a picture whose colours lie side by side.
                image.copy_(self._blurred(self._coloured(image.contiguous(), *row[:3]), *row[3:]))
        return images

    def erase(self, images: Tensor, draws: DoubleArray) -> Tensor:
        """Erase in a standardised batch float32 [B, 3, S, S], in place, by draws [B, F]; return it."""
        if not self._augmentation.erasing:
            return images
        return erase(images, draws[:, self._of_erasing], self._augmentation.erasing)

    def _coloured(self, image: Tensor, saturation: float, hue: float, grey: float) -> Tensor:
        if self._augmentation.saturation:
            image = v2.adjust_saturation(image, 1 + self._augmentation.saturation * (2 * saturation - 1))
        if self._augmentation.hue:
            image = v2.adjust_hue(image, self._augmentation.hue * (2 * hue - 1))
        if grey < self._augmentation.grayscale:
            image = v2.rgb_to_grayscale(image, 3)
        return image

    def _blurred(self, image: Tensor, whether: float, how_wide: float) -> Tensor:
        if whether >= self._augmentation.blur:
            return image
        low, high = self._augmentation.blur_sigma
        return blurred(image, low + (high - low) * how_wide)


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Return a picture float32 [3, S, S] blurred by a Gaussian of so many pixels; its border is mirrored."""
    if sigma < _NARROWEST:
        return image
    # Of a mirrored border there are no more pixels than of the picture. Rows, then columns: a square at once would
    # take four times as long.
    side = 1 + 2 * min(math.ceil(_REACH * sigma), image.shape[-1] - 1)
    for kernel in ([side, 1], [1, side]):
        image = v2.gaussian_blur(image, kernel, [sigma, sigma])
    return image
