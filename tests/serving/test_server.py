"""The process: `ke-metric serve` on a real index, its answers, its end, and what it refuses to begin with."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from urllib.parse import quote

import numpy as np
import pytest
from click.testing import CliRunner
from live_service import encode, picture_of

from ke_metric.cli import main
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.preparation import Preparation
from ke_metric.networks.bundle_config import Architecture, NetworkCard
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.index import Index
from ke_metric.retrieval.query import SearchOptions, answer_queries
from ke_metric.serving.exchange import TOKEN_VARIABLE, ServiceSettings
from ke_metric.serving.server import listen
from ke_metric.serving.service import IndexSearcher
from ke_metric.stores.contract import Item
from ke_metric.stores.gallery import VECTORS

RECIPE = Recipe.model_validate(
    {"name": "x", "data": {"image_size": 32}, "network": {"backbone": "timm/test_resnet", "embedding_size": 8}}
)
QUERIES = [picture_of(200 + number, (40, 30)) for number in range(24)]


def make_embedder():
    network = LineageNetworks(RECIPE, 0).build(1).eval()
    card = NetworkCard(split=None, normalization=Preparation.of_recipe(RECIPE))
    return Embedder(network, architecture=Architecture.of_recipe(RECIPE), card=card)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index of twenty pictures."""
    place = tmp_path_factory.mktemp("served")
    embedder, items = make_embedder(), []
    for number in range(20):
        path = place / f"{number}.png"
        picture_of(number, (40, 30)).save(path)
        items.append(Item(f"{number}.png", str(path), f"class {number % 4}"))
    with Index.create(place / "index", embedder=embedder) as index:
        index.add(items, embedder([item.path for item in items]), digest=embedder.digest)
    return place / "index"


class Served:
    """`ke-metric serve` in a process of its own."""

    def __init__(self, folder, *options):
        command = [sys.executable, "-m", "ke_metric.cli", "serve", "--index", str(folder), "--port", "0", *options]
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        line = self.process.stderr.readline()
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+);", line)[1])
        assert self.ask("GET", "/health")[0] == 200, "it says that it is serving when it is"

    def ask(self, method, path, body=None):
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {"Content-Type": "image/png"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def end(self, number):
        """Send a signal and return the exit code, the seconds that took and what was printed."""
        started = time.monotonic()
        self.process.send_signal(number)
        printed = self.process.communicate(timeout=30)[1]
        return self.process.returncode, time.monotonic() - started, printed


@pytest.fixture(scope="module")
def served(folder):
    found = Served(folder)
    yield found
    assert found.end(signal.SIGTERM)[0] == 0


def test_answers_are_those_of_embedder_and_index(served, folder):
    with ThreadPoolExecutor(8) as pool:
        bodies = [encode(image) for image in QUERIES]
        found = list(pool.map(lambda body: served.ask("POST", "/search?k=5", body), bodies))
        vectors = list(pool.map(lambda body: served.ask("POST", "/embed", body), bodies))
    with Index.open(folder) as index:
        expected = index.embedder(QUERIES)
        hits = index.search(expected, 5, digest=index.digest)
        names = [[item.id for item in row] for row in hits.items()]
    assert {status for status, _ in found + vectors} == {200}
    assert [[result["id"] for result in document["results"]] for _, document in found] == names
    np.testing.assert_allclose(
        [[result["similarity"] for result in document["results"]] for _, document in found],
        hits.similarities,
        atol=1e-5,
    )
    np.testing.assert_allclose([document["embedding"] for _, document in vectors], expected, atol=1e-5)


@pytest.mark.parametrize(
    "asked",
    [
        {"expand": "3:1"},
        {"rerank": "3:2:0.3:12"},
        {"expand": "2", "rerank": "4:2:0.5:20", "where": 'label != "class 1"'},
        {"exclude": "7.png"},
        {"exclude": "7.png", "expand": "3:1", "rerank": "3:2:0.3:12"},
        {"exclude": "no such item"},
    ],
    ids=str,
)
def test_what_the_options_of_a_search_give_is_what_the_library_gives(served, folder, asked):
    numbers = (7, 8, 12)
    query = "&".join(f"{name}={quote(text)}" for name, text in {"k": "4", **asked}.items())
    with ThreadPoolExecutor(3) as pool:
        bodies = [encode(picture_of(number, (40, 30))) for number in numbers]
        found = list(pool.map(lambda body: served.ask("POST", f"/search?{query}", body), bodies))
    texts = {name: asked.get(name) for name in ("where", "expand", "rerank")}
    with Index.open(folder) as index:
        vectors = index.embedder([picture_of(number, (40, 30)) for number in numbers])
        excluded = [[asked["exclude"]] if "exclude" in asked else []] * len(numbers)
        options = SearchOptions.parse(4, **texts, keep_self=True)
        expected = answer_queries(index.store, [Item("")] * len(numbers), vectors, options, exclude=excluded)
        plain = [[item.id for item in row] for row in index.search(vectors, 4, digest=index.digest).items()]
    for (status, document), answer in zip(found, expected, strict=True):
        assert status == 200, document
        assert [result["id"] for result in document["results"]] == [result.id for result in answer.results]
        np.testing.assert_allclose(
            [result["similarity"] for result in document["results"]],
            [result.similarity for result in answer.results],
            atol=1e-5,
        )
    ids = [[result["id"] for result in document["results"]] for _, document in found]
    assert (ids != plain) == (asked != {"exclude": "no such item"})
    assert "7.png" not in ids[0] or asked.get("exclude") != "7.png"


def test_pictures_that_leave_out_different_items_share_a_search(folder):
    searcher = IndexSearcher(folder)
    try:
        vectors = searcher.network.compute(np.stack([searcher.network.prepare(image) for image in QUERIES[:3]]))
        firsts = [found[0].id for found in searcher.search(vectors, SearchOptions(1))]
        found = searcher.search(vectors, SearchOptions(19), [[firsts[0]], [], [firsts[2]]])
    finally:
        searcher.close()
    assert [first in [result.id for result in results] for first, results in zip(firsts, found, strict=True)] == [
        False, True, False,
    ]  # fmt: skip


def test_a_strip_that_would_grow_to_more_pixels_than_allowed_is_refused(served):
    status, document = served.ask("POST", "/search", encode(picture_of(1, (30_000, 1))))
    assert (status, "too long a strip" in document["error"]) == (422, True)


def test_what_a_writer_adds_is_found_while_serving(served, folder):
    picture = picture_of(999, (40, 30))
    with Index.open(folder, writing=True) as index:
        index.add([Item("new")], index.embedder(picture), digest=index.digest)
    try:
        document = served.ask("POST", "/search?k=1", encode(picture))[1]
        assert document["results"][0]["id"] == "new"
    finally:
        with Index.open(folder, writing=True) as index:
            index.remove(["new"])


def test_what_a_writer_removes_at_the_same_moment_disturbs_nobody(folder, monkeypatch):
    picture = picture_of(998, (40, 30))
    with Index.open(folder, writing=True) as index:
        vector, item = index.embedder(picture), Item("short-lived")
        searcher = IndexSearcher(folder)
        store, removals = searcher._index.store, []

        def removing(ask):
            def asked(*given, **named):
                found = ask(*given, **named)
                if index.store.known([item.id]):
                    index.remove([item.id])
                    removals.append(item.id)
                return found

            return asked

        monkeypatch.setattr(store, "search", removing(store.search))
        monkeypatch.setattr(store, "known", removing(store.known))
        try:
            index.add([item], vector, digest=index.digest)
            assert item.id not in [result.id for result in searcher.search(vector, SearchOptions(3))[0]]
            index.add([item], vector, digest=index.digest)
            assert searcher.find(item.id) is None
            assert len(removals) == 2
            monkeypatch.setattr(store, "known", store.get)
            with pytest.raises(KeMetricError, match="no item"):
                searcher.find(item.id)
        finally:
            searcher.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_it_stops_in_the_middle_of_requests(folder, number):
    served = Served(folder)
    statuses, bodies = [], [encode(image) for image in QUERIES]

    def ask_until_the_end(body):
        try:
            while True:
                statuses.append(served.ask("POST", "/search", body)[0])
        except (HTTPException, OSError) as error:
            statuses.append(type(error).__name__)

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask_until_the_end, body) for body in bodies[:8]]
        while len(statuses) < 20:
            assert served.process.poll() is None
        code, seconds, printed = served.end(number)
        for one in asking:
            one.result(timeout=10)
    assert code == 0
    assert seconds < 8
    assert "Traceback" not in printed
    assert {status for status in statuses if isinstance(status, int)} <= {200, 503}


def test_stopping_ends_uploads_and_closes_the_index(fresh):
    with fresh(upload_seconds=30.0) as service, ThreadPoolExecutor(1) as pool:
        head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9999\r\n\r\nx"
        uploading = pool.submit(service.raw, head, 10)
        while not service.server.service.uploads.held:
            time.sleep(0.01)
        service.stop()
        assert uploading.result().startswith(b"HTTP/1.1 503 ")
        assert service.searcher.closed == 1


def test_stopping_finishes_what_is_in_work(fresh):
    with fresh() as service, ThreadPoolExecutor(4) as pool:
        before = service.searcher.prepared
        service.searcher.gate.clear()
        asked = [pool.submit(service.search, encode(picture_of(number))) for number in range(3)]
        while service.searcher.prepared < before + 3:
            time.sleep(0.01)
        time.sleep(0.1)  # from prepared to noted as prepared
        service.server.should_exit = True
        while service.server.service.state != "stopping":
            time.sleep(0.01)
        service.searcher.gate.set()
        assert [one.result().status for one in asked] == [200] * 3


def test_work_that_does_not_end_does_not_keep_it(fresh):
    with fresh(stop_seconds=2) as service, ThreadPoolExecutor(1) as pool:
        service.searcher.gate.clear()
        asked = pool.submit(service.search, encode(picture_of(1)))
        while service.server.service._batcher.waiting < 1:
            time.sleep(0.01)
        started = time.monotonic()
        service.stop()
        assert time.monotonic() - started < 3.5  # uvicorn and the batcher share the two seconds
        answer = asked.result()
        assert (answer.status, answer.document) == (503, {"error": "the service is stopping"})
        assert service.searcher.closed == 0


def refused(*options):
    result = CliRunner().invoke(main, ["serve", *map(str, options)])
    assert result.exit_code, result.output
    return result.exit_code, result.stderr


def test_there_must_be_an_index(tmp_path):
    code, said = refused("--index", tmp_path / "zork", "--port", 0)
    assert code == ExitCode.DATA
    assert "no index here" in said
    assert "serving" not in said


def test_an_index_whose_store_has_gone_is_not_said_to_be_served(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "i")
    (copied / VECTORS).unlink()
    code, said = refused("--index", copied, "--port", 0)
    assert code == ExitCode.LINEAGE
    assert "is missing" in said
    assert "serving" not in said


def test_another_host_without_a_token_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    code, said = refused("--index", tmp_path, "--host", "0.0.0.0")
    assert code == ExitCode.USAGE
    assert "--token-file" in said


def test_a_port_that_is_taken(tmp_path):
    with listen(ServiceSettings(port=0)) as listener:
        code, said = refused("--index", tmp_path, "--port", listener.getsockname()[1])
    assert code == ExitCode.ENVIRONMENT
    assert "cannot be listened on" in said


@pytest.mark.parametrize("host", ["no..host", "x" * 70, "nul\0"])
def test_what_is_no_name_of_a_host(host):
    with pytest.raises(KeMetricError, match="cannot be listened on") as caught:
        listen(ServiceSettings(host=host, port=0, token="x" * 16))
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_a_missing_library_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, said = refused("--index", tmp_path)
    assert code == ExitCode.ENVIRONMENT
    assert "pip install 'ke_metric[serve]'" in said


def test_a_token_is_never_an_option():
    assert "--token " not in CliRunner().invoke(main, ["serve", "--help"]).stdout
