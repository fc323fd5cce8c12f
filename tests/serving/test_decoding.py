"""Whatever bytes come: a picture, or a refusal."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_service import encode, picture_of
from PIL import Image

from ke_metric.cli import main
from ke_metric.images.decoding import MAX_PIXELS
from ke_metric.serving.exchange import Refused
from ke_metric.serving.pictures import FORMATS, begins_as, count_pixels_ourselves, decode

FILES = {kind: encode(picture_of(5), kind) for kind in FORMATS.values()}


@pytest.mark.parametrize("kind", FILES)
def test_formats_are_told_by_their_content(kind):
    assert begins_as(FILES[kind]) == kind
    assert decode(FILES[kind], kind, 10**6).size == (16, 12)


def test_pixels_are_counted_by_our_own_limit_alone():
    body = encode(Image.new("1", (9500, 9500)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count_pixels_ourselves()
        assert decode(body, "PNG", 9500 * 9500).size == (9500, 9500)
        with pytest.raises(Refused, match="more than 90,249,999 pixels"):
            decode(body, "PNG", 9500 * 9500 - 1)


def test_the_largest_limit_is_that_of_all_pictures():
    limit = next(option for option in main.commands["serve"].params if option.name == "max_pixels")
    assert limit.type.max == MAX_PIXELS < 2 * Image.MAX_IMAGE_PIXELS


def test_a_progressive_picture_is_taken():
    body = encode(picture_of(5), "JPEG", progressive=True)
    assert decode(body, "JPEG", 10**6).size == (16, 12)


def test_the_picture_is_decoded_when_it_is_returned():
    image = decode(FILES["JPEG"], "JPEG", 10**6)
    assert image.getpixel((3, 3)) == decode(FILES["JPEG"], "JPEG", 10**6).convert("RGB").getpixel((3, 3))


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(FILES)),
    cut=st.integers(0, 2000),
    changes=st.lists(st.tuples(st.integers(0, 1999), st.integers(0, 255)), max_size=6),
)
def test_damaged_files_are_refused_or_decoded(kind, cut, changes):
    body = bytearray(FILES[kind][:cut] if cut < 1500 else FILES[kind])
    for position, value in changes:
        if position < len(body):
            body[position] = value
    assert outcome(bytes(body), kind) in ("decoded", 413, 415, 422)


def outcome(body, kind):
    try:
        image = decode(body, kind, 1000)
    except Refused as refused:
        return refused.status
    return "decoded" if image.width * image.height <= 1000 else "too large"


def test_a_picture_of_very_many_scans_is_refused():
    body = FILES["JPEG"] + b"\xff\xda" * 101
    with pytest.raises(Refused, match="100 scans") as caught:
        decode(body, "JPEG", 1000)
    assert caught.value.status == 422
    assert decode(FILES["JPEG"] + b"\xff\xda" * 50, "JPEG", 1000).size == (16, 12)
