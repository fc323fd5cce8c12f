"""Preparation: every kind of picture gives the pixels that training-time evaluation would show the network."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import FolderSource, ImageSet
from ke_metric.images.pixel_store import PixelStore
from ke_metric.images.preparation import Preparation, as_image, numbers_on


def how(**fields):
    defaults = {"store_size": 40, "resize": 36, "image_size": 32, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return Preparation(**(defaults | fields))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def refused(picture, name="given"):
    with pytest.raises(KeMetricError) as caught:
        how().pixels(picture, name)
    assert caught.value.exit_code == ExitCode.DATA
    return str(caught.value)


def evaluated(path, sizes):
    """What scoring makes of a file."""
    images = ImageSet((path.name,), np.zeros(1, np.int64), ("x",), FolderSource(path.parent))
    return sizes.cut(PixelStore.build(images, sizes.store_size, shape=sizes.store_shape).picture(0))


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    store_size=st.integers(1, 70),
    resize=st.integers(1, 60),
    crop=st.integers(0, 20),
    shape=st.sampled_from(["keep", "square"]),
)
def test_a_file_looks_as_it_did_when_it_was_scored(height, width, store_size, resize, crop, shape, tmp_path_factory):
    size = max(1, resize - crop)
    path = tmp_path_factory.mktemp("p") / "p.png"
    Image.fromarray(noise(height, width)).save(path)
    sizes = how(store_size=store_size, store_shape=shape, resize=resize, image_size=size)
    assert np.array_equal(sizes.pixels(path), evaluated(path, sizes))


@pytest.mark.parametrize("size", [(50, 41), (41, 50), (40, 40), (36, 36), (20, 300)])
def test_every_kind_of_picture_gives_the_same_pixels(size, tmp_path):
    pixels = noise(*size)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    wanted = how().pixels(tmp_path / "p.png")
    assert wanted.shape == (32, 32, 3)
    assert wanted.dtype == np.uint8
    chw = torch.from_numpy(pixels).permute(2, 0, 1)
    for picture in (
        str(tmp_path / "p.png"), Image.fromarray(pixels), pixels, pixels[:, ::1], np.asfortranarray(pixels), chw,
        chw.contiguous(), chw.float() / 255, chw.double() / 255, (chw.float() / 255).requires_grad_(),
    ):  # fmt: skip
        assert np.array_equal(how().pixels(picture), wanted)


def test_views_and_other_strides(tmp_path):
    pixels = noise(60, 60)
    wanted = how().pixels(np.ascontiguousarray(pixels[::-1, ::2]))
    assert np.array_equal(how().pixels(pixels[::-1, ::2]), wanted)


def test_grey_pictures():
    grey = noise(50, 40)[:, :, 0]
    wanted = how().pixels(np.stack([grey] * 3, axis=2))
    assert np.array_equal(how().pixels(grey), wanted)
    assert np.array_equal(how().pixels(Image.fromarray(grey)), wanted)


def test_other_modes_become_rgb():
    pixels = noise(50, 40)
    for image in (
        Image.fromarray(pixels).convert("RGBA"), Image.fromarray(pixels).quantize(), Image.new("1", (9, 9), 1),
        Image.fromarray(pixels).convert("CMYK"), Image.new("I", (9, 9)), Image.new("LA", (9, 9)),
    ):  # fmt: skip
        assert as_image(image, "p").mode == "RGB"
        assert how().pixels(image).shape == (32, 32, 3)


def test_without_sizes_of_training():
    # A bundle may say only how large the network's pictures are.
    pixels = noise(50, 41)
    direct = how(store_size=None, resize=None).pixels(pixels)
    assert direct.shape == (32, 32, 3)
    resized = Image.fromarray(pixels).resize((32, 39), Image.Resampling.BILINEAR)
    assert np.array_equal(direct, np.asarray(resized)[3:35])


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (3, "int is no picture"),
        (b"x", "bytes is no picture"),
        (None, "NoneType is no picture"),
        ([1], "list is no picture"),
        (Image.new("RGB", (0, 4)), "0x4 pixels is no picture"),
        (Image.new("F", (4, 4)), "floating-point numbers"),
        (np.zeros((4, 4, 3), np.float32), "[4, 4, 3] of float32 is no picture, must be uint8"),
        (np.zeros((4, 4, 4), np.uint8), "[4, 4, 4]"),
        (np.zeros((4, 4, 1), np.uint8), "[4, 4, 1]"),
        (np.zeros((3, 4, 4), np.uint8), "[3, 4, 4]"),
        (np.zeros((0, 4, 3), np.uint8), "[0, 4, 3]"),
        (np.zeros((4, 0), np.uint8), "[4, 0]"),
        (np.zeros(4, np.uint8), "[4]"),
        (np.zeros((1, 4, 4, 3), np.uint8), "[1, 4, 4, 3]"),
        (torch.zeros(4, 4, 3), "[4, 4, 3] is no picture, must be [3, H, W]"),
        (torch.zeros(3, 0, 4), "[3, 0, 4]"),
        (torch.zeros(3, 4), "[3, 4]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64, must be uint8 or float"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), "bool"),
        (torch.full((3, 4, 4), 255.0), "must lie in [0, 1]"),
        (torch.full((3, 4, 4), -0.1), "must lie in [0, 1]"),
        (torch.full((3, 4, 4), torch.nan), "must lie in [0, 1]"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(picture, words):
    message = refused(picture, "picture 7")
    assert message.startswith("picture 7: ")
    assert words in message


def test_files_are_refused_by_their_path(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"x")
    assert str(tmp_path / "bad.png") in refused(tmp_path / "bad.png")
    assert f"{tmp_path / 'none.png'}: no such image file" in refused(str(tmp_path / "none.png"))
    assert str(tmp_path) in refused(tmp_path)


def test_a_strip_that_would_become_too_large_is_refused():
    assert "too long a strip" in refused(np.zeros((1, 70_000), np.uint8), "strip")


@pytest.mark.parametrize(("store_size", "resize"), [(None, 36), (None, None), (2, 36), (40, 36)])
def test_a_strip_is_measured_as_it_is_at_its_largest(store_size, resize):
    sizes, taken = how(store_size=store_size, resize=resize), np.zeros((1, 16), np.uint8)
    assert sizes.pixels(taken, "p", 1).shape == (32, 32, 3)
    strip = np.zeros((2000, 1), np.uint8)
    enlarged = 2000 * max(store_size or 0, resize or 32) ** 2
    assert sizes.pixels(strip, "p", enlarged).shape == (32, 32, 3)
    with pytest.raises(KeMetricError, match=r"^p: 1x2000 pixels is too long a strip") as caught:
        sizes.pixels(strip, "p", enlarged - 1)
    assert caught.value.exit_code == ExitCode.DATA


def test_a_strip_that_is_squashed_is_never_too_long():
    assert how(store_shape="square").pixels(np.zeros((1, 70_000), np.uint8), "p", 1).shape == (32, 32, 3)


def test_a_gpu_is_given_the_same_numbers_once():
    """`meta` is a device that is no processor and is everywhere; on a processor nobody waits."""
    meta, processor = torch.device("meta"), torch.device("cpu")
    assert numbers_on((0.25, 0.5), meta) is numbers_on((0.25, 0.5), meta)
    assert numbers_on((0.25, 0.5), meta) is not numbers_on((0.25, 0.75), meta)
    assert numbers_on((0.25, 0.5), processor).tolist() == [0.25, 0.5]


@pytest.mark.parametrize("channels_last", [False, True])
def test_no_later_batch_on_a_gpu_is_made_of_numbers(channels_last, monkeypatch):
    four = how(image_size=4)
    pixels = torch.empty(2, 4, 4, 3, dtype=torch.uint8, device="meta")

    def prepared():
        return four.tensor(pixels, device=torch.device("meta"), channels_last=channels_last)

    prepared()
    monkeypatch.setattr(torch, "tensor", None)
    assert prepared().shape == (2, 3, 4, 4)
