"""The pictures of the gallery, as they are sent out: by id only, and only if they are pictures."""

from __future__ import annotations

import io
import os
import stat
from typing import NoReturn
from urllib.parse import unquote_to_bytes

from PIL import Image

from ke_metric.retrieval.vector_store import Item
from ke_metric.retrieval.where import LONGEST_TEXT
from ke_metric.serving.exchange import Refused, Reply
from ke_metric.serving.searcher import Searcher

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


def read_id(raw: bytes) -> str:
    """Return the id in the percent-encoded rest of a path.

    Raises:
        Refused: 404: no item can have such an id.
    """
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        _not_found()
    if not text or len(text) > LONGEST_TEXT or "\0" in text:
        _not_found()
    return text


def read_picture(searcher: Searcher, identifier: str, max_bytes: int) -> Reply:
    """Return the picture of an item.

    The path comes from the index alone. A special file is not read, and what is no picture is not sent.

    Raises:
        Refused: 404: there is no such item, or no picture where it should lie.
    """
    item = searcher.find(identifier)
    if item is None or not item.path:
        _not_found()
    body = _read_regular(item, max_bytes)
    try:
        with Image.open(io.BytesIO(body), formats=DECODERS) as image:
            content_type = CONTENT_TYPES[str(image.format)]
    except Exception:  # whatever a decoder says of a file that is no picture
        _not_found()
    return Reply(200, body, ((b"content-type", content_type),))


def _read_regular(item: Item, max_bytes: int) -> bytes:
    try:
        descriptor = os.open(item.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
                _not_found()
            return file.read(max_bytes)
    except (OSError, ValueError):
        _not_found()


def _not_found() -> NoReturn:
    raise Refused(404, "there is no picture of this id") from None
