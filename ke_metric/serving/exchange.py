"""One request and its reply, on plain ASGI: what every request costs is spent here, so there is little of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive, Scope, Send

Headers = Sequence[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")
CLOSE = (b"connection", b"close")
# No page may run, frame or embed what is served here, and no browser may guess what it is.
COMMON: Headers = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
RETRY = (b"retry-after", b"1")
# What is still read of a refused upload, so that the client gets to see the answer before the connection closes.
LINGER_BYTES = 32_000_000
LINGER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent back.

    Attributes:
        status: HTTP status.
        body: Bytes.
        headers: Beside those that every reply has and the length; the content type is among them.
    """

    status: int
    body: bytes
    headers: Headers = (JSON_TYPE,)


class Refused(Exception):
    """A request that is answered with a status and a reason.

    Args:
        status: HTTP status, at least 400.
        reason: In words, without anything of this machine.
        headers: Beside the content type.
        linger: Whether what is still coming is read for a while; not where the client is the slow one.
    """

    def __init__(self, status: int, reason: str, *, headers: Headers = (), linger: bool = True) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers, self.linger = status, reason, headers, linger

    @property
    def reply(self) -> Reply:
        """Its answer."""
        return Reply(self.status, error_body(self.reason), (JSON_TYPE, *self.headers))


def busy(reason: str) -> Refused:
    """Return the refusal of a request that may be tried again."""
    return Refused(503, reason, headers=[RETRY])


def error_body(reason: str) -> bytes:
    """Return the JSON document of an error."""
    return json.dumps({"error": reason}).encode()


class Exchange:
    """One request on its way through the service.

    Args:
        scope: Of ASGI.
        receive: Of ASGI.
        send: Of ASGI.

    Attributes:
        headers: Lower-case name to value; the last one of each name.
        route: Path of the route that answers, for the metrics.
        held: Bytes of its upload.
        body_read: Whether nothing of its body is left to be read.
        reply: What an endpoint answered.
    """

    __slots__ = ("_receive", "_send", "body_read", "headers", "held", "reply", "route", "scope")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.route = "none"
        self.held = 0
        self.reply: Reply | None = None
        self.body_read = (
            self.headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in self.headers
        )

    async def receive(self) -> Message:
        """Return the next message of the client."""
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.body_read = True
        return message

    async def answer(self, reply: Reply, *, linger: bool = True) -> None:
        """Send the reply; the connection closes after it where the body was not read to its end."""
        headers: list[Any] = [*COMMON, *reply.headers, (b"content-length", b"%d" % len(reply.body))]
        unread = not self.body_read
        if unread:
            headers.append(CLOSE)
        await self._send({"type": "http.response.start", "status": reply.status, "headers": headers})
        if unread and linger:
            await self._send({"type": "http.response.body", "body": reply.body, "more_body": True})
            await self._drain()
            await self._send({"type": "http.response.body", "body": b""})
        else:
            await self._send({"type": "http.response.body", "body": reply.body})

    async def _drain(self) -> None:
        """Read what is still coming: closing at once would reset the connection before the reply is read."""
        left = LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.body_read and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            return
