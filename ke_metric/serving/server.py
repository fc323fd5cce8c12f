"""The process: a socket, uvicorn, and an end that leaves nothing half done."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import uvicorn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.serving.application import Application
from ke_metric.serving.decoding import count_pixels_ourselves
from ke_metric.serving.protocol import protocol_of
from ke_metric.serving.searcher import Answerer
from ke_metric.serving.service import Service
from ke_metric.serving.settings import ServiceSettings

BACKLOG = 1024
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn that stops the service first, and ends without the signal that ended it.

    Args:
        config: Of uvicorn.
        service: What is served.
        ready: Called once, when the index is open.

    Attributes:
        service: What is served.
    """

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
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
    open_searcher: Callable[[], Answerer],
    settings: ServiceSettings,
    *,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve an index until SIGTERM or SIGINT.

    Args:
        open_searcher: Opens the index; called in another thread while /health already answers `starting`.
        settings: Where, for whom, and how much.
        ready: Called with the URL when the index is open.

    Raises:
        KeMetricError: The address cannot be had, or the index cannot be opened.
    """
    count_pixels_ourselves()
    with listen(settings) as listener:
        settings = replace(settings, port=listener.getsockname()[1])
        server = build_server(open_searcher, settings, ready=lambda: ready(settings.url))
        server.run([listener])
    if server.service.failure is not None:
        raise server.service.failure


def build_server(
    open_searcher: Callable[[], Answerer], settings: ServiceSettings, *, ready: Callable[[], None] = lambda: None
) -> Server:
    """Return a server that is not running yet; see `serve`."""
    service = Service(open_searcher, settings.limits)
    config = uvicorn.Config(
        Application(service, settings),
        http=protocol_of(settings.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.limits.idle_seconds,
        timeout_graceful_shutdown=settings.limits.stop_seconds,
    )
    return Server(config, service, ready)


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
