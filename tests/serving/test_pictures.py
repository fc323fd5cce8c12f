"""Uploads: whatever bytes come, a picture or a refusal; pictures of the gallery: by id, and only pictures."""

import os
import warnings
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_service import encode, picture_of
from PIL import Image

from ke_metric.cli import main
from ke_metric.images.decoding import MAX_PIXELS
from ke_metric.serving.exchange import Refused
from ke_metric.serving.pictures import FORMATS, begins_as, count_pixels_ourselves, decode
from ke_metric.stores.contract import Item

FILES = {kind: encode(picture_of(5), kind) for kind in FORMATS.values()}


# --- uploads --------------------------------------------------------------------------------------------------------


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


# --- pictures of the gallery ----------------------------------------------------------------------------------------


def get(service, identifier):
    return service.ask("GET", f"/images/{identifier}")


@pytest.mark.parametrize(("number", "content_type"), [(0, "image/png"), (2, "image/jpeg")])
def test_the_file_as_it_is(service, items, number, content_type):
    answer = get(service, quote(items[number].id, safe=""))
    assert (answer.status, answer.headers["content-type"]) == (200, content_type)
    assert answer.body == Path(items[number].path).read_bytes()
    assert get(service, quote(items[number].id, safe="/")).body == answer.body


@pytest.mark.parametrize("name", ["a\nb", "\n", "a\r\n", "/images/x", "a?b#c", "50%2F", "..", "a;b", " "])
def test_any_id_is_found_at_the_address_that_a_search_gives(service, items, name):
    before = items[1]
    items[1] = Item(name, before.path)
    try:
        answer = get(service, quote(name, safe=""))
    finally:
        items[1] = before
    assert (answer.status, answer.body) == (200, Path(before.path).read_bytes())


def test_head_has_no_body(service, items):
    answer = service.ask("HEAD", f"/images/{quote(items[0].id)}")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("number", [5, 6, 7, 8, 9], ids=["gone", "html", "no-path", "device", "folder"])
def test_an_item_without_a_picture(service, items, number):
    answer = get(service, quote(items[number].id))
    assert answer.status == 404
    assert items[number].path not in answer.body.decode() or not items[number].path


@pytest.mark.parametrize("filled", [False, True])
def test_a_named_pipe_is_neither_waited_for_nor_read(tmp_path, service, items, filled):
    os.mkfifo(tmp_path / "pipe")
    before = items[9]
    items[9] = Item(before.id, str(tmp_path / "pipe"))
    writer = os.open(tmp_path / "pipe", os.O_RDWR) if filled else None
    try:
        if writer is not None:
            os.write(writer, Path(items[0].path).read_bytes())
        assert get(service, quote(before.id)).status == 404
    finally:
        items[9] = before
        if writer is not None:
            os.close(writer)


def test_a_file_larger_than_allowed(fresh, items):
    size = Path(items[0].path).stat().st_size
    with fresh(image_bytes=size) as service:
        assert get(service, quote(items[0].id)).status == 200
    with fresh(image_bytes=size - 1) as service:
        assert get(service, quote(items[0].id)).status == 404


@pytest.mark.parametrize(
    "path",
    ["", "..", "../etc/passwd", "../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/etc/passwd",
     "%2fetc%2fpasswd", "..%5c..%5cwindows", "%00", "birds/0%00", "%ff", "%", "%zz", "birds/0%20%C3%BC.png%00.html",
     "birds/../birds/0",
     "x" * 2000, "file:///etc/passwd", "birds//0%20%C3%BC.png", "birds/0%20%C3%BC.png/", "birds/0+%C3%BC.png"],
)  # fmt: skip
def test_path_tricks_find_nothing(service, path):
    answer = get(service, path)
    assert (answer.status, answer.document) == (404, {"error": "there is no picture of this id"})


def test_the_path_of_an_item_is_not_its_id(service, items):
    assert get(service, quote(items[0].path, safe="")).status == 404


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["..", "/", "%2e", "%2f", "etc", "passwd", "%00", "%", "birds", "0", "\\", ".png", "%C3"])
    )
)
def test_nothing_but_ids_is_found(service, parts):
    assert get(service, "".join(parts)).status == 404
