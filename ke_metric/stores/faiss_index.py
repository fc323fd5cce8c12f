"""index.faiss: a FAISS index derived from a gallery, and the record in the gallery by which it is known.

FAISS's readers are C++ that trusts what it reads. So a file is opened only if its SHA-256 is in the gallery's record;
that guards against damage, mixed up and half written files, not against somebody who can write the gallery itself.

Shapes: N rows.

A search of a FAISS index some of whose items were removed, or that holds its vectors only as short codes.

Shapes: Q queries, D numbers in a vector, K neighbours, N rows.

A gallery and the FAISS index derived from it, as they are at one moment.

Shapes: N rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import IO, Any

import numpy as np

from ke_metric.arrays import BoolArray, FloatArray, IntArray
from ke_metric.evaluation.backend import load_faiss
from ke_metric.stores.faiss_build import Copies, Unfolding
from ke_metric.stores.faiss_kinds import apply_settings, is_exact, is_whole
from ke_metric.stores.gallery import VECTORS, Gallery
from ke_metric.stores.gallery_files import disk_error, reach_disk

NAME = "index.faiss"
TEMPORARY = f".writing-{NAME}"
FACT = "index.faiss"


@dataclass(frozen=True)
class Record:
    """What the gallery says of index.faiss.

    Attributes:
        factory: FAISS's name of its kind.
        rows: It covers rows 0 to before this one, but for those that were holes when it was built.
        trained: Number of items when it was built anew, and trained if its kind needs that.
        nbytes: Its length.
        sha256: Of its bytes.
        copies: Of a graph: how many rows it leaves out, because an equal vector is linked; they follow the index in
            its file. None: it was made before equal vectors were linked once, and may hold some.
    """

    factory: str
    rows: int
    trained: int
    nbytes: int
    sha256: str
    copies: int | None = None


@dataclass(frozen=True, eq=False)
class Derived:
    """An index that was read or built.

    Attributes:
        index: FAISS's object; its ids are rows.
        record: Of its file.
        copies: The rows that it leaves out.
    """

    index: Any
    record: Record
    copies: Copies


def read_records(gallery: Gallery) -> tuple[Record, ...]:
    """Return the records of index.faiss, newest first: several while it is replaced, none where there is none."""
    text = gallery.fact(FACT)
    return () if text is None else tuple(Record(**fields) for fields in json.loads(text))


def load_derived(gallery: Gallery) -> tuple[Derived | None, str]:
    """Read index.faiss.

    Returns:
        The index, and an empty text; or None, and why.
    """
    records = read_records(gallery)
    while True:
        derived, reason = _load(gallery, records)
        newer = read_records(gallery)
        # A writer may have replaced the file after its record was read.
        if derived is not None or newer == records:
            return derived, reason
        records = newer


def _load(gallery: Gallery, records: tuple[Record, ...]) -> tuple[Derived | None, str]:
    path = gallery.folder / NAME
    if not records:
        return None, f"there is no {NAME} yet"
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            for record in records:
                if record.sha256 == digest:
                    file.seek(0)
                    # The very file that was checked, whatever has its name by now.
                    index = load_faiss().read_index(load_faiss().PyCallbackIOReader(file.read))
                    return Derived(index, record, Copies.from_bytes(file.read())), ""
    except FileNotFoundError:
        return None, f"{path} is missing"
    except OSError as error:
        raise disk_error(path, error) from error
    except RuntimeError as error:  # whole, but written by a FAISS that knows more kinds or another format
        return None, f"{path} cannot be read by this version of FAISS: {' '.join(str(error).split())[:200]}"
    return None, f"{path} is damaged, or of another gallery: it is not the file that the gallery's record tells of"


def save_derived(gallery: Gallery, index: Any, factory: str, *, rows: int, trained: int, copies: Copies) -> Derived:
    """Replace index.faiss as a whole; killed at any moment, the old or the new one is there and has its record.

    Raises:
        KeMetricError: ENVIRONMENT: the disk is full or cannot be written; the file is as it was.
    """
    temporary = gallery.folder / TEMPORARY
    try:
        with temporary.open("wb") as file:
            sink = _Sink(file)
            load_faiss().write_index(index, load_faiss().PyCallbackIOWriter(sink.write))
            sink.write(copies.to_bytes())
            file.flush()
        reach_disk(temporary)
        record = Record(factory, rows, trained, sink.nbytes, sink.hash.hexdigest(), len(copies))
        # All of them: which one the file has that is there now, after a kill, its name does not say.
        _write_records(gallery, (record, *read_records(gallery)))
        temporary.replace(gallery.folder / NAME)
        reach_disk(gallery.folder)
    except OSError as error:
        raise disk_error(gallery.folder / NAME, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    _write_records(gallery, (record,))
    return Derived(index, record, copies)


def record_no_copies(gallery: Gallery) -> None:
    """Have the record say that index.faiss, made before equal vectors were linked once, holds none."""
    _write_records(gallery, tuple(replace(record, copies=0) for record in read_records(gallery)))


def _write_records(gallery: Gallery, records: tuple[Record, ...]) -> None:
    gallery.set_fact(FACT, json.dumps([asdict(record) for record in records]))


class _Sink:
    """Writes to a file, and remembers length and hash of what it wrote."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.nbytes = 0

    def write(self, part: bytes) -> None:
        self._file.write(part)
        self.hash.update(part)
        self.nbytes += len(part)


Found = tuple[FloatArray, IntArray]
"""Similarities float32 [Q, K], most similar first, and rows int64 [Q, K]; -inf and -1 where there is none."""

CANDIDATES = 4
LEAST_CANDIDATES = 40
"""Of short codes so many times K are found, at least so many, and compared again by their whole vectors."""
SLACK = 8
DEEPER = 4
LEAST_MOST_DEPTH = 1024


class IndexSearch:
    """Searches an index for what is still there.

    Args:
        index: FAISS's object; its ids are rows.
        removed: [N] which of the rows that it covers are gone, or not in it.
        vectors: [N, D] float32, where the index holds short codes of them; None where it holds them whole.
        live: How many items it covers that are not gone.
        unfolding: Finds the items that a row stands for; None where each is one.
        whole: [N, D] float32, where the index compares every vector that it holds, whole; else None.

    Attributes:
        whole: The same.
    """

    def __init__(
        self,
        index: Any,
        *,
        removed: BoolArray,
        vectors: FloatArray | None,
        live: int,
        unfolding: Unfolding | None = None,
        whole: FloatArray | None = None,
    ) -> None:
        self.whole = whole
        self._index, self._vectors, self._live, self._unfolding = index, vectors, live, unfolding
        self._linked = len(removed) - int(removed.sum())
        self._removed = removed if self._linked < index.ntotal else None
        # Asked for once: looking for two of them takes longer than a search.
        self._faiss = load_faiss()

    def search(self, queries: FloatArray, k: int) -> tuple[Found, IntArray]:
        """Find the k most similar items of each query.

        Where removed items crowd out others, those queries are searched again for four times as many, and so on.

        Args:
            queries: [Q, D] float32.
            k: Neighbours per query.

        Returns:
            What was found, and the numbers of the queries for which that is less than k although the index holds
            more: it looked into too few lists, or nearly everything near them was removed.
        """
        similarities, rows = self._once(queries, k, depth := self._first_depth(k))
        wanted = min(k, self._live)
        lacking = np.flatnonzero(np.count_nonzero(rows >= 0, axis=1) < wanted)
        while len(lacking) and self._removed is not None and depth < self._most_depth:
            depth = min(DEEPER * depth, self._most_depth)
            similarities[lacking], rows[lacking] = self._once(queries[lacking], k, depth)
            lacking = lacking[np.count_nonzero(rows[lacking] >= 0, axis=1) < wanted]
        return (similarities, rows), lacking

    def _first_depth(self, k: int) -> int:
        depth = k if self._vectors is None else max(CANDIDATES * k, LEAST_CANDIDATES)
        if self._removed is None:
            return depth
        enough = depth * int(self._index.ntotal) // max(1, self._linked) + SLACK
        return max(depth, min(enough, self._most_depth))

    @property
    def _most_depth(self) -> int:
        """How deep FAISS is asked to look: beyond, an exact search of everything costs less."""
        count = int(self._index.ntotal)
        return min(count, max(LEAST_MOST_DEPTH, count // 16))

    def _once(self, queries: FloatArray, k: int, depth: int) -> Found:
        similarities, rows = self._index.search(queries, depth)
        if self._removed is not None:
            rows[self._removed[rows] & (rows >= 0)] = -1
        if self._vectors is not None:
            similarities, rows = self._compared(self._vectors, queries, rows, k)
        missing = rows < 0
        if missing.any():
            similarities[missing] = -np.inf
        if self._unfolding is not None:
            return self._unfolding.unfold(similarities, rows, k)
        in_order = self._removed is None or self._vectors is not None
        return (similarities, rows) if in_order else best(similarities, rows, k)

    def _compared(self, vectors: FloatArray, queries: FloatArray, candidates: IntArray, k: int) -> Found:
        """Return the k candidates of each query that are most similar by their whole vectors.

        FAISS reads the vectors where they lie: of a file that is mapped into memory, only the pages of candidates.

        Args:
            vectors: [N, D] float32.
            queries: [Q, D] float32.
            candidates: [Q, C] rows of vectors; -1 for none.
            k: How many; where there are fewer, rows are -1 and similarities anything.
        """
        if (candidates < 0).any():
            # FAISS stops at the first that is none.
            there_first = np.argsort(candidates < 0, axis=1, kind="stable")
            candidates = np.take_along_axis(candidates, there_first, 1)
        count, depth = candidates.shape
        similarities, rows = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
        queries, candidates = np.ascontiguousarray(queries), np.ascontiguousarray(candidates)
        pointers = [self._faiss.swig_ptr(array) for array in (queries, vectors, candidates, similarities, rows)]
        sizes = (queries.shape[1], count, len(vectors), depth, k)
        self._faiss.knn_inner_products_by_idx(*pointers[:3], *sizes, *pointers[3:], depth)
        return similarities, rows


def best(similarities: FloatArray, rows: IntArray, k: int) -> Found:
    """Return the k most similar of each query, most similar first.

    Args:
        similarities: [Q, C], in any order.
        rows: [Q, C], C at least k.
        k: How many.
    """
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(rows, order, 1)


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
