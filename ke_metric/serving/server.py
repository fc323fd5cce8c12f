"""From the socket to the routes: HTTP as uvicorn speaks it, less patient, Starlette's router, and an orderly end.

Headers have a size and a time, and connections a number. An end leaves nothing half done.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.serving.api import (
    State,
    health_document,
    openapi_document,
    read_class_question,
    read_parameters,
    read_question,
)
from ke_metric.serving.exchange import (
    CLOSE,
    COMMON,
    JSON_TYPE,
    RETRY,
    Door,
    Exchange,
    Limits,
    Refused,
    Reply,
    ServiceSettings,
    busy,
)
from ke_metric.serving.pictures import count_pixels_ourselves, picture_format, read_id
from ke_metric.serving.routing import ExchangeRouter, Handler
from ke_metric.serving.service import CONTENT_TYPE, ServedNetwork, Service

IMAGES = b"/images/"


class Application:
    """The ASGI application.

    Attributes:
        routes: What is answered.
    """

    def __init__(self, service: Service, settings: ServiceSettings) -> None:
        self._service, self._max_k = service, settings.limits.max_k
        self._openapi = json.dumps(openapi_document(settings), indent=1).encode()
        asked: list[tuple[str, str, Handler]] = [
            ("POST", "/search", self._search),
            ("POST", "/embed", self._embed),
            ("GET", "/images/{id:item}", self._image),
        ]
        if settings.serves == "classifier":
            asked = [("POST", "/predict", self._predict)]
        about: list[tuple[str, str, Handler]] = [
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._metrics),
            ("GET", "/openapi.json", self._description),
        ]
        self._router = ExchangeRouter([*asked, *about], Door(settings), self._lifespan)
        self.routes = self._router.routes

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        self._service.start()
        try:
            yield
        finally:
            await self._service.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        scope["app"] = self
        if scope["type"] != "http":
            await self._router.live(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        metrics, begun = self._service.metrics, time.perf_counter()
        metrics.in_flight.inc()
        try:
            reply, linger = await self._router.reply(exchange)
            self._service.uploads.release(exchange)
            metrics.count_request(exchange.route, reply.status, time.perf_counter() - begun)
            await exchange.answer(reply, linger=linger)
        finally:
            self._service.uploads.release(exchange)
            metrics.in_flight.dec()

    async def _search(self, exchange: Exchange) -> Reply:
        return await self._ask(exchange, read_question(exchange.scope["query_string"], self._max_k))

    async def _predict(self, exchange: Exchange) -> Reply:
        return await self._ask(exchange, read_class_question(exchange.scope["query_string"], self._max_k))

    async def _embed(self, exchange: Exchange) -> Reply:
        read_parameters(exchange.scope["query_string"])
        return await self._ask(exchange, None)

    async def _ask(self, exchange: Exchange, question: Any) -> Reply:
        kind = picture_format(exchange.headers.get(b"content-type"))
        self._service.check_ready()
        body = await self._service.uploads.read(exchange)
        return Reply(200, await self._service.ask(body, kind, question))

    async def _image(self, exchange: Exchange) -> Reply:
        read_parameters(exchange.scope["query_string"])
        path: bytes = exchange.scope["raw_path"].partition(b"?")[0]
        return await self._service.picture(read_id(path.removeprefix(IMAGES)))

    async def _health(self, exchange: Exchange) -> Reply:
        read_parameters(exchange.scope["query_string"])
        state = self._service.state
        document = health_document(state)
        return Reply(200, document) if state == "ready" else Reply(503, document, (JSON_TYPE, RETRY))

    async def _metrics(self, exchange: Exchange) -> Reply:
        read_parameters(exchange.scope["query_string"])
        return Reply(200, self._service.metrics.text(), ((b"content-type", CONTENT_TYPE),))

    async def _description(self, exchange: Exchange) -> Reply:
        read_parameters(exchange.scope["query_string"])
        return Reply(200, self._openapi)


PIPELINE = 16
"""Requests that a connection may send before the first one is answered."""
BACKLOG = 1024
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ImpatientProtocol(HttpToolsProtocol):
    """A connection, whose class has the limits: uvicorn makes connections by their class.

    uvicorn waits for headers for ever, and takes any number of bytes of them; httptools counts neither. And it waits
    for ever for a client that does not read its answer.
    """

    limits: Limits

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; refuse where there are too many connections."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._in_headers, self._only_headers, self._header_bytes = True, True, 0
        self._header_timer: asyncio.TimerHandle | None = None
        self._sending_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.connections:
            self._refuse(busy("too many connections"))
            return
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and see whether headers are too long in coming."""
        if self.transport.is_closing():
            return
        self._only_headers = self._in_headers
        super().data_received(data)
        if self._in_headers:
            # Of a piece in which headers begin, what comes before them belongs to the request before.
            self._header_bytes += len(data) if self._only_headers else 0
            if self._header_bytes > self.limits.header_bytes:
                self._refuse_long_headers()
            else:
                self._await_headers()
        elif len(self.pipeline) > PIPELINE:
            self.transport.close()
        elif self.cycle is not None and self.cycle.response_complete:
            # Line breaks between two requests are no headers yet, but uvicorn has ended the idle time for them.
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._forget_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Note that the client is behind with reading; its answer must not stay in memory for ever."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """Note that the client has caught up."""
        super().resume_writing()
        if self._sending_timer is not None:
            self._sending_timer.cancel()
            self._sending_timer = None

    def _watch_sending(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._sending_timer = self.loop.call_later(self.limits.send_seconds, self._check_sending, left)

    def _check_sending(self, left_before: int) -> None:
        if left_before - self.transport.get_write_buffer_size() < self.limits.send_bytes:
            self.transport.abort()
        else:
            self._watch_sending()

    def on_message_begin(self) -> None:
        """Note that headers are coming."""
        super().on_message_begin()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        """Note that they have come."""
        self._in_headers, self._only_headers, self._header_bytes = False, False, 0
        self._forget_timer()
        # All of them may have come in one piece, which is larger than the limit.
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.limits.header_bytes:
            self._refuse_long_headers()
        else:
            super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, as everything else is answered."""
        self._refuse(Refused(400, "this is no HTTP request that can be read"))

    def _await_headers(self) -> None:
        if self._header_timer is None and not self.transport.is_closing():
            self._header_timer = self.loop.call_later(self.limits.header_seconds, self._headers_late)

    def _refuse_long_headers(self) -> None:
        self._refuse(Refused(431, f"the headers are larger than {self.limits.header_bytes:,} bytes"))

    def _headers_late(self) -> None:
        self._header_timer = None
        self._refuse(Refused(408, f"the headers took more than {self.limits.header_seconds:g} seconds"))

    def _forget_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _refuse(self, refused: Refused) -> None:
        """Answer in the application's place, and close.

        Where an earlier request of the connection is still being answered, nothing may be written in between.
        """
        if self.transport.is_closing():
            return
        cycle = self.cycle
        is_alone = cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started)
        if is_alone and not self.pipeline:
            self.transport.write(_in_bytes(refused.reply))
        self.transport.close()


def _in_bytes(reply: Reply) -> bytes:
    headers = [*COMMON, *reply.headers, CLOSE, (b"content-length", b"%d" % len(reply.body))]
    return STATUS_LINE[reply.status] + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n" + reply.body


class Stoppable(Protocol):
    """What a server begins and ends with.

    Attributes:
        state: `ready` once it answers.
        failure: Why it never will; None as long as nothing is wrong.
    """

    state: State
    failure: BaseException | None

    def stop(self) -> None:
        """Take nothing more."""


class Server(uvicorn.Server):
    """uvicorn that stops the service first, and ends without the signal that ended it.

    Args:
        config: Of uvicorn, see `configuration`.
        service: What is served.
        ready: Called once, when it answers.
    """

    def __init__(self, config: uvicorn.Config, service: Stoppable, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.service = service
        self._ready: Callable[[], None] | None = ready

    async def on_tick(self, counter: int) -> bool:
        """Tell whether it is time to stop: asked for, or the index could not be opened."""
        if self._ready is not None and self.service.state == "ready":
            ready, self._ready = self._ready, None
            ready()
        return await super().on_tick(counter) or self.service.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop: what waits is answered 503, what is in work is finished."""
        self.service.stop()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals as requests to stop; uvicorn would raise them again in the end, and exit with them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    open_network: Callable[[], ServedNetwork],
    settings: ServiceSettings,
    *,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve an index, or a classifier, until SIGTERM or SIGINT.

    Args:
        open_network: Opens it; called in another thread while /health already answers `starting`.
        settings: Where, for whom, and how much.
        ready: Called with the URL when it is open.

    Raises:
        KeMetricError: The address cannot be had, or the index cannot be opened.
    """
    count_pixels_ourselves()
    with listen(settings) as listener:
        settings = replace(settings, port=listener.getsockname()[1])
        server = build_server(open_network, settings, ready=lambda: ready(settings.url))
        server.run([listener])
    if server.service.failure is not None:
        raise server.service.failure


def build_server(
    open_network: Callable[[], ServedNetwork], settings: ServiceSettings, *, ready: Callable[[], None] = lambda: None
) -> Server:
    """Return a server that is not running yet; see `serve`."""
    service = Service(open_network, settings.limits)
    return Server(configuration(Application(service, settings), settings.limits), service, ready)


def configuration(application: ASGIApp, limits: Limits) -> uvicorn.Config:
    """Return how uvicorn serves an application within limits, without a word of its own."""
    return uvicorn.Config(
        application,
        http=type("LimitedProtocol", (ImpatientProtocol,), {"limits": limits}),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.stop_seconds,
    )


def listen(settings: ServiceSettings) -> socket.socket:
    """Return a listening socket.

    Raises:
        KeMetricError: ENVIRONMENT: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        raise KeMetricError(
            f"{settings.url}: cannot be listened on: {error}; choose another --host or --port", ExitCode.ENVIRONMENT
        ) from error
