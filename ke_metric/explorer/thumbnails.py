"""Small pictures for the page, encoded once and held within a number of bytes."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from PIL import Image

SIDE = 224
"""Pixels of the longer side: two for each of the page's."""
SMALL = 96
"""Up to so many pixels a picture is kept without loss: every one of them is seen."""
MOST_BYTES = 64_000_000


def encode_thumbnail(picture: Image.Image) -> bytes:
    """Return an RGB picture, at most SIDE pixels high and wide, as WebP."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, "WEBP", quality=85, method=2, lossless=max(small.size) <= SMALL)
    return encoded.getvalue()


class Thumbnails:
    """Encoded pictures, those that were asked for last. Thread-safe.

    Args:
        most_bytes: Of all that are held.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[Hashable, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: Hashable, read: Callable[[], Image.Image]) -> bytes:
        """Return the thumbnail of a key; `read` gives the picture where it is not held."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        encoded = encode_thumbnail(read())
        with self._lock:
            self._bytes += len(encoded) - len(self._held.pop(key, b""))
            self._held[key] = encoded
            while self._bytes > self._most_bytes and len(self._held) > 1:
                self._bytes -= len(self._held.popitem(last=False)[1])
        return encoded
