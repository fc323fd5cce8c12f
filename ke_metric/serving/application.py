"""The routes, on Starlette's router, and what happens around every request."""

from __future__ import annotations

import json
import sys
import time
import traceback
from asyncio import CancelledError
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from ke_metric.serving.api import (
    health_document,
    openapi_document,
    read_class_question,
    read_parameters,
    read_question,
)
from ke_metric.serving.batching import STOPPING
from ke_metric.serving.exchange import (
    JSON_TYPE,
    RETRY,
    Door,
    Exchange,
    Refused,
    Reply,
    ServiceSettings,
    busy,
    error_body,
)
from ke_metric.serving.pictures import picture_format, read_id
from ke_metric.serving.service import CONTENT_TYPE, Service

Handler = Callable[[Exchange], Awaitable[Reply]]
EXCHANGE = "ke_metric.exchange"
IMAGES = b"/images/"
SAID = {404: "there is nothing at this path", 405: "this path does not take this method"}


class ItemConvertor(PathConvertor):
    """An id in a path: anything, slashes and line breaks too."""

    regex = "(?s:.*)"


register_url_convertor("item", ItemConvertor())


class Application:
    """The ASGI application.

    Starlette's router alone: its application object adds middleware and request objects to every request, which
    would cost more than a small network takes for the picture.

    Attributes:
        routes: What is answered.
    """

    def __init__(self, service: Service, settings: ServiceSettings) -> None:
        self._service, self._max_k, self._door = service, settings.limits.max_k, Door(settings)
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
        self.routes = [
            Route(path, Endpoint(path.replace(":item", ""), handler), methods=[method])
            for method, path, handler in (*asked, *about)
        ]
        self._router = Router(self.routes, redirect_slashes=False, lifespan=self._lifespan)

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
            await self._router(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        metrics, begun = self._service.metrics, time.perf_counter()
        metrics.in_flight.inc()
        try:
            reply, linger = await self._reply(exchange)
            self._service.uploads.release(exchange)
            metrics.count_request(exchange.route, reply.status, time.perf_counter() - begun)
            await exchange.answer(reply, linger=linger)
        finally:
            self._service.uploads.release(exchange)
            metrics.in_flight.dec()

    async def _reply(self, exchange: Exchange) -> tuple[Reply, bool]:
        """Return the reply, and whether an upload that was not read to its end is still read for a while."""
        try:
            self._door.check(exchange)
            exchange.scope[EXCHANGE] = exchange
            await self._router(exchange.scope, exchange.receive, _nothing_to_send)
            assert exchange.reply is not None, exchange.route
            return exchange.reply, True
        except Refused as refused:
            return refused.reply, refused.linger
        except HTTPException as error:
            # Starlette's router: 404 and 405.
            headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
            return Refused(error.status_code, SAID.get(error.status_code, "refused"), headers=headers).reply, True
        except CancelledError:
            # uvicorn gives up what is not answered when the time for stopping is over.
            return busy(STOPPING).reply, False
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return Reply(500, error_body("something went wrong here; the service's log says what")), True

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


class Endpoint:
    """A handler as Starlette's router calls it: it leaves its reply with the exchange, and tells the route's path."""

    def __init__(self, path: str, handler: Handler) -> None:
        self._path, self._handler = path, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        exchange: Exchange = scope[EXCHANGE]
        exchange.route = self._path
        exchange.reply = await self._handler(exchange)


async def _nothing_to_send(message: Any) -> None:
    raise AssertionError(f"a route sent {message['type']} by itself")
