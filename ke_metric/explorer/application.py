"""The page over HTTP: its files, the answers that it asks for, pictures by their number, and uploads within limits.

What cannot be used as a picture is answered like any other question, with the reason in words: it is an answer about
somebody's file. A request that breaks a rule of the exchange (too large, too slow, of a foreign page) has a status.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from starlette.types import Receive, Scope, Send

from ke_metric.errors import KeMetricError
from ke_metric.explorer.access import LONGEST_TOKEN, PageDoor
from ke_metric.explorer.collection import ExploredNetwork, Part
from ke_metric.explorer.exploration import Exploration
from ke_metric.explorer.parameters import LISTING, read_listing, read_part, read_query, whole_number
from ke_metric.serving.api import State
from ke_metric.serving.exchange import Exchange, Limits, Refused, Reply, ServiceSettings, Uploads, busy
from ke_metric.serving.pictures import count_pixels_ourselves, decode, picture_format
from ke_metric.serving.routing import ExchangeRouter
from ke_metric.serving.server import Server, configuration, listen

Answer = TypeVar("Answer")
Networks = Sequence[ExploredNetwork]
STATIC = Path(__file__).parent / "static"
TYPES = {".html": b"text/html", ".js": b"text/javascript", ".css": b"text/css", ".svg": b"image/svg+xml"}
LIMITS = Limits(held_bytes=20_000_000, connections=128)
"""Uploads of at most 10 MB and 25 million pixels."""
MOST_UPLOADS_AT_ONCE = 2
THREADS = 4
CLOSING_SECONDS = 2.0
POLICY = b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
COMMON = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
NOT_STORED = (b"cache-control", b"no-store")
# The number of the session is in a picture's path: what another explorer had on this port is never taken for it.
KEPT = (b"cache-control", b"private, max-age=86400, immutable")
JSON_HEADERS = ((b"content-type", b"application/json"), NOT_STORED)
ACCESS = "/api/access"


def static_files() -> dict[str, Reply]:
    """Return the page's files by path, read once: nothing else of the disk can be asked for."""
    found = {}
    for file in sorted(STATIC.iterdir()):
        if file.suffix in TYPES:
            kind = TYPES[file.suffix] + (b"; charset=utf-8" if file.suffix != ".svg" else b"")
            reply = Reply(200, file.read_bytes(), ((b"content-type", kind), NOT_STORED))
            found["/" if file.name == "index.html" else f"/static/{file.name}"] = reply
    return found


class ExplorerApplication:
    """The ASGI application, and what a `Server` begins and ends with.

    Args:
        exploration: What answers.
        settings: Where, for whom, and how much.

    Attributes:
        state: `ready` while it answers.
        failure: None: it is ready when it is made.
    """

    def __init__(self, exploration: Exploration, settings: ServiceSettings) -> None:
        self.state: State = "ready"
        self.failure: BaseException | None = None
        self._exploration, self._limits = exploration, settings.limits
        self._files = static_files()
        self._session = secrets.token_hex(8)
        self._needs_token = settings.token is not None
        self._door = PageDoor(settings, frozenset({*self._files, ACCESS}))
        self._uploads, self._decoding = Uploads(settings.limits), 0
        # Whoever has no token yet takes nothing of what pictures may take.
        self._tokens = Uploads(replace(settings.limits, max_bytes=LONGEST_TOKEN))
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="answer")
        # One upload after the other, beside all other answers: its network may have to be read first.
        self._embedding = ThreadPoolExecutor(1, thread_name_prefix="embedding")
        routes = [("GET", path, self._file) for path in self._files]
        self._router = ExchangeRouter(
            [
                *routes,
                ("GET", ACCESS, self._access),
                ("POST", ACCESS, self._enter),
                ("GET", "/api/state", self._state),
                ("GET", "/api/neighbors", self._neighbors),
                ("GET", "/api/queries", self._queries),
                ("GET", "/api/map", self._map),
                ("POST", "/api/uploads", self._upload),
                ("GET", "/pictures/{session}/{part}/{position}", self._picture),
            ],
            self._door,
            self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        self._exploration.networks.start()
        try:
            yield
        finally:
            self.stop()
            await asyncio.to_thread(self._exploration.networks.close, CLOSING_SECONDS)
            for threads in (self._threads, self._embedding):
                threads.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Take nothing more."""
        self.state = "stopping"
        self._exploration.networks.stop()
        self._uploads.stop()
        self._tokens.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        scope["app"] = self
        if scope["type"] != "http":
            await self._router.live(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, COMMON)
        try:
            reply, linger = await self._router.reply(exchange)
            await exchange.answer(reply, linger=linger)
        finally:
            self._uploads.release(exchange)

    async def _in_thread(
        self, answer: Callable[[], Answer], threads: ThreadPoolExecutor | None = None, *, of: Networks = ()
    ) -> Answer:
        """Answer in a thread.

        A thread is taken when all is known of the networks `of` which is asked: they may take a minute, and whoever
        waits for them, or has given up, holds up nobody else.
        """
        with told_with_a_status():
            for network in of:
                await self._exploration.networks.until_known(network)
            return await asyncio.get_running_loop().run_in_executor(threads or self._threads, answer)

    async def _file(self, exchange: Exchange) -> Reply:
        return self._files[exchange.route]

    async def _access(self, exchange: Exchange) -> Reply:
        return document({"allowed": self._door.knows(exchange)})

    async def _enter(self, exchange: Exchange) -> Reply:
        try:
            cookie = self._door.admit((await self._tokens.read(exchange)).strip())
        finally:
            self._tokens.release(exchange)
        reply = document({"allowed": cookie is not None})
        return replace(reply, headers=(*reply.headers, *(cookie or ())))

    async def _state(self, exchange: Exchange) -> Reply:
        read_query(exchange.scope["query_string"], frozenset())
        return document(await self._in_thread(self._describe))

    def _describe(self) -> dict[str, Any]:
        exploration = self._exploration
        collection = exploration.collection
        return {
            "kind": collection.kind,
            "title": collection.title,
            "notes": collection.notes,
            "networks": [
                {"generation": each.generation, "name": each.name, "scores": dict(each.scores)}
                for each in collection.networks
            ],
            "classes": collection.class_names,
            "parts": {part: table.classes.tolist() for part, table in collection.parts.items()},
            "query_part": exploration.query_part,
            "uploads": exploration.uploads,
            "pictures": f"/pictures/{self._session}",
            "limits": {"bytes": self._limits.max_bytes, "pixels": self._limits.max_pixels},
        }

    def _network(self, found: dict[str, str]) -> ExploredNetwork:
        generation = whole_number(found, "generation")
        with told_with_a_status():
            return self._exploration.find(generation, found.get("network", ""))

    async def _neighbors(self, exchange: Exchange) -> Reply:
        allowed = frozenset({"generation", "network", "part", "position"})
        found = read_query(exchange.scope["query_string"], allowed)
        network, part = self._network(found), read_part(found, "upload")
        position, exploration = whole_number(found, "position"), self._exploration
        if part == "upload":
            uploaded = partial(exploration.neighbors_of_upload, network, position)
            return document(await self._in_thread(uploaded, self._embedding, of=[network]))
        own_part = self._require(part, position)
        return document(
            await self._in_thread(lambda: exploration.neighbors(network, own_part, position), of=[network])
        )

    def _require(self, part: str, position: int) -> Part:
        """Return a part that has a picture of this number."""
        table = self._exploration.collection.parts.get(cast(Part, part))
        if table is None or position >= len(table):
            raise Refused(404, "there is no picture of this number")
        return cast(Part, part)

    async def _queries(self, exchange: Exchange) -> Reply:
        found = read_query(exchange.scope["query_string"], LISTING)
        network, (listing, told) = self._network(found), read_listing(found)
        exploration = self._exploration
        with told_with_a_status():
            needed = exploration.networks_of_list(network, listing)

        def answer() -> dict[str, Any]:
            positions = exploration.listed(network, listing).tolist()
            part = exploration.query_part
            # Where the map highlights them; what comes later in the list is asked for without.
            all_of_them = {"positions": positions} if told.start == 0 else {}
            shown = [exploration.describe(part, position) for position in positions[told]]
            return {"total": len(positions), "queries": shown, **all_of_them}

        return document(await self._in_thread(answer, of=needed))

    async def _map(self, exchange: Exchange) -> Reply:
        found = read_query(exchange.scope["query_string"], frozenset({"generation", "network"}))
        network = self._network(found)
        needed = self._exploration.networks_of_map(network)
        plane = await self._in_thread(lambda: self._exploration.map(network), of=needed)
        body = np.concatenate([[plane.share], plane.positions.ravel()]).astype("<f4").tobytes()
        return Reply(200, body, ((b"content-type", b"application/octet-stream"), NOT_STORED))

    async def _upload(self, exchange: Exchange) -> Reply:
        read_query(exchange.scope["query_string"], frozenset())
        if self._decoding >= MOST_UPLOADS_AT_ONCE:
            raise busy(f"{MOST_UPLOADS_AT_ONCE} pictures are being looked at already; try again")
        self._decoding += 1
        taken = False
        try:
            body = await self._uploads.read(exchange)
            kind = exchange.headers.get(b"content-type")
            looking = asyncio.get_running_loop().run_in_executor(self._threads, lambda: self._look_at(body, kind))
            # The place is free when the thread is: one that is given up on still decodes.
            looking.add_done_callback(lambda _: self._leave())
            taken = True
            async with asyncio.timeout(self._limits.answer_seconds):
                return await asyncio.shield(looking)
        except TimeoutError:
            raise busy("the picture could not be decoded in time") from None
        finally:
            if not taken:
                self._leave()

    def _leave(self) -> None:
        self._decoding -= 1

    def _look_at(self, body: bytes, content_type: bytes | None) -> Reply:
        most = self._limits.max_pixels
        try:
            picture = decode(body, picture_format(content_type), most)
            return document({"upload": self._exploration.add_upload(picture, most)})
        except (Refused, KeMetricError) as error:
            return document({"refused": str(error)})

    async def _picture(self, exchange: Exchange) -> Reply:
        read_query(exchange.scope["query_string"], frozenset())
        found = exchange.scope["path_params"]
        position, part = whole_number(found, "position"), read_part(found, "upload")
        if found["session"] != self._session:
            raise Refused(404, "there is no picture of this number")
        if part == "upload":
            body = (await self._in_thread(lambda: self._exploration.upload(position))).thumbnail
        else:
            own_part = self._require(part, position)
            body = await self._in_thread(lambda: self._exploration.thumbnail(own_part, position))
        return Reply(200, body, ((b"content-type", b"image/webp"), KEPT))


@contextmanager
def told_with_a_status() -> Iterator[None]:
    """Refuse what the exploration refuses, in its words; of a file that is gone without the name of its folder."""
    try:
        yield
    except KeMetricError as error:
        raise Refused(404, str(error)) from error
    except OSError as error:
        raise Refused(404, f"a file cannot be read: {error.strerror}. Was it moved or removed?") from error


def document(facts: dict[str, Any]) -> Reply:
    """Return plain JSON values as a reply."""
    return Reply(200, json.dumps(facts, allow_nan=False).encode(), JSON_HEADERS)


def explore(
    open_exploration: Callable[[], Exploration],
    settings: ServiceSettings,
    *,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the page until SIGTERM or SIGINT.

    Args:
        open_exploration: Opens what is explored; called once the address is had.
        settings: Where and for whom.
        ready: Called with the URL, in a thread of its own, when the page answers.

    Raises:
        KeMetricError: The address cannot be had, or what is explored cannot be opened.
    """
    count_pixels_ourselves()
    with listen(settings) as listener:
        settings = replace(settings, port=listener.getsockname()[1])
        server = build_explorer(
            open_exploration(),
            settings,
            ready=lambda: threading.Thread(target=ready, args=(settings.url,), daemon=True).start(),
        )
        server.run([listener])


def build_explorer(
    exploration: Exploration, settings: ServiceSettings, *, ready: Callable[[], None] = lambda: None
) -> Server:
    """Return a server of the page that is not running yet; see `explore`."""
    application = ExplorerApplication(exploration, settings)
    return Server(configuration(application, settings.limits), application, ready)
