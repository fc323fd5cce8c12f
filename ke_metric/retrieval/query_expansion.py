"""Alpha query expansion: a query moves towards what it finds, and searches again.

Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019, section 3.4;
with alpha = 0 the average query expansion of Chum et al., "Total Recall", ICCV 2007.

Shapes: Q queries, D embedding, K neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import FloatArray, row_chunks
from ke_metric.retrieval.self_match import rows_of, search_others
from ke_metric.retrieval.vector_store import Hits, VectorStore
from ke_metric.retrieval.where import Where

MOST_NEIGHBORS = 1024
FORM = f"must be N or N:ALPHA, N from 1 to {MOST_NEIGHBORS:,} neighbours and ALPHA a number of at least 0, as in 4:3"

_VALUES_AT_A_TIME = 2**24
"""Entries of neighbours' vectors held at once: 64 MB, and twice that while they are added up."""


@dataclass(frozen=True)
class Expansion:
    """How queries are expanded.

    Attributes:
        neighbors: Neighbours that a query is moved towards, 1 to 1024.
        alpha: Exponent of their similarities, at least 0: the higher, the more the nearest ones count. 0: all alike.

    Raises:
        KeMetricError: USAGE for a value out of range.
    """

    neighbors: int
    alpha: float = 3.0

    def __post_init__(self) -> None:
        if not 1 <= self.neighbors <= MOST_NEIGHBORS or not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise KeMetricError(f"query expansion = {self.neighbors}:{self.alpha:g}: {FORM}", ExitCode.USAGE)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `N` or `N:ALPHA`.

        Raises:
            KeMetricError: USAGE: it is neither, or a value is out of range.
        """
        neighbors, *alpha = text.split(":")
        try:
            if len(alpha) > 1:
                raise ValueError(f"{len(alpha)} exponents")
            count, exponents = int(neighbors), [float(part) for part in alpha]
        except ValueError as error:
            raise KeMetricError(f"query expansion = {text!r}: {FORM}", ExitCode.USAGE) from error
        return cls(count, *exponents)


def expand_queries(
    store: VectorStore,
    queries: FloatArray,
    expansion: Expansion,
    *,
    exclude: Sequence[str | Collection[str]] | None = None,
    where: Where | None = None,
) -> FloatArray:
    r"""Return each query moved towards its nearest neighbours in a store.

    Formula: $q' \propto q + \sum_{i=1}^{n} \max(s_i, 0)^\alpha v_i$, of length 1, with $v_i$ the i-th neighbour and
    $s_i$ its similarity. A query whose sum is zero stays as it is.

    Args:
        store: Where the neighbours are looked for; one search.
        queries: [Q, D] float32, L2-normalised.
        expansion: How many neighbours, and how they are weighted.
        exclude: Q ids, or collections of ids, of what is no neighbour of a query: its own picture.
        where: Only items for which this holds are neighbours.

    Returns:
        [Q, D] float32, L2-normalised.
    """
    hits = search_others(store, queries, expansion.neighbors, exclude=exclude, where=where)
    expanded = np.empty_like(queries)
    rows = max(1, _VALUES_AT_A_TIME // (expansion.neighbors * max(1, queries.shape[1])))
    for part in row_chunks(len(queries), rows):
        expanded[part] = _moved(queries[part], rows_of(hits, part), expansion.alpha)
    return expanded


def _moved(queries: FloatArray, hits: Hits, alpha: float) -> FloatArray:
    # 0 to the power of 0 is 1: without an exponent every neighbour counts alike. Padding has a vector of zeros.
    weights = hits.similarities.clip(min=0).astype(np.float64) ** alpha
    # A product of matrices for each query, [1, K] x [K, D].
    total = queries + (weights[:, None, :] @ hits.vectors().astype(np.float64))[:, 0]
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    moved: FloatArray = np.where(lengths > 1e-6, total / np.maximum(lengths, 1e-6), queries).astype(np.float32)
    return moved
