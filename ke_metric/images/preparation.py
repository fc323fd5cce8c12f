"""What the network sees of a picture: one record of how it is prepared, and the one way from a picture to numbers.

A training's scoring, the embedder, an export and the service all go through here, so that one picture gives one
tensor: decoded and turned upright (`decoding`), kept at a size, resized, cut in the centre, standardised. Networks
subsample, and what one makes of a picture depends on where the picture lies by a pixel; averaged over views, moved by
one pixel each, it depends on that less.

Shapes: B batch, D numbers for a picture, H and W height and width in pixels, S image size in pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from ke_metric.arrays import PixelArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import MAX_PIXELS, UPRIGHT_ON_WHITE, Decoding, as_rgb, read_picture
from ke_metric.schema import Ground, Section, Triple, Views

if TYPE_CHECKING:
    from ke_metric.recipe.schema import Recipe

StoreShape = Literal["keep", "square"]
Picture = str | Path | Image.Image | npt.NDArray[Any] | torch.Tensor
"""A path, a PIL image, an array uint8 [H, W, 3] or [H, W], or a tensor [3, H, W]: uint8, or float in [0, 1]."""

# No picture is too long a strip whose longer side is so many times its shorter one.
ALWAYS_TAKEN = 16
CPU = torch.device("cpu")
# float32 that lie in a processor's cache beside what they are made of: 2 MB.
CACHED_NUMBERS = 2**19
MOVES: dict[Views, tuple[tuple[int, int], ...]] = {
    1: ((0, 0),),
    2: ((0, 0), (1, 1)),
    5: ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)),
}
"""Number of views -> by how many pixels each is moved, down and to the right."""


class Preparation(Section):
    """How a picture is prepared for a network that takes float32 [B, 3, image_size, image_size].

    Made from a recipe, or read from the config.json of a bundle or the export.json of an export.
    """

    background: Ground = "white"
    """What transparent parts are put on: white, or a colour "#rrggbb". keep: the colours hidden under them show."""
    exif_orientation: bool = True
    """Whether a picture is turned upright as its EXIF orientation says."""
    store_size: int | None = Field(None, ge=1)
    """Pixels that the shorter side is resized to (bicubic) right after decoding; None: it is left as it is."""
    store_shape: StoreShape = "keep"
    """keep: the aspect ratio stays. square: the picture is squashed to store_size x store_size."""
    resize: int | None = Field(None, ge=1)
    """Pixels that the shorter side is resized to (bilinear) before the centre crop; None: nobody said."""
    image_size: int = Field(ge=1)
    """S, height and width of the centre crop in pixels."""
    mean: Triple
    """Mean of red, green, blue in [0, 1] that is subtracted."""
    std: Triple
    """Standard deviation of red, green, blue in [0, 1] that is divided by."""
    views: Views = 1
    """How many views of the picture the network's outputs are averaged over: itself, and moved by one pixel."""

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Self:
        """Return what a recipe does to the pictures that it scores."""
        names = set(cls.model_fields) - {"resize", "views"}
        of_data = {name: getattr(recipe.data, name) for name in names}
        return cls(resize=recipe.evaluation.resize, views=recipe.embedding.views, **of_data)

    @property
    def decoding(self) -> Decoding:
        """How files become colours."""
        return Decoding(self.background, self.exif_orientation)

    @property
    def steps(self) -> tuple[str, ...]:
        """What becomes of a picture before it is standardised, in words."""
        steps = ["decode"]
        if self.exif_orientation:
            steps.append("turn upright as the EXIF orientation says")
        steps.append(
            "convert to RGB; transparency is thrown away"
            if self.background == "keep"
            else f"convert to RGB; put what is transparent on {self.background}"
        )
        if self.store_size is not None:
            shape = (
                f"to {self.store_size} x {self.store_size} pixels"
                if self.store_shape == "square"
                else f"so that the shorter side has {self.store_size} pixels"
            )
            steps.append(f"resize {shape} (bicubic, antialiased)")
        steps += [
            f"resize so that the shorter side has {self._resize} pixels (bilinear, antialiased)",
            f"cut {self.image_size} x {self.image_size} pixels out of the centre",
            "divide by 255, put the colours first: float32 [B, 3, S, S]",
        ]
        return tuple(steps)

    def pixels(self, picture: Picture, name: str = "picture", max_pixels: int = MAX_PIXELS) -> PixelArray:
        """Decode a picture and cut out what the network sees of it, uint8 [S, S, 3]. Thread-safe, but for PIL images.

        Args:
            picture: See `Picture`.
            name: What an error calls a picture that has no path.
            max_pixels: That a strip may have when it is enlarged: one row grows to many times its pixels.

        Raises:
            KeMetricError: DATA, naming the picture: it cannot be decoded, has a type or shape that is no picture's,
                or is too long a strip.
        """
        image = as_image(picture, name, self.decoding)
        self._refuse_strip(image, name, max_pixels)
        if self.store_size is None:
            return self.cut(np.asarray(image))
        return self.cut(kept_pixels(image, name, store_size=self.store_size, shape=self.store_shape))

    def cut(self, kept: PixelArray) -> PixelArray:
        """Return what the network sees of a kept picture [H, W, 3]: resized, then cut in the centre, [S, S, 3]."""
        size = self.image_size
        assert size <= self._resize, (size, self._resize)
        width, height = shorter_side(kept.shape[1], kept.shape[0], self._resize)
        if kept.shape[:2] != (height, width):
            kept = np.asarray(Image.fromarray(kept).resize((width, height), Image.Resampling.BILINEAR))
        top, left = (height - size) // 2, (width - size) // 2
        return kept[top : top + size, left : left + size]

    def tensor(self, pixels: PixelArray | Tensor, *, device: torch.device, channels_last: bool) -> torch.Tensor:
        """Turn pixels, uint8 [B, S, S, 3], into what the network takes, float32 [B, 3, S, S], standardised."""
        moved = _as_tensor(pixels).to(device, non_blocking=True).permute(0, 3, 1, 2)
        result = torch.empty(moved.shape, device=device, memory_format=memory_format(channels_last))
        # On a CPU a few pictures at a time, which stay in its cache from one step to the next.
        few = max(1, CACHED_NUMBERS // max(1, moved[:1].numel())) if device.type == "cpu" else max(1, len(moved))
        for part, of in zip(torch.split(result, few), torch.split(moved, few), strict=True):
            self.standardize(part.copy_(of).div_(255), in_place=True)
        return result

    def standardize(self, batch: torch.Tensor, *, in_place: bool = False) -> torch.Tensor:
        """Subtract the mean and divide by the deviation of each channel of a batch float32 [B, 3, H, W] in [0, 1].

        Args:
            batch: Of either memory format, which the result has too.
            in_place: Whether the batch may be overwritten: for a large one, new memory costs more than the numbers.
        """
        channels_last = batch.is_contiguous(memory_format=torch.channels_last)
        # In whole rows of a picture, red, green, blue, red, ...: three numbers at a time take ten times as long.
        rows = batch.permute(0, 2, 3, 1).flatten(2) if channels_last else batch
        centre, spread = (
            each.repeat(batch.shape[3]) if channels_last else each.view(3, 1, 1)
            for each in (numbers_on(values, batch.device) for values in (self.mean, self.std))
        )
        result = (rows.sub_(centre) if in_place else rows - centre).div_(spread)
        return result.view(len(batch), *batch.shape[2:], 3).permute(0, 3, 1, 2) if channels_last else result

    def in_views(self, network: nn.Module, *, unit_length: bool) -> nn.Module:
        """Return what is called in place of a network: the network itself where a picture has one view.

        Args:
            network: Standardised images to embeddings, which are L2-normalised, or to logits; held, not copied.
            unit_length: Whether means over views are L2-normalised, as embeddings are; logits are not.
        """
        return network if self.views == 1 else AveragedViews(network, self.views, unit_length=unit_length)

    @property
    def _resize(self) -> int:
        return self.resize or self.image_size

    def _refuse_strip(self, image: Image.Image, name: str, max_pixels: int) -> None:
        if self.store_size is not None and self.store_shape == "square":
            return
        target = max(self._resize, self.store_size or 0)
        width, height = shorter_side(image.width, image.height, target)
        if width * height > max(max_pixels, ALWAYS_TAKEN * target * target):
            raise KeMetricError(
                f"{name}: {image.width}x{image.height} pixels is too long a strip: enlarged for the network it has "
                f"{width}x{height} pixels, at most {max_pixels:,} are allowed",
                ExitCode.DATA,
            )


class AveragedViews(nn.Module):
    """Images [B, 3, H, W] to the mean of what a network gives for their views, [B, D].

    Args:
        network: Images to embeddings, which are L2-normalised, or to logits; held, not copied.
        views: How many.
        unit_length: Whether the means are L2-normalised, as embeddings are; logits are not.
    """

    def __init__(self, network: nn.Module, views: Views, *, unit_length: bool) -> None:
        super().__init__()
        self.network, self.views, self.unit_length = network, views, unit_length
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network gives for images [B, 3, H, W], averaged over their views."""
        outputs = [cast(Tensor, self.network(view)) for view in views_of(images, self.views)]
        mean = torch.stack(outputs).mean(dim=0)
        return normalize(mean, dim=1) if self.unit_length else mean


def views_of(images: Tensor, views: Views) -> Iterator[Tensor]:
    """Yield the views of images [B, 3, H, W], first the images themselves; what a move uncovers repeats the edge."""
    height, width = images.shape[2:]
    yield images
    wide = pad(images, (1, 1, 1, 1), mode="replicate")
    for down, right in MOVES[views][1:]:
        yield wide[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def kept_pixels(image: Image.Image, name: str, *, store_size: int, shape: StoreShape) -> PixelArray:
    """Return what is kept of an RGB picture, uint8 [H, W, 3]: resized, up or down (antialiased bicubic).

    Args:
        image: The picture.
        name: What an error calls it.
        store_size: Shorter side in pixels.
        shape: "keep": the aspect ratio stays. "square": the picture is squashed to store_size x store_size, as
            Later-Layer Forgetting (Zhou et al., ICLR 2022) does before it cuts its crops.

    Raises:
        KeMetricError: DATA, for a strip so long that too many pixels would be kept.
    """
    width = height = store_size
    if shape == "keep":
        width, height = shorter_side(image.width, image.height, store_size)
    if width * height > MAX_PIXELS:
        raise KeMetricError(
            f"{name}: {image.width}x{image.height} pixels is too long a strip: with the shorter side "
            f"at data.store_size = {store_size} it has {width}x{height} pixels, at most {MAX_PIXELS:,} are allowed",
            ExitCode.DATA,
        )
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def shorter_side(width: int, height: int, target: int) -> tuple[int, int]:
    """Return width and height of the same aspect ratio whose smaller one is `target`."""
    scale = target / min(width, height)
    return max(target, round(width * scale)), max(target, round(height * scale))


def unit_range(
    pixels: PixelArray | torch.Tensor, *, device: torch.device = CPU, channels_last: bool = False
) -> torch.Tensor:
    """Move pixels, uint8 [B, H, W, 3], to the device as bytes and make them float32 [B, 3, H, W] in [0, 1] there.

    Args:
        pixels: Prepared pictures.
        device: Where the result lies.
        channels_last: Memory format of the result: NHWC, else NCHW.
    """
    moved = _as_tensor(pixels).to(device, non_blocking=True).permute(0, 3, 1, 2)
    return moved.to(torch.float32, memory_format=memory_format(channels_last)).div_(255)


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return torch's name of NHWC, or of NCHW."""
    return torch.channels_last if channels_last else torch.contiguous_format


def _as_tensor(pixels: PixelArray | Tensor) -> Tensor:
    # torch warns of arrays that cannot be written to, and takes none with negative strides.
    return pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def numbers_on(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device; on a GPU always the same one.

    A tensor that is made of Python's numbers goes to a GPU in a copy that waits until the GPU has done all that it
    was given before, in every batch.
    """
    return torch.tensor(values) if device.type == "cpu" else _kept_numbers(values, device)


@functools.cache
def _kept_numbers(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)


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


def name_of(position: int, picture: object) -> str:
    """Return what an error calls the picture of a number: its path where it has one."""
    return str(picture) if isinstance(picture, str | Path) else f"picture {position}"


def as_image(picture: Picture, name: str, decoding: Decoding = UPRIGHT_ON_WHITE) -> Image.Image:
    """Return a picture as RGB.

    Raises:
        KeMetricError: DATA, naming the picture: it cannot be decoded, or has a type or shape that is no picture's.
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
