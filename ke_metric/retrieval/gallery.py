"""The truth of a local store: which items there are, and their vectors.

Vectors are appended to `vectors.f32` and reach the disk; then one transaction in `items.sqlite` makes them exist.
That commit is the acknowledgement: before it nothing has happened, after it nothing is lost. Rows are never moved:
removing an item leaves a hole, replacing it leaves a hole and appends. So everything derived from rows stays true.

Shapes: N rows, B batch, M some rows, D embedding.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import FloatArray, IntArray
from ke_metric.retrieval.gallery_files import (
    FORMAT,
    SCHEMA,
    VectorFile,
    disk_error,
    open_table,
    reach_disk,
    table_errors,
)
from ke_metric.retrieval.vector_store import Item, check_addition, is_unicode
from ke_metric.retrieval.where import Condition, Where

ITEMS = "items.sqlite"
VECTORS = "vectors.f32"
LOCK = ".lock"
AT_A_TIME = 10_000
"""Ids or rows asked for in one statement."""
OWN_FACTS = ("format", "dimension", "rows", "holes", "changes")


class Gallery:
    """Items and vectors in a folder, changed by one process and read by any number beside it.

    Readers see what a writer has committed, at their next call. All methods may be called by several threads.

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
        self.dimension = dimension
        self.writing = writing
        self._items = folder / ITEMS
        self._mutex = threading.RLock()
        self._holes: IntArray = np.empty(0, np.int64)
        self._lock = _lock(folder) if writing else None
        try:
            self._vectors = VectorFile(folder / VECTORS, dimension, writing=writing)
            try:
                self._table = self._open()
            except BaseException:
                self._vectors.close()
                raise
        except BaseException:
            self._unlock()
            raise

    def _open(self) -> sqlite3.Connection:
        if self._vectors.nbytes and not self._items.is_file():
            raise KeMetricError(
                f"{self._items}: is missing beside {VECTORS}; restore it from a copy, or build the index again",
                ExitCode.LINEAGE,
            )
        table = open_table(self._items, writing=self.writing)
        try:
            with table_errors(self._items):
                if self.writing:
                    self._create(table)
                self._check(table)
        except BaseException:
            table.close()
            raise
        return table

    def _create(self, table: sqlite3.Connection) -> None:
        """Make the tables of a new gallery, all or none of them."""
        if self._vectors.nbytes or table.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return
        facts = dict.fromkeys(OWN_FACTS, 0) | {"format": FORMAT, "dimension": self.dimension}
        values = ", ".join(f"('{name}', '{value}')" for name, value in facts.items())
        table.executescript(f"BEGIN; {SCHEMA} INSERT INTO facts VALUES {values}; COMMIT;")
        for path in (self.folder / VECTORS, self.folder, self.folder.parent):
            reach_disk(path)

    def _check(self, table: sqlite3.Connection) -> None:
        with _transaction(table, "BEGIN"):
            facts = _facts(table, OWN_FACTS)
            counts = table.execute("SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM holes)").fetchone()
            last = table.execute(
                "SELECT max((SELECT ifnull(max(row), -1) FROM items), (SELECT ifnull(max(row), -1) FROM holes))"
            ).fetchone()[0]
        if facts.get("format") != str(FORMAT):
            raise KeMetricError(
                f"{self._items}: format {facts.get('format')}, this version of ke_metric reads {FORMAT}",
                ExitCode.LINEAGE,
            )
        if facts.get("dimension") != str(self.dimension):
            raise KeMetricError(
                f"{self._items}: holds vectors of dimension {facts.get('dimension')}, not {self.dimension}",
                ExitCode.LINEAGE,
            )
        said = [facts.get("rows"), facts.get("holes")]
        if said != [str(sum(counts)), str(counts[1])] or last != sum(counts) - 1:
            raise KeMetricError(
                f"{self._items}: is damaged: it says {said[0]} rows and {said[1]} holes, and has {counts[0]} items, "
                f"{counts[1]} holes, the last at {last}; restore it from a copy, or build the index again",
                ExitCode.DATA,
            )
        self._vectors.require(sum(counts))

    @property
    def rows(self) -> int:
        """Rows ever appended, holes among them: N."""
        return self._count("rows")

    @property
    def version(self) -> int:
        """Rises with every change, whoever makes it."""
        return self._count("changes")

    @property
    def holes(self) -> IntArray:
        """The rows that are no items any more, int64, ascending."""
        return self.snapshot()[1]

    def __len__(self) -> int:
        with self._reading() as table:
            facts = _facts(table, ("rows", "holes"))
        return int(facts["rows"]) - int(facts["holes"])

    def snapshot(self) -> tuple[int, IntArray]:
        """Return the number of rows and the holes among them, of one moment."""
        with self._reading() as table:
            facts = _facts(table, ("rows", "holes"))
            if len(self._holes) != int(facts["holes"]):  # holes are never filled: as many are the same ones
                self._holes = _numbers(table.execute("SELECT row FROM holes ORDER BY row"))
            return int(facts["rows"]), self._holes

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        tables = (self.folder / f"{ITEMS}{end}" for end in ("", "-wal"))
        return self._vectors.nbytes + sum(path.stat().st_size for path in tables if path.is_file())

    def add(self, items: Sequence[Item], vectors: FloatArray, *, replace: bool = False) -> None:
        """Add items, all of them or none; see `VectorStore.add`."""
        check_addition(items, vectors, self.dimension)
        if not items:
            return
        with self._changing() as table:
            there = self._rows_of([item.id for item in items])
            if there and not replace:
                name = next(item.id for item in items if item.id in there)
                raise KeMetricError(f"{self.folder}: item {name!r} is there already", ExitCode.DATA)
            first = int(_facts(table, ("rows",))["rows"])
            self._vectors.write(first, vectors)
            self._dig(table, list(there.values()))
            table.executemany(
                "INSERT INTO items VALUES (?, ?, ?, ?)",
                ((first + place, item.id, item.path, item.label) for place, item in enumerate(items)),
            )
            _raise_fact(table, "rows", len(items))

    def remove(self, ids: Collection[str]) -> None:
        """Remove items, all of them or none; see `VectorStore.remove`."""
        distinct = list(dict.fromkeys(ids))
        if not distinct:
            return
        with self._changing() as table:
            there = self._rows_of(distinct)
            self._require_known(distinct, there)
            self._dig(table, list(there.values()))

    def _dig(self, table: sqlite3.Connection, rows: list[int]) -> None:
        """Turn the rows of items into holes."""
        table.executemany("DELETE FROM items WHERE row = ?", ((row,) for row in rows))
        table.executemany("INSERT INTO holes VALUES (?)", ((row,) for row in rows))
        _raise_fact(table, "holes", len(rows))

    def known(self, ids: Collection[str]) -> set[str]:
        """Return those of the ids that are in the gallery."""
        with self._reading():
            return set(self._rows_of(list(ids)))

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Return the items of ids, in order.

        Raises:
            KeMetricError: DATA, naming it: there is no item of an id.
        """
        with self._reading():
            there = self._rows_of(list(ids))
            self._require_known(ids, there)
            return self.items(np.array([there[name] for name in ids], np.int64))

    def _rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the row of each id that is there."""
        found: dict[str, int] = {}
        query = "SELECT id, row FROM items WHERE id IN (SELECT value FROM json_each(?))"
        for start in range(0, len(ids), AT_A_TIME):
            found.update(self._table.execute(query, (_json_texts(ids[start : start + AT_A_TIME]),)))
        return found

    def _require_known(self, ids: Sequence[str], there: Collection[str]) -> None:
        for name in ids:
            if name not in there:
                raise KeMetricError(f"{self.folder}: there is no item {name[:80]!r}", ExitCode.DATA)

    def items(self, rows: IntArray) -> list[Item]:
        """Return the items of rows, in order.

        Raises:
            KeMetricError: DATA: a row is no item, or none any more.
        """
        found: dict[int, Item] = {}
        query = "SELECT row, id, path, label FROM items WHERE row IN (SELECT value FROM json_each(?))"
        wanted = rows.tolist()
        with self._reading() as table:
            for start in range(0, len(wanted), AT_A_TIME):
                for row, *texts in table.execute(query, (json.dumps(wanted[start : start + AT_A_TIME]),)):
                    found[row] = Item(*texts)
        try:
            return [found[row] for row in wanted]
        except KeyError as error:
            raise KeMetricError(
                f"{self.folder}: row {error} is no item: it was removed or replaced since it was found", ExitCode.DATA
            ) from None

    def vectors(self, rows: IntArray) -> FloatArray:
        """Return the vectors of rows, holes or not, in order: [M] to float32 [M, D]."""
        assert not len(rows) or 0 <= int(rows.min()) <= int(rows.max()) < self.rows, "no such row"
        return self._vectors.gather(rows)

    def matching(self, where: Where) -> IntArray:
        """Return the rows of the items for which `where` holds, int64, ascending."""
        conditions = " AND ".join(_sql(condition) for condition in where.conditions)
        values = [_json_texts(condition.values) for condition in where.conditions]
        with self._reading() as table:
            return _numbers(table.execute(f"SELECT row FROM items WHERE {conditions} ORDER BY row", values))

    def blocks(self, first: int, last: int, rows_at_a_time: int) -> Iterator[tuple[int, FloatArray]]:
        """Yield the vectors of rows, holes among them, from `first` to before `last`; see `VectorFile.blocks`."""
        return self._vectors.blocks(first, last, rows_at_a_time)

    def read(self, batch_size: int = 8192) -> Iterator[tuple[list[Item], FloatArray]]:
        """Yield everything that is there now, in order of rows, at most batch_size items at a time.

        What is changed before the last batch is taken does not show: B items and their vectors float32 [B, D].
        """
        assert batch_size >= 1, batch_size
        with closing(open_table(self._items, writing=False)) as table, table_errors(self._items):
            table.execute("BEGIN")
            cursor = table.execute("SELECT row, id, path, label FROM items ORDER BY row")
            while batch := cursor.fetchmany(batch_size):
                rows = np.array([row for row, *_ in batch], np.int64)
                yield [Item(*texts) for _, *texts in batch], self._vectors.gather(rows)

    def fact(self, name: str) -> str | None:
        """Return what `set_fact` stored under a name; None where it stored nothing."""
        assert name not in OWN_FACTS, name
        with self._reading() as table:
            return _facts(table, (name,)).get(name)

    def set_fact(self, name: str, value: str) -> None:
        """Store a text under a name; it is on the disk when this returns."""
        assert name not in OWN_FACTS, name
        with self._changing() as table:
            table.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def close(self) -> None:
        """Release the files and the lock; once is enough."""
        with self._mutex:
            self._table.close()
            self._vectors.close()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _count(self, name: str) -> int:
        with self._reading() as table:
            return int(_facts(table, (name,))[name])

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """What is read inside the block is of one moment."""
        with self._mutex, table_errors(self._items):
            if self._table.in_transaction:
                yield self._table
            else:
                with _transaction(self._table, "BEGIN"):
                    yield self._table

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """What is changed inside the block is on the disk after it, or on an error did not happen."""
        assert self.writing, "opened for reading"
        with self._mutex, table_errors(self._items), _transaction(self._table, "BEGIN IMMEDIATE"):
            yield self._table
            _raise_fact(self._table, "changes", 1)


def _lock(folder: Path) -> FileLock:
    """Make the folder and become its one writer; the lock is freed when the process ends, however it ends."""
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise KeMetricError(f"{folder}: another process is writing this gallery", ExitCode.LINEAGE) from None
    except OSError as error:
        raise disk_error(folder / LOCK, error) from error
    return lock


@contextmanager
def _transaction(table: sqlite3.Connection, begin: str) -> Iterator[None]:
    table.execute(begin)
    try:
        yield
        table.execute("COMMIT")
    except BaseException:
        if table.in_transaction:
            table.execute("ROLLBACK")
        raise


def _facts(table: sqlite3.Connection, names: Sequence[str]) -> dict[str, str]:
    marks = ", ".join("?" * len(names))
    return dict(table.execute(f"SELECT name, value FROM facts WHERE name IN ({marks})", names))


def _raise_fact(table: sqlite3.Connection, name: str, by: int) -> None:
    table.execute("UPDATE facts SET value = CAST(value AS INTEGER) + ? WHERE name = ?", (by, name))


def _numbers(cursor: sqlite3.Cursor) -> IntArray:
    return np.fromiter((row for (row,) in cursor), np.int64)


def _json_texts(texts: Sequence[str]) -> str:
    """Return those texts as JSON that a gallery can hold; the others equal none of its texts."""
    return json.dumps([text for text in texts if "\0" not in text and is_unicode(text)], ensure_ascii=False)


def _sql(condition: Condition) -> str:
    assert condition.field in ("id", "path", "label"), condition.field
    return f"{condition.field} {'IN' if condition.within else 'NOT IN'} (SELECT value FROM json_each(?))"
