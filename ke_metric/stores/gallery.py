"""The truth of a local store: which items there are, and their vectors.

Vectors are appended to `vectors.f32` and reach the disk; then one transaction in `items.sqlite` makes them exist.
That commit is the acknowledgement: before it nothing has happened, after it nothing is lost. Rows are never moved:
removing an item leaves a hole, replacing it leaves a hole and appends. So everything derived from rows stays true.

Shapes: N rows, B batch, M some rows, D embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from ke_metric.arrays import FloatArray, IntArray
from ke_metric.disk import lock_for_writing, reach_disk
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.stores.contract import Item, Where, check_addition, check_count, texts_of
from ke_metric.stores.gallery_files import OWN_FACTS, ItemTable, VectorFile, disk_error, missing

ITEMS = "items.sqlite"
VECTORS = "vectors.f32"
LOCK = ".lock"
ROWS_KEPT = 1 << 22
"""That answers to conditions have in memory together, eight bytes each; a text of a condition counts as one."""


class Gallery:
    """Items and vectors in a folder, changed by one process and read by any number beside it.

    A local `VectorStore` is a gallery that can be searched; methods of that name do what is said there. Readers see
    what a writer has committed, at their next call. All methods may be called by several threads. In a folder that
    this process may not write, a reader sees what was there when it opened.

    Args:
        folder: Where the files lie; made, with its files, when writing and absent.
        dimension: Length D of the vectors.
        writing: Be the one process that may change the gallery.

    Raises:
        KeMetricError: LINEAGE: another process is writing it, it is missing, or it holds vectors of another length;
            DATA: its files are damaged; ENVIRONMENT: they cannot be read or written.
    """

    def __init__(self, folder: Path, dimension: int, *, writing: bool) -> None:
        self.folder = folder
        self.writing = writing
        self._dimension = dimension
        self._holes: IntArray = np.empty(0, np.int64)
        self._matching: dict[Where, IntArray] = {}
        self._matched_at = -1
        self._lock = _lock(folder) if writing else None
        try:
            self._vectors, self._table = _open_files(folder, dimension, writing=writing)
        except BaseException:
            self._unlock()
            raise

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return self._dimension

    @property
    def rows(self) -> int:
        """Rows ever appended, holes among them: N."""
        return int(self._table.facts("rows")["rows"])

    @property
    def version(self) -> int:
        """Rises with every change, whoever makes it."""
        return int(self._table.facts("changes")["changes"])

    @property
    def holes(self) -> IntArray:
        """The rows that are no items any more, int64, ascending."""
        return self.snapshot()[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        tables = (self.folder / f"{ITEMS}{end}" for end in ("", "-wal"))
        return self._vectors.nbytes + sum(path.stat().st_size for path in tables if path.is_file())

    def __len__(self) -> int:
        facts = self._table.facts("rows", "holes")
        return int(facts["rows"]) - int(facts["holes"])

    def snapshot(self) -> tuple[int, IntArray]:
        """Return the number of rows and the holes among them, of one moment."""
        with self._table.reading():
            facts = self._table.facts("rows", "holes")
            if len(self._holes) != int(facts["holes"]):  # holes are never filled: as many are the same ones
                self._holes = self._table.holes()
            return int(facts["rows"]), self._holes

    def add(self, items: Sequence[Item], vectors: FloatArray, *, replace: bool = False) -> None:
        """Add items, all of them or none; see `VectorStore.add`."""
        check_addition(items, vectors, self.dimension)
        if not items:
            return
        with self._table.changing():
            there = self._table.rows_of([item.id for item in items])
            if there and not replace:
                name = next(item.id for item in items if item.id in there)
                raise KeMetricError(f"{self.folder}: item {name!r} is there already", ExitCode.DATA)
            first = self.rows
            self._vectors.write(first, vectors)
            self._table.dig(list(there.values()))
            self._table.insert(first, items)

    def remove(self, ids: Collection[str]) -> None:
        """Remove items, all of them or none; see `VectorStore.remove`."""
        distinct = list(dict.fromkeys(texts_of(ids)))
        if not distinct:
            return
        with self._table.changing():
            self._table.dig(self._rows_of_all(distinct))

    def known(self, ids: Collection[str]) -> set[str]:
        """Return those of the ids that are in the gallery."""
        return set(self._table.rows_of(texts_of(ids)))

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Return the items of ids, in order; see `VectorStore.get`."""
        asked = texts_of(ids)
        with self._table.reading():
            return self.items(np.array(self._rows_of_all(asked), np.int64))

    def _rows_of_all(self, ids: Sequence[str]) -> list[int]:
        there = self._table.rows_of(ids)
        for name in ids:
            if name not in there:
                raise KeMetricError(f"{self.folder}: there is no item {name[:80]!r}", ExitCode.DATA)
        return [there[name] for name in ids]

    def items(self, rows: IntArray) -> list[Item]:
        """Return the items of rows, in order.

        Raises:
            KeMetricError: DATA: a row is no item, or none any more.
        """
        wanted = rows.tolist()
        found = self._table.items_of(wanted)
        for row in wanted:
            if row not in found:
                raise KeMetricError(
                    f"{self.folder}: row {row} is no item; it was removed or replaced since it was found",
                    ExitCode.DATA,
                )
        return [found[row] for row in wanted]

    def vectors(self, rows: IntArray) -> FloatArray:
        """Return the vectors of rows, holes or not, in order: [M] to float32 [M, D]."""
        assert not len(rows) or 0 <= int(rows.min()) <= int(rows.max()) < self.rows, "no such row"
        return self._vectors.gather(rows)

    def blocks(self, first: int, last: int, rows_at_a_time: int) -> Iterator[tuple[int, FloatArray]]:
        """Yield the vectors of rows, holes among them, from `first` to before `last`; see `VectorFile.blocks`."""
        return self._vectors.blocks(first, last, rows_at_a_time)

    def rows_matching(self, where: Where) -> IntArray:
        """Return the rows of the items for which `where` holds, int64, ascending, not to be written to.

        To list them takes longer than to search them, so the answer to a condition is kept until something changes.
        """
        with self._table.reading():
            if (version := self.version) != self._matched_at:
                self._matching, self._matched_at = {}, version
            rows = self._matching.get(where)
            if rows is None:
                rows = self._table.matching(where)
                rows.flags.writeable = False
                self._keep(where, rows)
            return rows

    def _keep(self, where: Where, rows: IntArray) -> None:
        texts = sum(len(one.values) for kept in [where, *self._matching] for one in kept.conditions)
        if texts + sum(map(len, self._matching.values())) + len(rows) > ROWS_KEPT:
            self._matching.clear()
        if len(rows) <= ROWS_KEPT:
            self._matching[where] = rows

    def matching(self, where: Where) -> list[Item]:
        """Return the items for which `where` holds, in the order of their rows."""
        with self._table.reading():
            return self.items(self._table.matching(where))

    def count(self, where: Where) -> int:
        """Return the number of items for which `where` holds."""
        return self._table.count(where)

    def known_labels(self, labels: Collection[str]) -> set[str]:
        """Return those of the labels that an item has."""
        return self._table.known_labels(texts_of(labels, "labels"))

    def items_at(self, paths: Collection[str]) -> dict[str, list[Item]]:
        """Return the items of each of the paths that has some, in the order of their rows."""
        found: dict[str, list[Item]] = {}
        for item in self._table.items_at(texts_of(paths, "paths")):
            found.setdefault(item.path, []).append(item)
        return found

    def read(self, batch_size: int = 8192) -> Iterator[tuple[list[Item], FloatArray]]:
        """Yield everything, in order of rows, at most batch_size items at a time.

        What is changed before the last batch is taken does not show: B items and their vectors float32 [B, D].
        """
        check_count("batch_size", batch_size)
        for rows, items in self._table.everything(batch_size):
            yield items, self._vectors.gather(rows)

    def fact(self, name: str) -> str | None:
        """Return what `set_fact` stored under a name; None where it stored nothing."""
        assert name not in OWN_FACTS, name
        return self._table.facts(name).get(name)

    def set_fact(self, name: str, value: str) -> None:
        """Store a text under a name; it is on the disk when this returns."""
        assert name not in OWN_FACTS, name
        with self._table.changing():
            self._table.set_fact(name, value)

    def close(self) -> None:
        """Release the files and the lock; once is enough."""
        self._table.close()
        self._vectors.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _open_files(folder: Path, dimension: int, *, writing: bool) -> tuple[VectorFile, ItemTable]:
    vectors = VectorFile(folder / VECTORS, dimension, writing=writing)
    try:
        if vectors.nbytes and not (folder / ITEMS).is_file():
            raise missing(folder / ITEMS)
        new = writing and vectors.nbytes == 0  # the table is made before the first vector is written
        table = ItemTable(folder / ITEMS, dimension, writing=writing, new=new)
        try:
            if new:
                for path in (folder / VECTORS, folder, folder.parent):
                    reach_disk(path)
            vectors.require(int(table.facts("rows")["rows"]))
        except BaseException:
            table.close()
            raise
    except BaseException:
        vectors.close()
        raise
    return vectors, table


def _lock(folder: Path) -> FileLock:
    busy = f"{folder}: another process is writing this gallery"
    return lock_for_writing(folder / LOCK, busy, as_error=disk_error)
