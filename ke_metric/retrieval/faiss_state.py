"""A gallery and the FAISS index derived from it, as they are at one moment.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ke_metric.evaluation.embeddings import FloatArray, IntArray
from ke_metric.retrieval.copies import Unfolding
from ke_metric.retrieval.faiss_file import Derived, Record, load_derived, read_records
from ke_metric.retrieval.faiss_kinds import apply_settings, is_exact, is_whole
from ke_metric.retrieval.faiss_search import IndexSearch
from ke_metric.retrieval.gallery import VECTORS, Gallery
from ke_metric.retrieval.gallery_files import disk_error


@dataclass(frozen=True, eq=False)
class State:
    """The gallery and the index at one moment.

    Attributes:
        version: The gallery's.
        rows: Rows of the gallery, holes among them.
        holes: The rows that are no items, ascending.
        records: What the gallery says of the index's file.
        derived: The index; None where there is none that can be used.
        missing: Why there is none; empty where there is one.
        search: Searches it.
        settings: How thoroughly.
    """

    version: int
    rows: int
    holes: IntArray
    records: tuple[Record, ...]
    derived: Derived | None
    missing: str
    search: IndexSearch | None = None
    settings: Mapping[str, int] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """Number of items."""
        return self.rows - len(self.holes)

    @property
    def covered(self) -> int:
        """Rows that the index covers; those after them are searched exactly."""
        return 0 if self.derived is None else self.derived.record.rows

    @property
    def live(self) -> int:
        """How many of the covered rows are items."""
        return self.covered - self.covered_holes

    @property
    def covered_holes(self) -> int:
        """How many of the covered rows are holes."""
        return int(np.searchsorted(self.holes, self.covered))


def look(
    gallery: Gallery, settings: Mapping[str, int], before: State | None = None, *, derived: Derived | None = None
) -> State:
    """Return the state of now.

    Args:
        gallery: The gallery.
        settings: How thoroughly is searched, from `check_settings`.
        before: An earlier state, whose index is taken as long as the gallery tells of the same file.
        derived: The index, where it was just built; None: it is read.
    """
    version = gallery.version
    records = read_records(gallery)
    missing = ""
    if derived is None and before is not None and before.records == records:
        derived, missing = before.derived, before.missing
    elif derived is None:
        derived, missing = load_derived(gallery)
    rows, holes = gallery.snapshot()
    state = State(version, rows, holes, records, derived, missing)
    if derived is None:
        return state
    used = apply_settings(derived.index, settings)
    return replace(state, search=_searcher(gallery, state, derived), settings=used)


def _searcher(gallery: Gallery, state: State, derived: Derived) -> IndexSearch:
    removed, unfolding = np.zeros(state.covered, np.bool_), None
    removed[state.holes[: state.covered_holes]] = True
    if len(derived.copies):
        unfolding = Unfolding(derived.copies, removed)
        removed = unfolding.size == 0
    exact = is_exact(derived.index)
    # Mapped, not read: of the vectors of a million, a search looks at a few thousand, all over the file.
    mapped = _mapped(gallery, state.covered) if exact or not is_whole(derived.index) else None
    return IndexSearch(
        derived.index,
        removed=removed,
        vectors=None if exact else mapped,
        live=state.live,
        unfolding=unfolding,
        whole=mapped if exact else None,
    )


def _mapped(gallery: Gallery, rows: int) -> FloatArray:
    """Return the vectors of the first rows, which never change, as they lie in the gallery's file."""
    path = gallery.folder / VECTORS
    try:
        return np.asarray(np.memmap(path, np.float32, "r", shape=(rows, gallery.dimension)))
    except OSError as error:
        raise disk_error(path, error) from error
