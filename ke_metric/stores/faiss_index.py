"""A FAISS index over the rows of a gallery: built, extended, kept in a file, searched for what is still there.

Vectors are streamed into it: beside the index, a block of them is in memory, and a sample for the kinds that are
trained. A graph of neighbours links each vector to the nearest ones. Linked one by one, equal vectors are each
other's nearest and leave no room for links to anything else: the graph falls apart, and what lies behind is not found
however thoroughly is searched. So one of them is linked, and stands for all.

FAISS's readers are C++ that trusts what it reads. So `index.faiss` is opened only if its SHA-256 is in the gallery's
record; that guards against damage, mixed up and half written files, not against somebody who can write the gallery.

Shapes: N rows, M copies, Q queries, C candidates, K neighbours, D numbers in a vector.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ke_metric.arrays import BoolArray, FloatArray, IntArray, row_chunks
from ke_metric.disk import reach_disk
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import load_faiss
from ke_metric.stores.faiss_kinds import is_graph, make_index, training_counts
from ke_metric.stores.gallery import Gallery
from ke_metric.stores.gallery_files import disk_error
from ke_metric.stores.memmap import Found, best

BLOCK_BYTES = 32 << 20
CELLS = 1 << 20
"""Items that candidates stand for, held at a time in about 60 bytes each."""
CANDIDATES = 4
LEAST_CANDIDATES = 40
"""Of short codes so many times K are found, at least so many, and compared again by their whole vectors."""
SLACK = 8
DEEPER = 4
LEAST_MOST_DEPTH = 1024


@dataclass(frozen=True, eq=False)
class Copies:
    """Rows [M], ascending, that are not in an index, because a row with an equal vector is: `linked` [M]."""

    rows: IntArray
    linked: IntArray

    @classmethod
    def none(cls) -> Copies:
        """Return no copies."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: Copies) -> Copies:
        rows = np.concatenate([self.rows, other.rows])
        order = np.argsort(rows)
        return Copies(rows[order], np.concatenate([self.linked, other.linked])[order])

    def to_bytes(self) -> bytes:
        """Return them as bytes for `from_bytes`."""
        return np.stack([self.rows, self.linked]).astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, text: bytes) -> Copies:
        """Return what `to_bytes` made bytes of."""
        rows, linked = np.frombuffer(text, "<i8").astype(np.int64).reshape(2, -1)
        return cls(rows, linked)


def find_copies(gallery: Gallery, linked: IntArray, new: IntArray) -> Copies:
    """Find the new rows whose vector an earlier row has, be it new or linked already; all ascending."""
    rows, count = np.concatenate([linked, new]), _rows_at_a_time(gallery)
    hashes = np.empty(len(rows), np.uint64)
    for some in row_chunks(len(rows), count):
        hashes[some] = _hashes(gallery.vectors(rows[some]))
    _, position, group = np.unique(hashes, return_index=True, return_inverse=True)
    first = rows[position][group]
    rows, first = rows[rows != first], first[rows != first]
    # Vectors with one hash are most likely, not surely, equal. One of a few that are not is linked by itself.
    equal = np.empty(len(rows), np.bool_)
    for some in row_chunks(len(rows), count):
        equal[some] = (gallery.vectors(rows[some]) == gallery.vectors(first[some])).all(1)
    return Copies(rows[equal], first[equal])


def _hashes(vectors: FloatArray) -> npt.NDArray[np.uint64]:
    """Return [N] a number for each vector, the same for equal ones."""
    # Imported where it is needed: whoever only searches draws nothing.
    from ke_metric.randomness import numpy_generator

    weights = numpy_generator(0, 0, "hashes of vectors").integers(1 << 64, size=vectors.shape[1], dtype=np.uint64)
    # Added to 0, -0 becomes 0: numbers that are equal then have equal bits.
    bits = (vectors + np.float32(0)).view(np.uint32)
    hashes: npt.NDArray[np.uint64] = bits.astype(np.uint64) @ (weights | np.uint64(1))
    return hashes


def _rows_at_a_time(gallery: Gallery) -> int:
    return max(1, BLOCK_BYTES // (4 * gallery.dimension))


def build_index(gallery: Gallery, factory: str, *, rows: int, holes: IntArray) -> tuple[Any, Copies]:
    """Return a new index of the items among the first N rows, whose ids are rows; and what a graph leaves out.

    Raises:
        KeMetricError: FAISS cannot make such an index of these vectors.
    """
    index = make_index(factory, gallery.dimension)
    try:
        if not index.is_trained:
            _, most = training_counts(index)
            index.train(gallery.vectors(_sample(np.delete(np.arange(rows), holes), most)))
    except RuntimeError as error:
        raise _failed(factory, error) from error
    return index, extend_index(gallery, index, factory, first=0, rows=rows)


def extend_index(gallery: Gallery, index: Any, factory: str, *, first: int, rows: int) -> Copies:
    """Add the items of rows `first` to before `rows` to an index, and return those that a graph does not get.

    Raises:
        KeMetricError: FAISS cannot add to such an index; what it holds by then is not known.
    """
    holes, copies = gallery.holes, Copies.none()
    if is_graph(index):
        copies = find_copies(gallery, linked_rows(index), np.setdiff1d(np.arange(first, rows), holes))
        holes = np.union1d(holes, copies.rows)
    try:
        for start, block in gallery.blocks(first, rows, _rows_at_a_time(gallery)):
            inside = holes[np.searchsorted(holes, start) : np.searchsorted(holes, start + len(block))] - start
            index.add_with_ids(np.delete(block, inside, 0), np.delete(np.arange(start, start + len(block)), inside))
    except RuntimeError as error:
        raise _failed(factory, error) from error
    return copies


def linked_rows(index: Any) -> IntArray:
    """Return the rows that a graph holds, ascending."""
    rows: IntArray = np.sort(load_faiss().vector_to_array(index.id_map))
    return rows


def _sample(rows: IntArray, most: int) -> IntArray:
    """Return at most so many of the rows, drawn without regard to their order, ascending."""
    if len(rows) <= most:
        return rows
    from ke_metric.randomness import numpy_generator

    return np.sort(numpy_generator(0, 0, "faiss training").choice(rows, most, replace=False))


def _failed(factory: str, error: RuntimeError) -> KeMetricError:
    return KeMetricError(
        f"factory = {factory!r}: FAISS cannot build it of these vectors: {' '.join(str(error).split())[:300]}; "
        "nothing is lost: they are in the gallery, and are searched exactly",
        ExitCode.USAGE,
    )


class Unfolding:
    """Puts in place of a row that was found all items that it stands for.

    Args:
        copies: Which rows stand for which.
        removed: [N] which of the rows that the index covers are gone.
    """

    def __init__(self, copies: Copies, removed: BoolArray) -> None:
        linked = np.unique(copies.linked)
        rows = np.concatenate([linked, copies.rows])
        of = np.concatenate([linked, copies.linked])
        there = ~removed[rows]
        rows, of = rows[there], of[there]
        order = np.lexsort((rows, of))
        self._rows = np.append(rows[order], -1)  # read where nothing stands for another
        self._begin = np.full(len(removed), -1, np.int64)
        self._size = (~removed).astype(np.int64)
        self._begin[linked] = np.searchsorted(of[order], linked)
        self._size[linked] = np.searchsorted(of[order], linked, side="right") - self._begin[linked]
        self._size[copies.rows] = 0

    @property
    def size(self) -> IntArray:
        """[N] how many items each row stands for; 0: it is not in the index, or gone with all its copies."""
        return self._size

    def unfold(self, similarities: FloatArray, rows: IntArray, k: int) -> tuple[FloatArray, IntArray]:
        """Return the k most similar items, of equally similar ones the earlier row first.

        Args:
            similarities: [Q, C] float32, in any order.
            rows: [Q, C] rows of the index, no two of a query equal; -1 for none.
            k: How many; -inf and -1 where there are fewer.
        """
        best = np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, np.int64)
        for some in row_chunks(len(rows), max(1, CELLS // (k + rows.shape[1]))):
            self._unfold(similarities[some], rows[some], best[0][some], best[1][some])
        return best

    def _unfold(
        self, similarities: FloatArray, rows: IntArray, best_similarities: FloatArray, best_rows: IntArray
    ) -> None:
        k = best_rows.shape[1]
        order = np.argsort(-similarities, axis=1, kind="stable")
        similarities, rows = np.take_along_axis(similarities, order, 1), np.take_along_axis(rows, order, 1)
        counts = np.where(rows >= 0, np.minimum(self._size[rows], k), 0)
        before = counts.cumsum(1) - counts
        # What comes after k others that are more similar is not among the best.
        last = np.take_along_axis(similarities, (before < k).sum(1, keepdims=True) - 1, 1)
        counts[(before >= k) & (similarities < last)] = 0
        place = np.repeat(np.arange(rows.size), counts.ravel())
        nth = np.arange(len(place)) - np.repeat(counts.cumsum() - counts.ravel(), counts.ravel())
        linked, query = rows.ravel()[place], place // rows.shape[1]
        begin = self._begin[linked]
        found = np.where(begin < 0, linked, self._rows[np.where(begin < 0, -1, begin + nth)])
        similarity = similarities.ravel()[place]
        order = np.lexsort((found, -similarity, query))
        ends = counts.sum(1).cumsum()
        rank = np.arange(len(place)) - np.repeat(ends - counts.sum(1), counts.sum(1))
        kept = rank < k
        best_similarities[query[kept], rank[kept]] = similarity[order][kept]
        best_rows[query[kept], rank[kept]] = found[order][kept]


class IndexSearch:
    """Searches an index for what is still there.

    Args:
        index: FAISS's object; its ids are rows.
        removed: [N] which of the rows that it covers are gone, or not in it.
        vectors: [N, D] float32, where the index holds short codes of them; None where it holds them whole.
        live: How many items it covers that are not gone.
        unfolding: Finds the items that a row stands for; None where each is one.
        whole: [N, D] float32, where the index compares every vector that it holds, whole; else None.
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
        """Find the k most similar items of each of the queries, float32 [Q, D].

        Where removed items crowd out others, those queries are searched again for four times as many, and so on.

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
        """Return the k candidates [Q, C] of each query that are most similar by their whole vectors.

        FAISS reads the vectors where they lie: of a file that is mapped into memory, only the pages of candidates.
        Where there are fewer than k, rows are -1 and similarities anything.
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
    """FAISS's object, whose ids are rows, as it was read or built; the record of its file; what it leaves out."""

    index: Any
    record: Record
    copies: Copies


def read_records(gallery: Gallery) -> tuple[Record, ...]:
    """Return the records of index.faiss, newest first: several while it is replaced, none where there is none."""
    text = gallery.fact(FACT)
    return () if text is None else tuple(Record(**fields) for fields in json.loads(text))


def load_derived(gallery: Gallery) -> tuple[Derived | None, str]:
    """Read index.faiss; return None, and why, where that cannot be done."""
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
