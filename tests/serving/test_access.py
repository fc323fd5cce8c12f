"""Who may ask: addresses, tokens, Host and Origin."""

import pytest
from live_service import PNG, encode, picture_of

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.serving.exchange import TOKEN_VARIABLE, ServiceSettings, read_token

TOKEN = "0123456789abcdef-secret"
PICTURE = encode(picture_of(1))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "localhost.example.org", ""])
def test_another_host_needs_a_token(host):
    with pytest.raises(KeMetricError, match="token") as caught:
        ServiceSettings(host=host)
    assert caught.value.exit_code == ExitCode.USAGE
    assert ServiceSettings(host=host, token=TOKEN).token == TOKEN


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_none(host):
    assert ServiceSettings(host=host).is_loopback


def test_a_token_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "of-the-environment")
    assert read_token(None) == "of-the-environment"
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert read_token(tmp_path / "token") == TOKEN


@pytest.mark.parametrize("text", ["", "short", "with a blank inside of it", "ümlaut-is-not-ascii-at-all", "\n" * 20])
def test_what_is_no_token(tmp_path, monkeypatch, text):
    (tmp_path / "token").write_text(text)
    with pytest.raises(KeMetricError, match="no token"):
        read_token(tmp_path / "token")
    monkeypatch.setenv(TOKEN_VARIABLE, text)
    with pytest.raises(KeMetricError, match=TOKEN_VARIABLE):
        read_token(None)


def test_a_token_file_that_is_not_there(tmp_path):
    with pytest.raises(KeMetricError, match="cannot be read"):
        read_token(tmp_path / "zork")


def test_a_token_is_not_shown():
    assert TOKEN not in repr(ServiceSettings(token=TOKEN))


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer x", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"bearer {TOKEN}", "Bearer é"],
)
def test_without_the_token_there_is_only_health(fresh, given):
    headers = {} if given is None else {"Authorization": given}
    with fresh(ServiceSettings(token=TOKEN)) as service:
        for method, path in [("POST", "/search"), ("POST", "/embed"), ("GET", "/images/x"), ("GET", "/metrics"),
                             ("GET", "/openapi.json"), ("GET", "/zork")]:  # fmt: skip
            answer = service.ask(method, path, PICTURE if method == "POST" else None, PNG, **headers)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        assert service.ask("GET", "/health", **headers).status == 200
        assert service.searcher.batches == [1]


def test_with_the_token_everything_is_there(fresh):
    with fresh(ServiceSettings(token=TOKEN)) as service:
        assert service.search(PICTURE, Authorization=f"Bearer {TOKEN}").status == 200
        assert service.ask("GET", "/metrics", Authorization=f"Bearer {TOKEN}").status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]", "[::1]:8000"])
def test_names_of_this_machine(service, host):
    assert service.ask("GET", "/health", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1:x",
     "127.0.0.1:", "localhost:1:2", "127.0.0.1:123456", "", "user@127.0.0.1", "0.0.0.0"],
)  # fmt: skip
def test_names_of_others_are_refused_on_loopback(service, host):
    for path in ("/health", "/metrics", "/images/x", "/zork"):
        assert service.ask("GET", path, Host=host).status == 403


def test_a_request_without_a_host_is_refused(service):
    assert b" 403 " in service.raw(b"GET /health HTTP/1.0\r\n\r\n")


def test_any_name_is_right_behind_another_address(fresh):
    with fresh(ServiceSettings(host="0.0.0.0", token=TOKEN)) as service:
        assert service.ask("GET", "/health", Host="photos.example").status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1:8000", 200), ("https://127.0.0.1:8000", 200), ("http://127.0.0.1:8001", 403),
     ("http://evil.example", 403), ("null", 403), ("", 403), ("http://localhost:8000", 403)],
)  # fmt: skip
def test_pages_of_other_origins_are_refused(service, origin, status):
    assert service.search(PICTURE, Host="127.0.0.1:8000", Origin=origin).status == status
