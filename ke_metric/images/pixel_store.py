"""Decoded pictures, kept once: those of an image set in one flat buffer, and those of a benchmark's parts.

Shapes: N pictures, H and W height and width in pixels.
"""

from __future__ import annotations

import io
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing import reduction
from types import MappingProxyType
from typing import Any, BinaryIO, Self

import numpy as np

from ke_metric.arrays import IntArray, PixelArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import DataFingerprint, PartFingerprint
from ke_metric.images.decoding import Progress, in_order
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.preparation import StoreShape, kept_pixels

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of pixels that are kept in memory; a larger store lies in a memory-mapped temporary file."""

# Pictures that an error names.
MOST_NAMED = 20


class UnreadableError(KeMetricError):
    """Pictures that cannot be decoded, all that were met (DATA).

    Args:
        reasons: What is wrong with each; it names the picture.
    """

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = tuple(dict.fromkeys(reasons))
        count = len(self.reasons)
        lines = [self.reasons[0]]
        if count > 1:
            named = [f"  {reason}" for reason in self.reasons[:MOST_NAMED]]
            lines = [f"{count:,} pictures cannot be decoded", *named]
        if count > MOST_NAMED:
            lines.append(f"  and {count - MOST_NAMED:,} more")
        lines.append("put whole copies in their place, or remove them; ke-metric data check names all that is wrong")
        super().__init__("\n".join(lines), ExitCode.DATA)


class PixelStore:
    """The pictures of an image set, decoded and resized once.

    All pictures share one buffer: one object per picture would make every worker process copy memory pages as
    reference counts change. Up to MEMORY_LIMIT bytes the buffer is memory, above it a mapped temporary file, whose
    pages the operating system may drop and read again; the file has no name and goes with the last process that
    uses it. A forked worker inherits either; pickling passes on a file descriptor, never the pixels.

    Args:
        pixels: [total bytes, or more] the pictures one after another, RGB, row by row.
        heights: [N] in pixels.
        widths: [N] in pixels.
        file: Holds `pixels`, and perhaps more behind them, when they are mapped from a file.
        contents: N digests of what the pictures were decoded from, see `ImageSet.content`; empty where they are not
            known. Worker processes, which have no use for them, get none.
    """

    def __init__(
        self,
        pixels: PixelArray,
        heights: IntArray,
        *,
        widths: IntArray,
        file: BinaryIO | None = None,
        contents: tuple[str, ...] = (),
    ) -> None:
        assert len(contents) in (0, len(heights)), (len(contents), len(heights))
        self.contents = contents
        self._heights, self._widths, self._file = heights, widths, file
        self._ends = np.cumsum(heights * widths * 3)
        total = int(self._ends[-1]) if len(heights) else 0
        assert len(pixels) >= total, (len(pixels), total)
        self._pixels = pixels[:total]
        self._pixels.flags.writeable = False

    @classmethod
    def build(
        cls, images: ImageSet, store_size: int, *, shape: StoreShape = "keep", progress: Progress | None = None
    ) -> Self:
        """Decode every picture and resize it by `kept_pixels`; the same store whatever the number of threads.

        Raises:
            UnreadableError: Pictures cannot be decoded, however many; all others have been looked at (DATA).
            KeMetricError: The disk of temporary files is full (ENVIRONMENT).
        """
        decode = partial(decoded, images, store_size=store_size, shape=shape)
        try:
            return cls._build(io.BytesIO(), images, decode, progress)
        except OSError as error:
            raise KeMetricError(
                f"the decoded pictures do not fit into {MEMORY_LIMIT / 1e9:.1f} GB of memory, and not on the disk of "
                f"temporary files either ({tempfile.gettempdir()}: {error}); name a larger one in the environment "
                "variable TMPDIR, or choose a smaller data.store_size",
                ExitCode.ENVIRONMENT,
            ) from error

    @classmethod
    def built_into(
        cls,
        file: BinaryIO,
        images: ImageSet,
        store_size: int,
        *,
        shape: StoreShape = "keep",
        progress: Progress | None = None,
    ) -> Self:
        """Do as `build` does, but into an empty file, which the store holds from then on.

        Raises:
            UnreadableError: See `build`.
            OSError: The file cannot be written.
        """
        return cls._build(file, images, partial(decoded, images, store_size=store_size, shape=shape), progress)

    @classmethod
    def of_file(cls, file: BinaryIO, heights: IntArray, *, widths: IntArray, contents: tuple[str, ...] = ()) -> Self:
        """Return the store of a file that begins with its pixels; for the arguments see the class."""
        return cls(_mapped(file), heights, widths=widths, file=file, contents=contents)

    @classmethod
    def _build(
        cls,
        stream: BinaryIO,
        images: ImageSet,
        decode: Callable[[int], tuple[PixelArray, str] | KeMetricError],
        progress: Progress | None,
    ) -> Self:
        heights, widths = np.zeros(len(images), np.int64), np.zeros(len(images), np.int64)
        contents: list[str] = []
        unreadable: list[str] = []
        for index, found in enumerate(in_order(decode, range(len(images)))):
            if isinstance(found, KeMetricError):
                unreadable.append(str(found))
            elif not unreadable:
                picture, content = found
                heights[index], widths[index] = picture.shape[:2]
                contents.append(content)
                stream.write(picture.data)
            if isinstance(stream, io.BytesIO) and stream.tell() > MEMORY_LIMIT:
                stream = _temporary_file(stream.getbuffer())
            if progress is not None:
                progress(index + 1, len(images))
        if unreadable:
            raise UnreadableError(unreadable)
        if isinstance(stream, io.BytesIO):
            pixels = np.frombuffer(stream.getbuffer(), np.uint8)
            return cls(pixels, heights, widths=widths, contents=tuple(contents))
        return cls.of_file(stream, heights, widths=widths, contents=tuple(contents))

    @classmethod
    def undecoded(cls, count: int) -> Self:
        """Return a store of pictures of 0 x 0 pixels: it has their number, and nothing of them."""
        return cls(np.empty(0, np.uint8), np.zeros(count, np.int64), widths=np.zeros(count, np.int64))

    def __len__(self) -> int:
        return len(self._heights)

    @property
    def nbytes(self) -> int:
        """Bytes of pixels."""
        return self._pixels.nbytes

    @property
    def sides(self) -> tuple[IntArray, IntArray]:
        """Heights and widths in pixels, [N] each."""
        return self._heights, self._widths

    def picture(self, index: int) -> PixelArray:
        """Return picture number `index`, uint8 [H, W, 3]: a read-only view into the store."""
        height, width = int(self._heights[index]), int(self._widths[index])
        end = int(self._ends[index])
        return self._pixels[end - height * width * 3 : end].reshape(height, width, 3)

    def __reduce__(self) -> tuple[Callable[..., PixelStore], tuple[Any, ...]]:
        if self._file is None:
            self._file = _temporary_file(self._pixels.data)
        return _from_descriptor, (reduction.DupFd(self._file.fileno()), self._heights, self._widths)


def _from_descriptor(descriptor: Any, heights: IntArray, widths: IntArray) -> PixelStore:
    file = os.fdopen(descriptor.detach(), "rb")
    return PixelStore.of_file(file, heights, widths=widths)


def _temporary_file(content: memoryview) -> BinaryIO:
    file = tempfile.TemporaryFile()  # noqa: SIM115  (stays open as long as the store)
    file.write(content)
    return file


def _mapped(file: BinaryIO) -> PixelArray:
    file.flush()
    if os.fstat(file.fileno()).st_size == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def decoded(
    images: ImageSet, index: int, *, store_size: int, shape: StoreShape
) -> tuple[PixelArray, str] | KeMetricError:
    """Return what a store has of a picture and the digest of its file, or why there is nothing."""
    try:
        image = images.read(index)
        content = images.content(index, image)
        return kept_pixels(image, images.keys[index], store_size=store_size, shape=shape), content
    except KeMetricError as error:
        return error


BuildStore = Callable[..., PixelStore]
"""Takes what `PixelStore.build` takes."""


@dataclass(frozen=True)
class Pictures:
    """A benchmark and the decoded pictures of its parts.

    Attributes:
        benchmark: Keys, labels and class names.
        train: Pictures of `benchmark.train`, in its order.
        query: Pictures of `benchmark.query`.
        gallery: Pictures of `benchmark.gallery`; the same object as `query` where that is one set.
        validation: Pictures of `benchmark.validation`; None where there is no such part.
    """

    benchmark: Benchmark
    train: PixelStore
    query: PixelStore
    gallery: PixelStore
    validation: PixelStore | None = None

    @classmethod
    def decode(
        cls,
        benchmark: Benchmark,
        store_size: int,
        *,
        store_shape: StoreShape = "keep",
        progress: Progress | None = None,
        build: BuildStore = PixelStore.build,
    ) -> Pictures:
        """Decode all parts by `PixelStore.build`; progress is counted in each part.

        Args:
            benchmark: What to decode.
            store_size: See `PixelStore.build`.
            store_shape: See there.
            progress: See there.
            build: Called in its place: `KeptStores.store` gives the same pixels, and keeps them on the disk.

        Raises:
            UnreadableError: Pictures cannot be decoded; those of all parts are named.
            KeMetricError: The disk of temporary files is full (ENVIRONMENT).
        """
        unreadable: list[str] = []

        def store(images: ImageSet) -> PixelStore:
            try:
                return build(images, store_size, shape=store_shape, progress=progress)
            except UnreadableError as error:
                unreadable.extend(error.reasons)
                return PixelStore.undecoded(len(images))

        train = store(benchmark.train)
        validation = None if benchmark.validation is None else store(benchmark.validation)
        query = store(benchmark.query)
        gallery = query if benchmark.leave_one_out else store(benchmark.gallery)
        if unreadable:
            raise UnreadableError(unreadable)
        return cls(benchmark, train, query, gallery, validation)

    @classmethod
    def undecoded(cls, benchmark: Benchmark) -> Pictures:
        """Return a benchmark whose pictures nobody has looked at, to build what depends on its labels alone."""
        query = PixelStore.undecoded(len(benchmark.query))
        gallery = query if benchmark.leave_one_out else PixelStore.undecoded(len(benchmark.gallery))
        return cls(benchmark, PixelStore.undecoded(len(benchmark.train)), query, gallery)

    @property
    def contents(self) -> dict[str, tuple[str, ...]]:
        """Part to the digests of what its pictures were decoded from; none where they were not decoded from files."""
        stores = {"train": self.train, "query": self.query, "gallery": self.gallery, "validation": self.validation}
        return {name: store.contents for name, store in stores.items() if store is not None}

    @property
    def fingerprint(self) -> DataFingerprint:
        """Which pictures these are."""
        return fingerprint(self.benchmark, self.contents)


def fingerprint(
    benchmark: Benchmark, contents: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> DataFingerprint:
    """Return which pictures a benchmark has; `contents` are the digests of the parts that were decoded."""
    parts = {"train": benchmark.train, "query": benchmark.query, "gallery": benchmark.gallery}
    if benchmark.leave_one_out:
        del parts["gallery"]
    if benchmark.validation is not None:
        parts["validation"] = benchmark.validation
    found = {
        name: PartFingerprint(images.keys, tuple(images.labels.tolist()), images.class_names, contents.get(name, ()))
        for name, images in parts.items()
    }
    return DataFingerprint(found, benchmark.task)
