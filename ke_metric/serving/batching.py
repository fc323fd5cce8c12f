"""Requests that come at the same time share a forward pass.

The event loop hands a job over and awaits its future. A few threads decode and prepare pictures (Pillow works without
the interpreter's lock); one thread takes whatever is prepared, up to a batch, embeds and searches, and tells the
event loop once per batch. Nothing hops between threads more often than that: for a small network the hops would cost
more than the network.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from ke_metric.serving.exchange import Limits, busy

STOPPING = "the service is stopping"


@dataclass(slots=True, eq=False)
class Job:
    """One picture on its way.

    Attributes:
        body: The upload; dropped when it is prepared.
        kind: Pillow's name of its format.
        question: What to do with it; for the function that answers.
        future: Of the event loop; gets the answer.
        deadline: Monotonic time by which its work must have begun.
        pixels: The prepared picture.
    """

    body: bytes
    kind: str
    question: Any
    future: asyncio.Future[Any]
    deadline: float
    pixels: Any = None


class Batcher:
    """Threads between the event loop and the network.

    Args:
        prepare: Upload and kind to prepared pixels; called by several threads.
        answer: Jobs to an answer for each; called by one thread. An answer that is an exception is raised to the
            job's request.
        limits: Batch size, waiting, queue.
        threads: That prepare.

    Attributes:
        waiting: Jobs without an answer.
        sizes: Called with the size of every batch, on the event loop.
    """

    def __init__(
        self,
        prepare: Callable[[bytes, str], Any],
        answer: Callable[[Sequence[Job]], Sequence[Any]],
        *,
        limits: Limits,
        threads: int = 2,
    ) -> None:
        self._prepare, self._answer, self._limits = prepare, answer, limits
        self._arrived: SimpleQueue[Job | None] = SimpleQueue()
        self._prepared: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [Thread(target=self._prepare_all, name="prepare", daemon=True) for _ in range(threads)]
        self._worker = Thread(target=self._answer_all, name="embed", daemon=True)
        self._stopping = False
        self.waiting = 0
        self.sizes: Callable[[int], None] = lambda size: None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads; answers go to this event loop."""
        self._loop = loop
        for thread in (*self._threads, self._worker):
            thread.start()

    def submit(self, body: bytes, kind: str, question: Any) -> asyncio.Future[Any]:
        """Hand a picture over, on the event loop, and return its answer to be.

        Raises:
            Refused: 503: the queue is full, or the service is stopping.
        """
        self.check_room()
        job = Job(body, kind, question, self._loop.create_future(), time.monotonic() + self._limits.answer_seconds)
        self.waiting += 1
        self._arrived.put(job)
        return job.future

    def check_room(self) -> None:
        """Raise Refused (503) where a job would be refused."""
        if self._stopping:
            raise busy(STOPPING)
        if self.waiting >= self._limits.queue:
            raise busy("too many requests are waiting")

    def stop(self) -> None:
        """Answer 503 to what is not prepared yet; what is, is still answered."""
        self._stopping = True

    def close(self, seconds: float) -> bool:
        """End the threads when they have answered what is left; tell whether they did within the time."""
        self.stop()
        end = time.monotonic() + seconds
        for _ in self._threads:
            self._arrived.put(None)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._prepared.put(None)
        self._worker.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in (*self._threads, self._worker))

    def _prepare_all(self) -> None:
        while (job := self._arrived.get()) is not None:
            try:
                self._check_time(job)
                job.pixels = self._prepare(job.body, job.kind)
            except Exception as error:
                self._tell([(job, error)])
            else:
                self._prepared.put(job)
            finally:
                job.body = b""

    def _check_time(self, job: Job) -> None:
        if self._stopping:
            raise busy(STOPPING)
        if time.monotonic() > job.deadline:
            raise busy(f"not begun within {self._limits.answer_seconds:g} seconds")

    def _answer_all(self) -> None:
        while batch := self._next_batch():
            try:
                answers = self._answer(batch)
                assert len(answers) == len(batch), (len(answers), len(batch))
            except Exception as error:
                answers = [error] * len(batch)
            self._tell(list(zip(batch, answers, strict=True)), size=len(batch))

    def _next_batch(self) -> list[Job]:
        """Return what is prepared and comes within a little while, at least one job; none when all is over."""
        first = self._prepared.get()
        if first is None:
            return []
        batch, end = [first], time.monotonic() + self._limits.batch_seconds
        while len(batch) < self._limits.max_batch:
            try:
                job = self._prepared.get_nowait()
            except Empty:
                left = end - time.monotonic()
                if self.waiting <= len(batch) or left <= 0:
                    break
                try:
                    job = self._prepared.get(timeout=left)
                except Empty:
                    break
            if job is None:
                self._prepared.put(None)
                break
            batch.append(job)
        return batch

    def _tell(self, outcomes: list[tuple[Job, Any]], size: int = 0) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, outcomes, size)
        except RuntimeError:
            # The event loop was closed in the middle of a forced stop: nobody listens any more.
            self._stopping = True

    def _settle(self, outcomes: list[tuple[Job, Any]], size: int) -> None:
        if size:
            self.sizes(size)
        for job, outcome in outcomes:
            self.waiting -= 1
            if job.future.done():
                continue
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
