"""One request and its reply, on plain ASGI: what the service takes, from whom, and an upload within its limits.

What every request costs is spent here, so there is little of it.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from starlette.types import Message, Receive, Scope, Send

from ke_metric.errors import ExitCode, KeMetricError

TOKEN_VARIABLE = "KE_METRIC_SERVE_TOKEN"
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Limits:
    """How much of everything.

    Attributes:
        max_bytes: Of an upload.
        max_pixels: Of an uploaded picture, width x height.
        max_k: Neighbours that can be asked for, or that expansion and re-ranking may look at.
        max_batch: Pictures per forward pass.
        batch_seconds: How long a forward pass waits for pictures that are on their way.
        queue: Pictures that may wait for their forward pass; one more is answered 503.
        held_bytes: Of all uploads that are arriving or waiting; more are answered 503.
        connections: Open at a time; one more is answered 503.
        header_seconds: From a request's first byte, or a connection's begin, to the end of its headers.
        header_bytes: Of a request line with its headers, about.
        upload_seconds: From the end of the headers to the end of the body.
        answer_seconds: From the end of the body to the begin of the work.
        send_seconds: In which a client must take `send_bytes` of an answer that waits for it.
        idle_seconds: Between two requests of a connection.
        stop_seconds: For what is in work when the service is stopped.
        image_bytes: Of a picture of the gallery that is sent out.
    """

    max_bytes: int = 10_000_000
    max_pixels: int = 25_000_000
    max_k: int = 100
    max_batch: int = 64
    batch_seconds: float = 0.002
    queue: int = 256
    held_bytes: int = 256_000_000
    connections: int = 1024
    header_seconds: float = 10.0
    header_bytes: int = 65_536
    upload_seconds: float = 20.0
    answer_seconds: float = 30.0
    send_seconds: float = 20.0
    send_bytes: int = 65_536
    idle_seconds: int = 30
    stop_seconds: int = 10
    image_bytes: int = 50_000_000


@dataclass(frozen=True)
class ServiceSettings:
    """Where the service listens, who may ask, and how much.

    Attributes:
        host: Address or name to listen on.
        port: 0: one that is free.
        token: What requests must carry; None: they need none, which only a loopback address allows.
        limits: How much of everything.
        serves: An `index`, which is searched, or a `classifier`.

    Raises:
        KeMetricError: USAGE: an address that others reach, without a token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    serves: Literal["index", "classifier"] = "index"

    def __post_init__(self) -> None:
        if self.token is None and not self.is_loopback:
            raise KeMetricError(
                f"--host {self.host}: other machines reach this address, so requests must carry a token: name a file "
                f"that holds one with --token-file, or set the environment variable {TOKEN_VARIABLE}",
                ExitCode.USAGE,
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def address(self) -> str:
        """The host as it stands in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def url(self) -> str:
        """Where clients find the service."""
        return f"http://{self.address}:{self.port}"


def read_token(file: Path | None) -> str | None:
    """Return the token of a file, or of the environment where no file is named; None where there is neither.

    Raises:
        KeMetricError: USAGE: the file cannot be read, or what is there is no token.
    """
    if file is None:
        text, where = os.environ.get(TOKEN_VARIABLE), f"the environment variable {TOKEN_VARIABLE}"
        if text is None:
            return None
    else:
        where = f"--token-file {file}"
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise KeMetricError(f"{where}: cannot be read: {error}", ExitCode.USAGE) from error
    token = text.strip()
    if len(token) < SHORTEST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise KeMetricError(
            f"{where}: {len(token)} characters are no token, must be at least {SHORTEST_TOKEN} visible ASCII "
            "characters without blanks, such as those of: openssl rand -hex 32",
            ExitCode.USAGE,
        )
    return token


Headers = Sequence[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")
CLOSE = (b"connection", b"close")
RETRY = (b"retry-after", b"1")
# No page may run, frame or embed what is served here, and no browser may guess what it is.
COMMON: Headers = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
# What is still read of a refused upload, so that the client gets to see the answer before the connection closes.
LINGER_BYTES = 32_000_000
LINGER_SECONDS = 2.0
PORT = re.compile(rb":\d{1,5}\Z")
OPEN_PATH = "/health"


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent back: status, body, and headers beside those that every reply has and the length."""

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
        common: Headers that every reply has.

    Attributes:
        headers: Lower-case name to value; the last one of each name.
        route: Path of the route that answers, for the metrics.
        held: Bytes of its upload.
        body_read: Whether nothing of its body is left to be read.
        reply: What an endpoint answered.
    """

    __slots__ = ("_common", "_receive", "_send", "body_read", "headers", "held", "reply", "route", "scope")

    def __init__(self, scope: Scope, receive: Receive, send: Send, common: Headers = COMMON) -> None:
        self.scope, self._receive, self._send, self._common = scope, receive, send, common
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
        headers: list[Any] = [*self._common, *reply.headers, (b"content-length", b"%d" % len(reply.body))]
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


class Door:
    """Lets requests in.

    On a loopback address the Host header must name this machine: a page whose name was pointed at 127.0.0.1 (DNS
    rebinding) reaches the port, but its browser sends the page's name. A request that a page of another origin made
    is refused everywhere. With a token, every route but /health needs it.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._token = None if settings.token is None else b"Bearer " + settings.token.encode()
        names = {settings.address, "127.0.0.1", "localhost", "[::1]"}
        self._hosts = {name.encode() for name in names} if settings.is_loopback else None

    def check(self, exchange: Exchange) -> None:
        """Raise Refused unless the request may come in: 401 without the token, 403 from a foreign page."""
        headers = exchange.headers
        host = headers.get(b"host", b"")
        if self._hosts is not None and PORT.sub(b"", host.lower()) not in self._hosts:
            raise Refused(403, "the Host header names another machine")
        origin = headers.get(b"origin")
        if origin is not None and origin not in (b"http://" + host, b"https://" + host):
            raise Refused(403, "requests of pages of another origin are refused")
        if self._token is not None and not self.is_open(exchange.scope["path"]) and not self.knows(exchange):
            raise Refused(401, "the token is missing or wrong", headers=[(b"www-authenticate", b"Bearer")])

    def is_open(self, path: str) -> bool:
        """Whether a route needs no token."""
        return path == OPEN_PATH

    def knows(self, exchange: Exchange) -> bool:
        """Whether a request carries the token."""
        return self._token is None or hmac.compare_digest(exchange.headers.get(b"authorization", b""), self._token)


class Uploads:
    """Reads the bodies of requests into memory, within limits on each one and on all of them.

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
        declared = exchange.headers.get(b"content-length", b"0")
        if not declared.isdigit():
            raise Refused(400, "Content-Length is no number")
        if len(declared) > 18 or int(declared) > self._limits.max_bytes:
            raise self._too_large()
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
