"""Pictures like photographs, drawn: as large, and as hard to decode and to resize, as those of the published sets."""

from pathlib import Path

import numpy as np
from PIL import Image

OCTAVES = 8
QUALITY = 95


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Return smooth noise over several octaves, whose spectrum falls off like that of a photograph."""
    generator = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128.0, np.float32)
    for octave in range(OCTAVES):
        cells = 3 * 2**octave
        noise = generator.normal(0, 128 / 2 ** (0.6 * octave + 1), (cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(noise[:, :, channel]).resize((width, height), Image.Resampling.BICUBIC)
            picture[:, :, channel] += np.asarray(layer)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def write_photographs(folder: Path, *, classes: int, each: int, size: tuple[int, int] = (500, 375)) -> int:
    """Write a folder of JPEG files for every class below train/, and one picture of each below test/.

    Args:
        folder: Where train/ and test/ are put.
        classes: Number of classes.
        each: Training pictures of a class.
        size: Width and height in pixels.

    Returns:
        The mean size of a file in bytes.
    """
    written = []
    for number in range(classes):
        for part, count in (("train", each), ("test", 1)):
            here = folder / part / f"class-{number:03d}"
            here.mkdir(parents=True)
            for index in range(count):
                path = here / f"{index:04d}.jpg"
                photograph(number * (each + 1) + index + (part == "test") * each, *size).save(path, quality=QUALITY)
                written.append(path.stat().st_size)
    return sum(written) // len(written)
