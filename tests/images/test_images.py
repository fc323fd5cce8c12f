"""Pictures are decoded by content, and what cannot be decoded is named."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images import decoding
from ke_metric.images.decoding import Decoding, as_rgb, in_order
from ke_metric.images.image_set import Benchmark, FolderSource, ImageSet, labelled_set


@pytest.fixture
def source(tmp_path):
    return FolderSource(tmp_path)


@pytest.mark.parametrize(
    ("mode", "kind", "name"),
    [
        ("L", "JPEG", "grey.jpg"),
        ("P", "GIF", "a_gif.JPG"),
        ("RGBA", "PNG", "a_png.jpg"),
        ("CMYK", "JPEG", "cmyk.jpg"),
        ("LA", "PNG", "grey_alpha.png"),
        ("1", "PNG", "bits.png"),
    ],
)
def test_every_mode_and_kind_becomes_rgb(source, tmp_path, mode, kind, name):
    Image.new(mode, (7, 5)).save(tmp_path / name, kind)
    picture = source.read(name)
    assert picture.mode == "RGB"
    assert picture.size == (7, 5)


def test_pixels_are_those_of_the_file(source, tmp_path):
    pixels = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3)
    Image.fromarray(pixels).save(tmp_path / "exact.png")
    assert np.array_equal(np.asarray(source.read("exact.png")), pixels)


def broken(kind, tmp_path):
    path = tmp_path / "broken.jpg"
    Image.effect_noise((64, 64), 90).save(path, {"truncated": "JPEG", "invalid": "PNG"}.get(kind, "JPEG"))
    content = path.read_bytes()
    # A PNG whose header chunk claims to be shorter than it must be: Pillow raises ValueError.
    damaged = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"no picture"}
    header_of_3_bytes = content[:8] + b"\0\0\0\3" + content[12:]
    path.write_bytes(damaged.get(kind, header_of_3_bytes))
    return path


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "invalid"])
def test_what_cannot_be_decoded_is_named(source, tmp_path, kind):
    path = broken(kind, tmp_path)
    with pytest.raises(KeMetricError, match="cannot be decoded as an image") as caught:
        source.read(path.name)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == ExitCode.DATA


def test_sixteen_bits_keep_their_high_byte(source, tmp_path):
    grey = np.linspace(0, 65535, 300).reshape(15, 20).astype(np.uint16)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        assert np.array_equal(np.asarray(source.read(name)), np.stack([grey >> 8] * 3, axis=2))
    bigendian = Image.frombytes("I;16B", (20, 15), grey.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(as_rgb(bigendian, "x"))[:, :, 0], grey >> 8)


def test_numbers_without_a_known_white_are_refused(source, tmp_path):
    for numbers in (np.full((4, 4), 300, np.int32), np.full((4, 4), 0.5, np.float32)):
        Image.fromarray(numbers).save(tmp_path / "wide.tif")
        with pytest.raises(KeMetricError, match=r"wide\.tif: has .* what white is") as caught:
            source.read("wide.tif")
        assert caught.value.exit_code == ExitCode.DATA
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "narrow.tif")
    assert source.read("narrow.tif").getpixel((0, 0)) == (200, 200, 200)


def test_a_palette_with_transparency_keeps_its_colours_where_it_is_asked_to(source, tmp_path, recwarn):
    palette = Image.effect_noise((30, 30), 90).convert("RGB").quantize(16)
    palette.save(tmp_path / "opaque.png")
    palette.save(tmp_path / "p.png", transparency=bytes(range(16)))
    kept = FolderSource(tmp_path, Decoding(background="keep")).read("p.png")
    assert np.array_equal(np.asarray(kept), np.asarray(source.read("opaque.png")))
    with Image.open(tmp_path / "p.png") as image:
        as_rgb(image, "p")
        assert "transparency" in image.info, "the caller's own picture is left as it is"
    assert not recwarn.list


def test_decoding_in_threads_leaves_the_filters_of_warnings_alone(source, tmp_path):
    Image.effect_noise((300, 300), 90).save(tmp_path / "p.png")
    before = list(warnings.filters)
    for _ in in_order(source.read, ["p.png"] * 200):
        pass
    assert warnings.filters == before


def test_whatever_a_decoder_raises_is_told(source, tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def fail(*given, **options):
        raise RuntimeError("Missing or empty image item")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(KeMetricError, match=r"a\.png: cannot be decoded as an image: Missing"):
        source.read("a.png")


def test_pipes_and_folders_are_not_waited_for(source, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(KeMetricError, match="is a folder, a pipe or a device"):
            source.read(name)


def test_names_that_no_file_can_have_are_told(source):
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(KeMetricError, match="cannot be read"):
            source.read(name)


def test_a_missing_file_is_named(source):
    with pytest.raises(KeMetricError, match=r"gone\.jpg: no such image file"):
        source.read("gone.jpg")


def test_a_picture_of_too_many_pixels_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    Image.new("RGB", (11, 10)).save(tmp_path / "large.png")
    with pytest.raises(KeMetricError, match="11x10 pixels, at most 100"):
        source.read("large.png")


def test_labels_are_the_sorted_class_ids_renumbered(source):
    images = labelled_set(["a", "b", "c"], [200, 7, 200], {7: "seven", 200: "two hundred", 9: "unused"}, source)
    assert images.labels.tolist() == [1, 0, 1]
    assert images.class_names == ("seven", "two hundred")


@pytest.mark.parametrize(
    ("keys", "labels", "names"), [(("a", "a"), [0, 0], ("x",)), (("a",), [0, 0], ("x",)), (("a",), [1], ("x",))]
)
def test_inconsistent_sets_are_our_own_mistake(source, keys, labels, names):
    with pytest.raises(AssertionError):
        ImageSet(keys, np.array(labels), names, source)


def test_leave_one_out_is_one_set_for_query_and_gallery(source):
    one, other = (labelled_set(["a"], [0], {0: "x"}, source) for _ in range(2))
    assert Benchmark("b", one, one, one).leave_one_out
    assert not Benchmark("b", one, one, other).leave_one_out


def test_some_items_keep_their_labels_and_the_classes(source):
    images = labelled_set(["a", "b", "c"], [5, 7, 9], {5: "five", 7: "seven", 9: "nine"}, source)
    part = images.at(np.array([2, 0]))
    assert part.keys == ("c", "a")
    assert part.labels.tolist() == [2, 0]
    assert part.class_names == images.class_names
    assert part.source is source
    assert len(images.at(np.empty(0, np.int64))) == 0


def test_parts_of_a_classification_with_other_classes_are_our_own_mistake(source):
    one, other = (labelled_set(["a"], [0], {0: name}, source) for name in "xy")
    empty = ImageSet((), np.empty(0, np.int64), ("y",), source)
    assert Benchmark("b", one, one, one, {}, one, "classification").validation is one
    for query, gallery, validation in (
        (other, other, None),
        (one, other, None),
        (one, one, other),
        (one, one, empty),
    ):
        with pytest.raises(AssertionError):
            Benchmark("b", one, query, gallery, {}, validation, "classification")
