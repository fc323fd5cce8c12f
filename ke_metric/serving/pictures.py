"""Pictures that come and go: uploads by their real content, pixels counted before anything is decoded; files by id.

A picture of the gallery is opened by the path that the index has for its id, and sent only if it is a picture.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from typing import NoReturn
from urllib.parse import unquote_to_bytes

from PIL import Image

from ke_metric.serving.exchange import Refused, Reply
from ke_metric.stores.contract import LONGEST_TEXT, Item

# Content type -> Pillow's name of the format. No other decoder ever sees an upload.
FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
ALLOWED = "must be image/jpeg, image/png or image/webp"
# Each scan of a progressive JPEG costs about a decoding; encoders write about ten.
MAX_SCANS = 100
SCAN = b"\xff\xda"
# Pillow's name of a format -> content type. What a browser could run (SVG, HTML, PDF) is not among them.
CONTENT_TYPES = {
    "JPEG": b"image/jpeg",
    "MPO": b"image/jpeg",
    "PNG": b"image/png",
    "WEBP": b"image/webp",
    "GIF": b"image/gif",
    "BMP": b"image/bmp",
    "TIFF": b"image/tiff",
}
# A JPEG with several pictures is opened as one and then calls itself MPO.
DECODERS = tuple(name for name in CONTENT_TYPES if name != "MPO")


def count_pixels_ourselves() -> None:
    """Silence Pillow's warning of decompression bombs, for the whole process.

    It knows one number only, 89 million pixels. `decode` knows the limit of uploads, and pictures of the gallery are
    not decoded here.
    """
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def picture_format(content_type: bytes | None) -> str:
    """Return Pillow's name of the format that a Content-Type header names.

    Raises:
        Refused: 415: it is missing, or names something else.
    """
    named = (content_type or b"").partition(b";")[0].strip().lower().decode("latin-1")
    found = FORMATS.get(named)
    if found is None:
        said = f"Content-Type {named[:80]!r}" if named else "no Content-Type"
        raise Refused(415, f"{said}: {ALLOWED}")
    return found


def begins_as(body: bytes) -> str | None:
    """Return the format as which bytes begin; None: none of those allowed."""
    if body.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WEBP" if body.startswith(b"RIFF") and body[8:12] == b"WEBP" else None


def decode(body: bytes, kind: str, max_pixels: int) -> Image.Image:
    """Decode a picture; its first frame where there are several.

    Args:
        body: The file.
        kind: Pillow's name of the format it must have.
        max_pixels: Width x height, at most; read from the header, before anything is decoded.

    Raises:
        Refused: 413 too many pixels, 415 another format, 422 it cannot be decoded.
    """
    if body and begins_as(body) != kind:
        raise Refused(415, f"the content is no {kind}, as which the Content-Type announces it; {ALLOWED}")
    if kind == "JPEG" and body.count(SCAN) > MAX_SCANS:
        raise Refused(422, f"the JPEG has more than {MAX_SCANS} scans")
    too_many = Refused(413, f"the picture has more than {max_pixels:,} pixels")
    try:
        with Image.open(io.BytesIO(body), formats=(kind,)) as image:
            if image.width * image.height > max_pixels:
                raise too_many
            image.load()
            return image
    except Refused:
        raise
    except Image.DecompressionBombError:
        raise too_many from None
    except Exception as error:  # whatever a decoder says of bytes that somebody made up
        raise Refused(422, f"the {kind} cannot be decoded: it is damaged or cut off") from error


def can_be_id(text: str) -> bool:
    """Return whether an item can have this id."""
    return 0 < len(text) <= LONGEST_TEXT and "\0" not in text


def read_id(raw: bytes) -> str:
    """Return the id in the percent-encoded rest of a path.

    Raises:
        Refused: 404: no item can have such an id.
    """
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        _not_found()
    if not can_be_id(text):
        _not_found()
    return text


def read_picture(item: Item | None, max_bytes: int) -> Reply:
    """Return the picture of an item.

    Raises:
        Refused: 404: there is no item, or no picture where it should lie; a special file is not read.
    """
    if item is None or not item.path:
        _not_found()
    body = _read_regular(item.path, max_bytes)
    try:
        with Image.open(io.BytesIO(body), formats=DECODERS) as image:
            content_type = CONTENT_TYPES[str(image.format)]
    except Exception:  # whatever a decoder says of a file that is no picture
        _not_found()
    return Reply(200, body, ((b"content-type", content_type),))


def _read_regular(path: str, max_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
                _not_found()
            return file.read(max_bytes)
    except (OSError, ValueError):
        _not_found()


def _not_found() -> NoReturn:
    raise Refused(404, "there is no picture of this id") from None
