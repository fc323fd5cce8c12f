"""Uploads: within limits, decoded in memory, and whatever is wrong with one is told while the explorer lives on."""

import io
import socket
import struct
import threading
import time
import zlib

import pytest
from drawn_collection import TINY_LIMITS, DrawnCollection, encode, picture_of, running_explorer
from PIL import ExifTags, Image

from ke_metric.explorer.application import LIMITS, MOST_UPLOADS_AT_ONCE


@pytest.fixture(scope="module")
def small():
    """An explorer whose limits are reached quickly."""
    with running_explorer(DrawnCollection(), **TINY_LIMITS) as found:
        yield found


def lives(explorer):
    answer = explorer.upload(encode(picture_of(5)))
    return answer.status == 200 and "upload" in answer.document


def large_png(width, height, told=None):
    """Return a PNG of equal pixels, which is small however many there are; `told`: the height that it claims."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(width + 1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, told or height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_the_limits_are_those_that_were_promised():
    assert LIMITS.max_bytes == 10_000_000
    assert LIMITS.max_pixels == 25_000_000
    assert MOST_UPLOADS_AT_ONCE == 2


@pytest.mark.parametrize(
    ("kind", "content_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")]
)
def test_a_picture_becomes_a_query(explorer, kind, content_type):
    number = explorer.upload(encode(picture_of(9), kind), content_type).document["upload"]
    state = explorer.get("/api/state").document
    assert number in state["uploads"]
    address = f"/api/neighbors?generation=3&network=slim&part=upload&position={number}"
    found = explorer.get(address).document
    assert len(found["neighbors"]) == 10
    assert found["query"] == {"part": "upload", "position": number, "name": "", "class": -1}
    picture = explorer.get(f"{state['pictures']}/upload/{number}")
    assert Image.open(io.BytesIO(picture.body)).size == (24, 20)


def test_a_transparent_picture_and_one_in_grey_are_taken(explorer):
    for mode in ("RGBA", "L", "P", "LA", "1"):
        assert "upload" in explorer.upload(encode(picture_of(9).convert(mode))).document, mode


def test_an_upload_is_shown_as_it_is_seen(explorer):
    """Upright, and on white where it is transparent."""
    turned = Image.new("RGB", (20, 10), "red")
    exif = turned.getexif()
    exif[ExifTags.Base.Orientation] = 6
    for body, content_type, size, color in [
        (encode(turned, "JPEG", exif=exif, quality=100), "image/jpeg", (10, 20), (254, 0, 0)),
        (encode(Image.new("RGBA", (20, 10), (0, 0, 0, 0))), "image/png", (20, 10), (255, 255, 255)),
    ]:
        number = explorer.upload(body, content_type).document["upload"]
        address = f"{explorer.get('/api/state').document['pictures']}/upload/{number}"
        shown = Image.open(io.BytesIO(explorer.get(address).body)).convert("RGB")
        assert shown.size == size
        assert shown.getpixel((3, 3)) == color


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_kinds_of_pictures_are_refused(explorer, kind):
    body = encode(picture_of(1), kind)
    for content_type in (f"image/{kind.lower()}", "image/png", "text/html", None):
        assert "must be image/jpeg" in explorer.upload(body, content_type).document["refused"]
    assert lives(explorer)


@pytest.mark.parametrize(
    "body",
    [b"", b"\x89PNG\r\n\x1a\n", encode(picture_of(1, (80, 80)))[:-200], b"\x89PNG\r\n\x1a\n" + bytes(1000)],
    ids=["empty", "begin of a PNG", "cut off", "zeros"],
)
def test_a_broken_file_is_told(explorer, body):
    answer = explorer.upload(body)
    assert answer.status == 200
    assert "damaged or cut off" in answer.document["refused"]
    assert lives(explorer)


@pytest.mark.parametrize("size", [(10_000, 5_000), (5_001, 5_000), (60_000, 60_000)])
def test_too_many_pixels_are_told_before_anything_is_decoded(explorer, size):
    body = large_png(*size) if size == (10_000, 5_000) else begin_of_png(*size)
    began = time.process_time()
    answer = explorer.upload(body)
    assert answer.document == {"refused": "the picture has more than 25,000,000 pixels"}
    assert time.process_time() - began < 2
    assert lives(explorer)


def begin_of_png(width, height):
    """Return a PNG that says how many pixels it has, and has none."""
    return large_png(width, 0, told=height)


def test_the_most_pixels_are_taken(explorer):
    assert "upload" in explorer.upload(large_png(5_000, 5_000)).document


def test_too_large_a_file_is_refused(small):
    answer = small.upload(bytes(TINY_LIMITS["max_bytes"] + 1))
    assert answer.status == 413
    assert "larger than 200,000 bytes" in answer.document["error"]
    assert lives(small)


def raw(explorer, data, seconds=10):
    with socket.create_connection(("127.0.0.1", explorer.port), timeout=seconds) as connection:
        received = b""
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                received += part
        except (TimeoutError, ConnectionError):
            pass
        return received


def head_of(explorer, *more):
    lines = ["POST /api/uploads HTTP/1.1", f"Host: 127.0.0.1:{explorer.port}", "Content-Type: image/png", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def test_bytes_are_counted_while_they_come(small):
    """No length is announced, and the chunks never end."""
    chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
    answer = raw(small, head_of(small, "Transfer-Encoding: chunked") + chunk * 30)
    assert answer.startswith(b"HTTP/1.1 413")
    assert lives(small)


def test_a_length_that_is_not_true_is_not_trusted(small):
    answer = raw(small, head_of(small, "Content-Length: 100000") + b"\x89PNG\r\n\x1a\n")
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert lives(small)


def test_two_pictures_are_looked_at_at_a_time():
    collection = DrawnCollection()
    gate, inside = threading.Event(), threading.Semaphore(0)
    prepare = collection.prepare

    def wait(picture, max_pixels):
        inside.release()
        assert gate.wait(20)
        return prepare(picture, max_pixels)

    collection.prepare = wait
    with running_explorer(collection) as explorer:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(explorer.upload(encode(picture_of(1))).status))
            for _ in range(MOST_UPLOADS_AT_ONCE)
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert inside.acquire(timeout=20)
        third = explorer.upload(encode(picture_of(1)))
        assert third.status == 503
        assert "retry-after" in third.headers
        assert explorer.get("/api/state").status == 200, "others are answered meanwhile"
        gate.set()
        for thread in threads:
            thread.join(20)
        assert answers == [200, 200]
        assert lives(explorer)


def test_a_picture_that_takes_too_long_is_given_up_and_keeps_its_place():
    collection = DrawnCollection()
    gate, prepare = threading.Event(), collection.prepare
    collection.prepare = lambda picture, most: prepare(picture, most) if gate.wait(20) else None
    with running_explorer(collection, answer_seconds=0.2) as explorer:
        for _ in range(MOST_UPLOADS_AT_ONCE):
            answer = explorer.upload(encode(picture_of(1)))
            assert answer.status == 503
            assert "in time" in answer.document["error"]
        assert "already" in explorer.upload(encode(picture_of(1))).document["error"]
        gate.set()
        end = time.monotonic() + 10
        while not lives(explorer):
            assert time.monotonic() < end


def test_the_name_of_a_file_is_not_read(explorer):
    body = encode(picture_of(1))
    named = explorer.upload(body, Content_Disposition='attachment; filename="../../x<script>.png"')
    assert named.status == 200
    number = named.document["upload"]
    told = explorer.get(f"/api/neighbors?generation=1&network=dense&part=upload&position={number}").body
    assert b"x<script>" not in told


def test_one_file_is_taken_not_a_form(explorer):
    body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + encode(picture_of(1)) + b"\r\n--x--\r\n"
    assert "must be image/jpeg" in explorer.upload(body, "multipart/form-data; boundary=x").document["refused"]


def test_what_the_collection_cannot_use_is_told():
    from ke_metric.errors import ExitCode, KeMetricError

    collection = DrawnCollection()

    def refuse(picture, max_pixels):
        raise KeMetricError("the picture: is too long a strip", ExitCode.DATA)

    collection.prepare = refuse
    with running_explorer(collection) as explorer:
        assert explorer.upload(encode(picture_of(1))).document == {"refused": "the picture: is too long a strip"}
