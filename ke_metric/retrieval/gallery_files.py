"""The vectors of a gallery, `vectors.f32`: a file that is only ever appended to.

Shapes: N rows, M some of them, D embedding.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import FloatArray, IntArray

REPAIR = "restore it from a copy, or build the index again"
GATHERED_BYTES = 1 << 16
"""Rows asked for that lie within so many bytes of each other are read at once."""


class VectorFile:
    """Rows of float32 in the machine's byte order, and nothing else; what lies after the last row is worthless.

    Args:
        path: The file.
        dimension: Length D of a row.
        writing: Make the file where there is none, and let rows be written.

    Raises:
        KeMetricError: LINEAGE: it is missing; ENVIRONMENT: it cannot be opened.
    """

    def __init__(self, path: Path, dimension: int, *, writing: bool) -> None:
        self.path = path
        self.dimension = dimension
        self.row_bytes = dimension * np.dtype(np.float32).itemsize
        try:
            self._file = os.open(path, (os.O_RDWR | os.O_CREAT) if writing else os.O_RDONLY, 0o666)
        except FileNotFoundError:
            raise KeMetricError(
                f"{path}: is missing; this is no gallery, or no whole one", ExitCode.LINEAGE
            ) from None
        except OSError as error:
            raise disk_error(path, error) from error

    @property
    def nbytes(self) -> int:
        """Length of the file in bytes."""
        return os.fstat(self._file).st_size

    def require(self, rows: int) -> None:
        """Refuse a file that is shorter than it must be.

        Raises:
            KeMetricError: DATA.
        """
        if self.nbytes < rows * self.row_bytes:
            raise KeMetricError(
                f"{self.path}: has {self.nbytes:,} bytes, {rows:,} vectors of {self.dimension} float32 need "
                f"{rows * self.row_bytes:,}: the file is damaged; {REPAIR}",
                ExitCode.DATA,
            )

    def write(self, row: int, vectors: FloatArray) -> None:
        """Write rows from `row` on; they are on the disk when this returns.

        Args:
            row: The first.
            vectors: [M, D].

        Raises:
            KeMetricError: ENVIRONMENT: the disk is full or cannot be written.
        """
        rest = np.ascontiguousarray(vectors, np.float32).reshape(-1).view(np.uint8).data
        place = row * self.row_bytes
        try:
            while rest:
                written = os.pwrite(self._file, rest, place)
                place, rest = place + written, rest[written:]
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):  # a full disk gets its room back
                os.ftruncate(self._file, row * self.row_bytes)
            raise disk_error(self.path, error) from error

    def gather(self, rows: IntArray) -> FloatArray:
        """Return rows in the order asked for, float32 [M, D].

        Args:
            rows: [M] numbers of rows that there are.
        """
        found = np.empty((len(rows), self.dimension), np.float32)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        near = ascending // max(1, GATHERED_BYTES // self.row_bytes)
        for some in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(near)) + 1) if len(rows) else ():
            first, last = int(ascending[some[0]]), int(ascending[some[-1]]) + 1
            span = np.empty((last - first, self.dimension), np.float32)
            self._read(first, span)
            found[order[some]] = span[ascending[some] - first]
        return found

    def blocks(self, first: int, last: int, rows_at_a_time: int) -> Iterator[tuple[int, FloatArray]]:
        """Yield the rows from `first` to before `last`: the number of a block's first row, and the block [M, D].

        Read, not mapped into memory: pages of a mapped file count as this process's memory.

        Args:
            first: Number of the first row.
            last: Number after that of the last row.
            rows_at_a_time: The most rows in a block, at least 1. The next block overwrites this one.
        """
        assert rows_at_a_time >= 1, rows_at_a_time
        block = np.empty((min(rows_at_a_time, max(last - first, 0)), self.dimension), np.float32)
        for start in range(first, last, rows_at_a_time):
            part = block[: min(rows_at_a_time, last - start)]
            self._read(start, part)
            yield start, part

    def _read(self, row: int, into: FloatArray) -> None:
        rest = into.reshape(-1).view(np.uint8).data
        place = row * self.row_bytes
        while rest:
            try:
                count = os.preadv(self._file, [rest], place)
            except OSError as error:
                raise disk_error(self.path, error) from error
            if count == 0:
                self.require(row + len(into))
                raise KeMetricError(f"{self.path}: changed while it was read", ExitCode.DATA)
            place, rest = place + count, rest[count:]

    def close(self) -> None:
        """Close the file; once is enough."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def missing(path: Path) -> KeMetricError:
    """Say that a file of a gallery is not there, or nothing is in it."""
    return KeMetricError(f"{path}: is missing or empty: there is no gallery here, or no whole one", ExitCode.LINEAGE)


def disk_error(path: Path, error: OSError) -> KeMetricError:
    """Say which file could not be read or written, and why."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else error.strerror or str(error)
    return KeMetricError(
        f"{path}: cannot be read or written: {what}; what was acknowledged before still is", ExitCode.ENVIRONMENT
    )


def reach_disk(path: Path) -> None:
    """Make sure that a folder's list of files, or a file, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
