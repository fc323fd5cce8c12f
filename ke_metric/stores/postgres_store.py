"""A store in a table of PostgreSQL with pgvector; see docs/postgres.md.

The server proposes a few more neighbours than are asked for, by products in float32 or by its graph. They are
compared again here in float64, so that similarities and the order of equal ones are those of the local stores.

Shapes: N items, B batch, D embedding, Q queries, K neighbours, C candidates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from ke_metric.arrays import FloatArray, IntArray, row_chunks
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.stores.contract import (
    Hits,
    Item,
    Where,
    check_addition,
    check_count,
    check_queries,
    most_found,
    texts_of,
)
from ke_metric.stores.memmap import COMPARED, SPARE, Found, products_of, settle
from ke_metric.stores.postgres_connection import Database
from ke_metric.stores.postgres_table import (
    Clause,
    PostgresTable,
    as_similar,
    check_kind,
    clause_of,
    key_of,
    named,
    one_of,
    vectors_of,
)

QUERIES_AT_ONCE = 16
"""Of a request, where each is compared with everything: at ten million items that is a minute's work."""
QUERIES_OF_GRAPH = 512
NUMBERS_AT_ONCE = 2**22
"""Of the vectors of an answer, of four bytes each."""
ADDED_A_SECOND = 20
"""By a busy server, to a large graph, at the least."""
FEW = 1_000
"""As many neighbours are asked for without knowing how many items there are."""
TEXTS = "t.id, t.path, t.label"
TEXTS_AT_ONCE = 2**14
"""Of a search that finds no more, ids, paths and labels come with the answer: most of them are asked for."""
Texts = dict[int, Sequence[str]]
"""Number to id, path and label."""


class PostgresStore:
    """A `VectorStore` in PostgreSQL.

    Its graph, where it has one, is built by the first `flush` of so many items as `least_for_graph` says: fewer are
    compared exactly in milliseconds, and what is built after a bulk load is built at once.

    Args:
        uri: postgresql://USER@HOST:PORT/DATABASE, without a password.
        dimension: Length D of the vectors.
        writing: To add and remove.
        making: Make what is not there, when writing.
        collection: Name of the table, TABLE in the first schema of the search path or SCHEMA.TABLE.
        kind: FLAT, which is exact, HNSW or HNSW_HALFVEC.
        facts: What the table is to say of itself, such as the digest of the model; else it is refused.

    Attributes:
        facts: What the table says of itself.

    Raises:
        KeMetricError: USAGE: no such URI, name or kind. ENVIRONMENT: the server does not answer, or not to us.
            LINEAGE: another process writes it, or it is of another dimension or model. DATA: there is no table, or
            it is of something else.
    """

    least_for_graph = 10_000

    def __init__(
        self,
        uri: str,
        dimension: int,
        *,
        writing: bool,
        making: bool = True,
        collection: str = "ke_metric",
        kind: str = "FLAT",
        facts: Mapping[str, str] | None = None,
    ) -> None:
        check_kind(kind, dimension)
        schema, name = named(collection)
        self._dimension, self._writing, self._graph = dimension, writing, False
        self._database = Database(uri, making=writing and making)
        try:
            self._table = self._open(schema, name, kind, facts or {}, making=writing and making)
        except BaseException:
            self._database.close()
            raise
        self.facts = self._table.facts

    def _open(
        self, schema: str | None, name: str, kind: str, facts: Mapping[str, str], *, making: bool
    ) -> PostgresTable:
        schema = schema or self._database.schema
        place = f"{self._database.uri}, table {schema}.{name}"
        if schema is None:
            raise KeMetricError(f"{place}: no schema of the search path is there; name one", ExitCode.DATA)
        if self._writing:
            number = blake2b(f"ke_metric {schema}.{name}".encode(), digest_size=8).digest()
            self._database.lock(int.from_bytes(number, "big", signed=True), place)
        table = PostgresTable.find(self._database, schema, name)
        if table is None:
            if not making:
                raise KeMetricError(f"{place}: there is no such table", ExitCode.DATA)
            table = PostgresTable.make(
                self._database, schema, name, dimension=self._dimension, kind=kind, facts=facts
            )
        _check(table, self._dimension, kind, facts)
        return table

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return self._dimension

    def __len__(self) -> int:
        return self._count(clause_of(None))

    def _count(self, clause: Clause) -> int:
        return int(self._table.select("count(*)", clause)[0][0])

    def add(self, items: Sequence[Item], vectors: FloatArray, *, replace: bool = False) -> None:
        """Add items, all of them or none; see `VectorStore.add`."""
        self._require_writing()
        check_addition(items, vectors, self._dimension)
        if not items:
            return
        ids = [item.id for item in items]
        with self._database.changing(f"adding {len(items):,} items", len(items) // ADDED_A_SECOND) as cursor:
            there = self.known(ids)
            if there and not replace:
                first = next(name for name in ids if name in there)
                raise KeMetricError(
                    f"{self._table.place}: item {first!r} is there already ({len(there):,} of these {len(items):,} "
                    "are); replace=True lets the new ones take their place",
                    ExitCode.DATA,
                )
            if there:
                self._table.delete(cursor, there)
            self._table.write(cursor, items, vectors)

    def remove(self, ids: Collection[str]) -> None:
        """Remove items, all of them or none; see `VectorStore.remove`."""
        self._require_writing()
        if distinct := list(dict.fromkeys(texts_of(ids))):
            with self._database.changing(f"removing {len(distinct):,} items") as cursor:
                self._require_known(distinct, self.known(distinct))
                self._table.delete(cursor, distinct)

    def _require_writing(self) -> None:
        if not self._writing:
            raise KeMetricError(f"{self._table.place}: opened to read, not to add or remove", ExitCode.USAGE)

    def search(self, queries: FloatArray, k: int, *, where: Where | None = None) -> Hits:
        """Find the items with the largest inner product with each query; see `VectorStore.search`.

        Queries of which a graph finds fewer than there are, because of a narrow `where` or of much that was
        removed, are compared with all vectors that they may find.
        """
        check_queries(queries, k, self._dimension)
        clause = clause_of(where)
        k = int(k) if k <= FEW else most_found(k, len(self))
        graph = self._has_graph()
        texts: Texts = {}
        similarities, numbers = self._found(queries, k, clause, graph=graph, texts=texts)
        lacking = np.flatnonzero(numbers[:, -1] < 0)
        if graph and len(lacking) and (numbers[lacking] >= 0).sum(1).min() < self._count(clause):
            similarities[lacking], numbers[lacking] = self._found(
                queries[lacking], k, clause, graph=False, texts=texts
            )
            lacking = np.flatnonzero(numbers[:, -1] < 0)
        if len(lacking) == len(queries):
            k = most_found(k, len(self))
            similarities, numbers = similarities[:, :k], numbers[:, :k]
        return Hits(similarities, numbers, lambda asked: self._items_of(asked, texts), self._vectors_of)

    def _has_graph(self) -> bool:
        """Return whether there is a graph; one that is there stays."""
        self._graph = self._graph or (self._table.kind != "FLAT" and self._table.state[0])
        return self._graph

    def _found(self, queries: FloatArray, k: int, clause: Clause, *, graph: bool, texts: Texts) -> Found:
        """Return similarities and numbers [Q, K], -inf and -1 where there is none; exact but for those of a graph."""
        most = (2 * k if self._table.kind == "HNSW_HALFVEC" else k) + SPARE
        with_texts = len(queries) * most <= TEXTS_AT_ONCE
        step = max(
            1, min(QUERIES_OF_GRAPH if graph else QUERIES_AT_ONCE, NUMBERS_AT_ONCE // (most * self._dimension))
        )
        found = []
        for some in row_chunks(len(queries), step):
            rows = self._table.candidates(queries[some], most, clause, graph=graph, texts=with_texts)
            if with_texts:
                texts.update((row[1], row[4:]) for row in rows)
            best, unsure = self._compared(queries[some], k, most, rows)
            for place in [] if graph else unsure.tolist():
                self._search_again(queries[some][place][None], k, clause, best, place)
            found.append(best)
        if len(found) == 1:
            return found[0]
        none = np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        similarities, numbers = zip(none, *found, strict=True)
        return np.concatenate(similarities), np.concatenate(numbers)

    def _search_again(self, query: FloatArray, k: int, clause: Clause, best: Found, place: int) -> None:
        """Enter what a query [1, D] finds among all that are about as similar as its last of the best."""
        # Vectors of length 1: neither this product nor pgvector's is off by more.
        error = (self._dimension + 4) * float(np.finfo(np.float32).eps)
        near = as_similar(clause, float(best[0][place, -1]) - error)
        rows = self._table.candidates(query, None, near, graph=False)
        found, _ = self._compared(query, k, max(k, len(rows)), rows)
        best[0][place], best[1][place] = found[0][0], found[1][0]

    def _compared(
        self, queries: FloatArray, k: int, most: int, rows: Sequence[tuple[Any, ...]]
    ) -> tuple[Found, IntArray]:
        """Compare the rows of `PostgresTable.candidates` again, at most so many of each query; see `settle`."""
        places = np.array([row[0] for row in rows], np.int64) - 1
        vectors = vectors_of([row[3] for row in rows], self._dimension)
        similarities = np.empty(len(rows), np.float32)
        for some in row_chunks(len(rows), max(1, COMPARED // self._dimension)):
            similarities[some] = products_of(queries[places[some]], vectors[some])
        products = np.array([row[2] for row in rows], np.float32)
        numbers = np.array([row[1] for row in rows], np.int64)
        columns = [(similarities, -np.inf), (products, -np.inf), (numbers, -1)]
        first, second, third = _tables(places, (len(queries), most), columns)
        return settle(first, second, third, self._dimension, k)

    def _items_of(self, numbers: IntArray, texts: Texts) -> list[Item]:
        asked = numbers.tolist()
        found = [texts[number] for number in asked if number in texts]
        return [Item(*row) for row in (found if len(found) == len(asked) else self._table.numbered(numbers, TEXTS))]

    def _vectors_of(self, numbers: IntArray) -> FloatArray:
        rows = self._table.numbered(numbers, "vector_send(t.vector)")
        return vectors_of((row[0] for row in rows), self._dimension)

    def matching(self, where: Where) -> list[Item]:
        """Return all items for which `where` holds, in the order of `read`."""
        return [Item(*row) for row in self._table.select(TEXTS, clause_of(where), "ORDER BY t.number")]

    def count(self, where: Where) -> int:
        """Return the number of items for which `where` holds."""
        return self._count(clause_of(where))

    def known_labels(self, labels: Collection[str]) -> set[str]:
        """Return those of the labels that an item has."""
        asked = {key_of(label): label for label in texts_of(labels, "labels")}
        return {asked[key] for key in self._table.first_of("label", list(asked))}

    def items_at(self, paths: Collection[str]) -> dict[str, list[Item]]:
        """Return the items of each of the paths that has some, in the order of `read`."""
        found: dict[str, list[Item]] = {}
        for row in self._table.select(TEXTS, one_of("path", texts_of(paths, "paths")), "ORDER BY t.number"):
            found.setdefault(row[1], []).append(Item(*row))
        return found

    def known(self, ids: Collection[str]) -> set[str]:
        """Return those of the ids that are in the store."""
        return {row[0] for row in self._table.select("t.id", one_of("id", texts_of(ids)))}

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Return the items of ids, in order; see `VectorStore.get`."""
        asked = texts_of(ids)
        found = {row[0]: Item(*row) for row in self._table.select(TEXTS, one_of("id", asked))}
        self._require_known(asked, found)
        return [found[name] for name in asked]

    def _require_known(self, ids: Sequence[str], known: Collection[str]) -> None:
        missing = [name for name in ids if name not in known]
        if missing:
            others = f" (nor {len(missing) - 1:,} others)" if len(missing) > 1 else ""
            raise KeMetricError(f"{self._table.place}: there is no item {missing[0][:80]!r}{others}", ExitCode.DATA)

    def read(self, batch_size: int = 8192) -> Iterator[tuple[list[Item], FloatArray]]:
        """Yield everything, in the order of its adding; what is changed meanwhile does not show."""
        check_count("batch_size", batch_size)
        return self._table.everything(batch_size)

    def flush(self) -> None:
        """Build the graph of many items that have none, and let the planner know what there is."""
        if self._writing and len(self) >= self.least_for_graph:
            if not self._table.state[1]:
                self._table.analyze()
            if self._table.kind != "FLAT" and not self._has_graph():
                self._table.build_graph()

    def describe(self) -> Mapping[str, Any]:
        """Return facts for people and programs as plain JSON values."""
        graph, _, size = self._table.state
        reason = f"searched exactly: a graph is built when there are {self.least_for_graph:,} items"
        return {
            "kind": "postgres",
            "uri": self._database.uri,
            "collection": self._table.place.partition(", table ")[2],
            "index": self._table.kind,
            "exact": not graph,
            **({} if graph or self._table.kind == "FLAT" else {"reason": reason}),
            "items": len(self),
            "dimension": self._dimension,
            "facts": dict(self.facts),
            "bytes": size,
        }

    def drop(self) -> None:
        """Delete the table with all its items; what else the database holds stays."""
        self._table.drop()

    def close(self) -> None:
        """Close the connection, and let another process write."""
        self._database.close()


def _check(table: PostgresTable, dimension: int, kind: str, facts: Mapping[str, str]) -> None:
    """Refuse a table of another dimension or model (LINEAGE), or of another kind of index (USAGE)."""
    if table.dimension != dimension:
        raise KeMetricError(
            f"{table.place}: holds vectors of dimension {table.dimension}, asked for is dimension {dimension}",
            ExitCode.LINEAGE,
        )
    if table.kind != kind:
        raise KeMetricError(
            f"{table.place}: its index is {table.kind}, asked for is {kind}; open it as what it is, or build another",
            ExitCode.USAGE,
        )
    for name, value in facts.items():
        found = table.facts.get(name)
        if found != value:
            raise KeMetricError(f"{table.place}: its {name} is {found!r}, asked for is {value!r}", ExitCode.LINEAGE)


def _tables(places: IntArray, shape: tuple[int, int], columns: Iterable[tuple[Any, float]]) -> list[Any]:
    """Return columns [M] as tables [Q, C], by ascending places from 0; the rest has what stands for none."""
    if len(places) == shape[0] * shape[1]:
        return [values.reshape(shape) for values, _ in columns]
    counts = np.bincount(places, minlength=shape[0])
    ranks = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    tables = []
    for values, nothing in columns:
        table = np.full(shape, nothing, values.dtype)
        table[places, ranks] = values
        tables.append(table)
    return tables
