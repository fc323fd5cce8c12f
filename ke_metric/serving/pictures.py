"""Pictures that come and go: uploads by their real content, decoded and answered in batches; pictures of the gallery.

Pixels are counted before anything is decoded. A picture of the gallery is opened by the path that the index has for
its id, and sent only if it is a picture.

Requests that come at the same time share a forward pass. The event loop hands a job over and awaits its future. A few
threads decode and prepare pictures (Pillow works without the interpreter's lock); one thread takes whatever is
prepared, up to a batch, embeds and searches, and tells the event loop once per batch. Nothing hops between threads
more often than that: for a small network the hops would cost more than the network.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from PIL import Image

from ke_metric.serving.exchange import Limits, Refused, Reply, busy
from ke_metric.stores.contract import LONGEST_TEXT, Item

# Content type -> Pillow's name of the format. No other decoder ever sees an upload.
FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
ALLOWED = "must be image/jpeg, image/png or image/webp"
# Each scan of a progressive JPEG costs about a decoding; encoders write about ten.
MAX_SCANS = 100
SCAN = b"\xff\xda"
# Pillow's name of a format -> content type. What a browser could run (SVG, HTML, PDF) is not among them.
CONTENT_TYPES = {
    "JPEG": b"image/jpeg",
    "MPO": b"image/jpeg",
    "PNG": b"image/png",
    "WEBP": b"image/webp",
    "GIF": b"image/gif",
    "BMP": b"image/bmp",
    "TIFF": b"image/tiff",
}
# A JPEG with several pictures is opened as one and then calls itself MPO.
DECODERS = tuple(name for name in CONTENT_TYPES if name != "MPO")


def count_pixels_ourselves() -> None:
    """Silence Pillow's warning of decompression bombs, for the whole process.

    It knows one number only, 89 million pixels. `decode` knows the limit of uploads, and pictures of the gallery are
    not decoded here.
    """
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def picture_format(content_type: bytes | None) -> str:
    """Return Pillow's name of the format that a Content-Type header names.

    Raises:
        Refused: 415: it is missing, or names something else.
    """
    named = (content_type or b"").partition(b";")[0].strip().lower().decode("latin-1")
    found = FORMATS.get(named)
    if found is None:
        said = f"Content-Type {named[:80]!r}" if named else "no Content-Type"
        raise Refused(415, f"{said}: {ALLOWED}")
    return found


def begins_as(body: bytes) -> str | None:
    """Return the format as which bytes begin; None: none of those allowed."""
    if body.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WEBP" if body.startswith(b"RIFF") and body[8:12] == b"WEBP" else None


def decode(body: bytes, kind: str, max_pixels: int) -> Image.Image:
    """Decode a picture; its first frame where there are several.

    Args:
        body: The file.
        kind: Pillow's name of the format it must have.
        max_pixels: Width x height, at most; read from the header, before anything is decoded.

    Raises:
        Refused: 413 too many pixels, 415 another format, 422 it cannot be decoded.
    """
    if body and begins_as(body) != kind:
        raise Refused(415, f"the content is no {kind}, as which the Content-Type announces it; {ALLOWED}")
    if kind == "JPEG" and body.count(SCAN) > MAX_SCANS:
        raise Refused(422, f"the JPEG has more than {MAX_SCANS} scans")
    too_many = Refused(413, f"the picture has more than {max_pixels:,} pixels")
    try:
        with Image.open(io.BytesIO(body), formats=(kind,)) as image:
            if image.width * image.height > max_pixels:
                raise too_many
            image.load()
            return image
    except Refused:
        raise
    except Image.DecompressionBombError:
        raise too_many from None
    except Exception as error:  # whatever a decoder says of bytes that somebody made up
        raise Refused(422, f"the {kind} cannot be decoded: it is damaged or cut off") from error


def can_be_id(text: str) -> bool:
    """Return whether an item can have this id."""
    return 0 < len(text) <= LONGEST_TEXT and "\0" not in text


def read_id(raw: bytes) -> str:
    """Return the id in the percent-encoded rest of a path.

    Raises:
        Refused: 404: no item can have such an id.
    """
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        _not_found()
    if not can_be_id(text):
        _not_found()
    return text


def read_picture(item: Item | None, max_bytes: int) -> Reply:
    """Return the picture of an item.

    Raises:
        Refused: 404: there is no item, or no picture where it should lie; a special file is not read.
    """
    if item is None or not item.path:
        _not_found()
    body = _read_regular(item.path, max_bytes)
    try:
        with Image.open(io.BytesIO(body), formats=DECODERS) as image:
            content_type = CONTENT_TYPES[str(image.format)]
    except Exception:  # whatever a decoder says of a file that is no picture
        _not_found()
    return Reply(200, body, ((b"content-type", content_type),))


def _read_regular(path: str, max_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
                _not_found()
            return file.read(max_bytes)
    except (OSError, ValueError):
        _not_found()


def _not_found() -> NoReturn:
    raise Refused(404, "there is no picture of this id") from None


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
