"""The requests of the load: good ones with what they must find, and malformed ones with their status."""

import io
import itertools
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from eval.serving.client import Request

K = 10
HOST = b"Host: 127.0.0.1\r\n"
TOLERANCE = 1e-5
# Of the malformed ones: those that carry megabytes, or seconds.
RARE = 100
BOMB_SIZE = (10_000, 5_000)


def post(path: str, body: bytes, content_type: str | None, extra: bytes = b"") -> bytes:
    """Return the bytes of an upload."""
    kind = b"" if content_type is None else b"Content-Type: %b\r\n" % content_type.encode()
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST %b HTTP/1.1\r\n" % path.encode() + HOST + kind + extra + length + b"\r\n" + body


def get(path: bytes, host: bytes = HOST) -> bytes:
    """Return the bytes of a request without a body."""
    return b"GET " + path + b" HTTP/1.1\r\n" + host + b"\r\n"


class Good:
    """Requests that are answered 200.

    Args:
        folder: What `serve_bare.py prepare` made.

    Attributes:
        searches: A search with every query.
        others: Embeddings, searches where an id is given, pictures of the gallery, health, metrics.
    """

    def __init__(self, folder: Path) -> None:
        self.expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        self.bodies = [path.read_bytes() for path in sorted((folder / "queries").iterdir())]
        self.searches, self.others = [], []
        for body, right in zip(self.bodies, self.expected["queries"], strict=True):
            data = post(f"/search?k={K}", body, right["type"])
            self.searches.append(Request("search", data, payload=right))
            self.others.append(Request("embed", post("/embed", body, right["type"]), payload=right))
            where = "where=" + quote(f"id == {json.dumps(right['ids'][1])}", safe="")
            one = {"ids": right["ids"][1:2], "similarities": right["similarities"][1:2]}
            data = post(f"/search?k={K}&{where}", body, right["type"])
            self.others.append(Request("search where", data, payload=one))
        for path in itertools.islice(sorted((folder / "gallery").iterdir()), 200):
            identifier = quote(f"gallery/{path.name}", safe="")
            self.others.append(Request("image", get(f"/images/{identifier}".encode()), payload=path.read_bytes()))
        self.others += [Request("health", get(b"/health")), Request("metrics", get(b"/metrics"))] * 20
        random.Random(2).shuffle(self.others)


def wrong_answer(request: Request, body: bytes) -> str | None:
    """Return what is wrong with the body of a good request's answer."""
    if request.kind == "image":
        return None if body == request.payload else "another picture"
    if request.kind == "embed":
        found = json.loads(body)["embedding"]
        worst = max(abs(a - b) for a, b in zip(found, request.payload["vector"], strict=True))
        return None if worst <= TOLERANCE else f"embedding differs by {worst:.2g}"
    searched = request.kind in ("search", "search where")
    return _wrong_results(json.loads(body)["results"], request.payload) if searched else None


def _wrong_results(results: list[dict[str, Any]], right: dict[str, Any]) -> str | None:
    """Compare with the true neighbours: a place may be taken only by an item whose true similarity ties with it."""
    true = dict(zip(right["ids"], right["similarities"], strict=True))
    if len({result["id"] for result in results}) != min(K, len(true)) or len(results) > K:
        return f"{len(results)} results"
    for rank, (result, similarity) in enumerate(zip(results, right["similarities"], strict=False), start=1):
        if abs(result["similarity"] - similarity) > TOLERANCE or result["rank"] != rank:
            return f"rank {rank}: similarity {result['similarity']} instead of {similarity}"
        if abs(true.get(result["id"], -2.0) - similarity) > TOLERANCE:
            return f"rank {rank}: {result['id']} instead of {right['ids'][rank - 1]}"
    return None


def bomb() -> bytes:
    """Return a small PNG of 50 million black pixels."""
    width, height = BOMB_SIZE
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def malformed(good: Good, seed: int = 0) -> Iterator[Request]:
    """Yield requests that must be refused, for ever; every hundredth is a large one."""
    generator, makers = random.Random(seed), _makers(good)
    large = [
        Request("oversize, declared", _upload_head(b"Content-Length: 50000000\r\n"), (413,)),
        Request("oversize, sent", post("/search", bytes(10_000_001), "image/png"), (413,)),
        Request("oversize, in chunks", _chunked(11), (413,)),
    ]
    for number in itertools.count():
        if number % RARE == RARE - 1:
            yield large[number // RARE % len(large)]
        else:
            yield generator.choice(makers)(generator)


def slow(good: Good) -> Iterator[Request]:
    """Yield uploads and headers that come a byte at a time, for ever."""
    data = good.searches[0].data
    head = data.index(b"\r\n\r\n") + 4
    yield from itertools.cycle(
        [
            Request("slow upload", data, (408,), slow=len(data) - head),
            Request("slow upload, half of it", data, (408,), slow=(len(data) - head) // 2),
            Request("slow headers", data[:head] + b" " * 2000, (408,), slow=head + 1980),
        ]
    )


def _upload_head(extra: bytes) -> bytes:
    return b"POST /search HTTP/1.1\r\n" + HOST + b"Content-Type: image/png\r\n" + extra + b"\r\n"


def _chunked(megabytes: int) -> bytes:
    part = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n"
    return _upload_head(b"Transfer-Encoding: chunked\r\n") + part * megabytes + b"0\r\n\r\n"


Maker = Callable[[random.Random], Request]


def _makers(good: Good) -> list[Maker]:
    return [*_upload_makers(good), *_plain_makers(good)]


def _upload_makers(good: Good) -> list[Maker]:
    uploads = [(body, right["type"]) for body, right in zip(good.bodies, good.expected["queries"], strict=True)]
    huge, wide = bomb(), io.BytesIO()
    Image.new("1", (6_000, 5_000)).save(wide, "PNG")

    def truncated(generator: random.Random) -> Request:
        body, kind = generator.choice(uploads)
        keep = generator.randint(12, len(body) // 2)
        return Request("truncated picture", post("/search", body[:keep], kind), (422,))

    def other_kind(generator: random.Random) -> Request:
        body, kind = generator.choice(uploads)
        wrong = generator.choice([name for name in ("image/png", "image/jpeg", "image/webp") if name != kind])
        return Request("content of another kind", post("/search", body, wrong), (415,))

    def wrong_type(generator: random.Random) -> Request:
        kind = generator.choice(
            [None, "text/plain", "image/gif", "application/json", "multipart/form-data; boundary=x"]
        )
        return Request("wrong content type", post("/search", generator.choice(uploads)[0], kind), (415,))

    def garbage(generator: random.Random) -> Request:
        kind, magic = generator.choice([("image/png", b"\x89PNG\r\n\x1a\n"), ("image/jpeg", b"\xff\xd8\xff")])
        return Request("garbage", post("/search", magic + generator.randbytes(300), kind), (422,))

    def no_magic(generator: random.Random) -> Request:
        return Request("wrong magic", post("/embed", b"\0" + generator.randbytes(300), "image/png"), (415,))

    def parameters(generator: random.Random) -> Request:
        query = generator.choice(BAD_QUERIES)
        body, kind = generator.choice(uploads)
        return Request("bad parameters", post(f"/search?{query}", body, kind), (400,))

    return [
        truncated,
        other_kind,
        wrong_type,
        garbage,
        no_magic,
        parameters,
        lambda generator: Request("bomb of 50 megapixels", post("/search", huge, "image/png"), (413,)),
        lambda generator: Request("picture of 30 megapixels", post("/embed", wide.getvalue(), "image/png"), (413,)),
        lambda generator: Request("empty body", post("/search", b"", "image/png"), (422,)),
    ]


def _plain_makers(good: Good) -> list[Maker]:
    def tricks(generator: random.Random) -> Request:
        return Request("path trick", get(b"/images/" + generator.choice(PATH_TRICKS)), (404,))

    def broken(generator: random.Random) -> Request:
        return Request("broken HTTP", generator.choice(BROKEN), (400,))

    def foreign(generator: random.Random) -> Request:
        return Request("foreign host", get(b"/health", generator.choice(FOREIGN)), (403,))

    def routes(generator: random.Random) -> Request:
        path, status = generator.choice([(b"/search", 405), (b"/zork", 404), (b"/", 404), (b"/search/", 404)])
        return Request("wrong route or method", get(path), (status,))

    def hang_up(generator: random.Random) -> Request:
        data = generator.choice(good.searches).data
        cut = generator.choice([len(data), generator.randint(1, len(data) - 1)])
        # Nobody is there to be answered; that the service goes on is what is tested.
        return Request("client hangs up", data[:cut], (0, 200), hang_up=True)

    return [
        tricks,
        broken,
        foreign,
        routes,
        hang_up,
        lambda generator: Request("long headers", get(b"/health", HOST + b"X: " + b"x" * 70_000 + b"\r\n"), (431,)),
    ]


BAD_QUERIES = (
    "k=0",
    "k=101",
    "k=-1",
    "k=x",
    "k=1.5",
    "k=1&k=2",
    "zork=1",
    "where=zork",
    "where=path+==+%22x%22",
    "k=%00",
)
PATH_TRICKS = (
    b"../../etc/passwd",
    b"%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    b"..%5c..%5cetc",
    b"/etc/passwd",
    b"%2fetc%2fpasswd",
    b"gallery/00000.png%00.html",
    b"%00",
    b"%ff%fe",
    b"gallery/../gallery/00000.png",
    b"x" * 3000,
)
BROKEN = (
    b"GARBAGE\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET /he\0alth HTTP/1.1\r\n" + HOST + b"\r\n",
    _upload_head(b"Content-Length: x\r\n"),
    _upload_head(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
    _upload_head(b"Transfer-Encoding: chunked\r\n") + b"zork\r\n",
)
FOREIGN = (b"Host: evil.example\r\n", b"", HOST + b"Origin: http://evil.example\r\n")
