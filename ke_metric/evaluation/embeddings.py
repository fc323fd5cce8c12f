"""Embeddings as arrays: made by a network, checked and L2-normalised once, numbered.

Shapes: B batch, N items, D embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ke_metric.arrays import DoubleArray, FloatArray, IntArray, ItemIds, row_chunks
from ke_metric.errors import ExitCode, KeMetricError

ROWS_AT_A_TIME = 1024


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

    The network is called as it is: put it into eval mode before. Only the vectors stay in memory, 4 x N x D bytes.
    """
    # Not inference_mode: what a network keeps from one call to the next could then never be trained with.
    with torch.no_grad():
        vectors = [network(batch).float().cpu().numpy() for batch in batches]
    return np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)


def number_rows(parts: Iterable[FloatArray]) -> IntArray:
    """Return [N] the same number for equal rows, from 0 in the order in which they first occur.

    Args:
        parts: The rows, float32 [any, D] each.
    """
    numbers: dict[bytes, int] = {}
    found = [
        # Added to 0, -0 becomes 0: numbers that are equal then have equal bytes.
        numbers.setdefault(hashlib.blake2b(row, digest_size=16).digest(), len(numbers))
        for part in parts
        for row in np.ascontiguousarray(part + np.float32(0))
    ]
    return np.array(found, np.int64)


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
    unit = np.empty(vectors.shape, dtype=np.float32)
    for rows in row_chunks(len(vectors), ROWS_AT_A_TIME):
        wide = vectors[rows].astype(np.float64)
        # Dividing by the largest entry first keeps the squares of very large and very small vectors in range.
        peak = np.abs(wide).max(axis=1, keepdims=True)
        _refuse_unusable(peak[:, 0], first_item=rows.start)
        wide /= peak
        unit[rows] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


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
