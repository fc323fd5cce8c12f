"""Every route, every limit of a picture, every status."""

import json
import struct
import threading
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from live_service import PNG, FakeSearcher, Running, assert_results, embedded, encode, picture_of

from ke_metric.retrieval.index import Result
from ke_metric.retrieval.query import SearchOptions
from ke_metric.retrieval.ranking import Expansion, Reranking
from ke_metric.serving.api import Question, read_question, search_document
from ke_metric.serving.exchange import ServiceSettings
from ke_metric.serving.pictures import decode
from ke_metric.stores.contract import Where

PICTURE = encode(picture_of(3))


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bomb(width, height):
    """Return a small PNG that says it has these pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "content_type"), [("PNG", PNG), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
def test_a_search_finds_what_the_index_finds(service, kind, content_type):
    image = picture_of(3)
    options = {"lossless": True} if kind == "WEBP" else {}
    body = encode(image, kind, **options)
    answer = service.search(body, "/search?k=4", content_type)
    assert_results(answer, service.searcher, decode(body, kind, 10**6), 4)
    assert answer.document["results"][0]["id"] == "birds/3 ü.png"
    assert set(answer.document["results"][0]) == {"rank", "id", "label", "image", "similarity"}


def test_a_content_type_may_have_parameters_and_capitals(service):
    assert service.search(PICTURE, content_type="Image/PNG; x=y").status == 200


def test_ten_neighbours_where_nothing_is_asked(fresh):
    with fresh(max_k=20) as service:
        assert len(service.search(PICTURE).document["results"]) == 10
    with fresh(max_k=7) as service:
        assert len(service.search(PICTURE).document["results"]) == 7


def test_a_search_where_something_holds(service):
    text = 'label != "class 0" and id != "birds/1 ü.png"'
    answer = service.search(PICTURE, f"/search?k=5&where={quote(text)}")
    assert_results(answer, service.searcher, picture_of(3), 5, Where.parse(text))
    assert len(answer.document["results"]) == 5


def test_a_condition_that_nothing_meets_is_told(service):
    for text, note in (('label == "none"', True), ('label == "\\ud83e\\udd9c"', True), ('label != "none"', False)):
        document = service.search(PICTURE, f"/search?where={quote(text)}").document
        assert ("note" in document) is note
        assert bool(document["results"]) is not note
    answer = service.search(PICTURE, f"/search?where={quote('label == ' + chr(34) + 'a')}")
    assert answer.status == 400
    assert "unterminated string" in answer.document["error"]
    assert "<unknown>" not in answer.document["error"]
    assert service.search(PICTURE, "/search?where=" + quote('label != "\\ud83e"')).status == 400


def test_embed_gives_the_vector_bit_by_bit(service):
    document = service.search(PICTURE, "/embed").document
    vector = np.array(document["embedding"], np.float32)
    np.testing.assert_array_equal(vector, embedded(service.searcher, picture_of(3))[0])
    assert document["digest"] == service.searcher.digest


@pytest.mark.parametrize(
    "query",
    ["k=0", "k=8", "k=-1", "k=1.5", "k=x", "k=", "k=%31%00", "k=1&k=1", "k=99999999999999999999", "zork=1", "k=1&K=1",
     "where=zork", "where=", "where=path+%3D%3D+%22x%22", "where=label", "k", "&&", "k=%ff", "k=%C2%B2",
     "where=" + "(" * 300, "k=1;where=x", "a=1&" * 20 + "k=1", "expand=", "expand=0", "expand=x", "expand=3:y",
     "expand=8", "expand=4:1&expand=4:1", "rerank=", "rerank=5:3", "rerank=5:3:2", "rerank=5:3:0.3",
     "rerank=2:2:0.3:8", "rerank=2:2:0.3:6", "rerank=x:y:z", "rerank=2:2:0.3:" + "9" * 5000, "exclude=",
     "exclude=%00", "exclude=" + "x" * 1025, "keep_self=1"],
)  # fmt: skip
def test_parameters_that_are_not_allowed(service, query):
    answer = service.search(PICTURE, f"/search?{query}")
    assert answer.status == 400, answer
    assert set(answer.document) == {"error"}


def test_no_more_neighbours_are_looked_at_than_can_be_asked_for(service):
    for query in ("expand=8", "k=3&rerank=2:2:0.3:8"):
        answer = service.search(PICTURE, f"/search?{query}")
        assert "8 neighbours of a query, at most 7 are looked at" in answer.document["error"]
    assert service.search(PICTURE, "/search?expand=7").status == 200
    assert service.search(PICTURE, "/search?k=7&rerank=2:2:0.3:7").status == 200
    question = read_question(b"k=3&expand=4:1&rerank=2:2:0.3:7&exclude=a%2Fb", 7)
    assert question == Question(
        SearchOptions(3, None, Expansion(4, 1), Reranking(2, 2, 0.3, 7), keep_self=True), "a/b"
    )


def test_an_item_that_is_excluded_is_no_result(service):
    own = "birds/3 ü.png"
    documents = [
        service.search(PICTURE, f"/search?k=3{more}").document
        for more in ("", f"&exclude={quote(own)}", "&exclude=x")
    ]
    found = [[result["id"] for result in document["results"]] for document in documents]
    assert (found[0][0], len(found[1])) == (own, 3)
    assert found[1][:2] == found[0][1:]
    assert found[2] == found[0]
    condition = quote(f'id == "{own}"')
    alone = service.search(PICTURE, f"/search?exclude={quote(own)}&where={condition}")
    assert alone.document["results"] == []
    assert "no other item" in alone.document["note"]


def test_questions_are_kept_only_where_they_are_short():
    long = b"where=label+in+[%22" + b"x" * 300 + b"%22]"
    assert read_question(b"k=3", 9) is read_question(b"k=3", 9)
    assert read_question(long, 9) is not read_question(long, 9)
    assert read_question(long, 9) == read_question(long, 9)


@pytest.mark.parametrize("path", ["/embed?k=1", "/health?x=1", "/metrics?x=", "/openapi.json?v=3", "/images/x?k=1"])
def test_other_routes_take_no_parameters(service, path):
    method = "POST" if path.startswith("/embed") else "GET"
    assert service.ask(method, path, PICTURE if method == "POST" else None, PNG).status == 400


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (PICTURE, "text/plain", 415),
        (PICTURE, None, 415),
        (PICTURE, "image/gif", 415),
        (PICTURE, "image/png2", 415),
        (PICTURE, "multipart/form-data; boundary=x", 415),
        (PICTURE, "image/jpeg", 415),
        (encode(picture_of(1), "GIF"), PNG, 415),
        (encode(picture_of(1), "TIFF"), "image/jpeg", 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", PNG, 415),
        (b"garbage", PNG, 415),
        (b"", PNG, 422),
        (PICTURE[:-30], PNG, 422),
        (PICTURE[:20], PNG, 422),
        (encode(picture_of(1), "JPEG")[:-100], "image/jpeg", 422),
        (encode(picture_of(1), "WEBP")[:-100], "image/webp", 422),
        (b"\xff\xd8\xff" + b"garbage" * 100, "image/jpeg", 422),
        (b"\x89PNG\r\n\x1a\n" + b"garbage" * 100, PNG, 422),
        (b"\xff\xd8\xff" + b"\xff\xda" * 200, "image/jpeg", 422),
        (bomb(10_000, 5_000), PNG, 413),
        (bomb(10_000, 10_000), PNG, 413),
        (bomb(2**31 - 1, 2**31 - 1), PNG, 413),
        (encode(picture_of(1, (400, 251))), PNG, 413),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 200_000, PNG, 413),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as `serve` sets it
def test_pictures_that_are_not_taken(service, body, content_type, status):
    for path in ("/search", "/embed"):
        answer = service.search(body, path, content_type)
        assert answer.status == status, answer
        assert set(answer.document) == {"error"}
        assert answer.headers["content-type"] == "application/json"


def test_limits_are_allowed_themselves(fresh):
    body = encode(picture_of(1, (400, 250)))
    with fresh(max_bytes=len(body), max_pixels=100_000) as service:
        assert service.search(body).status == 200
    with fresh(max_bytes=len(body) - 1) as service:
        assert service.search(body).status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/search", 405),
        ("PUT", "/search", 405),
        ("GET", "/embed", 405),
        ("POST", "/health", 405),
        ("DELETE", "/images/x", 405),
        ("GET", "/", 404),
        ("GET", "/zork", 404),
        ("POST", "/search/", 404),
        ("GET", "/docs", 404),
        ("GET", "//health", 404),
        ("GET", "/health/..", 404),
        ("OPTIONS", "/search", 405),
        ("TRACE", "/health", 405),
    ],
)
def test_other_paths_and_methods(service, method, path, status):
    answer = service.ask(method, path)
    assert answer.status == status
    assert set(answer.document) == {"error"}
    if status == 405:
        assert answer.headers["allow"]


def test_health_metrics_and_description(service):
    health = service.ask("GET", "/health")
    assert (health.status, health.document) == (200, {"status": "ready"})
    assert service.ask("HEAD", "/health").status == 200
    assert service.ask("GET", "/openapi.json").document["openapi"] == "3.1.0"


def test_metrics_count(fresh):
    with fresh() as service:
        for _ in range(3):
            service.search(PICTURE)
        service.search(PICTURE, "/embed")
        service.search(b"", PNG)
        service.ask("GET", "/zork")
        service.ask("GET", "/images/a/b")
        answer = service.ask("GET", "/metrics")
    lines = dict(line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if not line.startswith("#"))
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert lines['ke_metric_requests_total{route="/search",status="200"}'] == "3.0"
    assert lines['ke_metric_requests_total{route="/embed",status="200"}'] == "1.0"
    assert lines['ke_metric_requests_total{route="none",status="404"}'] == "1.0"
    assert lines['ke_metric_requests_total{route="/images/{id}",status="404"}'] == "1.0"
    assert lines['ke_metric_request_seconds_count{route="/search"}'] == "3.0"
    assert lines["ke_metric_pictures_total"] == "4.0"
    assert lines["ke_metric_batch_pictures_count"] == "4.0"
    assert lines["ke_metric_queue_pictures"] == "0.0"
    assert lines["ke_metric_upload_bytes"] == "0.0"
    assert lines["ke_metric_requests_in_flight"] == "1.0"


@pytest.mark.parametrize("path", ["/health", "/zork", "/search", "/images/x"])
def test_every_answer_is_guarded_and_names_no_software(service, path):
    headers = service.ask("GET", path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "server" not in headers


def test_a_service_that_cannot_open_its_index_ends(items):
    def fail():
        raise RuntimeError("no index")

    service = Running(fail).start(ready=False)
    service._thread.join(10)
    assert str(service.server.service.failure) == "no index"


def test_until_the_index_is_open_there_is_only_health(items):
    opened = threading.Event()

    def slowly():
        assert opened.wait(10)
        return FakeSearcher(items)

    service = Running(slowly).start(ready=False)
    try:
        health = service.ask("GET", "/health")
        assert (health.status, health.document) == (503, {"status": "starting"})
        assert health.headers["retry-after"] == "1"
        assert service.search(PICTURE).status == service.ask("GET", "/images/x").status == 503
        opened.set()
        while service.ask("GET", "/health").status != 200:
            pass
        assert service.search(PICTURE).status == 200
    finally:
        opened.set()
        service.stop()


def test_json_is_json(items):
    nasty = Result(1, 'a"\\\n\u2028</script>é', "/secret", 'x"y', -0.5)
    document = json.loads(search_document([nasty], "d"))
    assert document == {
        "results": [
            {"rank": 1, "id": nasty.id, "label": 'x"y', "image": "/images/" + quote(nasty.id, safe=""),
             "similarity": -0.5}
        ],
        "digest": "d",
    }  # fmt: skip
    assert json.loads(search_document([], "d"))["results"] == []


def test_a_token_is_part_of_the_settings_description():
    assert "secret" not in repr(ServiceSettings(token="secret-token-of-many-characters"))
