"""The code of docs/export.md prepares the very pixels that are scored, and embeds them."""

import re
from pathlib import Path

import numpy as np
import pytest
from made import MEAN, STD, make_embedder, make_pictures
from PIL import Image

from ke_metric.export.export import Evidence, ExportSettings, export
from ke_metric.images.preparation import Preparation

DOCUMENT = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def code():
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if "def prepare" in text]
    names = {}
    exec(block, names)
    return names


def picture(path, width, height):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("stored", [{}, {"store_size": 48}, {"store_size": 48, "store_shape": "square"}])
@pytest.mark.parametrize("resize", [None, 32, 40])
@pytest.mark.parametrize("shape", [(32, 32), (63, 41), (20, 77), (48, 48)])
def test_pixels_are_those_that_are_scored(stored, resize, shape, code, tmp_path):
    how = Preparation.model_validate({"image_size": 32, "resize": resize, "mean": MEAN, "std": STD} | stored)
    path = picture(tmp_path / "p.png", *shape)
    ours = how.pixels(path).transpose(2, 0, 1).astype(np.float32) / 255
    np.testing.assert_array_equal(code["prepare"](path, how.model_dump(mode="json")), ours)
    assert len(how.steps) == (7 if stored else 6)


def test_embeddings_are_the_embedders(code, tmp_path):
    embedder = make_embedder()
    export(embedder, tmp_path / "e", settings=ExportSettings("onnx"), evidence=Evidence(make_pictures(), source="x"))
    paths = [picture(tmp_path / f"{width}.png", width, 50) for width in (40, 50, 90)]
    np.testing.assert_allclose(code["embed"](tmp_path / "e", paths), embedder(paths), atol=2e-6)


@pytest.mark.parametrize("background", ["white", "#20c040", "keep"])
@pytest.mark.parametrize("upright", [True, False])
def test_transparent_and_turned_pictures_too(background, upright, code, tmp_path):
    fields = {"image_size": 32, "resize": 32, "mean": MEAN, "std": STD}
    how = Preparation.model_validate(fields | {"background": background, "exif_orientation": upright})
    layers = np.random.default_rng(0).integers(0, 256, (40, 60, 4)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(layers).save(tmp_path / "p.png", exif=exif)
    Image.fromarray(layers).quantize(32).save(tmp_path / "q.png")
    # Of a palette's hidden colours Pillow itself would warn.
    for path in [tmp_path / "p.png"] if background == "keep" else [tmp_path / "p.png", tmp_path / "q.png"]:
        ours = how.pixels(path).transpose(2, 0, 1).astype(np.float32) / 255
        np.testing.assert_array_equal(code["prepare"](path, how.model_dump(mode="json")), ours)
    said = " ".join(how.steps)
    assert ("transparency is thrown away" if background == "keep" else f"transparent on {background}") in said
    assert ("EXIF" in said) == upright
