"""A store in Milvus: a file that Milvus Lite opens in this process, or a server, by nothing but another URI.

Milvus holds the items as well as the vectors; see docs/milvus.md. A request is all or nothing: Milvus has it or has
it not. A change that does not fit into one is first written down in a journal, a second collection.

Shapes: N items, B batch, D embedding, Q queries, K neighbours.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Collection as Many
from typing import Any

import numpy as np

from ke_metric.arrays import FloatArray
from ke_metric.errors import ExitCode, KeMetricError, closest
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
    BOUNDED,
    CONSISTENCIES,
    JOURNAL,
    REQUEST_ROWS,
    STRONG,
    TEXTS,
    Collection,
    Found,
    Row,
    check_name,
    expression_of,
    kind_of,
    one_of,
    parts,
    possible,
    quoted,
    search_pages,
)
from ke_metric.stores.milvus_connection import Connection, is_server
from ke_metric.stores.milvus_journal import Journal

SECONDS_STRONG = 10.0
"""After a change, or after a reader was opened; what is Bounded is at most 5 seconds old, as servers are set up."""
NEIGHBORS_UNCOUNTED = 1_000
"""As many are asked of a server without knowing how many items there are."""
HITS_AT_ONCE = 2**17
"""Of one request: some 300 bytes each, more where paths are long."""
PRODUCTS_AT_ONCE = 2**25
"""Inner products that Milvus Lite keeps at a time, four bytes each: of all queries of a request with all items."""


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
        consistency: How fresh answers of a server are: Strong, Bounded or Eventually; None: Bounded, but Strong until
            ten seconds after a reader was opened or a writer has made a change, so that all is seen that was
            acknowledged before. A store opened to write ignores Bounded and Eventually: what it reads decides about
            its changes.
        facts: What the collection is to say of itself, such as the digest of the model; one that says otherwise is
            refused.

    Attributes:
        facts: What the collection says of itself.

    Raises:
        KeMetricError: USAGE: no such URI, name, kind or consistency. ENVIRONMENT: pymilvus is not installed, or the
            server does not answer, or does not take the token. LINEAGE: another process has the file open, or the
            collection is of another dimension or model. DATA: there is no collection, or it is of something else.
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
        consistency: str | None = None,
    ) -> None:
        self._kind, self._kind_name, self._dimension, self._writing = kind_of(kind), kind, dimension, writing
        if is_server(uri):
            check_name(collection)
        self._consistency = None if _checked(consistency) != STRONG and writing else consistency
        self._strong_until = math.inf
        self._count: int | None = None
        self._settled, self._begun = True, False
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
        own = Collection(client, f"{name}{JOURNAL}", place, timeout)
        self._journal = Journal(
            main, own, self._dimension, name=secrets.token_hex(16), signing=self._writing and lite is None
        )
        if not main.exists:
            if not making:
                raise KeMetricError(f"{place}: there is no such collection", ExitCode.DATA)
            self._journal.make(facts or {})
            main.make(self._dimension)
        main.check(self._dimension, self._kind_name)
        if not own.exists:
            raise KeMetricError(f"{place}: made by another program: there is no collection {own.name}", ExitCode.DATA)
        own.load("FLAT")
        main.load(self._kind_name)
        for one in (own, main):
            one.wait_until_loaded()
        self._take(facts)
        if making and self._journal.signing and not main.count():
            self._begin()  # of two that fill it from the beginning, the later one alone does
        if lite and lite.was_killed:
            main.flush()
        if not self._writing:
            self._strong_until = time.monotonic() + SECONDS_STRONG

    def _take(self, asked: Mapping[str, str] | None) -> None:
        """Read what the collection says of itself, and finish what whoever wrote it before left to be done.

        Of a server this begins to write only where something was left, or is being done: else whoever writes it now
        goes on, if nothing is changed here.
        """
        self.facts, unsettled = self._journal.look()
        for name, value in (asked or {}).items():
            if self.facts.get(name) != value:
                raise KeMetricError(
                    f"{self._main.place}: its {name} is {self.facts.get(name)!r}, asked for is {value!r}",
                    ExitCode.LINEAGE,
                )
        if unsettled and self._journal.signing:
            self._begin()
        elif unsettled and self._connection.lite is not None:
            self._journal.settle(others=True)

    def _begin(self) -> bool:
        """Be the one that writes from now on; return whether it was not before."""
        if self._begun or not self._journal.signing:
            return False
        self._require_facts(self._journal.look()[0])
        if not self._journal.has_signed:
            self._journal.sign()
        facts, unsettled = self._journal.look()  # whoever wrote before may have written until now
        self._require_facts(facts)
        if unsettled:
            self._journal.settle(others=True)
        self._begun = True  # not before: what was left must be finished before anything newer is written
        return True

    def _require_facts(self, found: Mapping[str, str]) -> None:
        """Refuse a collection that was deleted since, and made again for another network."""
        if found != self.facts:
            raise KeMetricError(
                f"{self._main.place}: said {dict(self.facts)} of itself when it was opened, says {dict(found)} now",
                ExitCode.LINEAGE,
            )

    def _read_level(self) -> str:
        """Return how fresh an answer must be.

        A writer has what it has written itself; Milvus's own level for that, Session, does not cover what was
        deleted. A reader has all that was acknowledged before it was opened.
        """
        return self._consistency or (STRONG if time.monotonic() < self._strong_until else BOUNDED)

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return self._dimension

    def __len__(self) -> int:
        known = self._known_count()
        return self._main.count(level=self._read_level()) if known is None else known

    def _known_count(self) -> int | None:
        """Return the number of items of a file, which nobody else changes; None: a server has to be asked for it."""
        self._settle()
        if self._connection.lite is not None and self._count is None:
            self._count = self._main.count()
        return self._count

    def add(self, items: Sequence[Item], vectors: FloatArray, *, replace: bool = False) -> None:
        """Add items, all of them or none; see `VectorStore.add`."""
        self._require_writing()
        check_addition(items, vectors, self._dimension)
        if not items:
            return
        ids = [item.id for item in items]
        there = self._known_to_all(ids, lambda known: None if replace else self._require_new(ids, known))
        rows = [
            {"id": item.id, "path": item.path, "label": item.label, "vector": vector}
            for item, vector in zip(items, np.ascontiguousarray(vectors), strict=True)
        ]
        self._change(lambda: self._journal.put(rows, replacing=bool(there)), len(items) - len(there))

    def remove(self, ids: Many[str]) -> None:
        """Remove items, all of them or none; see `VectorStore.remove`."""
        self._require_writing()
        distinct = list(dict.fromkeys(texts_of(ids)))
        if distinct:
            self._known_to_all(distinct, lambda known: self._require_known(distinct, known))
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
        there = self._known_count()
        if there is None and (k > NEIGHBORS_UNCOUNTED or not len(queries)):
            there = len(self)
        most = int(k if there is None else min(k, there))
        if most > REQUEST_ROWS:
            raise KeMetricError(
                f"{self._main.place}: k = {k:,}, Milvus finds at most {REQUEST_ROWS:,} neighbours; a FAISS or memmap "
                "store finds more",
                ExitCode.USAGE,
            )
        found = Found(len(queries), max(1, most))
        if most:
            self._search(found, queries, most, expression_of(where), there)
            if there is None and not found.is_full:
                there = len(self)
            if there is not None and self._kind_name != "FLAT":
                self._complete(found, queries, min(most, there), expression_of(where))
        if there is not None:
            found.narrow(most_found(k, there))
        return Hits(
            found.similarities, found.numbers, found.items_of, lambda some: self._vectors_of(found.items_of(some))
        )

    def _search(self, found: Found, queries: FloatArray, most: int, expression: str, there: int | None) -> None:
        """Enter the hits of the queries, in as many requests as answers need; one for a few."""
        products = PRODUCTS_AT_ONCE // there if self._connection.lite and there else REQUEST_ROWS
        step = max(1, min(REQUEST_ROWS, HITS_AT_ONCE // most, products))
        settings, level = self._kind.searched(most), self._read_level()
        for start in range(0, len(queries), step):
            part = list(queries[start : start + step])
            found.enter(start, self._main.search(part, most, expression=expression, settings=settings, level=level))

    def _complete(self, found: Found, queries: FloatArray, most: int, expression: str) -> None:
        """Search exactly for those queries that have fewer hits than there are items to be found."""
        counts = found.counts
        if (counts >= most).all():
            return
        level = self._read_level()
        lacking = np.flatnonzero(counts < min(most, self._main.count(expression, level=level)))
        if len(lacking):
            pages = self._main.pages([*TEXTS, "vector"], width=self._row_bytes, expression=expression, level=level)
            for query, hits in zip(lacking.tolist(), search_pages(pages, queries[lacking], most), strict=True):
                found.enter(query, [hits])

    def matching(self, where: Where) -> list[Item]:
        """Return all items for which `where` holds, in the order of `read`."""
        self._settle()
        pages = self._main.pages(TEXTS, width=1024, expression=expression_of(where), level=self._read_level())
        return [_item(row) for page in pages for row in page]

    def count(self, where: Where) -> int:
        """Return the number of items for which `where` holds."""
        expression = expression_of(where)
        self._settle()
        return self._main.count(expression, level=self._read_level())

    def known_labels(self, labels: Many[str]) -> set[str]:
        """Return those of the labels that an item has."""
        asked = possible(texts_of(labels, "labels"))
        self._settle()
        level = self._read_level()
        return {label for label in asked if self._main.has(one_of("label", [label]), level=level)}

    def items_at(self, paths: Many[str]) -> dict[str, list[Item]]:
        """Return the items of each of the paths that has some, in the order of `read`."""
        asked = possible(dict.fromkeys(texts_of(paths, "paths")))
        self._settle()
        found: dict[str, list[Item]] = {}
        level = self._read_level()
        for part in parts(asked, lambda text: len(quoted(text).encode())):
            for page in self._main.pages(TEXTS, width=1024, expression=one_of("path", part), level=level):
                for row in page:
                    found.setdefault(row["path"], []).append(_item(row))
        return found

    def known(self, ids: Many[str]) -> set[str]:
        """Return those of the ids that are in the store."""
        asked = texts_of(ids)
        self._settle()
        return {row["id"] for row in self._main.find(asked, ["id"], level=self._read_level())}

    def _known_to_all(self, ids: Sequence[str], check: Callable[[set[str]], None]) -> set[str]:
        """Return those of the ids that are in the store, whoever added them, before a change is decided.

        What `check` refuses is refused before this one begins to write, which ends another's writing.
        """
        self._settle()
        found = {row["id"] for row in self._main.find(ids, ["id"])}
        check(found)
        if self._begin():
            found = {row["id"] for row in self._main.find(ids, ["id"])}
            check(found)
        self._journal.require_signed()  # after what is decided by was read
        return found

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Return the items of ids, in order; see `VectorStore.get`."""
        asked = texts_of(ids)
        self._settle()
        found = self._rows_of(list(dict.fromkeys(asked)), TEXTS)
        return [_item(found[name]) for name in asked]

    def read(self, batch_size: int = 8192) -> Iterator[tuple[list[Item], FloatArray]]:
        """Yield everything, in the order of the ids; see `VectorStore.read`."""
        check_count("batch_size", batch_size)
        self._settle()
        for page in self._main.pages([*TEXTS, "vector"], width=self._row_bytes, level=self._read_level()):
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
        self._begin()
        self._journal.require_signed()
        self._main.drop()
        self._journal.own.drop()

    def close(self) -> None:
        """Close the connection, and for a file stop Milvus Lite and let others open it."""
        self._connection.close()

    def _change(self, change: Callable[[], None], more: int) -> None:
        """Make a change; where its answer is lost, find out before the next request what became of it."""
        count, self._count = self._known_count(), None
        self._settled, self._strong_until = False, math.inf
        change()
        self._count = None if count is None else count + more
        self._settled, self._strong_until = True, time.monotonic() + SECONDS_STRONG

    def _settle(self) -> None:
        if not self._settled:
            self._journal.settle(others=False)
            self._settled = True

    def _require_writing(self) -> None:
        if not self._writing:
            raise KeMetricError(f"{self._main.place}: opened to read, not to add or remove", ExitCode.USAGE)

    def _require_new(self, ids: Sequence[str], known: Many[str]) -> None:
        if known:
            first = next(name for name in ids if name in known)
            raise KeMetricError(
                f"{self._main.place}: item {first!r} is there already ({len(known):,} of these {len(ids):,} are); "
                "replace=True lets the new ones take their place",
                ExitCode.DATA,
            )

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
        found = self._rows_of(ids, ["id", "vector"], width=4 * self._dimension)
        vectors = [found[name]["vector"] for name in ids]
        return np.array(vectors, np.float32).reshape(len(ids), self._dimension)

    def _rows_of(self, ids: Sequence[str], fields: Sequence[str], *, width: int = 0) -> dict[str, Row]:
        """Return the rows of all of the ids; one that an earlier, fresher answer told of may take a Strong one."""
        found: dict[str, Row] = {}
        for level in (self._read_level(), STRONG):
            missing = [name for name in ids if name not in found]
            found |= {row["id"]: row for row in self._main.find(missing, fields, level=level, width=width)}
        self._require_known(ids, found.keys())
        return found


def _checked(consistency: str | None) -> str | None:
    if consistency is not None and consistency not in CONSISTENCIES:
        raise KeMetricError(
            f"milvus: consistency = {consistency!r}, must be one of {', '.join(CONSISTENCIES)}"
            f"{closest(consistency, CONSISTENCIES)}",
            ExitCode.USAGE,
        )
    return consistency


def _item(row: Row) -> Item:
    return Item(row["id"], row["path"], row["label"])
