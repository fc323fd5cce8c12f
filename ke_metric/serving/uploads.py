"""Uploads: bytes are counted as they come, and there is a time by which they must have come."""

from __future__ import annotations

import asyncio

from ke_metric.serving.exchange import Exchange, Refused, busy
from ke_metric.serving.settings import Limits


class Uploads:
    """Reads the bodies of requests into memory, within limits on each one and on all of them.

    Args:
        limits: See there.

    Attributes:
        held: Bytes of all uploads whose requests are not answered yet.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0
        self._arriving: set[asyncio.Timeout] = set()
        self._stopping = False

    async def read(self, exchange: Exchange) -> bytes:
        """Return the body of a request.

        Raises:
            Refused: 408 too slow, 413 too large, 503 too much at a time or stopping.
        """
        self._check_declared(exchange)
        try:
            async with asyncio.timeout(self._limits.upload_seconds) as arriving:
                self._arriving.add(arriving)
                try:
                    return await self._collect(exchange)
                finally:
                    self._arriving.discard(arriving)
        except TimeoutError:
            if self._stopping:
                raise busy("the service is stopping") from None
            raise Refused(
                408, f"the upload took more than {self._limits.upload_seconds:g} seconds", linger=False
            ) from None

    def _check_declared(self, exchange: Exchange) -> None:
        declared = exchange.headers.get(b"content-length", b"0")
        if not declared.isdigit():
            raise Refused(400, "Content-Length is no number")
        if len(declared) > 18 or int(declared) > self._limits.max_bytes:
            raise self._too_large()

    def _too_large(self) -> Refused:
        return Refused(413, f"the upload is larger than {self._limits.max_bytes:,} bytes")

    async def _collect(self, exchange: Exchange) -> bytes:
        parts: list[bytes] = []
        while True:
            message = await exchange.receive()
            if message["type"] != "http.request":
                raise Refused(400, "the client has gone", linger=False)
            part: bytes = message.get("body", b"")
            exchange.held += len(part)
            self.held += len(part)
            if exchange.held > self._limits.max_bytes:
                raise self._too_large()
            if self.held > self._limits.held_bytes:
                raise busy("too many uploads at a time")
            parts.append(part)
            if exchange.body_read:
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def release(self, exchange: Exchange) -> None:
        """Forget the bytes of a request that was answered."""
        self.held -= exchange.held
        exchange.held = 0

    def stop(self) -> None:
        """End the uploads that are arriving: they are answered 503."""
        self._stopping = True
        for arriving in list(self._arriving):
            arriving.reschedule(0)
