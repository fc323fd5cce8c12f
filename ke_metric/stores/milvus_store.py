"""A store in Milvus: a file that Milvus Lite opens in this process, or a server, by nothing but another URI.

Milvus holds the items as well as the vectors; see docs/milvus.md. A request is all or nothing: Milvus has it or has
it not. A change that does not fit into one is first written down in a journal, a second collection.

Shapes: N items, B batch, D embedding, Q queries, K neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Collection as Many
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ke_metric.arrays import FloatArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.stores.contract import (
    Hits,
    Item,
    Where,
    check_addition,
    check_count,
    check_queries,
    check_where,
    most_found,
    texts_of,
)
from ke_metric.stores.milvus_collection import (
    REQUEST_ROWS,
    TEXT_BYTES,
    TEXTS,
    Collection,
    Found,
    Row,
    expression_of,
    kind_of,
    one_of,
    parts,
    possible,
    quoted,
    search_pages,
    size_of,
)
from ke_metric.stores.milvus_connection import Connection

# Ids of the rows of a journal, in this order: what is after FACTS is a change.
COMMIT, FACTS, GONE, PUT = "commit", "facts", "gone ", "put "
HITS_AT_ONCE = 2**17
"""Of one request: some 300 bytes each, more where paths are long."""
PRODUCTS_AT_ONCE = 2**25
"""Inner products that Milvus Lite keeps at a time, four bytes each: of all queries of a request with all items."""


@dataclass(frozen=True)
class Journal:
    """The journal of a collection `main`, itself the collection `own`: it makes changes of several requests whole.

    A change is written down here, then committed by one row, then carried out, and then forgotten; whoever opens the
    collection for writing finishes what was committed and forgets what was not. The journal also keeps what the
    collection says of itself.
    """

    main: Collection
    own: Collection
    dimension: int

    def make(self, facts: Mapping[str, str]) -> None:
        """Make it, in place of one whose collection was never made."""
        if self.own.exists:
            self.own.drop()
        self.own.make(self.dimension)
        self.own.load("FLAT")
        text = json.dumps(dict(sorted(facts.items())), ensure_ascii=False)
        assert len(text.encode()) <= TEXT_BYTES, f"facts of {len(text)} characters"
        self.own.put([self._row(FACTS, text)])

    @property
    def facts(self) -> dict[str, str]:
        """What the collection says of itself."""
        found = list(self.own.find([FACTS], ["label"]))
        return dict(json.loads(found[0]["label"])) if found else {}

    def put(self, rows: Sequence[Row]) -> None:
        """Write rows into the collection, in place of those of the same ids; all or none."""
        requests = list(parts(rows, size_of))
        with self._written_down(requests, ([row | {"id": PUT + row["id"]} for row in part] for part in requests)):
            for request in requests:
                self.main.put(request)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete rows of the collection; all or none."""
        requests = list(parts(ids, lambda text: len(quoted(text).encode()) + 2))
        with self._written_down(requests, parts((self._row(GONE + text) for text in ids), size_of)):
            for request in requests:
                self.main.delete(one_of("id", request))

    def settle(self) -> None:
        """Finish the change that was committed; forget one that was not."""
        committed = bool(list(self.own.find([COMMIT], ["id"])))
        if committed:
            for page in self.own.pages([*TEXTS, "vector"], width=4 * self.dimension + TEXT_BYTES, after=FACTS):
                puts = [row | {"id": row["id"].removeprefix(PUT)} for row in page if row["id"].startswith(PUT)]
                for part in parts(puts, size_of):
                    self.main.put([{name: row[name] for name in (*TEXTS, "vector")} for row in part])
                gone = [row["id"].removeprefix(GONE) for row in page if row["id"].startswith(GONE)]
                if gone:
                    self.main.delete(one_of("id", gone))
        if committed or any(self.own.pages(["id"], width=TEXT_BYTES, after=FACTS, most=1)):
            self._forget(committed=committed)

    @contextmanager
    def _written_down(self, requests: Sequence[object], entries: Iterable[list[Row]]) -> Iterator[None]:
        """Have a change of several requests in the journal while it is carried out; after an error it stays there."""
        if len(requests) > 1:
            for entry in entries:
                self.own.put(entry)
            self.own.put([self._row(COMMIT)])
        yield
        if len(requests) > 1:
            self._forget(committed=True)

    def _forget(self, *, committed: bool) -> None:
        if committed:  # first: a change that is forgotten in part must not be carried out again
            self.own.delete(one_of("id", [COMMIT]))
        self.own.delete(f"id > {quoted(FACTS)}")

    def _row(self, name: str, label: str = "") -> Row:
        return {"id": name, "path": "", "label": label, "vector": [1.0] + [0.0] * (self.dimension - 1)}


class MilvusStore:
    """A `VectorStore` in Milvus.

    Args:
        uri: A file that ends with .db for Milvus Lite; http://host:19530 or the like for a server.
        dimension: Length D of the vectors.
        writing: To add and remove.
        making: Make what is not there, when writing.
        collection: Name of the collection; its journal is a second one, of this name and `_journal`.
        kind: Of the index: FLAT, which is exact, HNSW, IVF_FLAT or AUTOINDEX.
        token: What the server asks for; never stored or printed.
        facts: What the collection is to say of itself, such as the digest of the model; one that says otherwise is
            refused.

    Attributes:
        facts: What the collection says of itself.

    Raises:
        KeMetricError: USAGE: no such URI or kind. ENVIRONMENT: pymilvus is not installed, or the server does not
            answer. LINEAGE: another process has the file open, or the collection is of another dimension or model.
            DATA: there is no collection, or it is of something else.
    """

    def __init__(  # noqa: PLR0913  # where a database is, which part of it, and what may be done there
        self,
        uri: str,
        dimension: int,
        *,
        writing: bool,
        making: bool = True,
        collection: str = "ke_metric",
        kind: str = "FLAT",
        token: str | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        self._kind, self._kind_name, self._dimension, self._writing = kind_of(kind), kind, dimension, writing
        self._count: int | None = None
        self._settled = True
        self._row_bytes = 4 * dimension + 1024  # about what a row takes in an answer
        self._connection = Connection(uri, writing=writing, token=token)
        try:
            self._open(collection, facts, making=writing and making)
        except BaseException:
            self._connection.close()
            raise

    def _open(self, name: str, facts: Mapping[str, str] | None, *, making: bool) -> None:
        client, lite, timeout = self._connection.client, self._connection.lite, self._connection.timeout
        place = f"{self._connection.uri}, collection {name}"
        main = self._main = Collection(client, name, place, timeout)
        self._journal = Journal(main, Collection(client, f"{name}_journal", place, timeout), self._dimension)
        if not main.exists:
            if not making:
                raise KeMetricError(f"{place}: there is no such collection", ExitCode.DATA)
            self._journal.make(facts or {})
            main.make(self._dimension)
        main.check(self._dimension, self._kind_name)
        main.load(self._kind_name)
        self._check_facts(facts)
        if self._alone:
            self._journal.settle()
        if lite and lite.was_killed:
            main.flush()

    def _check_facts(self, asked: Mapping[str, str] | None) -> None:
        place = self._main.place
        if not self._journal.own.exists:
            raise KeMetricError(
                f"{place}: made by another program: there is no collection {self._journal.own.name}", ExitCode.DATA
            )
        self._journal.own.load("FLAT")
        self.facts: Mapping[str, str] = self._journal.facts
        for name, value in (asked or {}).items():
            found = self.facts.get(name)
            if found != value:
                raise KeMetricError(f"{place}: its {name} is {found!r}, asked for is {value!r}", ExitCode.LINEAGE)

    @property
    def _alone(self) -> bool:
        """Whether nobody else changes the collection."""
        return self._writing or self._connection.lite is not None

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return self._dimension

    def __len__(self) -> int:
        if self._count is None or not self._alone:
            self._settle()
            self._count = self._main.count()
        return self._count

    def add(self, items: Sequence[Item], vectors: FloatArray, *, replace: bool = False) -> None:
        """Add items, all of them or none; see `VectorStore.add`."""
        self._require_writing()
        check_addition(items, vectors, self._dimension)
        if not items:
            return
        self._settle()
        there = self.known([item.id for item in items])
        if there and not replace:
            first = next(item.id for item in items if item.id in there)
            raise KeMetricError(
                f"{self._main.place}: item {first!r} is there already ({len(there):,} of these {len(items):,} are); "
                "replace=True lets the new ones take their place",
                ExitCode.DATA,
            )
        rows = [
            {"id": item.id, "path": item.path, "label": item.label, "vector": vector}
            for item, vector in zip(items, np.ascontiguousarray(vectors), strict=True)
        ]
        self._change(lambda: self._journal.put(rows), len(items) - len(there))

    def remove(self, ids: Many[str]) -> None:
        """Remove items, all of them or none; see `VectorStore.remove`."""
        self._require_writing()
        self._settle()
        distinct = list(dict.fromkeys(texts_of(ids)))
        self._require_known(distinct, self.known(distinct))
        if distinct:
            self._change(lambda: self._journal.delete(distinct), -len(distinct))

    def search(self, queries: FloatArray, k: int, *, where: Where | None = None) -> Hits:
        """Find the items with the largest inner product with each query; see `VectorStore.search`.

        Queries of which an index that is not exact finds fewer than there are, because of a narrow `where` or of much
        that was removed, are compared here with all vectors that they may find.

        Raises:
            KeMetricError: USAGE, too: more than 16,384 neighbours of that many items.
        """
        check_queries(queries, k, self._dimension)
        check_where(where)
        there = len(self)
        k = most_found(k, there)
        most = min(k, there)
        if most > REQUEST_ROWS:
            raise KeMetricError(
                f"{self._main.place}: k = {k:,}, Milvus finds at most {REQUEST_ROWS:,} neighbours; a FAISS or memmap "
                "store finds more",
                ExitCode.USAGE,
            )
        found = Found(len(queries), k)
        if most:
            products = PRODUCTS_AT_ONCE // there if self._connection.lite else REQUEST_ROWS
            step = max(1, min(REQUEST_ROWS, HITS_AT_ONCE // most, products))
            expression, settings = expression_of(where), self._kind.searched(most)
            for start in range(0, len(queries), step):
                part = queries[start : start + step]
                found.enter(start, self._main.search(list(part), most, expression=expression, settings=settings))
            if self._kind_name != "FLAT":
                self._complete(found, queries, most, expression)
        return Hits(
            found.similarities, found.numbers, found.items_of, lambda some: self._vectors_of(found.items_of(some))
        )

    def _complete(self, found: Found, queries: FloatArray, most: int, expression: str) -> None:
        """Search exactly for those queries that have fewer hits than there are items to be found."""
        counts = np.count_nonzero(found.numbers >= 0, axis=1)
        if (counts == most).all():
            return
        lacking = np.flatnonzero(counts < min(most, self._main.count(expression)))
        if len(lacking):
            pages = self._main.pages([*TEXTS, "vector"], width=self._row_bytes, expression=expression)
            for query, hits in zip(lacking.tolist(), search_pages(pages, queries[lacking], most), strict=True):
                found.enter(query, [hits])

    def matching(self, where: Where) -> list[Item]:
        """Return all items for which `where` holds, in the order of `read`."""
        self._settle()
        pages = self._main.pages(TEXTS, width=1024, expression=expression_of(where))
        return [_item(row) for page in pages for row in page]

    def count(self, where: Where) -> int:
        """Return the number of items for which `where` holds."""
        expression = expression_of(where)
        self._settle()
        return self._main.count(expression)

    def known_labels(self, labels: Many[str]) -> set[str]:
        """Return those of the labels that an item has."""
        asked = possible(texts_of(labels, "labels"))
        self._settle()
        return {label for label in asked if self._main.has(one_of("label", [label]))}

    def items_at(self, paths: Many[str]) -> dict[str, list[Item]]:
        """Return the items of each of the paths that has some, in the order of `read`."""
        asked = possible(dict.fromkeys(texts_of(paths, "paths")))
        self._settle()
        found: dict[str, list[Item]] = {}
        for part in parts(asked, lambda text: len(quoted(text).encode())):
            for page in self._main.pages(TEXTS, width=1024, expression=one_of("path", part)):
                for row in page:
                    found.setdefault(row["path"], []).append(_item(row))
        return found

    def known(self, ids: Many[str]) -> set[str]:
        """Return those of the ids that are in the store."""
        asked = texts_of(ids)
        self._settle()
        return {row["id"] for row in self._main.find(asked, ["id"])}

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Return the items of ids, in order; see `VectorStore.get`."""
        asked = texts_of(ids)
        self._settle()
        found = {row["id"]: _item(row) for row in self._main.find(dict.fromkeys(asked), TEXTS)}
        self._require_known(asked, found.keys())
        return [found[name] for name in asked]

    def read(self, batch_size: int = 8192) -> Iterator[tuple[list[Item], FloatArray]]:
        """Yield everything, in the order of the ids; see `VectorStore.read`."""
        check_count("batch_size", batch_size)
        self._settle()
        for page in self._main.pages([*TEXTS, "vector"], width=self._row_bytes):
            for start in range(0, len(page), batch_size):
                rows = page[start : start + batch_size]
                yield [_item(row) for row in rows], np.array([row["vector"] for row in rows], np.float32)

    def flush(self) -> None:
        """Have what was written last brought into data files and indexed, by Milvus in its own time."""
        self._settle()
        self._main.flush()

    def describe(self) -> Mapping[str, Any]:
        """Return facts for people and programs as plain JSON values."""
        return {
            "kind": "milvus",
            "uri": self._connection.uri,
            "collection": self._main.name,
            "index": self._kind_name,
            "exact": self._kind_name == "FLAT",
            "items": len(self),
            "dimension": self._dimension,
            "facts": dict(self.facts),
            **({"bytes": lite.size} if (lite := self._connection.lite) else {}),
        }

    def drop(self) -> None:
        """Delete the collection with all its items, and its journal; what else the database holds stays."""
        self._require_writing()
        self._main.drop()
        self._journal.own.drop()

    def close(self) -> None:
        """Close the connection, and for a file stop Milvus Lite and let others open it."""
        self._connection.close()

    def _change(self, change: Callable[[], None], more: int) -> None:
        """Make a change; where its answer is lost, find out before the next request what became of it."""
        count, self._count, self._settled = len(self), None, False
        change()
        self._count, self._settled = count + more, True

    def _settle(self) -> None:
        if not self._settled:
            self._journal.settle()
            self._settled = True

    def _require_writing(self) -> None:
        if not self._writing:
            raise KeMetricError(f"{self._main.place}: opened to read, not to add or remove", ExitCode.USAGE)

    def _require_known(self, ids: Sequence[str], known: Many[str]) -> None:
        missing = [name for name in ids if name not in known]
        if missing:
            raise KeMetricError(
                f"{self._main.place}: there is no item {missing[0]!r}"
                + (f" (nor {len(missing) - 1:,} others)" if len(missing) > 1 else ""),
                ExitCode.DATA,
            )

    def _vectors_of(self, items: Sequence[Item]) -> FloatArray:
        ids = [item.id for item in items]
        rows = {row["id"]: row["vector"] for row in self._main.find(ids, ["id", "vector"], width=4 * self._dimension)}
        self._require_known(ids, rows.keys())
        return np.array([rows[name] for name in ids], np.float32).reshape(len(ids), self._dimension)


def _item(row: Row) -> Item:
    return Item(row["id"], row["path"], row["label"])
