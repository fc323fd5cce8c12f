"""Who may ask, and what every answer forbids a browser to do with it."""

import re
import secrets

import pytest
from drawn_collection import DrawnCollection, encode, picture_of, running_explorer

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.explorer.application import STATIC, static_files
from ke_metric.serving.exchange import ServiceSettings

TOKEN = secrets.token_hex(16)
NEIGHBORS = "/api/neighbors?generation=1&network=dense&part=gallery&position=0"
DATA = ["/api/state", NEIGHBORS, "/api/queries?generation=1&network=dense", "/api/map?generation=1&network=dense"]


@pytest.fixture(scope="module")
def guarded():
    """An explorer that other machines reach; it listens on this one all the same."""
    with running_explorer(DrawnCollection(), ServiceSettings("0.0.0.0", 0, TOKEN)) as found:
        yield found


def pictures(explorer):
    return explorer.get("/api/state").document["pictures"]


def test_it_listens_on_this_machine_unless_told_otherwise():
    assert ServiceSettings().host == "127.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org"])
def test_another_host_needs_a_token(host):
    with pytest.raises(KeMetricError, match="must carry a token") as caught:
        ServiceSettings(host, 8050)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("path", ["/", "/static/explorer.js", *DATA])
def test_a_name_that_was_pointed_at_this_machine_is_refused(explorer, path):
    answer = explorer.get(path, Host=f"attacker.example:{explorer.port}")
    assert answer.status == 403
    assert b"html" not in answer.body


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost", "[::1]"])
def test_the_names_of_this_machine_are_let_in(explorer, host):
    assert explorer.get("/api/state", Host=f"{host}:{explorer.port}").status == 200


@pytest.mark.parametrize("origin", ["http://attacker.example", "null", "http://127.0.0.1:1", "https://localhost"])
def test_pages_of_another_origin_are_refused(explorer, origin):
    assert explorer.get("/api/state", Origin=origin).status == 403
    assert explorer.upload(encode(picture_of(1)), Origin=origin).status == 403
    assert explorer.get("/api/state", Origin=explorer.url).status == 200


def test_data_need_the_token_and_the_page_does_not(guarded):
    for path in static_files():
        assert guarded.get(path).status == 200
    for path in [*DATA, "/pictures/x/gallery/0", "/nothing", "/static/", "/static/../access.py"]:
        assert guarded.get(path).status == 401, path
        assert guarded.get(path, Authorization=f"Bearer {TOKEN}x").status == 401
    assert guarded.upload(encode(picture_of(1))).status == 401
    assert guarded.get("/api/state", Authorization=f"Bearer {TOKEN}").status == 200


def test_the_token_is_entered_once(guarded):
    assert guarded.get("/api/access").document == {"allowed": False}
    wrong = guarded.ask("POST", "/api/access", TOKEN[:-1] + "!", "text/plain")
    assert wrong.document == {"allowed": False}
    assert "set-cookie" not in wrong.headers
    answer = guarded.ask("POST", "/api/access", TOKEN, "text/plain")
    assert answer.document == {"allowed": True}
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert set(attributes) == {"Path=/", "HttpOnly", "SameSite=Strict"}
    assert TOKEN not in cookie
    assert str(guarded.port) in cookie.partition("=")[0], "two explorers of one host do not share a cookie"
    assert guarded.get("/api/access", Cookie=cookie).document == {"allowed": True}
    assert guarded.get("/api/state", Cookie=f"other=1; {cookie}").status == 200
    assert guarded.get("/api/state", Cookie=f"{cookie}x").status == 401
    assert guarded.get("/api/state", Cookie=f"x{cookie}").status == 401
    # What others on this host have set, whatever it is, locks nobody out.
    for other in ('g_state={"i_l":0}', "a@/b=1", "n=[1,2]", "no name", "=", ",", 'q="', f"{cookie}x", "u=\xe9"):
        for cookies in (f"{other}; {cookie}", f"{cookie}; {other}", f"{other};{cookie};"):
            assert guarded.get("/api/state", Cookie=cookies).status == 200, cookies
    assert guarded.get("/api/state", Cookie="=;;,").status == 401


def test_a_token_is_not_as_long_as_a_picture(guarded):
    assert guarded.ask("POST", "/api/access", bytes(2000), "text/plain").status == 413
    assert guarded.ask("POST", "/api/access", b"\xff\0", "text/plain").document == {"allowed": False}


def test_the_token_cannot_be_entered_by_another_page(guarded):
    answer = guarded.ask("POST", "/api/access", TOKEN, "text/plain", Origin="http://attacker.example")
    assert answer.status == 403
    assert "set-cookie" not in answer.headers


def test_without_a_token_everybody_on_this_machine_is_allowed(explorer):
    assert explorer.get("/api/access").document == {"allowed": True}


def test_every_answer_forbids_what_a_browser_should_not_do(explorer):
    paths = [*static_files(), *DATA, f"{pictures(explorer)}/gallery/0", "/nothing", "/api/state?x=1"]
    for path in paths:
        headers = explorer.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'self'", path
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert not {"script-src", "style-src", "img-src", "connect-src"} & policy.keys()
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


def test_no_folder_is_listed_and_no_other_file_is_given(explorer):
    for path in [
        "/static", "/static/", "/pictures", "/pictures/", f"{pictures(explorer)}/", f"{pictures(explorer)}/gallery",
        "/static/../application.py", "/static/%2e%2e/application.py", "/static/..%2fapplication.py",
        "/static//etc/passwd", "/../../etc/passwd", "/etc/passwd", "/index.html/", "/static/explorer.js/",
    ]:  # fmt: skip
        answer = explorer.get(path)
        assert answer.status == 404, path
        assert b"root:" not in answer.body


@pytest.mark.parametrize(
    "named",
    ["gallery/40", "gallery/-1", "gallery/1e1", "gallery/٣", "gallery/0x1", "gallery/1/", "gallery/..", "gallery/%2e",
     "gallery/0.png", "query/0", "train/0", "upload/0", "gallery/9999999999"],
)  # fmt: skip
def test_pictures_are_asked_for_by_number_only(explorer, named):
    from urllib.parse import quote

    answer = explorer.get(f"{pictures(explorer)}/{quote(named, safe='/%')}")
    assert answer.status in (400, 404), answer


def test_a_picture_is_webp_and_kept_for_this_session_only(explorer):
    place = pictures(explorer)
    answer = explorer.get(f"{place}/gallery/3")
    assert answer.status == 200
    assert answer.headers["content-type"] == "image/webp"
    assert "immutable" in answer.headers["cache-control"]
    assert explorer.get(f"{place[:-1]}x/gallery/3").status == 404
    with running_explorer(DrawnCollection()) as other:
        assert pictures(other) != place


@pytest.mark.parametrize(
    "query",
    ["generation=1", "generation=x&network=dense", "generation=1&network=dense&more=1", "generation=1&generation=1",
     "generation=1&network=dense&part=train&position=0", "generation=1&network=dense&part=gallery&position=-1",
     "generation=1&network=dense&part=gallery&position=40", "generation=9&network=dense&part=gallery&position=0",
     "generation=1&network=%ff", "a" * 3000, "=", "generation"],
)  # fmt: skip
def test_malformed_questions_are_refused_in_words(explorer, query):
    answer = explorer.get(f"/api/neighbors?{query}")
    assert answer.status in (400, 404)
    assert answer.document["error"]


@pytest.mark.parametrize("query", ["change=fixed", "class=x", "from=-1", "count=x", "since=x"])
def test_malformed_lists_are_refused(explorer, query):
    assert explorer.get(f"/api/queries?generation=1&network=dense&{query}").status == 400


def test_a_list_is_told_a_page_at_a_time(explorer):
    address = "/api/queries?generation=1&network=dense&count=7"
    first = explorer.get(address).document
    assert first["total"] == 40
    assert first["positions"] == list(range(40))
    assert [each["position"] for each in first["queries"]] == list(range(7))
    second = explorer.get(f"{address}&from=35").document
    assert [each["position"] for each in second["queries"]] == list(range(35, 40))
    assert "positions" not in second
    assert len(explorer.get(f"{address[:-1]}99999").document["queries"]) == 40


def test_a_picture_that_cannot_be_read_is_not_there():
    with running_explorer(DrawnCollection(unreadable=3)) as explorer:
        place = pictures(explorer)
        assert explorer.get(f"{place}/gallery/3").status == 404
        assert explorer.get(f"{place}/gallery/4").status == 200


def test_methods_are_those_of_the_routes(explorer):
    for path in ["/", "/api/state", "/api/uploads"]:
        assert explorer.ask("PUT", path, b"").status == 405
    assert explorer.ask("POST", "/api/state", b"").status == 405


def test_the_files_of_the_page_name_no_other_place_and_hold_no_inline_code():
    texts = {path.name: path.read_text(encoding="utf-8") for path in STATIC.iterdir()}
    assert {"index.html", "explorer.js", "explorer.css"} <= texts.keys()
    for name, text in texts.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"@import|url\(", text), name
    assert not re.search(r"\sstyle=|\son\w+=|javascript:|<style|<script(?![^>]*\ssrc=)", texts["index.html"])
    for name in [name for name in texts if name.endswith(".js")]:
        forbidden = (
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|DOMParser"
            r"|sendBeacon|WebSocket|localStorage|setAttribute\(.style|createContextualFragment|setHTML"
        )
        assert not re.search(forbidden, texts[name]), name


def test_the_files_of_the_page_are_shipped():
    setup = (STATIC.parents[2] / "setup.py").read_text(encoding="utf-8")
    assert '"explorer/static/*"' in setup
    assert all(path.is_file() for path in STATIC.iterdir()), "a folder would not be"
