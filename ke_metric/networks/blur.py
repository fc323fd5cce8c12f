"""Anti-aliased strides: where a layer leaves out every other position, its input is blurred first.

A signal must be low-passed before it is subsampled, or what is left depends on where the picture lies by a pixel
(Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019).

Shapes: B batch, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

from ke_metric.errors import ExitCode, KeMetricError


class Blur(nn.Sequential):
    """The binomial filter of 3x3 positions of maps [B, C, H, W], the edge repeated, at every `stride`-th position.

    Two means of 2x2 positions in a row are that filter. Poolings have no weights and take any number of channels, so
    a slim network is blurred as the dense one is.

    Args:
        stride: 1 keeps the size of the maps, 2 halves it, rounded up.
    """

    def __init__(self, stride: int) -> None:
        super().__init__(nn.AvgPool2d(2, 1, padding=1, count_include_pad=False), nn.AvgPool2d(2, stride))


def blur_strides(backbone: nn.Module, where: Literal["stem", "strides"], name: str) -> None:
    """Blur before every convolution of stride 2, and between every max pooling of stride 2 and its stride.

    Weights keep their values, so pretrained ones can be refined.

    Args:
        backbone: Changed in place.
        where: `stem`: in the first convolution and the max poolings before the second one alone.
        name: What an error calls the backbone.

    Raises:
        KeMetricError: There is no such layer.
    """
    chosen = stem_layers(backbone) if where == "stem" else list(backbone.named_modules())
    halving = [(path, module) for path, module in chosen if _halves(module)]
    if not halving:
        raise KeMetricError(
            f"network.blur = {where!r}: {name!r} has no convolution or max pooling of stride 2 there, must be 'none'",
            ExitCode.RECIPE,
        )
    for path, module in halving:
        blurred = nn.Sequential(Blur(1), module)
        if isinstance(module, nn.MaxPool2d):
            module.stride = 1
            blurred = nn.Sequential(module, Blur(2))
        backbone.set_submodule(path, blurred)


def stem_layers(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the first convolution and the max poolings defined before the second one, with their names."""
    return list(_stem(backbone))


def _stem(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    convolutions = 0
    for name, module in backbone.named_modules():
        convolutions += isinstance(module, nn.Conv2d)
        if convolutions > 1:
            return
        if convolutions and isinstance(module, nn.Conv2d | nn.MaxPool2d):
            yield name, module


def _halves(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.MaxPool2d) and module.stride in (2, (2, 2))
