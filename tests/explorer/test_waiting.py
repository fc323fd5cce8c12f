"""Questions that wait for a network hold up nothing else, and what went wrong with it is told to each of them."""

import threading
import time
from contextlib import contextmanager

import pytest
from drawn_collection import DrawnCollection, encode, picture_of, running_explorer

from ke_metric.errors import KeMetricError
from ke_metric.explorer.application import THREADS
from ke_metric.explorer.exploration import Exploration

NEIGHBORS = "/api/neighbors?network=dense&part=gallery&position=0&generation="
QUESTIONS = [
    *(f"{NEIGHBORS}{generation}" for generation in (1, 2, 3)),
    "/api/map?generation=1&network=slim",
    "/api/map?generation=3&network=dense",
    "/api/queries?generation=3&network=slim&change=mended&since=1",
]


@contextmanager
def asked(explorer, questions):
    """Ask without waiting for the answers; they are in the list that is given when it ends."""
    answers = []
    threads = [
        threading.Thread(target=lambda path=path: answers.append(explorer.get(path).status)) for path in questions
    ]
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        thread.join(20)


def until(reached):
    end = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_questions_that_wait_for_networks_hold_up_no_others():
    collection = DrawnCollection()
    gate, vectors = threading.Event(), collection.vectors
    collection.vectors = lambda network: vectors(network) if gate.wait(20) else None
    with running_explorer(collection) as explorer:
        in_work = explorer.server.server_state.tasks
        assert len(QUESTIONS) > THREADS
        try:
            with asked(explorer, QUESTIONS) as answers:
                until(lambda: len(in_work) == len(QUESTIONS))
                state = explorer.get("/api/state")
                assert state.status == 200
                assert explorer.get(f"{state.document['pictures']}/gallery/3").status == 200
                assert explorer.get("/api/queries?generation=3&network=dense&text=crow").document["total"] == 8
                assert "upload" in explorer.upload(encode(picture_of(5))).document
                assert answers == []
                gate.set()
        finally:
            gate.set()
        assert answers == [200] * len(QUESTIONS)


def test_uploads_that_wait_for_their_network_hold_up_no_others():
    collection = DrawnCollection()
    gate, embed = threading.Event(), collection.embed
    collection.embed = lambda network, pixels: embed(network, pixels) if gate.wait(20) else None
    with running_explorer(collection) as explorer:
        number = explorer.upload(encode(picture_of(5))).document["upload"]
        address = f"/api/neighbors?network=dense&part=upload&position={number}&generation=3"
        in_work = explorer.server.server_state.tasks
        try:
            with asked(explorer, [address] * (THREADS + 1)) as answers:
                until(lambda: len(in_work) == THREADS + 1)
                assert explorer.get(f"{NEIGHBORS}3").status == 200
                assert explorer.get("/api/state").status == 200
                assert answers == []
                gate.set()
        finally:
            gate.set()
        assert answers == [200] * (THREADS + 1)


def test_it_ends_while_questions_wait():
    collection = DrawnCollection()
    gate, inside, vectors = threading.Event(), threading.Event(), collection.vectors

    def wait(network):
        inside.set()
        return vectors(network) if gate.wait(20) else None

    collection.vectors = wait
    with running_explorer(collection, stop_seconds=1) as explorer:
        assert inside.wait(10)
        try:
            with asked(explorer, QUESTIONS) as answers:
                until(lambda: len(explorer.server.server_state.tasks) == len(QUESTIONS))
                explorer.stop()
        finally:
            gate.set()
        assert set(answers) <= {404, 503}


def depth(error):
    found, entry = 0, error.__traceback__
    while entry is not None:
        found, entry = found + 1, entry.tb_next
    return found


@pytest.mark.parametrize("failure", [FileNotFoundError(2, "No such file or directory", "/x/y"), KeyError("boom")])
def test_what_went_wrong_is_told_again_and_again_and_does_not_grow(failure, capsys):
    collection = DrawnCollection()

    def fail(network):
        raise failure

    collection.vectors = fail
    exploration = Exploration(collection)
    exploration.networks.start()
    caught = []
    for _ in range(3):
        with pytest.raises(KeMetricError, match="generation 3 dense: ") as raised:
            exploration.neighbors(exploration.find(3, "dense"), "gallery", 0)
        caught.append(raised.value)
    exploration.networks.close(20)
    assert len(set(map(id, caught))) == 3
    assert len({depth(error) for error in caught}) == 1
    assert ("KeyError" in capsys.readouterr().err) == isinstance(failure, KeyError), "our own mistakes are in the log"


def test_files_that_are_gone_are_told_over_http():
    collection = DrawnCollection()

    def gone(*arguments):
        raise FileNotFoundError(2, "No such file or directory", "/somewhere/weights.safetensors")

    with running_explorer(collection) as explorer:
        number = explorer.upload(encode(picture_of(5))).document["upload"]
        assert explorer.get(f"{NEIGHBORS}3").status == 200
        collection.embed = collection.picture = gone
        state = explorer.get("/api/state").document
        for path in (
            f"/api/neighbors?network=dense&part=upload&position={number}&generation=3",
            f"{state['pictures']}/gallery/7",
        ):
            answer = explorer.get(path)
            assert answer.status == 404
            assert "No such file" in answer.document["error"]
            assert "somewhere" not in answer.document["error"], "nothing of this machine"
