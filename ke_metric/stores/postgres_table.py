"""A table of items in PostgreSQL: how it is made, and the statements that it is read and changed with.

Ids, paths and labels are looked up by their hashes, in columns of their own: an entry of an index of PostgreSQL has
room for 2,700 bytes, and a text here may have 4,096. What the table says of itself is its comment.

Shapes: N items, B batch, D embedding, Q queries, C candidates, M some rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any, Self

import numpy as np
import psycopg
from psycopg import sql

from ke_metric.arrays import FloatArray, IntArray
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.stores.contract import FIELDS, Item, Where, check_where, is_unicode
from ke_metric.stores.postgres_connection import Database, Packed

KINDS = {"FLAT": 16_000, "HNSW": 2_000, "HNSW_HALFVEC": 4_000}
"""Kinds of index to the longest vectors that pgvector takes for them. FLAT, which is none, is exact; the graph of
HNSW_HALFVEC has numbers of 16 bits, in half the memory."""
GRAPHS = {
    "HNSW": ("t.vector <#> q.vector", "vector vector_ip_ops"),
    "HNSW_HALFVEC": (
        "t.vector::halfvec({dimension}) <#> q.vector::halfvec({dimension})",
        "(vector::halfvec({dimension})) halfvec_ip_ops",
    ),
}
"""How candidates are put in order, and what is indexed."""
EXACTLY = "(t.vector <#> q.vector) + 0"
"""An order that no graph has."""
SECONDS_TO_BUILD = 6 * 3600
LONGEST_NAME = 63
MARK = "ke_metric"
"""The key of a comment that says that a table is ours, to the version of its columns."""
VERSION = 1
COLUMNS = {
    *("number bigint", "id_key bytea", "path_key bytea", "label_key bytea", "id text", "path text", "label text"),
    "vector vector",
}
MAKE = """
    CREATE TABLE {table} (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id_key bytea NOT NULL UNIQUE, path_key bytea NOT NULL, label_key bytea NOT NULL,
        id text COLLATE "C" NOT NULL, path text COLLATE "C" NOT NULL, label text COLLATE "C" NOT NULL,
        vector vector({dimension}) NOT NULL);
    CREATE INDEX ON {table} (path_key);
    CREATE INDEX ON {table} (label_key);
    COMMENT ON TABLE {table} IS {comment}
"""
LOOK = """
    SELECT t.oid::bigint, 'vector'::regtype::oid::bigint, obj_description(t.oid, 'pg_class'), columns.*
    FROM pg_class AS t JOIN pg_namespace AS s ON s.oid = t.relnamespace, LATERAL (
        SELECT array_agg(attname || ' ' || format_type(atttypid, NULL)), max(atttypmod) FILTER (
            WHERE attname = 'vector')
        FROM pg_attribute WHERE attrelid = t.oid AND attnum > 0 AND NOT attisdropped) AS columns
    WHERE s.nspname = %s AND t.relname = %s
"""
STATE = """
    SELECT EXISTS (
        SELECT FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS a ON a.oid = c.relam
        WHERE i.indrelid = t.oid AND i.indisvalid AND a.amname = 'hnsw'
    ), t.reltuples >= 0, pg_total_relation_size(t.oid)
    FROM pg_class AS t WHERE t.oid = %s::oid
"""
CANDIDATES = """
    SELECT q.place, h.number, -(h.vector <#> q.vector) AS product, vector_send(h.vector) {texts}
    FROM unnest(%b::vector[]) WITH ORDINALITY AS q (vector, place) CROSS JOIN LATERAL (
        SELECT * FROM {table} AS t WHERE {clause} ORDER BY {order} LIMIT %b) AS h
    ORDER BY q.place, product DESC
"""
Clause = tuple[str, list[Any]]
"""What follows WHERE, of words of ours alone, and what is put into it."""


def key_of(text: str) -> bytes:
    """Return what a text is looked up by; of two texts it is never the same."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def clause_of(where: Where | None) -> Clause:
    """Return the condition for which `where` holds; of texts, none of which can become syntax."""
    check_where(where)
    if where is None:
        return "true", []
    parts = [f"t.{one.field}_key {'= ANY' if one.within else '<> ALL'}(%b)" for one in where.conditions]
    return " AND ".join(parts), [[key_of(text) for text in one.values] for one in where.conditions]


def one_of(field: str, texts: Iterable[str]) -> Clause:
    """Return the condition that a field is one of the texts."""
    return f"t.{field}_key = ANY(%b)", [[key_of(text) for text in texts]]


def as_similar(clause: Clause, least: float) -> Clause:
    """Return the condition, for `PostgresTable.candidates`, that the product with the query is also so large."""
    return f"{clause[0]} AND t.vector <#> q.vector <= %b::float8", [*clause[1], -least]


def named(text: str) -> tuple[str | None, str]:
    """Return schema and table of `TABLE` or `SCHEMA.TABLE`; USAGE for a name that cannot be one."""
    schema, dot, name = text.rpartition(".")
    for part in [schema, name] if dot else [name]:
        # psycopg takes a % in a name for a place of a value.
        possible = part and is_unicode(part) and not set(part) & set(".%\0")
        if not possible or len(part.encode()) > LONGEST_NAME:
            raise KeMetricError(
                f"postgres: collection = {text[:200]!r}, must be TABLE or SCHEMA.TABLE, names of 1 to "
                f"{LONGEST_NAME} bytes of UTF-8 without a dot or %",
                ExitCode.USAGE,
            )
    return schema or None, name


def check_kind(kind: str, dimension: int) -> None:
    """Refuse a kind of index that is none, or that does not take vectors of that length, as USAGE."""
    if kind not in KINDS:
        raise KeMetricError(
            f"postgres: index = {kind!r}, must be one of {', '.join(KINDS)}{closest(kind, KINDS)}", ExitCode.USAGE
        )
    if dimension > KINDS[kind]:
        others = " or ".join(name for name, most in KINDS.items() if most >= dimension)
        raise KeMetricError(
            f"postgres: index = {kind}: takes vectors of at most {KINDS[kind]:,} numbers, these have {dimension:,}"
            + (f"; take {others}" if others else ""),
            ExitCode.USAGE,
        )


@cache
def element_type(dimension: int) -> np.dtype[Any]:
    """Return pgvector's binary form of a vector, with its length before it as in an array."""
    return np.dtype([("bytes", ">i4"), ("dimension", ">i2"), ("unused", ">i2"), ("numbers", ">f4", (dimension,))])


def elements_of(vectors: FloatArray) -> np.ndarray[Any, Any]:
    """Return vectors [M, D] in the binary form of elements of an array of pgvector's."""
    elements = np.zeros(len(vectors), element_type(vectors.shape[1]))
    elements["bytes"], elements["dimension"] = elements.itemsize - 4, vectors.shape[1]
    elements["numbers"] = vectors
    return elements


def vectors_of(sent: Iterable[bytes], dimension: int) -> FloatArray:
    """Return vectors float32 [M, D] of what `vector_send` gave."""
    form = element_type(dimension)
    whole = np.frombuffer(b"".join(sent), np.dtype([(name, form[name]) for name in form.names[1:]]))  # type: ignore[index]
    return whole["numbers"].astype(np.float32)


@dataclass(frozen=True)
class PostgresTable:
    """A table that is there, and ours. Made by `find` or `make`.

    Attributes:
        place: What errors call it.
        name: Schema and table as statements have them, in quotes.
        kind: Which of `KINDS`.
        facts: What it says of itself.
        oid: Its number in the database.
        vector_type: That of the type `vector`.
    """

    database: Database
    place: str
    name: str
    dimension: int
    kind: str
    facts: Mapping[str, str]
    oid: int
    vector_type: int

    @classmethod
    def find(cls, database: Database, schema: str, name: str) -> Self | None:
        """Return a table, None where there is none of that name.

        Raises:
            KeMetricError: DATA: it is a table of something else.
        """
        place = f"{database.uri}, table {schema}.{name}"
        found = database.ask("looking for the table", LOOK, schema, name)
        if not found:
            return None
        oid, vector_type, comment, columns, dimension = found[0]
        said, columns = _read(comment), columns or []
        if said is None or set(columns) != COLUMNS:
            raise KeMetricError(
                f"{place}: a table of something else: its columns are {', '.join(sorted(columns))}; choose "
                "another name",
                ExitCode.DATA,
            )
        quoted = sql.Identifier(schema, name).as_string()
        return cls(database, place, quoted, dimension, said["index"], said["facts"], oid, vector_type)

    @classmethod
    def make(
        cls, database: Database, schema: str, name: str, *, dimension: int, kind: str, facts: Mapping[str, str]
    ) -> Self:
        """Make a table of a name that is free."""
        comment = json.dumps({MARK: VERSION, "index": kind, "facts": dict(facts)}, ensure_ascii=False)
        table = sql.Identifier(schema, name)
        query = sql.SQL(MAKE).format(table=table, dimension=sql.Literal(dimension), comment=sql.Literal(comment))
        with database.changing(f"making the table {schema}.{name}") as cursor:
            cursor.execute(query)
        made = cls.find(database, schema, name)
        assert made is not None, name
        return made

    @property
    def state(self) -> tuple[bool, bool, int]:
        """Whether it has a graph, whether the planner knows what there is, and bytes on the disk, of indexes too."""
        (state,) = self.database.ask("looking at the table", STATE, self.oid)
        return state

    def select(self, what: str, clause: Clause, end: str = "") -> list[tuple[Any, ...]]:
        """Return columns, or an aggregate, of the rows for which a condition holds."""
        query = f"SELECT {what} FROM {self.name} AS t WHERE {clause[0]} {end}"
        return self.database.ask("reading items", query, *clause[1])

    def numbered(self, numbers: IntArray, what: str) -> list[tuple[Any, ...]]:
        """Return columns of the rows of some numbers, in order.

        Raises:
            KeMetricError: DATA: one of them is not there any more.
        """
        asked = numbers.tolist()
        clause = "t.number = ANY(%s::bigint[])", [asked]
        rows = {number: rest for number, *rest in self.select(f"t.number, {what}", clause)} if asked else {}
        missing = sum(number not in rows for number in asked)
        if missing:
            raise KeMetricError(
                f"{self.place}: {missing:,} items were removed or replaced since they were found", ExitCode.DATA
            )
        return [tuple(rows[number]) for number in asked]

    def candidates(
        self, queries: FloatArray, most: int | None, clause: Clause, *, graph: bool, texts: bool = False
    ) -> list[tuple[Any, ...]]:
        """Return the rows of the largest products with each of the queries [Q, D], at least one.

        At most so many for each, or all, found by the graph or by comparing everything: place of the query from 1,
        number, product as pgvector computes it in float32, and vector as bytes, the largest products first; with
        `texts` id, path and label after them.
        """
        order = GRAPHS[self.kind][0] if graph else EXACTLY
        query = CANDIDATES.format(
            table=self.name,
            clause=clause[0],
            order=order.format(dimension=self.dimension),
            texts=", h.id, h.path, h.label" if texts else "",
        )
        head = np.array([1, 0, self.vector_type, len(queries), 1], ">i4").tobytes()
        array = Packed(head + elements_of(queries).tobytes())
        return self.database.ask(f"a search of {len(queries):,} queries", query, array, *clause[1], most)

    def first_of(self, field: str, keys: list[bytes]) -> list[bytes]:
        """Return those of the keys of a field that a row has."""
        query = (
            "SELECT k.key FROM unnest(%b::bytea[]) AS k (key) "
            f"WHERE EXISTS (SELECT FROM {self.name} AS t WHERE t.{field}_key = k.key)"
        )
        return [key for (key,) in self.database.ask("reading items", query, keys)]

    def everything(self, rows: int) -> Iterator[tuple[list[Item], FloatArray]]:
        """Yield all items and vectors in the order of their numbers, so many at a time, as they are now."""
        query = f"SELECT id, path, label, vector_send(vector) FROM {self.name} ORDER BY number"
        for page in self.database.pages("reading everything", query, rows):
            yield [Item(*row[:3]) for row in page], vectors_of((row[3] for row in page), self.dimension)

    def write(self, cursor: psycopg.Cursor[Any], items: Sequence[Item], vectors: FloatArray) -> None:
        """Append rows."""
        columns = [*(f"{field}_key" for field in FIELDS), *FIELDS, "vector"]
        query = f"COPY {self.name} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"
        with cursor.copy(query.encode()) as copy:
            copy.set_types(["bytea"] * 3 + ["text"] * 3 + ["bytea"])
            for item, element in zip(items, elements_of(vectors), strict=True):
                texts = (item.id, item.path, item.label)
                copy.write_row((*map(key_of, texts), *texts, element.tobytes()[4:]))

    def delete(self, cursor: psycopg.Cursor[Any], ids: Iterable[str]) -> None:
        """Delete the rows of ids."""
        clause, keys = one_of("id", ids)
        cursor.execute(f"DELETE FROM {self.name} AS t WHERE {clause}".encode(), keys)

    def build_graph(self) -> None:
        """Build the graph; readers go on meanwhile."""
        what = GRAPHS[self.kind][1].format(dimension=self.dimension)
        query = f"CREATE INDEX ON {self.name} USING hnsw ({what}) WITH (m = 16, ef_construction = 200)"
        with self.database.changing("building the graph", SECONDS_TO_BUILD) as cursor:
            cursor.execute(query.encode())

    def analyze(self) -> None:
        """Let the planner know how many items a condition leaves."""
        self.database.ask("counting labels", f"ANALYZE {self.name} (id_key, path_key, label_key)")

    def drop(self) -> None:
        """Delete it, with all its items."""
        self.database.ask("dropping the table", f"DROP TABLE {self.name}")


def _read(comment: str | None) -> dict[str, Any] | None:
    """Return what a comment of ours says; None for another one."""
    try:
        said = json.loads(comment or "")
        return said if said[MARK] == VERSION and said["index"] in KINDS and isinstance(said["facts"], dict) else None
    except (ValueError, KeyError, TypeError):
        return None
