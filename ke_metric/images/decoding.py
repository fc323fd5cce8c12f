"""From a file to a picture in RGB, upright, on a ground where it is transparent: every reader goes through here.

Where many pictures are decoded, `in_order` does it in threads that run ahead by a bounded number of pictures.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageColor

from ke_metric.errors import ExitCode, KeMetricError

if TYPE_CHECKING:
    from ke_metric.recipe.schema import Data

Source = TypeVar("Source")
Decoded = TypeVar("Decoded")

# Pillow warns above 89.5 million pixels; a photograph of a data set is far below, a decompression bomb is not.
MAX_PIXELS = 100_000_000

# Pictures per thread that are decoded ahead of the one asked for next: enough to even out slow files.
LOOK_AHEAD = 4

Progress = Callable[[int, int], None]
"""Called with the number of pictures done and their total."""

KEEP = "keep"
TRANSPARENCY = "transparency"
# Orientation of EXIF 2.32, 4.6.4: what takes the stored pixels to the picture. 1 is upright, others are invalid.
UPRIGHT = 1
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoding:
    """How the numbers of a file become the colours that are seen.

    Attributes:
        background: What transparent parts are put on, `white` or `#rrggbb`; `keep`: the colours hidden there show.
        exif_orientation: Whether pictures are turned upright as EXIF says. A TIFF always is: by Pillow.
    """

    background: str = "white"
    exif_orientation: bool = True

    @classmethod
    def of_recipe(cls, data: Data) -> Self:
        """Return how a recipe's pictures are decoded."""
        return cls(data.background, data.exif_orientation)


UPRIGHT_ON_WHITE = Decoding()


@dataclass(frozen=True)
class FileTraits:
    """What a picture was in its file, beside the colours that are left of it.

    Attributes:
        transparent: Whether something of it is not wholly opaque.
        orientation: As EXIF has it: 1 upright, 2 to 8 not.
        wide: Whether its numbers have 16 bits, of which the higher 8 are kept.
    """

    transparent: bool
    orientation: int
    wide: bool


def traits_of(picture: Image.Image) -> FileTraits | None:
    """Return what a picture that `as_rgb` gave was in its file; None for any other picture, which was in none."""
    return picture.info.get("traits")


def read_picture(path: Path, decoding: Decoding = UPRIGHT_ON_WHITE) -> Image.Image:
    """Decode a file by its content, whatever its extension says, and convert it by `as_rgb`; the first frame of many.

    Raises:
        KeMetricError: DATA: it is missing, no picture, damaged, or larger than MAX_PIXELS.
    """
    _require_file(path)
    try:
        image = Image.open(path)
    except Exception as error:
        raise _undecodable(str(path), error) from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise KeMetricError(
                f"{path}: {image.width}x{image.height} pixels, at most {MAX_PIXELS:,} are allowed", ExitCode.DATA
            )
        return as_rgb(image, str(path), decoding)


def _require_file(path: Path) -> None:
    """Refuse what is no file: the reading of a pipe or a device need not end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise KeMetricError(f"{path}: no such image file", ExitCode.DATA) from None
    except (OSError, ValueError) as error:
        raise KeMetricError(f"{path}: cannot be read: {error}", ExitCode.DATA) from error
    if not stat.S_ISREG(mode):
        raise KeMetricError(f"{path}: is a folder, a pipe or a device, no image file", ExitCode.DATA)


def as_rgb(image: Image.Image, name: str, decoding: Decoding = UPRIGHT_ON_WHITE) -> Image.Image:
    """Return a picture as RGB, in a copy that says nothing of transparency and orientation but by `traits_of`.

    Of 16-bit grey the high byte is kept, as Pillow does with 16-bit colours.

    Raises:
        KeMetricError: DATA, naming it: it cannot be decoded, or has numbers of which nobody knows what white is.
    """
    try:
        wide = _is_wide(image)
        # Decoded before it is asked for its orientation: PNG may say it behind the pixels, and Pillow turns a TIFF
        # itself and forgets that it was turned.
        image.load()
        orientation = _orientation(image)
        unbounded = image.mode == "F" or (image.mode == "I" and not _fits_a_byte(image))
        if not unbounded:
            picture, transparent = _on_ground(_in_bytes(image, wide), decoding.background)
            if decoding.exif_orientation and orientation != UPRIGHT:
                picture = picture.transpose(TURNS[orientation])
            profile = image.info.get("icc_profile")
            # Nothing else that the file said: whoever reads it again would turn the picture once more.
            picture.info = {"traits": FileTraits(transparent, orientation, wide)}
            picture.info |= {"icc_profile": profile} if profile else {}
            return picture
    except Exception as error:
        # Pillow's decoders raise whatever they come upon, RuntimeError and SyntaxError among them.
        raise _undecodable(name, error) from error
    raise KeMetricError(
        f"{name}: has {'floating-point' if image.mode == 'F' else '32-bit'} numbers, of which nobody knows what "
        "white is; save it with 8 or 16 bits",
        ExitCode.DATA,
    )


def _is_wide(image: Image.Image) -> bool:
    """Return whether the numbers in the file have more than 8 bits; once decoded, only grey ones say so."""
    tiles = getattr(image, "tile", ())
    return image.mode.startswith("I;16") or any(";16" in str(tile) for tile in tiles)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:
        # EXIF that nobody can read says nothing; the pixels are as good as without it.
        return UPRIGHT
    return found if found in TURNS else UPRIGHT


def _in_bytes(image: Image.Image, wide: bool) -> Image.Image:
    """Return 16-bit grey as 8-bit grey, and a transparent colour of 16 bits as one of 8; others are left alone."""
    transparent = image.info.get(TRANSPARENCY)
    if image.mode.startswith("I;16"):
        numbers = np.asarray(image)
        # Alone, Pillow would cut 16-bit grey off at 255: all but the darkest parts would be white.
        grey = Image.fromarray((numbers >> 8).astype(np.uint8))
        if isinstance(transparent, int):
            grey.putalpha(Image.fromarray(np.where(numbers == transparent, 0, 255).astype(np.uint8)))
        return grey
    if isinstance(transparent, tuple) and (wide or max(transparent) > 255):
        image = image.copy()
        image.info[TRANSPARENCY] = tuple(number >> 8 for number in transparent)
    return image


def _on_ground(image: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """Return a picture as RGB on a ground, and whether anything of the ground shows."""
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    layers = image.convert("RGBA")
    alpha = layers.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return _hidden_colours(image), False
    if background == KEEP:
        return _hidden_colours(image), True
    picture = Image.new("RGB", image.size, ImageColor.getrgb(background))
    picture.paste(layers.convert("RGB"), mask=alpha)
    return picture, True


def _hidden_colours(image: Image.Image) -> Image.Image:
    """Return a picture as RGB without its transparency; Pillow would warn of the one that a palette has."""
    if image.mode == "P" and isinstance(image.info.get(TRANSPARENCY), bytes):
        image = image.copy()
        del image.info[TRANSPARENCY]
    return image.convert("RGB")


def _fits_a_byte(image: Image.Image) -> bool:
    numbers = np.asarray(image)
    return bool(((numbers >= 0) & (numbers <= 255)).all())


def _undecodable(name: str, error: Exception) -> KeMetricError:
    return KeMetricError(f"{name}: cannot be decoded as an image: {error}", ExitCode.DATA)


def in_order(
    decode: Callable[[Source], Decoded], sources: Iterable[Source], *, threads: int | None = None
) -> Iterator[Decoded]:
    """Yield every source decoded, in order, by a few threads that run ahead by at most LOOK_AHEAD sources each.

    Args:
        decode: Called in the threads; what it raises is raised where its source is due.
        sources: Read as far as is needed.
        threads: As many as this process has processors, where left out.
    """
    threads = threads or processors()
    waiting: deque[Future[Decoded]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for source in sources:
            waiting.append(pool.submit(decode, source))
            if len(waiting) >= LOOK_AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
