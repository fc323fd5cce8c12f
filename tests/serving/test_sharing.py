"""Requests beside each other: batches, the queue, and failures that stay with the request that caused them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from live_service import FakeSearcher, assert_results, encode, picture_of, running
from PIL import Image

PICTURE = encode(picture_of(3))
OTHERS = [encode(picture_of(100 + number)) for number in range(40)]


def test_concurrent_requests_get_their_own_answers(fresh):
    images = [picture_of(100 + number) for number in range(len(OTHERS))]
    with fresh(queue=64) as service, ThreadPoolExecutor(16) as pool:
        paths = [f"/search?k={1 + number % 3}" for number in range(len(OTHERS))]
        answers = list(pool.map(service.search, OTHERS * 3, paths * 3))
        for number, answer in enumerate(answers):
            image, k = images[number % len(OTHERS)], 1 + number % len(OTHERS) % 3
            assert_results(answer, service.searcher, image, k)
        assert max(service.searcher.batches) <= 4


def test_requests_that_wait_share_a_forward_pass(fresh):
    with fresh(queue=20) as service, ThreadPoolExecutor(20) as pool:
        service.searcher.gate.clear()
        asked = [pool.submit(service.search, body) for body in OTHERS[:13]]
        while service.server.service._batcher.waiting < 13:
            assert not any(one.done() for one in asked)
        service.searcher.gate.set()
        assert [one.result().status for one in asked] == [200] * 13
        assert max(service.searcher.batches) == 4


def test_a_full_queue_is_told_at_once(fresh):
    with fresh(queue=2) as service, ThreadPoolExecutor(8) as pool:
        service.searcher.gate.clear()
        waiting = [pool.submit(service.search, PICTURE) for _ in range(2)]
        while service.server.service._batcher.waiting < 2:
            pass
        refused = service.search(PICTURE)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert service.ask("GET", "/health").status == 200
        service.searcher.gate.set()
        assert [one.result().status for one in waiting] == [200, 200]
        assert service.search(PICTURE).status == 200


def test_what_waited_too_long_is_told(fresh):
    with fresh(answer_seconds=-1.0) as service:
        assert service.search(PICTURE).status == 503


class Broken(FakeSearcher):
    def search(self, queries, options, exclude=None):
        raise RuntimeError(f"/secret/place k={options.k}")


def test_our_own_mistakes_are_told_without_their_words(items, capfd):
    with running(Broken(items)) as service:
        answer = service.search(PICTURE)
        assert (answer.status, service.search(PICTURE, "/embed").status) == (500, 200)
    assert b"secret" not in answer.body
    assert "/secret/place" in capfd.readouterr().err


class Picky(FakeSearcher):
    """Refuses a whole search for one bad vector, as `check_queries` does, or for more than five neighbours."""

    def _embed(self, pixels):
        black = pixels.reshape(len(pixels), -1).max(axis=1) == 0
        return np.where(black[:, None], np.float32(0), super()._embed(pixels))

    def search(self, queries, options, exclude=None):
        if options.k > 5 or not queries.any(axis=1).all():
            raise ValueError("no")
        return super().search(queries, options, exclude)


def test_what_one_request_breaks_harms_no_other(items):
    black = encode(Image.new("RGB", (16, 12)))
    asked = [(PICTURE, 3), (black, 3), (OTHERS[0], 3), (PICTURE, 6), (OTHERS[1], 2)]
    with running(Picky(items), max_batch=5, batch_seconds=10.0) as service, ThreadPoolExecutor(5) as pool:
        service.searcher.gate.clear()
        first = pool.submit(service.search, PICTURE, "/search?k=1")
        while service.server.service._batcher.waiting < 1:
            pass
        answers = [pool.submit(service.search, body, f"/search?k={k}") for body, k in asked]
        while service.server.service._batcher.waiting < 5:
            pass
        service.searcher.gate.set()
        assert [one.result().status for one in answers] == [200, 500, 200, 500, 200]
        assert first.result().status == 200
        assert_results(answers[2].result(), service.searcher, picture_of(100), 3)
        assert max(service.searcher.batches) > 1
