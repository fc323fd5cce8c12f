"""The batcher against its twin: one picture after another."""

import asyncio
import threading
import time

import pytest

from ke_metric.serving.exchange import Limits, Refused
from ke_metric.serving.pictures import Batcher


def double(body, kind):
    if kind == "bad":
        raise Refused(422, "bad")
    return 2 * body


class Answering:
    """Adds the question; waits for the gate before each batch."""

    def __init__(self):
        self.gate, self.sizes, self.taken = threading.Event(), [], 0
        self.gate.set()

    def __call__(self, jobs):
        self.taken += len(jobs)
        assert self.gate.wait(20)
        self.sizes.append(len(jobs))
        return [job.pixels + job.question for job in jobs]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def run(work, answering=None, **limits):
    """Run `await work(batcher, answering)` on an event loop and close the batcher."""
    answering = answering or Answering()

    async def main():
        batcher = Batcher(double, answering, limits=Limits(**limits))
        batcher.start(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(work(batcher, answering), 30)
        finally:
            answering.gate.set()
            assert await asyncio.to_thread(batcher.close, 10)

    return asyncio.run(main())


def test_every_job_gets_its_own_answer():
    async def work(batcher, answering):
        told = []
        batcher.sizes = told.append
        found = await asyncio.gather(*(batcher.submit(number, "good", 1000 * number) for number in range(200)))
        assert found == [2 * number + 1000 * number for number in range(200)]
        assert batcher.waiting == 0
        assert told == answering.sizes
        assert sum(told) == 200
        assert max(told) <= 8

    run(work, queue=500, max_batch=8)


def test_waiting_jobs_share_batches():
    async def work(batcher, answering):
        answering.gate.clear()
        asked = [batcher.submit(number, "good", 0) for number in range(21)]
        await until(lambda: answering.taken + batcher._prepared.qsize() == 21)
        answering.gate.set()
        await asyncio.gather(*asked)
        assert len(answering.sizes) <= 4
        assert max(answering.sizes) == 10

    run(work, queue=500, max_batch=10)


def test_a_lone_job_waits_for_nobody():
    async def work(batcher, answering):
        started = time.monotonic()
        await batcher.submit(1, "good", 0)
        assert time.monotonic() - started < 5

    run(work, batch_seconds=20.0)


def test_a_bad_job_fails_alone():
    async def work(batcher, answering):
        asked = [batcher.submit(n, "bad" if n == 2 else "good", 0) for n in range(5)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [answer if isinstance(answer, int) else answer.status for answer in found] == [0, 2, 422, 6, 8]

    run(work)


def test_a_batch_that_fails_fails_its_jobs_and_no_others():
    class Failing(Answering):
        def __call__(self, jobs):
            if any(job.question == "boom" for job in jobs):
                raise RuntimeError("boom")
            return super().__call__(jobs)

    async def work(batcher, answering):
        with pytest.raises(RuntimeError, match="boom"):
            await batcher.submit(1, "good", "boom")
        assert await batcher.submit(1, "good", 1) == 3

    run(work, Failing())


def test_a_full_queue_is_refused_and_empties():
    async def work(batcher, answering):
        answering.gate.clear()
        asked = [batcher.submit(number, "good", 0) for number in range(3)]
        with pytest.raises(Refused) as caught:
            batcher.submit(9, "good", 0)
        assert caught.value.status == 503
        answering.gate.set()
        await asyncio.gather(*asked)
        assert await batcher.submit(9, "good", 0) == 18

    run(work, queue=3)


def test_a_job_whose_request_was_given_up_disturbs_nobody():
    async def work(batcher, answering):
        answering.gate.clear()
        asked = [batcher.submit(number, "good", 0) for number in range(3)]
        asked[1].cancel()
        answering.gate.set()
        assert [await asked[0], await asked[2]] == [0, 4]
        assert batcher.waiting == 0

    run(work)


def test_stopping_answers_what_is_prepared_and_refuses_the_rest():
    preparing, begun = threading.Event(), threading.Event()

    def slowly(body, kind):
        if body > 1:
            begun.set()
            assert preparing.wait(20)
        return double(body, kind)

    async def main():
        answering = Answering()
        answering.gate.clear()
        batcher = Batcher(slowly, answering, limits=Limits(max_batch=1), threads=1)
        batcher.start(asyncio.get_running_loop())
        asked = [batcher.submit(number, "good", 0) for number in range(6)]
        await until(lambda: answering.taken == 1 and batcher._prepared.qsize() == 1 and begun.is_set())
        batcher.stop()
        with pytest.raises(Refused):
            batcher.submit(9, "good", 0)
        preparing.set()
        answering.gate.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert await asyncio.to_thread(batcher.close, 10)
        return [answer if isinstance(answer, int) else answer.status for answer in found]

    assert asyncio.run(main()) == [0, 2, 4, 503, 503, 503]


def test_closing_tells_whether_the_work_ended():
    async def main():
        answering = Answering()
        answering.gate.clear()
        batcher = Batcher(double, answering, limits=Limits())
        batcher.start(asyncio.get_running_loop())
        asked = batcher.submit(1, "good", 0)
        await until(lambda: answering.taken == 1)
        ended = await asyncio.to_thread(batcher.close, 0.2)
        answering.gate.set()
        assert await asked == 2
        return ended

    assert not asyncio.run(main())
