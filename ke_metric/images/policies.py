"""TrivialAugment and RandAugment: a picture changed by operations that its own uniform numbers choose.

Operations, their largest magnitudes and the 31 steps between are those of torchvision's TrivialAugmentWide and
RandAugment (transforms.v2), and so is what becomes of the pixels, by its kernels of Pillow's pictures: those of
tensors take three times as long on a CPU, and on a GPU each picture would wait for the numbers of its move.

Two choices differ from the defaults there. Pictures are moved by bilinear interpolation, as in torchvision's own
trainings, not by the nearest pixel. And what a move uncovers gets the colour of the picture's border instead of
black: white where a glyph lies on white paper.

Müller, Hutter: TrivialAugment, ICCV 2021. Cubuk et al.: RandAugment, NeurIPS 2020.

Shapes: S image size in pixels, P numbers per picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from ke_metric.arrays import DoubleArray, PixelArray
from ke_metric.images.augmentation import border_colour
from ke_metric.recipe.schema import Augmentation

BINS = 31
DRAWS_EACH = 3
"""Numbers of one operation: which it is, how far, and whether the other way."""
BITS = 8

# Of torchvision's TrivialAugmentWide and RandAugment: the largest shear, rotation in degrees, change of a colour, and
# how many of a level's bits go. The first moves by up to so many pixels, the other by up to a share of the side.
_WIDE = {"shear": 0.99, "rotation": 135.0, "colour": 0.99, "bits": 6.0}
_NARROW = {"shear": 0.3, "rotation": 30.0, "colour": 0.9, "bits": 4.0}
_WIDE_SHIFT, _NARROW_SHIFT = 32.0, 150.0 / 331.0

_COLOURS: dict[str, Callable[[Image.Image, float], Any]] = {
    "Identity": lambda image, _: image,
    "Brightness": lambda image, by: v2.adjust_brightness(image, 1 + by),
    "Color": lambda image, by: v2.adjust_saturation(image, 1 + by),
    "Contrast": lambda image, by: v2.adjust_contrast(image, 1 + by),
    "Sharpness": lambda image, by: v2.adjust_sharpness(image, 1 + by),
    "Posterize": lambda image, bits: v2.posterize(image, int(bits)),
    "Solarize": lambda image, share: v2.solarize(image, 255.0 * share),
    "AutoContrast": lambda image, _: v2.autocontrast(image),
    "Equalize": lambda image, _: v2.equalize(image),
}
_MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
OPERATIONS = ("Identity", *_MOVES, *list(_COLOURS)[1:])
_SIGNED = {*_MOVES, "Brightness", "Color", "Contrast", "Sharpness"}


class PolicyOperation(NamedTuple):
    """One operation on a picture.

    Attributes:
        name: One of OPERATIONS.
        magnitude: A slope, pixels, degrees, the change of a factor from 1, bits that stay, or the share of the
            levels from which on they are inverted; 0 where the operation has none.
    """

    name: str
    magnitude: float


class Policy:
    """The policy of a recipe.

    Args:
        augmentation: The recipe's section.
        size: S.

    Attributes:
        draws: P.
    """

    def __init__(self, augmentation: Augmentation, size: int) -> None:
        self._is_wide = augmentation.policy == "trivial_augment_wide"
        self._magnitudes = _magnitudes(self._is_wide, size)
        self._bin = augmentation.policy_magnitude
        self.draws = DRAWS_EACH * (1 if self._is_wide else augmentation.policy_operations)

    def operations(self, draws: DoubleArray) -> list[PolicyOperation]:
        """Return what happens to a picture with draws [P], uniform in [0, 1)."""
        return [self._operation(*row) for row in draws.reshape(-1, DRAWS_EACH).tolist()]

    def _operation(self, which: float, how_far: float, sign: float) -> PolicyOperation:
        name = OPERATIONS[int(which * len(OPERATIONS))]
        steps = self._magnitudes.get(name)
        if steps is None:
            return PolicyOperation(name, 0.0)
        magnitude = steps[int(how_far * BINS) if self._is_wide else self._bin]
        return PolicyOperation(name, -magnitude if name in _SIGNED and sign < 0.5 else magnitude)

    def __call__(self, pixels: PixelArray, draws: DoubleArray) -> PixelArray:
        """Return a picture uint8 [S, S, 3] changed by draws [P]."""
        image = Image.fromarray(pixels)
        for operation in self.operations(draws):
            image = changed(image, operation)
        return np.asarray(image)


def _magnitudes(is_wide: bool, size: int) -> dict[str, list[float]]:
    """Return the steps of every operation that has some; computed in float32, as torchvision does."""
    largest = _WIDE if is_wide else _NARROW
    shift = _WIDE_SHIFT if is_wide else _NARROW_SHIFT * size
    ends = dict.fromkeys(("ShearX", "ShearY"), largest["shear"]) | dict.fromkeys(("TranslateX", "TranslateY"), shift)
    ends |= {"Rotate": largest["rotation"]}
    ends |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), largest["colour"])
    steps = {name: torch.linspace(0.0, end, BINS).tolist() for name, end in ends.items()}
    gone = torch.arange(BINS) / ((BINS - 1) / largest["bits"])
    return steps | {"Posterize": (BITS - gone).round().tolist(), "Solarize": torch.linspace(1.0, 0.0, BINS).tolist()}


def changed(image: Image.Image, operation: PolicyOperation) -> Image.Image:
    """Return what an operation makes of an RGB picture."""
    name, magnitude = operation
    result: Image.Image = _moved(image, name, magnitude) if name in _MOVES else _COLOURS[name](image, magnitude)
    return result


def _moved(image: Image.Image, name: str, magnitude: float) -> Any:
    fill = list(border_colour(np.asarray(image)))
    if name == "Rotate":
        return v2.rotate(image, magnitude, InterpolationMode.BILINEAR, fill=fill)
    along = 0 if name.endswith("X") else 1
    if name.startswith("Shear"):
        slant = _along(along, math.degrees(math.atan(magnitude)))
        how = {"shear": slant, "translate": [0, 0], "center": [0, 0], "interpolation": InterpolationMode.BILINEAR}
    else:
        # By whole pixels, for which the nearest one is the bilinear one, in a tenth of the time.
        shift = _along(along, int(magnitude))
        how = {"shear": [0.0, 0.0], "translate": shift, "interpolation": InterpolationMode.NEAREST}
    return v2.affine(image, angle=0.0, scale=1.0, fill=fill, **how)


def _along(axis: int, value: float) -> list[float]:
    return [value, 0] if axis == 0 else [0, value]
