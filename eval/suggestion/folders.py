"""Two folders that are none of the shipped benchmarks: digits as scikit-learn has them, and signs that are drawn.

Signs: 4 shapes x 6 symbols x 2 colours, 12 pictures of each, turned, moved, blurred, lit and noisy on any ground; 64
pixels. A class that was never seen shares its shape, symbol or colour with others that were.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_digits

DIGITS_EACH, DIGIT_SIDE = 60, 28
SIGNS_EACH, SIGN_SIDE, SHEET = 12, 64, 256
SHAPES = {"circle": 0, "tri": 3, "square": 4, "oct": 8}
"""Name to corners."""
SYMBOLS = ("bar", "cross", "dot", "star", "arrow", "ring")
COLOURS = {"r": (200, 40, 40), "b": (40, 80, 200)}
WHITE = (245, 245, 240)

Point = tuple[float, float]


def write_digits(root: Path) -> Path:
    """Write 60 digits of each class, grey, 28 x 28 pixels."""
    digits, written = load_digits(), Counter()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        written[label] += 1
        if written[label] <= DIGITS_EACH:
            path = root / str(label) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray((pixels / 16 * 255).astype(np.uint8))
            picture.resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC).save(path)
    return root


def write_signs(root: Path) -> Path:
    """Draw the signs, the same ones every time."""
    rng = np.random.default_rng(0)
    for shape, corners in SHAPES.items():
        for symbol in SYMBOLS:
            for initial, colour in COLOURS.items():
                for number in range(SIGNS_EACH):
                    path = root / f"{shape}-{symbol}-{initial}" / f"{number:02d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _sign(corners, symbol, colour, rng).save(path)
    return root


def _sign(corners: int, symbol: str, colour: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    ground = Image.fromarray(rng.integers(0, 255, (4, 4, 3)).astype(np.uint8))
    picture = ground.resize((SHEET, SHEET), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    x, y = SHEET / 2 + rng.normal(0, 10, 2)
    radius = SHEET * (0.30 + 0.1 * rng.random())
    angle = -np.pi / 2 + rng.normal() * 0.15
    fill = tuple(int(value) for value in np.clip(np.array(colour) + rng.integers(-35, 35, 3), 0, 255))
    if corners:
        turns = [angle + 2 * np.pi * corner / corners for corner in range(corners)]
        pen.polygon([(x + 1.15 * radius * np.cos(t), y + 1.15 * radius * np.sin(t)) for t in turns], fill=fill)
    else:
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
    _draw_symbol(pen, symbol, (x, y), radius, angle)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.random() * 5))
    small = np.asarray(picture.resize((SIGN_SIDE, SIGN_SIDE), Image.Resampling.LANCZOS)).astype(float)
    pixels = small * (0.6 + 0.6 * rng.random()) + rng.normal(0, 18, small.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _draw_symbol(pen: ImageDraw.ImageDraw, symbol: str, centre: Point, radius: float, angle: float) -> None:
    (x, y), reach, width = centre, 0.45 * radius, int(0.22 * radius)
    turn = angle + np.pi / 2

    def at(right: float, down: float) -> Point:
        return (
            x + reach * (right * np.cos(turn) - down * np.sin(turn)),
            y + reach * (right * np.sin(turn) + down * np.cos(turn)),
        )

    if symbol in ("bar", "cross"):
        pen.line([at(-1, 0), at(1, 0)], fill=WHITE, width=width)
    if symbol == "cross":
        pen.line([at(0, -1), at(0, 1)], fill=WHITE, width=width)
    elif symbol == "dot":
        pen.ellipse([x - 0.7 * reach, y - 0.7 * reach, x + 0.7 * reach, y + 0.7 * reach], fill=WHITE)
    elif symbol == "ring":
        box = [x - 0.8 * reach, y - 0.8 * reach, x + 0.8 * reach, y + 0.8 * reach]
        pen.ellipse(box, outline=WHITE, width=width)
    elif symbol == "star":
        tips = [(reach * (1 if tip % 2 == 0 else 0.4), angle + np.pi * tip / 5) for tip in range(10)]
        pen.polygon([(x + far * np.cos(t), y + far * np.sin(t)) for far, t in tips], fill=WHITE)
    elif symbol == "arrow":
        pen.line([at(-1, 0), at(0.6, 0)], fill=WHITE, width=width)
        pen.polygon([at(0.2, -0.7), at(1.1, 0), at(0.2, 0.7)], fill=WHITE)
