"""What becomes of one picture before the network sees it: exactly what becomes of it when a generation is scored.

Shapes: H and W height and width in pixels, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ke_metric.arrays import PixelArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import MAX_PIXELS, UPRIGHT_ON_WHITE, Decoding, as_rgb, read_picture
from ke_metric.images.pixel_store import evaluation_picture, shorter_side, stored_picture
from ke_metric.networks.bundle_config import Normalization

# No picture is too long a strip whose longer side is so many times its shorter one.
ALWAYS_TAKEN = 16

Picture = str | Path | Image.Image | npt.NDArray[Any] | torch.Tensor
"""A path, a PIL image, an array uint8 [H, W, 3] or [H, W], or a tensor [3, H, W]: uint8, or float in [0, 1]."""


def pictures_of(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """Return one picture as a list of it; a batch array or tensor, or an array of paths, gives them by itself.

    Raises:
        KeMetricError: DATA: it is neither a picture nor several.
    """
    single = isinstance(images, str | Path | Image.Image)
    if isinstance(images, np.ndarray | torch.Tensor):
        paths = isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "UOT"
        single = images.ndim < 4 and not paths
    if not single and not isinstance(images, Iterable):
        raise KeMetricError(
            f"images = {images!r:.80}: {type(images).__name__} is no picture, nor several; give paths, PIL images, "
            "arrays or tensors",
            ExitCode.DATA,
        )
    return [images] if single else images  # type: ignore[list-item, return-value]


def taken(numbered: tuple[int, Picture], how: Normalization) -> tuple[int, Picture | KeMetricError]:
    """Return a picture as it is now: a PIL image decoded, since it may become another one, or is not thread-safe."""
    position, picture = numbered
    if not isinstance(picture, Image.Image):
        return numbered
    try:
        return position, as_image(picture, name_of(position, picture), decoding_of(how))
    except KeMetricError as error:
        return position, error


def name_of(position: int, picture: Picture | KeMetricError) -> str:
    """Return what an error calls the picture of a number: its path where it has one."""
    return str(picture) if isinstance(picture, str | Path) else f"picture {position}"


def prepare(picture: Picture, name: str, how: Normalization, max_pixels: int = MAX_PIXELS) -> PixelArray:
    """Decode a picture and cut out what the network sees of it.

    Args:
        picture: See `Picture`.
        name: What an error calls a picture that has no path.
        how: Decoding and sizes; mean and deviation are not applied here.
        max_pixels: That a strip may have when it is enlarged: a picture of one row grows to many times its pixels.

    Returns:
        uint8 [S, S, 3].

    Raises:
        KeMetricError: DATA, naming the picture: it cannot be decoded, has a type or shape that is no picture's, or is
            too long a strip.
    """
    image = as_image(picture, name, decoding_of(how))
    _refuse_strip(image, name, how, max_pixels)
    if how.store_size is None:
        kept = np.asarray(image)
    else:
        kept = stored_picture(image, name, store_size=how.store_size, shape=how.store_shape)
    return evaluation_picture(kept, resize=how.resize or how.image_size, size=how.image_size)


def _refuse_strip(image: Image.Image, name: str, how: Normalization, max_pixels: int) -> None:
    if how.store_size is not None and how.store_shape == "square":
        return
    target = max(how.resize or how.image_size, how.store_size or 0)
    width, height = shorter_side(image.width, image.height, target)
    if width * height > max(max_pixels, ALWAYS_TAKEN * target * target):
        raise KeMetricError(
            f"{name}: {image.width}x{image.height} pixels is too long a strip: enlarged for the network it has "
            f"{width}x{height} pixels, at most {max_pixels:,} are allowed",
            ExitCode.DATA,
        )


def decoding_of(how: Normalization) -> Decoding:
    """Return how pictures are decoded."""
    return Decoding(how.background, how.exif_orientation)


def as_image(picture: Picture, name: str, decoding: Decoding = UPRIGHT_ON_WHITE) -> Image.Image:
    """Return a picture as RGB.

    Raises:
        KeMetricError: DATA, see `prepare`.
    """
    if isinstance(picture, str | Path):
        return read_picture(Path(picture), decoding)
    if isinstance(picture, Image.Image):
        if 0 in picture.size:
            raise KeMetricError(f"{name}: {picture.width}x{picture.height} pixels is no picture", ExitCode.DATA)
        return as_rgb(picture, name, decoding)
    if isinstance(picture, torch.Tensor):
        return Image.fromarray(_tensor_pixels(picture.detach().cpu(), name))
    if isinstance(picture, np.ndarray):
        return Image.fromarray(_array_pixels(picture, name))
    raise KeMetricError(
        f"{name}: {type(picture).__name__} is no picture; give a path, a PIL image, an array or a tensor",
        ExitCode.DATA,
    )


def _array_pixels(array: npt.NDArray[Any], name: str) -> PixelArray:
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)) or 0 in array.shape:
        raise KeMetricError(
            f"{name}: an array {list(array.shape)} of {array.dtype} is no picture, must be uint8 [H, W, 3] or [H, W]",
            ExitCode.DATA,
        )
    return np.ascontiguousarray(np.repeat(array[:, :, None], 3, axis=2) if grey else array)


def _tensor_pixels(tensor: torch.Tensor, name: str) -> PixelArray:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise KeMetricError(f"{name}: a tensor {list(tensor.shape)} is no picture, must be [3, H, W]", ExitCode.DATA)
    if tensor.dtype.is_floating_point:
        if not bool(((tensor >= 0) & (tensor <= 1)).all()):
            raise KeMetricError(
                f"{name}: a tensor of {tensor.dtype} must lie in [0, 1], this one in [{tensor.min():.3g}, "
                f"{tensor.max():.3g}]; standardisation is the embedder's work",
                ExitCode.DATA,
            )
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise KeMetricError(f"{name}: a tensor of {tensor.dtype}, must be uint8 or float in [0, 1]", ExitCode.DATA)
    return np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())
