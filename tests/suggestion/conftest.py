"""Small folders of pictures as users have them: grey, transparent, long, in pairs, of few classes, in a CSV."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ke_metric.suggestion.cost import GenerationCost


def fill(root: Path, *, classes: int, each: int, size: tuple[int, int], mode: str = "RGB", leaning=False) -> Path:
    """Write a folder for every class; `leaning` pictures are dark on the side that is their class's."""
    rng = np.random.default_rng(0)
    for number in range(classes * each):
        label = number % classes
        pixels = rng.integers(60, 256, (*size[::-1], len(mode)), np.uint8)
        if leaning:
            left = label / classes * size[0]
            pixels[:, int(left) : int(left + size[0] / classes)] = rng.integers(0, 60)
        if mode == "RGBA":
            pixels[: size[1] // 2, :, 3] = 0
        path = root / f"class {label:02d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze(), mode if mode != "L" else None).save(path)
    return root


SETS = {
    "grey": {"classes": 3, "each": 24, "size": (28, 28), "mode": "L", "leaning": True},
    "transparent": {"classes": 16, "each": 4, "size": (64, 64), "mode": "RGBA"},
    "few classes": {"classes": 2, "each": 6, "size": (40, 40)},
    "pairs": {"classes": 14, "each": 2, "size": (48, 40)},
    "long": {"classes": 12, "each": 5, "size": (240, 120)},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Name to folder."""
    parent = tmp_path_factory.mktemp("sets")
    return {name: fill(parent / name, **facts) for name, facts in SETS.items()}


@pytest.fixture
def listing(folders):
    """A CSV of one folder's pictures, with columns of other names: its path."""
    root = folders["pairs"]
    file = root.parent / "list.csv"
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["file", "bird"])
        writer.writerows([path.relative_to(root.parent), path.parent.name] for path in sorted(root.rglob("*.png")))
    return file


@pytest.fixture
def cost():
    """A tenth of a second a step, ten steps an epoch, two seconds to score."""
    return GenerationCost(0.1, 10, 2.0, (1000, 250), {"device": "cpu", "precision": "fp32"})
