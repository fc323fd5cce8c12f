"""From an exchange to its reply: the door, Starlette's router, and a reply for whatever goes wrong on the way.

Starlette's router alone: its application object adds middleware and request objects to every request, which would
cost more than a small network takes for the picture.
"""

from __future__ import annotations

import sys
import traceback
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from ke_metric.serving.exchange import Door, Exchange, Refused, Reply, busy, error_body
from ke_metric.serving.pictures import STOPPING

Handler = Callable[[Exchange], Awaitable[Reply]]
EXCHANGE = "ke_metric.exchange"
SAID = {404: "there is nothing at this path", 405: "this path does not take this method"}


class ItemConvertor(PathConvertor):
    """An id in a path: anything, slashes and line breaks too."""

    regex = "(?s:.*)"


register_url_convertor("item", ItemConvertor())


class Endpoint:
    """A handler as Starlette's router calls it: it leaves its reply with the exchange, and tells the route's path."""

    def __init__(self, path: str, handler: Handler) -> None:
        self._path, self._handler = path, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        exchange: Exchange = scope[EXCHANGE]
        exchange.route = self._path
        exchange.reply = await self._handler(exchange)


class ExchangeRouter:
    """Leads exchanges to handlers.

    Args:
        handlers: Method, path and handler of every route.
        door: Lets requests in.
        lifespan: What is open while requests are answered.

    Attributes:
        routes: What is answered.
    """

    def __init__(
        self,
        handlers: Sequence[tuple[str, str, Handler]],
        door: Door,
        lifespan: Callable[[Any], AbstractAsyncContextManager[None]],
    ) -> None:
        self._door = door
        self.routes = [
            Route(path, Endpoint(path.replace(":item", ""), handler), methods=[method])
            for method, path, handler in handlers
        ]
        self._router = Router(self.routes, redirect_slashes=False, lifespan=lifespan)

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Begin and end what the lifespan opens."""
        await self._router(scope, receive, send)

    async def reply(self, exchange: Exchange) -> tuple[Reply, bool]:
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


async def _nothing_to_send(message: Any) -> None:
    raise AssertionError(f"a route sent {message['type']} by itself")
