"""HTTP itself: what is none, what is too slow, too long or too much, and what comes in pieces."""

import json
import socket
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_service import LIMITS, encode, picture_of
from PIL import Image

from ke_metric.stores.contract import Item

PICTURE = encode(picture_of(3))
HEADERS = b"Host: localhost\r\nContent-Type: image/png\r\n"
SEARCH = b"POST /search?k=1 HTTP/1.1\r\n" + HEADERS


def statuses(received):
    """Return the statuses of everything that came; every answer is whole JSON."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), received
        found.append(int(head[9:12]))
        if found[-1] == 100:
            received = rest
            continue
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        assert len(rest) >= length
        assert head.lower().startswith(b"http/1.1 200") or set(json.loads(rest[:length])) == {"error"}
        received = rest[length:]
    return found


def post(body, extra=b""):
    return SEARCH + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*parts, extra=b""):
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return SEARCH + extra + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def test_a_connection_is_kept(service):
    assert statuses(service.raw(post(PICTURE) + post(PICTURE, b"Connection: close\r\n"))) == [200, 200]


def test_a_body_in_chunks(service):
    halves = PICTURE[:100], PICTURE[100:]
    assert statuses(service.raw(chunked(*halves)[:-5] + b"0\r\n\r\n" + post(b"", b"Connection: close\r\n"))) == [
        200,
        422,
    ]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /health\r\n\r\n", 403),
        (b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /he\0alth HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (SEARCH + b"Content-Length: x\r\n\r\n", 400),
        (SEARCH + b"Content-Length: -1\r\n\r\n", 400),
        (SEARCH + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
        (SEARCH + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (SEARCH + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
        (SEARCH + b"Transfer-Encoding: chunked\r\n\r\nzork\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000, 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 8_000 + b"\r\n\r\n", 431),
        (SEARCH + b"X: " + b"x" * 8_000 + b"\r\nContent-Length: 5\r\n\r\nabcde", 431),
        (b"GET /health?" + b"x" * 20_000, 431),
        (b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 3000, 431),
        (SEARCH + b"Content-Length: 200001\r\n\r\n", 413),
        (SEARCH + b"Content-Length: 1000000000000\r\n\r\n", 413),
        (SEARCH + b"Content-Length: 200001\r\nExpect: 100-continue\r\n\r\n", 413),
        (chunked(*[bytes(50_000)] * 5, extra=b"Connection: close\r\n"), 413),
    ],
)
def test_what_is_refused_and_closed(service, data, status):
    assert statuses(service.raw(data)) == [status]
    assert service.ask("GET", "/health").status == 200


def test_the_answer_to_a_large_upload_is_seen_although_it_is_refused_before_it_was_read(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(SEARCH + b"Content-Length: 5000000\r\n\r\n")
        assert statuses(connection.recv(65536)) == [413]
        connection.sendall(bytes(5_000_000))
        assert connection.recv(65536) == b""


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", [408]),
        (b"POST /search HT", [408]),
        (SEARCH, [408]),
        (SEARCH + b"Content-Length: 100\r\n\r\n", [408]),
        (SEARCH + b"Content-Length: 100\r\n\r\n" + bytes(99), [408]),
        (SEARCH + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", [408]),
        (SEARCH + b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n", [100, 408]),
        (post(PICTURE) + b"GET /heal", [200, 408]),
    ],
)
def test_what_comes_too_slowly_is_told_and_closed(service, data, expected):
    started = time.monotonic()
    assert statuses(service.raw(data)) == expected
    assert time.monotonic() - started > 0.9 * min(LIMITS.upload_seconds, LIMITS.header_seconds)


@pytest.mark.parametrize("start", [b"", SEARCH + b"Content-Length: 100\r\n\r\n"])
def test_a_byte_now_and_then_does_not_gain_time(service, start):
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(start)
        for byte in b"POST /search HTTP/1.1\r\nHost: localhost\r\n" * 2:
            try:
                connection.sendall(bytes([byte]))
            except ConnectionError:
                break
            time.sleep(0.02)
        else:
            pytest.fail("the connection was kept")


def test_an_idle_connection_is_closed(fresh):
    with fresh(idle_seconds=1) as service:
        assert statuses(service.raw(post(PICTURE))) == [200]


def test_line_breaks_do_not_make_an_idle_connection_stay(fresh):
    with fresh(idle_seconds=1) as service, socket.create_connection(("127.0.0.1", service.port), timeout=5) as other:
        other.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert statuses(other.recv(65536)) == [200]
        other.sendall(b"\r\n")
        assert statuses(other.recv(65536)) == [408]
        assert other.recv(65536) == b""


def test_a_request_begun_behind_a_large_upload_is_answered(service):
    body = encode(picture_of(3, (180, 180)))
    assert len(body) > 2 * LIMITS.header_bytes
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
        connection.sendall(post(body) + b"GET /heal")
        received = connection.recv(65536)
        connection.sendall(b"th HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while part := connection.recv(65536):
            received += part
    assert statuses(received) == [200, 200]


@pytest.fixture
def large(items, tmp_path):
    """Request of a picture that does not fit the buffers of a connection, and its size."""
    before, path = items[1], tmp_path / "large.bmp"
    Image.new("RGB", (2600, 2600)).save(path)
    items[1] = Item("large", str(path))
    yield b"GET /images/large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path.stat().st_size
    items[1] = before


def test_a_client_that_does_not_read_is_cut_off(fresh, large):
    with fresh(send_seconds=0.3) as service, socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", service.port))
        reader.sendall(large[0])
        connections = service.server.server_state.connections
        while not connections:
            time.sleep(0.01)
        for _ in range(500):
            if not connections:
                return
            time.sleep(0.01)
        pytest.fail("the connection was kept")


def test_a_client_that_reads_slowly_gets_everything(fresh, large):
    with fresh(send_seconds=0.3) as service, socket.create_connection(("127.0.0.1", service.port)) as reader:
        reader.sendall(large[0])
        received, begun = 0, time.monotonic()
        while part := reader.recv(1_000_000):
            received += len(part)
            time.sleep(0.05)
        assert received > large[1]
        assert time.monotonic() - begun > 0.6


def test_one_connection_too_many_is_told(fresh):
    with fresh(connections=3, header_seconds=30.0) as service:
        address = ("127.0.0.1", service.port)
        held = [socket.create_connection(address, timeout=5) for _ in range(3)]
        while len(service.server.server_state.connections) < 3:
            time.sleep(0.01)
        assert statuses(service.raw(b"")) == [503]
        for one in held:
            one.close()
        while service.server.server_state.connections:
            time.sleep(0.01)
        assert service.ask("GET", "/health").status == 200


def test_uploads_share_a_limit(fresh):
    with fresh(held_bytes=150_000, upload_seconds=5.0) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
            connection.sendall(SEARCH + b"Content-Length: 100001\r\n\r\n" + bytes(100_000))
            while service.server.service.uploads.held < 100_000:
                time.sleep(0.01)
            assert service.search(bytes(60_000)).status == 503
            assert service.search(PICTURE).status == 200
        while service.server.service.uploads.held:
            time.sleep(0.01)


def test_too_many_requests_at_once_on_one_connection_end_it(service):
    assert len(statuses(service.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100))) < 100


def test_websockets_are_no_way_in(service):
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"
    found = statuses(service.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n", seconds=0.5))
    assert found in ([200], [400])


MUTATED = post(PICTURE)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(1, len(MUTATED)),
    changes=st.lists(st.tuples(st.integers(0, len(MUTATED) - 1), st.binary(min_size=0, max_size=4)), max_size=5),
)
def test_whatever_is_sent_is_answered_as_documented(service, cut, changes):
    data = bytearray(MUTATED[:cut])
    for position, new in changes:
        data[position : position + 1] = new
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
        connection.sendall(bytes(data))
        connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except ConnectionError:
            pass
    allowed = {200, 400, 403, 404, 405, 408, 413, 415, 422, 431}
    assert set(statuses(received)) <= allowed
    assert service.server.started
    assert service.ask("GET", "/health").status == 200
