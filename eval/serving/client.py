"""A load generator for one HTTP service on this machine: prebuilt bytes out, statuses and bodies in.

It shares the cores with the service it measures, so it does as little as it can: callbacks on uvloop, no tasks, no
parsing beyond the status and the length. What came is looked at afterwards.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

LOST = 0
"""Status of a request whose connection closed without an answer."""
SLOW_SECONDS = 0.05


@dataclass(frozen=True, eq=False)
class Request:
    """What is sent.

    Attributes:
        kind: In the words of the report.
        data: All of it, from the request line on.
        expected: Statuses that are right.
        slow: Bytes at the end that are sent one by one; the service gives up first.
        hang_up: Close after sending, before the answer.
        payload: What the answer is compared with.
    """

    kind: str
    data: bytes
    expected: tuple[int, ...] = (200,)
    slow: int = 0
    hang_up: bool = False
    payload: Any = None


@dataclass(eq=False)
class Load:
    """Requests on their way and their answers.

    Attributes:
        host: Where the service is.
        port: Where the service is.
        requests: Taken one after another by whichever connection is free.
        answers: (request, status, body, seconds) in the order in which they came.
    """

    host: str
    port: int
    requests: Iterator[Request]
    answers: list[tuple[Request, int, bytes, float]] = field(default_factory=list)

    async def run(self, concurrent: int) -> float:
        """Send everything and return the seconds it took."""
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        await asyncio.gather(*(Lane(self, loop).finished for _ in range(concurrent)))
        return time.perf_counter() - started


class Lane:
    """One client: sends a request when the one before is answered, on one connection as long as that holds.

    Attributes:
        finished: Done when no request is left.
    """

    def __init__(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        self._load, self._loop = load, loop
        self.finished: asyncio.Future[None] = loop.create_future()
        self._connection: Connection | None = None
        loop.call_soon(self.next)

    def next(self) -> None:
        """Send the next request."""
        request = next(self._load.requests, None)
        if request is None:
            if self._connection is not None:
                self._connection.transport.close()
            self.finished.set_result(None)
        elif self._connection is None:
            connecting = self._loop.create_connection(lambda: Connection(self), self._load.host, self._load.port)
            task = self._loop.create_task(connecting)
            task.add_done_callback(lambda done: self._connected(done, request))
        else:
            self._connection.send(request)

    def _connected(self, done: asyncio.Task[Any], request: Request) -> None:
        if done.exception() is not None:
            self.answered(request, LOST, b"", seconds=0.0, closed=True)
            return
        self._connection = done.result()[1]
        self._connection.send(request)

    def answered(self, request: Request, status: int, body: bytes, *, seconds: float, closed: bool) -> None:
        """Note an answer and go on; from the event loop, so that refused connections do not pile up calls."""
        self._load.answers.append((request, status, body, seconds))
        if closed:
            self._connection = None
            self._loop.call_soon(self.next)
        else:
            self.next()


class Connection(asyncio.Protocol):
    """A connection to the service.

    Args:
        lane: Whose requests are sent.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._request: Request | None = None
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self.transport = transport

    def send(self, request: Request) -> None:
        """Send a request."""
        self._request, self._received, self._started = request, b"", time.perf_counter()
        if request.slow:
            self.transport.write(request.data[: -request.slow])
            self._dribble(len(request.data) - request.slow)
            return
        self.transport.write(request.data)
        if request.hang_up:
            self.transport.close()

    def _dribble(self, position: int) -> None:
        if self._request is None or self.transport.is_closing() or position >= len(self._request.data):
            return
        self.transport.write(self._request.data[position : position + 1])
        self._timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._dribble, position + 1)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the answer is whole when its Content-Length has come."""
        received = self._received = self._received + data if self._received else data
        end = received.find(b"\r\n\r\n")
        if end < 0 or self._request is None:
            return
        if received.startswith(b"HTTP/1.1 100"):
            self._received = received[end + 4 :]
            return
        head = received[:end]
        at = head.index(b"content-length: ") + 16
        length = int(head[at:].partition(b"\r\n")[0])
        if len(received) < end + 4 + length:
            return
        closed = b"connection: close" in head
        if closed:
            self.transport.close()
        self._done(int(head[9:12]), received[end + 4 :], closed=closed)

    def connection_lost(self, error: Exception | None) -> None:
        """Note a request that gets no answer any more."""
        if self._request is not None:
            self._done(LOST, b"", closed=True)

    def _done(self, status: int, body: bytes, *, closed: bool) -> None:
        request, self._request = self._request, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        assert request is not None
        self._lane.answered(request, status, body, seconds=time.perf_counter() - self._started, closed=closed)
