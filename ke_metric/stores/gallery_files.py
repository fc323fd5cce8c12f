"""The two files of a gallery: `vectors.f32`, only ever appended to, and `items.sqlite`, which says what is in it.

Whether a change has happened is SQLite's business: a write-ahead log, each commit of which reaches the disk. Its
table says which rows of the vectors are items, and which are holes.

Shapes: N rows, M some of them, D embedding.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ke_metric import disk
from ke_metric.arrays import FloatArray, IntArray, row_chunks
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.stores.contract import Item, Where, check_where, is_unicode

REPAIR = "restore it from a copy, or build the index again"
GATHERED_BYTES = 1 << 16
"""Rows asked for that lie within so many bytes of each other are read at once."""
FORMAT = 1
BUSY_SECONDS = 30.0
AT_A_TIME = 10_000
"""Ids or rows asked for in one statement."""
OWN_FACTS = ("format", "dimension", "rows", "holes", "changes")
SCHEMA = """
CREATE TABLE items (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path TEXT NOT NULL, label TEXT NOT NULL);
CREATE INDEX items_by_label ON items (label);
CREATE TABLE holes (row INTEGER PRIMARY KEY);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
COUNTS = """
SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM holes),
       max((SELECT ifnull(max(row), -1) FROM items), (SELECT ifnull(max(row), -1) FROM holes))
"""


class VectorFile:
    """Rows of D float32 in the machine's byte order, and nothing else; what lies after the last row is worthless.

    When writing, it is made where there is none.

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
        """Refuse a file that is shorter than so many rows, as DATA."""
        if self.nbytes < rows * self.row_bytes:
            raise KeMetricError(
                f"{self.path}: has {self.nbytes:,} bytes, {rows:,} vectors of {self.dimension} float32 need "
                f"{rows * self.row_bytes:,}: the file is damaged; {REPAIR}",
                ExitCode.DATA,
            )

    def write(self, row: int, vectors: FloatArray) -> None:
        """Write vectors [M, D] into the rows from `row` on; they are on the disk when this returns.

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
        """Return the rows of numbers [M], all of them there, in the order asked for: float32 [M, D]."""
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

        Read, not mapped into memory: pages of a mapped file count as this process's memory. A block has at most so
        many rows at a time, at least 1; the next one overwrites it.
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
    return disk.disk_error(path, error, "cannot be read or written", "; what was acknowledged before still is")


class ItemTable:
    """Items by row, with a connection that all threads share in turn.

    Args:
        path: The file.
        dimension: Length of the vectors, which a new table keeps and an old one must have kept.
        writing: Let it be changed.
        new: Make the tables if there are none; nothing has ever been in this gallery.

    Raises:
        KeMetricError: LINEAGE: it is missing, of another format or another dimension; DATA: it is damaged;
            ENVIRONMENT: it cannot be read or written.
    """

    def __init__(self, path: Path, dimension: int, *, writing: bool, new: bool) -> None:
        self.path = path
        self.writing = writing
        self._mutex = threading.RLock()
        self._connection = _connect(path, writing=writing, new=new)
        try:
            with self._errors():
                if new and _is_empty(self._connection):
                    _create(self._connection, dimension)
                self._check(dimension)
        except BaseException:
            self._connection.close()
            raise

    def _check(self, dimension: int) -> None:
        if _is_empty(self._connection):
            raise missing(self.path)
        with self.reading():
            facts = self.facts(*OWN_FACTS)
            items, holes, last = self._connection.execute(COUNTS).fetchone()
        if facts.get("format") != str(FORMAT) or facts.get("dimension") != str(dimension):
            raise KeMetricError(
                f"{self.path}: holds vectors of dimension {facts.get('dimension')} in format {facts.get('format')}; "
                f"asked for is dimension {dimension} in format {FORMAT}",
                ExitCode.LINEAGE,
            )
        if [facts.get("rows"), facts.get("holes")] != [str(items + holes), str(holes)] or last != items + holes - 1:
            raise KeMetricError(
                f"{self.path}: is damaged: it says {facts.get('rows')} rows and {facts.get('holes')} holes, and has "
                f"{items} items and {holes} holes up to row {last}; {REPAIR}",
                ExitCode.DATA,
            )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What is read inside the block is of one moment."""
        with self._mutex, self._errors():
            if self._connection.in_transaction:
                yield
            else:
                with _transaction(self._connection, "BEGIN"):
                    yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """What is changed inside the block is on the disk after it, or on an error did not happen."""
        assert self.writing, "opened for reading"
        with self._mutex, self._errors(), _transaction(self._connection, "BEGIN IMMEDIATE"):
            yield
            self._raise("changes", 1)

    def facts(self, *names: str) -> dict[str, str]:
        """Return the values that are kept under names, of those that are there."""
        marks = ", ".join("?" * len(names))
        with self._mutex, self._errors():  # one statement is of one moment; every search asks this
            return dict(self._connection.execute(f"SELECT name, value FROM facts WHERE name IN ({marks})", names))

    def set_fact(self, name: str, value: str) -> None:
        """Keep a value under a name; inside `changing`."""
        self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _raise(self, name: str, by: int) -> None:
        self._connection.execute("UPDATE facts SET value = CAST(value AS INTEGER) + ? WHERE name = ?", (by, name))

    def insert(self, first: int, items: Sequence[Item]) -> None:
        """Put items into the rows from `first` on, which is the first free one; inside `changing`."""
        rows = ((first + place, item.id, item.path, item.label) for place, item in enumerate(items))
        self._connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)
        self._raise("rows", len(items))

    def dig(self, rows: Sequence[int]) -> None:
        """Turn the rows of items into holes; inside `changing`."""
        self._connection.executemany("DELETE FROM items WHERE row = ?", ((row,) for row in rows))
        self._connection.executemany("INSERT INTO holes VALUES (?)", ((row,) for row in rows))
        self._raise("holes", len(rows))

    def holes(self) -> IntArray:
        """Return the holes, int64, ascending."""
        return self._numbers("SELECT row FROM holes ORDER BY row", ())

    def matching(self, where: Where) -> IntArray:
        """Return the rows of the items for which `where` holds, int64, ascending."""
        conditions, values = _in_sql(where)
        return self._numbers(f"SELECT row FROM items WHERE {conditions} ORDER BY row", values)

    def count(self, where: Where) -> int:
        """Return the number of items for which `where` holds."""
        conditions, values = _in_sql(where)
        return int(self._numbers(f"SELECT count(*) FROM items WHERE {conditions}", values)[0])

    def _numbers(self, query: str, values: Sequence[str]) -> IntArray:
        with self.reading():
            return np.fromiter((row for (row,) in self._connection.execute(query, values)), np.int64)

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the row of each id that is there."""
        return dict(self._some("SELECT id, row FROM items WHERE id IN (SELECT value FROM json_each(?))", ids))

    def items_of(self, rows: Sequence[int]) -> dict[int, Item]:
        """Return the item of each row that is one."""
        query = "SELECT row, id, path, label FROM items WHERE row IN (SELECT value FROM json_each(?))"
        return {row: Item(*texts) for row, *texts in self._some(query, rows)}

    def _some(self, query: str, asked: Sequence[str] | Sequence[int]) -> list[Any]:
        with self.reading():
            return [
                found
                for part in row_chunks(len(asked), AT_A_TIME)
                for found in self._connection.execute(query, (_json(asked[part]),))
            ]

    def known_labels(self, labels: Sequence[str]) -> set[str]:
        """Return those of the labels that an item has."""
        query = "SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM items WHERE label = value)"
        with self.reading():
            return {label for (label,) in self._connection.execute(query, (_json(labels),))}

    def items_at(self, paths: Sequence[str]) -> list[Item]:
        """Return the items of paths, in the order of their rows."""
        query = "SELECT id, path, label FROM items WHERE path IN (SELECT value FROM json_each(?)) ORDER BY row"
        with self.reading():
            return [Item(*texts) for texts in self._connection.execute(query, (_json(paths),))]

    def everything(self, at_a_time: int) -> Iterator[tuple[IntArray, list[Item]]]:
        """Yield rows and items of this moment, whatever changes meanwhile, in order, [M] at a time."""
        connection = _connect(self.path, writing=False, new=False)
        try:
            with self._errors(), _transaction(connection, "BEGIN"):
                cursor = connection.execute("SELECT row, id, path, label FROM items ORDER BY row")
                while some := cursor.fetchmany(at_a_time):
                    yield np.array([row for row, *_ in some], np.int64), [Item(*texts) for _, *texts in some]
        finally:
            connection.close()

    def close(self) -> None:
        """Close the file; once is enough."""
        with self._mutex:
            self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite says inside the block into words."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # our own mistake, such as a gallery that is closed
        except sqlite3.Error as error:
            raise _in_words(self.path, error) from error


def _connect(path: Path, *, writing: bool, new: bool) -> sqlite3.Connection:
    if not new and not (path.is_file() and path.stat().st_size):
        raise missing(path)
    mode = "mode=ro" if not writing else "mode=rwc" if new else "mode=rw"
    if not writing and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
        # SQLite cannot make the files by which readers and a writer meet, and nobody has them open. Whoever writes
        # here later, with other rights, is not seen.
        mode = "immutable=1"
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?{mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if writing:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise _in_words(path, error) from error
    return connection


def _is_empty(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _create(connection: sqlite3.Connection, dimension: int) -> None:
    """Make the tables, all or none of them."""
    facts = dict.fromkeys(OWN_FACTS, 0) | {"format": FORMAT, "dimension": dimension}
    values = ", ".join(f"('{name}', '{value}')" for name, value in facts.items())
    connection.executescript(f"BEGIN; {SCHEMA} INSERT INTO facts VALUES {values}; COMMIT;")


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _in_words(path: Path, error: sqlite3.Error) -> KeMetricError:
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_BUSY")):
        return KeMetricError(
            f"{path}: cannot be read or written: {error}; what was acknowledged before still is", ExitCode.ENVIRONMENT
        )
    return KeMetricError(f"{path}: is damaged, or no gallery: {error}; {REPAIR}", ExitCode.DATA)


def _in_sql(where: Where) -> tuple[str, list[str]]:
    """Return a condition on a row of `items`, and the values for its question marks."""
    check_where(where)
    assert all(part.field in ("id", "path", "label") for part in where.conditions), where
    conditions = " AND ".join(
        f"{part.field} {'IN' if part.within else 'NOT IN'} (SELECT value FROM json_each(?))"
        for part in where.conditions
    )
    return conditions, [_json(part.values) for part in where.conditions]


def _json(asked: Sequence[str] | Sequence[int]) -> str:
    """Return as JSON those of the values that a gallery can hold; the others equal none of its texts."""
    known = [value for value in asked if isinstance(value, int) or ("\0" not in value and is_unicode(value))]
    return json.dumps(known, ensure_ascii=False)
