"""Embeddings as arrays: made by a network, checked and L2-normalised once, numbered.

Shapes: B batch, N items, D embedding.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ke_metric.arrays import DoubleArray, FloatArray, IntArray, ItemIds, row_chunks
from ke_metric.errors import ExitCode, KeMetricError

ROWS_AT_A_TIME = 1024
IN_MEMORY = 2**27
"""Most bytes of an array of embeddings that is kept in memory."""


@dataclass(frozen=True, init=False, eq=False)
class Embeddings:
    """N embeddings on the unit sphere, their class labels and the ids of the pictures they come from.

    Takes NumPy arrays, torch tensors on any device, or lists; refuses what cannot be scored.

    Attributes:
        vectors: [N, D] float32, every row of length 1 (normalised here, in float64).
        labels: [N] int64 class numbers, any integers.
        ids: N item ids, all str or all int and all different; two items with one id, one in the queries and one in
            the gallery, are the same picture. None: nothing is known about shared pictures.

    Raises:
        KeMetricError: DATA, naming the item, for wrong shapes or types, no items, a vector that is zero or not
            finite, or repeated ids.
    """

    vectors: FloatArray
    labels: IntArray
    ids: ItemIds | None

    def __init__(
        self,
        vectors: npt.ArrayLike | Tensor,
        labels: npt.ArrayLike | Tensor,
        ids: Sequence[str] | Sequence[int] | npt.NDArray[Any] | Tensor | None = None,
    ) -> None:
        object.__setattr__(self, "vectors", _normalised(as_array(vectors)))
        object.__setattr__(self, "labels", _checked_labels(as_array(labels), len(self.vectors)))
        plain = ids.tolist() if isinstance(ids, np.ndarray | Tensor) else ids
        object.__setattr__(self, "ids", None if plain is None else _checked_ids(tuple(plain), len(self.vectors)))

    def __len__(self) -> int:
        return len(self.vectors)


def embed(network: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> FloatArray:
    """Return the embeddings [N, D] of the images of all batches [B, 3, H, W], in order; no gradient is kept.

    The network is called as it is: put it into eval mode before. Only the vectors stay, see `stacked`.
    """
    # Not inference_mode: what a network keeps from one call to the next could then never be trained with.
    with torch.no_grad():
        return stacked(network(batch).float().cpu().numpy() for batch in batches)


def stacked(parts: Iterable[FloatArray]) -> FloatArray:
    """Return rows float32 [any, D] one below the other, [N, D]: in memory, or, above IN_MEMORY bytes, in a file.

    Of the file, which is temporary, has no name and is gone with the array, the system keeps in memory what there is
    room for.

    Raises:
        KeMetricError: ENVIRONMENT: the disk of temporary files is full.
    """
    kept: list[FloatArray] = []
    size, columns, file = 0, 0, None
    with ExitStack() as closing:
        # What goes wrong where the parts come from, a picture that is gone for one, is no matter of this disk.
        for part in parts:
            kept.append(part)
            size, columns = size + part.nbytes, part.shape[1]
            if size > IN_MEMORY:
                file = file or closing.enter_context(_temporary_file())
                _write(file, kept)
                kept = []
        if file is None:
            return np.concatenate(kept) if kept else np.empty((0, 0), np.float32)
        with _told_of_the_disk():
            return np.asarray(np.memmap(file, np.float32, "r+", shape=(size // (4 * columns), columns)))


def _temporary_file() -> IO[bytes]:
    # Without a buffer, closing it has nothing to write that could fail.
    with _told_of_the_disk():
        return tempfile.TemporaryFile(buffering=0)


def _write(file: IO[bytes], parts: Iterable[FloatArray]) -> None:
    with _told_of_the_disk():
        for part in parts:
            left = part.reshape(-1).view(np.uint8).data
            # A file without a buffer may take less than it is given.
            while left:
                left = left[file.write(left) :]


@contextmanager
def _told_of_the_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KeMetricError(
            f"embeddings take more than {IN_MEMORY / 1e6:,.0f} MB, which are kept in memory, and do not fit on the "
            f"disk of temporary files ({tempfile.gettempdir()}: {error}); name a larger one in the environment "
            "variable TMPDIR",
            ExitCode.ENVIRONMENT,
        ) from error


def number_rows(parts: Iterable[FloatArray]) -> IntArray:
    """Return [N] the same number for equal rows, from 0 in the order in which they first occur.

    Args:
        parts: The rows, float32 [any, D] each.
    """
    hashed = bytearray()
    for part in parts:
        # Added to 0, -0 becomes 0: numbers that are equal then have equal bytes.
        for row in np.ascontiguousarray(part + np.float32(0)):
            hashed += hashlib.blake2b(row, digest_size=16).digest()
    digests = np.frombuffer(hashed, np.int64).reshape(-1, 2)
    # Stable: of equal rows the first comes first.
    order = np.lexsort(digests.T)
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = np.any(digests[order[1:]] != digests[order[:-1]], axis=1)
    number = np.empty(int(is_first.sum()), np.int64)
    number[np.argsort(order[is_first])] = np.arange(len(number))
    numbers = np.empty(len(order), np.int64)
    numbers[order] = number[is_first.cumsum() - 1]
    return numbers


def as_array(values: npt.ArrayLike | Tensor) -> npt.NDArray[Any]:
    """Return values as a NumPy array; tensors of any device, bfloat16 as float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)
    return np.asarray(values)


def _normalised(vectors: npt.NDArray[Any]) -> FloatArray:
    if vectors.ndim != 2 or 0 in vectors.shape or vectors.dtype.kind not in "fiu":
        raise KeMetricError(
            f"embeddings have shape {list(vectors.shape)} and type {vectors.dtype}, "
            "must be [N, D] real numbers with N and D at least 1",
            ExitCode.DATA,
        )
    return stacked(_unit_rows(vectors, rows) for rows in row_chunks(len(vectors), ROWS_AT_A_TIME))


def _unit_rows(vectors: npt.NDArray[Any], rows: slice) -> FloatArray:
    wide = vectors[rows].astype(np.float64)
    # Dividing by the largest entry first keeps the squares of very large and very small vectors in range.
    peak = np.abs(wide).max(axis=1, keepdims=True)
    _refuse_unusable(peak[:, 0], first_item=rows.start)
    wide /= peak
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide.astype(np.float32)


def _refuse_unusable(peak: DoubleArray, *, first_item: int) -> None:
    for unusable, problem in ((~np.isfinite(peak), "holds a value that is not finite"), (peak == 0, "is all zero")):
        if unusable.any():
            item = first_item + int(np.flatnonzero(unusable)[0])
            raise KeMetricError(
                f"the embedding of item {item} {problem}; it has no direction and cannot be compared", ExitCode.DATA
            )


def _checked_labels(labels: npt.NDArray[Any], count: int) -> IntArray:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise KeMetricError(
            f"labels have shape {list(labels.shape)} and type {labels.dtype}, "
            f"must be [{count}] integers, one for each embedding",
            ExitCode.DATA,
        )
    return labels.astype(np.int64)


def _checked_ids(ids: tuple[Any, ...], count: int) -> ItemIds:
    if len(ids) != count:
        raise KeMetricError(f"{len(ids)} item ids for {count} embeddings, must be one for each", ExitCode.DATA)
    kinds = sorted({type(item).__name__ for item in ids})
    if kinds not in (["int"], ["str"]):
        raise KeMetricError(f"item ids have type {' and '.join(kinds)}, must be all str or all int", ExitCode.DATA)
    first_seen: dict[Any, int] = {}
    for position, item in enumerate(ids):
        if first_seen.setdefault(item, position) != position:
            raise KeMetricError(
                f"item id {item!r} occurs at positions {first_seen[item]} and {position}, must be unique",
                ExitCode.DATA,
            )
    return ids
