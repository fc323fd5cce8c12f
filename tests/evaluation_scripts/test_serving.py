"""The load test's own parts: what it sends is malformed as it says, and it sees what is wrong."""

import asyncio
import io
import itertools
import json
from collections import Counter

import pytest
from PIL import Image

from eval.serving.client import LOST, Load, Request
from eval.serving.report import memory_change, report
from eval.serving.requests import BOMB_SIZE, Good, bomb, get, malformed, post, slow, wrong_answer

IDS = [f"gallery/{number:05d}.png" for number in range(20)]
RIGHT = {
    "type": "image/png",
    "ids": IDS,
    "similarities": [1 - number / 100 for number in range(20)],
    "vector": [0.6, 0.8],
}
SEARCH = Request("search", b"", payload=RIGHT)


def answer(ids=IDS[:10], **changes):
    results = [
        {"rank": rank, "id": identifier, "similarity": RIGHT["similarities"][rank - 1]} | changes
        for rank, identifier in enumerate(ids, start=1)
    ]
    return json.dumps({"results": results}).encode()


@pytest.fixture
def good(tmp_path):
    """What `serve_bare.py prepare` would have made, with two queries."""
    for name in ("gallery", "queries"):
        (tmp_path / name).mkdir()
    file = io.BytesIO()
    Image.effect_noise((40, 30), 50).save(file, "PNG")
    for number in range(2):
        (tmp_path / "queries" / f"{number:05d}").write_bytes(file.getvalue())
        (tmp_path / "gallery" / f"{number:05d}.png").write_bytes(file.getvalue())
    (tmp_path / "expected.json").write_text(json.dumps({"facts": {}, "queries": [RIGHT, RIGHT]}))
    return Good(tmp_path)


def test_right_answers_are_right():
    assert wrong_answer(SEARCH, answer()) is None
    one = Request("search where", b"", payload={"ids": IDS[1:2], "similarities": [0.99]})
    assert wrong_answer(one, answer(IDS[:1], id=IDS[1], similarity=0.99)) is None
    for ids in ([], IDS[:1], IDS[:2]):
        assert wrong_answer(one, answer(ids)) is not None
    assert wrong_answer(Request("embed", b"", payload=RIGHT), b'{"embedding": [0.600001, 0.8]}') is None
    assert wrong_answer(Request("image", b"", payload=b"x"), b"x") is None


@pytest.mark.parametrize(
    "body",
    [
        answer(IDS[:9]),
        answer([IDS[1], IDS[0], *IDS[2:10]]),
        answer([*IDS[:9], IDS[12]]),
        answer([*IDS[:9], "gallery/zork.png"]),
        answer([IDS[0], *IDS[:9]]),
        answer(similarity=0.5),
        answer(rank=1),
    ],
)
def test_wrong_neighbours_are_seen(body):
    assert wrong_answer(SEARCH, body)


def test_other_wrong_answers_are_seen():
    assert wrong_answer(Request("embed", b"", payload=RIGHT), b'{"embedding": [0.6001, 0.8]}')
    assert wrong_answer(Request("image", b"", payload=b"x"), b"y")


def test_neighbours_that_tie_may_change_places():
    tied = RIGHT | {"similarities": [1.0] * 9 + [0.5, 0.5] + [0.4] * 9}
    ids = [*reversed(IDS[:9]), IDS[10]]
    results = [
        {"rank": rank, "id": name, "similarity": tied["similarities"][rank - 1]} for rank, name in enumerate(ids, 1)
    ]
    assert wrong_answer(Request("search", b"", payload=tied), json.dumps({"results": results}).encode()) is None


def test_the_bomb_is_small_and_has_50_megapixels():
    with Image.open(io.BytesIO(bomb())) as image:
        assert image.size == BOMB_SIZE
        assert image.width * image.height == 50_000_000
        image.load()
    assert len(bomb()) < 20_000


def test_all_kinds_of_malformed_requests_come(good):
    kinds = Counter(request.kind for request in itertools.islice(malformed(good), 1000))
    assert len(kinds) == 18
    assert sum(count for kind, count in kinds.items() if kind.startswith("oversize")) == 10
    assert {request.kind for request in itertools.islice(slow(good), 3)} == {
        "slow upload",
        "slow upload, half of it",
        "slow headers",
    }
    assert all(200 not in r.expected or r.hang_up for r in itertools.islice(malformed(good, 1), 500))


def test_uploads_are_http():
    head, _, body = post("/search?k=1", b"abc", "image/png").partition(b"\r\n\r\n")
    assert body == b"abc"
    assert head.split(b"\r\n")[0] == b"POST /search?k=1 HTTP/1.1"
    assert b"Content-Length: 3" in head
    assert get(b"/x").endswith(b"\r\n\r\n")


async def little_server(reader, writer):
    """Answers by the path: /ok in pieces, /close and closes, /lost closes at once."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        path = head.split()[1]
        if path == b"/lost":
            break
        close = b"connection: close\r\n" if path == b"/close" else b""
        for part in (b"HTTP/1.1 200 OK\r\ncontent-len", b"gth: 4\r\n" + close + b"\r\nab", b"cd"):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            break
    writer.close()


def test_the_client_sends_everything_once_and_sees_every_answer():
    paths = [b"/ok", b"/close", b"/ok", b"/lost", b"/ok"] * 20

    async def run():
        server = await asyncio.start_server(little_server, "127.0.0.1", 0)
        load = Load(
            "127.0.0.1", server.sockets[0].getsockname()[1], (Request(path.decode(), get(path)) for path in paths)
        )
        await asyncio.wait_for(load.run(7), 20)
        server.close()
        return load.answers

    found = asyncio.run(run())
    assert Counter(request.kind for request, *_ in found) == Counter(path.decode() for path in paths)
    for request, status, body, _ in found:
        assert (status, body) == ((LOST, b"") if request.kind == "/lost" else (200, b"abcd"))


def test_memory_is_compared_after_the_warm_up():
    samples = [(second, 500.0) for second in range(20)] + [(20 + second, 100.0 + second) for second in range(80)]
    first, last = memory_change(samples)
    assert 100 < first < 120
    assert 160 < last < 180


def test_the_report_says_what_was_found():
    bare = {
        f"{name}, {size}": {"images_per_second": 1000.0 + size, "cpu_microseconds": 500.0}
        for name in ("default", "passive")
        for size in (32, 256)
    }
    one = {
        "requests_per_second": 516.0,
        "service_cpu_microseconds": 700.0,
        "client_cpu_microseconds": 30.0,
        "median_milliseconds": 40.0,
        "p99_milliseconds": 90.0,
        "bare": bare,
    }
    facts = {"model": "m", "items": 5, "dimension": 2, "query_bytes": 9, "requests": 3, "mixed_seconds": 1.0}
    facts |= {"exit_code": 0, "stop_seconds": 1.0, "stop_statuses": {"200": 3, "0": 1}, "printed": ""}
    measured = {
        "rounds": [one],
        "facts": facts,
        "statuses": Counter({("search", 200): 2, ("slow upload", 408): 1}),
        "memory": [(0.0, 500.0), (1.0, 500.0)],
        "wrong": [],
    }
    text = report(measured)
    assert "with batches of 32 the service has **0.50 (0.50-0.50)** of its throughput" in text
    assert "with batches of 256 the service has **0.41 (0.41-0.41)**" in text
    assert "take 0.68 (0.68-0.68) of the processor time" in text
    assert "**0 wrong**" in text
    assert "(+0.0 %)" in text
