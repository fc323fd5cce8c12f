"""The store that FAISS searches: a gallery, and beside it an index of any kind that FAISS has.

The gallery is the truth. `index.faiss` is derived from it and can be deleted. It covers the rows that there were when
it was last brought up to date; rows after those are searched exactly. So nothing acknowledged depends on it.

Shapes: N rows, B batch, Q queries, K neighbours, D embedding.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ke_metric.arrays import FloatArray, IntArray
from ke_metric.stores.contract import Hits, Item, Where, check_queries, most_found
from ke_metric.stores.faiss_index import (
    Copies,
    Derived,
    IndexSearch,
    Record,
    Unfolding,
    build_index,
    extend_index,
    find_copies,
    linked_rows,
    load_derived,
    read_records,
    record_no_copies,
    save_derived,
)
from ke_metric.stores.faiss_kinds import (
    AUTO,
    Choice,
    apply_settings,
    check_factory,
    check_settings,
    choose_kind,
    is_exact,
    is_graph,
    is_whole,
    make_index,
    training_counts,
)
from ke_metric.stores.gallery import VECTORS, Gallery
from ke_metric.stores.gallery_files import disk_error
from ke_metric.stores.memmap import SPARE, Found, best, search_rows, settle, similarities_of

# An addition first brings the index up to date where more rows than this wait, and more than this share.
WAITING_ROWS = 50_000
WAITING_SHARE = 0.25
# The index is built anew where more of what it holds was removed.
REMOVED_SHARE = 0.2
# Or, if it was trained, where there are so many times the items of then.
GROWN = 4
DEFAULT_SEARCH: Mapping[str, int] = {}
NO_ROWS: IntArray = np.empty(0, np.int64)


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
        search: Searches it, with these `settings`.
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
    def covered_holes(self) -> int:
        """How many of the covered rows are holes."""
        return int(np.searchsorted(self.holes, self.covered))

    @property
    def live(self) -> int:
        """How many of the covered rows are items."""
        return self.covered - self.covered_holes


def look(
    gallery: Gallery, settings: Mapping[str, int], before: State | None = None, *, derived: Derived | None = None
) -> State:
    """Return the state of now, with an index that was just built, that of `before`, or the one in the file.

    That of an earlier state is taken as long as the gallery tells of the same file.
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


class FaissStore(Gallery):
    """A `VectorStore`: items searched by FAISS; see `Gallery` for its files.

    The similarities of hits are true cosines with every kind of index: kinds that hold short codes only propose
    candidates, which are compared again by their whole vectors. A search with `where` is exact with every kind: it
    compares the queries with all vectors of the items that it may find.

    An index that is damaged, or whose file is another one, is never opened: everything is searched exactly, which
    takes longer, `describe` says so, and the next `flush` builds it anew. Several threads may search; while one of
    them adds or flushes, no other may.

    Args:
        folder: Where the files lie; made when writing and absent.
        dimension: Length D of the vectors.
        writing: Be the one process that may change the store.
        factory: FAISS's name of the kind of index, such as `Flat`, `HNSW32`, `IVF1024,Flat` or `IVF4096,PQ64x4fs`; or
            `auto`: by the number of items, see `choose_kind`.
        search: How thoroughly is searched: `nprobe`, how many lists of an IVF index are looked into (when left out,
            the root of their number), and `efSearch`, how many places a search of a graph keeps in mind (64).

    Raises:
        KeMetricError: As `Gallery`; USAGE: FAISS has no such index, or it reads no such setting.
    """

    def __init__(
        self,
        folder: Path,
        dimension: int,
        *,
        writing: bool,
        factory: str = AUTO,
        search: Mapping[str, int] = DEFAULT_SEARCH,
    ) -> None:
        self._factory, self._settings = factory, check_settings(search)
        check_factory(factory, dimension, self._settings)
        super().__init__(folder, dimension, writing=writing)
        self._mutex = threading.RLock()
        self._state: State | None = None

    def add(self, items: Sequence[Item], vectors: FloatArray, *, replace: bool = False) -> None:
        """Add items, all of them or none; see `VectorStore.add`.

        They are searched exactly until the index is brought up to date: by `flush`, or by an addition before which
        many wait. That happens before anything is added, so that an error in it means that nothing was.
        """
        if self._many_wait():
            self._extend()
        super().add(items, vectors, replace=replace)

    def search(self, queries: FloatArray, k: int, *, where: Where | None = None) -> Hits:
        """Find the items with the largest inner product with each query; see `VectorStore.search`."""
        check_queries(queries, k, self.dimension)
        if where is not None:
            found = search_rows(self, queries, most_found(k, len(self)), rows=self.rows_matching(where))
        else:
            state = self._now()
            found = self._search(queries, most_found(k, state.items), state)
        return Hits(*found, self.items, self.vectors)

    def _search(self, queries: FloatArray, k: int, state: State) -> Found:
        if state.search is None or not len(queries):
            return search_rows(self, queries, k)
        if state.search.whole is not None:
            (similarities, rows), lacking = state.search.search(queries, k + SPARE)
            exactly = similarities_of(state.search.whole.__getitem__, queries, rows)
            found, unsure = settle(exactly, similarities, rows, self.dimension, k)
            lacking = np.union1d(lacking, unsure)
        else:
            found, lacking = state.search.search(queries, k)
        if state.rows > state.covered:
            after = search_rows(self, queries, k, first=state.covered)
            found = best(np.hstack([found[0], after[0]]), np.hstack([found[1], after[1]]), k)
        if len(lacking):
            doubly = state.search.whole is not None
            found[0][lacking], found[1][lacking] = search_rows(self, queries[lacking], k, doubly=doubly)
        return found

    def flush(self) -> None:
        """Bring the index up to date, or build it anew.

        It is built anew where there is none that can be used, another kind is right by now, a fifth of what it holds
        was removed, or there are four times the items that it was trained with. A kind that needs more items for its
        training than there are is not built yet.

        Raises:
            KeMetricError: USAGE: FAISS cannot build such an index of these vectors; ENVIRONMENT: the disk is full.
                The index is as it was, and no item is lost.
        """
        assert self.writing, "opened for reading"
        with self._mutex:
            state = self._now()
            factory = self._choice(state).factory
            if self._is_outdated(state, factory) and state.items >= max(1, self._needed(factory)):
                index, copies = build_index(self, factory, rows=state.rows, holes=state.holes)
                self._save(index, factory, state.rows, trained=state.items, copies=copies)
            else:
                self._extend()

    def describe(self) -> Mapping[str, Any]:
        """Return kind, exactness, sizes and the reason for the kind of index as plain JSON values."""
        state = self._now()
        choice = self._choice(state)
        derived = state.derived
        return {
            "kind": "faiss",
            "exact": derived is None or is_exact(derived.index),
            "factory": choice.factory if derived is None else derived.record.factory,
            "reason": self._reason(state, choice),
            "search": dict(state.settings),
            "items": state.items,
            "removed": len(state.holes),
            "indexed": state.live,
            **({} if derived is None or not len(derived.copies) else {"copies": len(derived.copies)}),
            "bytes": self.nbytes + (0 if derived is None else derived.record.nbytes),
        }

    def close(self) -> None:
        """Release files and lock; once is enough."""
        self._state = None
        super().close()

    def _now(self) -> State:
        """Return the state of now; a reader sees what a writer beside it did."""
        with self._mutex:
            if self._state is None or self._state.version != self.version:
                self._state = look(self, self._settings, self._state)
            return self._state

    def _choice(self, state: State) -> Choice:
        if self._factory != AUTO:
            return Choice(self._factory, f"{self._factory}: asked for")
        present = None if state.derived is None else state.derived.record.factory
        return choose_kind(state.items, self.dimension, present)

    def _needed(self, factory: str) -> int:
        return training_counts(make_index(factory, self.dimension))[0]

    def _reason(self, state: State, choice: Choice) -> str:
        if state.derived is not None:
            present = state.derived.record.factory
            return choice.reason if present == choice.factory else f"{present}, until flushed. {choice.reason}"
        needed = self._needed(choice.factory)
        if state.items < needed:
            return (
                f"{choice.factory}: needs {needed:,} items for its training; the {state.items:,} that there are are "
                "searched exactly"
            )
        return f"{state.missing}: everything is searched exactly until flushed. {choice.reason}"

    def _is_outdated(self, state: State, factory: str) -> bool:
        """Return whether the index is to be built anew, not extended."""
        if (derived := state.derived) is None or derived.record.factory != factory:
            return True
        if derived.record.copies is None and is_graph(derived.index):
            if len(find_copies(self, NO_ROWS, linked_rows(derived.index))):
                return True
            record_no_copies(self)
        held = int(derived.index.ntotal) + len(derived.copies)
        many_removed = held - state.live > REMOVED_SHARE * held
        return many_removed or (self._needed(factory) > 0 and state.items > GROWN * derived.record.trained)

    def _many_wait(self) -> bool:
        covered = [record.rows for record in read_records(self)[:1]]
        return bool(covered) and self.rows - covered[0] > max(WAITING_ROWS, WAITING_SHARE * covered[0])

    def _extend(self) -> None:
        """Add the rows that wait to the index, if there is one."""
        with self._mutex:
            state = self._now()
            if state.derived is None or state.rows == state.covered:
                return
            derived, record = state.derived, state.derived.record
            # Until it is saved, the index in memory is not what a record tells of: after an error it is read again.
            self._state = None
            new = extend_index(self, derived.index, record.factory, first=state.covered, rows=state.rows)
            copies = derived.copies + new
            self._save(derived.index, record.factory, state.rows, trained=record.trained, copies=copies)

    def _save(self, index: Any, factory: str, rows: int, *, trained: int, copies: Copies) -> None:
        derived = save_derived(self, index, factory, rows=rows, trained=trained, copies=copies)
        self._state = look(self, self._settings, derived=derived)
