"""A Milvus collection of items: how it is made, and the requests that it is read and changed with.

Everything goes through pymilvus, in calls that Milvus Lite and a Milvus cluster both have. Vectors are compared by
inner product; being normalised, that is their cosine similarity. (Milvus Lite computes COSINE as a distance.) What is
searched for is said in Milvus's expression language; text never becomes syntax.

Shapes: Q queries, D embedding, K neighbours, M rows of a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ke_metric.arrays import FloatArray, IntArray, row_chunks
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.stores.contract import LONGEST_TEXT, Condition, Item, Where, check_where, is_unicode
from ke_metric.stores.memmap import best

if TYPE_CHECKING:
    from pymilvus import MilvusClient

Row = dict[str, Any]
TEXT_BYTES = 4 * 1024 + 64
"""Milvus counts bytes: 1,024 characters of four bytes, and what the journal puts before an id."""
REQUEST_BYTES = 32 * 2**20
"""Of one request or answer. Servers take 64 MiB; Milvus Lite needs many times its memory."""
REQUEST_ROWS = 16_384
"""Most rows of an answer, neighbours of a query or queries of a request; Milvus's own limit."""
TEXTS = ("id", "path", "label")
STRONG = {"consistency_level": "Strong"}
QUERIES_AT_A_TIME = 256
# What ends a text in quotes or begins an escape, for Milvus and Milvus Lite alike; all else stands for itself.
ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
NEVER = 'id == ""'


def quoted(text: str) -> str:
    """Return a text as a literal, in double quotes."""
    return f'"{text.translate(ESCAPES)}"'


def one_of(field: str, values: Iterable[str]) -> str:
    """Return the expression that a field is one of the values."""
    return f"{field} in [{', '.join(map(quoted, values))}]"


def expression_of(where: Where | None) -> str:
    """Return the expression that holds where `where` does; empty for what holds for all items."""
    check_where(where)
    return " and ".join(filter(None, map(_condition, where.conditions))) if where else ""


def possible(texts: Iterable[str]) -> list[str]:
    """Return those of the texts that an item can have; the others cannot be sent, and nothing is equal to them."""
    return [text for text in texts if len(text) <= LONGEST_TEXT and "\0" not in text and is_unicode(text)]


def _condition(condition: Condition) -> str:
    values = possible(condition.values)
    if not values:
        return NEVER if condition.within else ""
    if len(values) == 1:
        return f"{condition.field} {'==' if condition.within else '!='} {quoted(values[0])}"
    found = one_of(condition.field, values)
    return found if condition.within else f"not ({found})"


@dataclass(frozen=True)
class IndexKind:
    """Settings of a kind of index for building and for searching it.

    `wide` names the one that must be at least the number of neighbours; empty for none.
    """

    build: Mapping[str, int] = field(default_factory=dict)
    search: Mapping[str, int] = field(default_factory=dict)
    wide: str = ""

    def searched(self, k: int) -> dict[str, int]:
        """Return the settings to search k neighbours with."""
        return {**self.search, **({self.wide: max(self.search[self.wide], 2 * k)} if self.wide else {})}


KINDS = {
    "FLAT": IndexKind(),
    "HNSW": IndexKind({"M": 16, "efConstruction": 200}, {"ef": 128}, "ef"),
    "IVF_FLAT": IndexKind({"nlist": 128}, {"nprobe": 16}),
    "AUTOINDEX": IndexKind(),
}
"""FLAT is exact. AUTOINDEX is the server's choice; Milvus Lite takes HNSW."""


def kind_of(name: str) -> IndexKind:
    """Return a kind of index; refuse another name as USAGE."""
    if name not in KINDS:
        raise KeMetricError(
            f"milvus: index = {name!r}, must be one of {', '.join(KINDS)}{closest(name, KINDS)}", ExitCode.USAGE
        )
    return KINDS[name]


@dataclass(frozen=True)
class Collection:
    """A collection of items; errors call it by its `place`, and a request takes at most `timeout` seconds."""

    client: MilvusClient
    name: str
    place: str
    timeout: float | None = None

    @property
    def exists(self) -> bool:
        """Whether it is there, be it half made."""
        with explained(self.place):
            return bool(self.client.has_collection(self.name, timeout=self.timeout))

    def make(self, dimension: int) -> None:
        """Make it; without an index."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        for name in TEXTS:
            schema.add_field(name, DataType.VARCHAR, max_length=TEXT_BYTES, is_primary=name == "id")
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        with explained(self.place):
            self.client.create_collection(self.name, schema=schema, timeout=self.timeout, **STRONG)

    def drop(self) -> None:
        """Delete it and all its items."""
        with explained(self.place):
            self.client.drop_collection(self.name, timeout=self.timeout)

    def load(self, kind: str) -> None:
        """Index it if it is not, and have it searched from memory. However often, after whatever kill."""
        with explained(self.place):
            if not self.client.list_indexes(self.name, field_name="vector"):
                parameters = self.client.prepare_index_params()
                parameters.add_index(
                    "vector", index_type=kind, metric_type="IP", index_name="vector", params=dict(KINDS[kind].build)
                )
                self.client.create_index(self.name, parameters, sync=False)  # there is nothing in it yet
            self.client.load_collection(self.name)

    def check(self, dimension: int, kind: str) -> None:
        """Refuse other fields (DATA), another dimension (LINEAGE) or another kind of index (USAGE)."""
        with explained(self.place):
            fields = {entry["name"]: entry for entry in self.client.describe_collection(self.name)["fields"]}
        if set(fields) != {*TEXTS, "vector"}:
            raise KeMetricError(
                f"{self.place}: a collection of something else: its fields are {', '.join(sorted(fields))}, must be "
                f"id, path, label, vector; choose another name",
                ExitCode.DATA,
            )
        found = int(fields["vector"]["params"]["dim"])
        if found != dimension:
            raise KeMetricError(
                f"{self.place}: holds vectors of dimension {found}, asked for is dimension {dimension}",
                ExitCode.LINEAGE,
            )
        with explained(self.place):
            names = self.client.list_indexes(self.name, field_name="vector")
            index = dict(self.client.describe_index(self.name, names[0]) or {}) if names else None
        if index and (index["index_type"], index["metric_type"]) != (kind, "IP"):
            raise KeMetricError(
                f"{self.place}: its index is {index['index_type']} by {index['metric_type']}, asked for is {kind} "
                "by IP; open it as what it is, or build another collection",
                ExitCode.USAGE,
            )

    def count(self, expression: str = "") -> int:
        """Return the number of rows for which an expression holds."""
        return int(self._query(expression, ["count(*)"])[0]["count(*)"])

    def has(self, expression: str) -> bool:
        """Return whether an expression holds for any row."""
        return bool(self._query(expression, ["id"], limit=1))

    def put(self, rows: list[Row]) -> None:
        """Write rows, in place of those of the same ids; one request: all or none."""
        with explained(self.place):
            # Not insert: pymilvus repeats a request that got no answer, and a second insert doubles the rows.
            self.client.upsert(self.name, rows, timeout=self.timeout)

    def delete(self, expression: str) -> None:
        """Delete the rows for which an expression holds; one request: all or none."""
        with explained(self.place):
            self.client.delete(self.name, filter=expression, timeout=self.timeout)

    def find(self, ids: Iterable[str], fields: Sequence[str], *, width: int = 0) -> Iterator[Row]:
        """Yield the rows of those ids that are there, in no order; width: bytes of a row that are no text."""
        for part in parts(possible(ids), lambda text: len(quoted(text).encode()) + width, rows=REQUEST_ROWS // 2):
            yield from self._query(one_of("id", part), fields)

    def pages(
        self, fields: Sequence[str], *, width: int, after: str = "", most: int = REQUEST_ROWS, expression: str = ""
    ) -> Iterator[list[Row]]:
        """Yield the rows for which an expression holds in the order of their ids, a page of at most `most` at a time.

        Their `fields`, the id among them, are read, about `width` bytes a row, from the id `after` on. pymilvus has
        an iterator for this, but it does not escape ids that have quotes in them.
        """
        rows = max(1, min(most, REQUEST_ROWS, REQUEST_BYTES // width))
        narrowed = f" and ({expression})" if expression else ""
        while page := self._query(
            f"id > {quoted(after)}{narrowed}", fields, limit=rows, iterator="True", reduce_stop_for_best="True"
        ):
            yield page
            after = page[-1]["id"]

    def _query(self, expression: str, fields: Sequence[str], **settings: Any) -> list[Row]:
        with explained(self.place):
            answer = self.client.query(
                self.name, filter=expression, output_fields=list(fields), timeout=self.timeout, **STRONG, **settings
            )
        return list(answer)

    def search(
        self, queries: Sequence[Any], k: int, *, expression: str, settings: Mapping[str, int]
    ) -> list[list[Row]]:
        """Return the hits of each query, with their id, path and label in "entity"."""
        with explained(self.place):
            answer = self.client.search(
                self.name,
                data=list(queries),
                anns_field="vector",
                limit=k,
                filter=expression,
                output_fields=["path", "label"],
                search_params={"metric_type": "IP", "params": dict(settings)},
                timeout=self.timeout,
                **STRONG,
            )
        return list(answer)

    def flush(self) -> None:
        """Have what was written last brought into data files and indexed."""
        with explained(self.place):
            self.client.flush(self.name, timeout=self.timeout)


def parts(entries: Iterable[Any], size: Any, *, rows: int = 2**31) -> Iterator[list[Any]]:
    """Cut entries into parts that each fit one request, by `size` in bytes and by number."""
    part: list[Any] = []
    total = 0
    for entry in entries:
        bytes_more = size(entry)
        if part and (total + bytes_more > REQUEST_BYTES or len(part) >= rows):
            yield part
            part, total = [], 0
        part.append(entry)
        total += bytes_more
    if part:
        yield part


def size_of(row: Row) -> int:
    """Return the bytes of a row in a request."""
    return 64 + 4 * len(row["vector"]) + sum(len(row[name].encode()) for name in TEXTS)


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Tell errors of Milvus as ours, ENVIRONMENT."""
    import grpc  # type: ignore[import-untyped]
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        said = getattr(error, "message", None) or str(error)
        raise KeMetricError(f"{place}: Milvus says: {said[:1000]}", ExitCode.ENVIRONMENT) from None


class Found:
    """The hits of a search: `similarities` [Q, K] and `numbers` [Q, K]; -inf and -1 where there is none yet.

    Its different items are numbered as they come.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.similarities = np.full((queries, k), -np.inf, np.float32)
        self.numbers = np.full((queries, k), -1, np.int64)
        self._number_of: dict[str, int] = {}
        self._items: list[Item] = []

    def enter(self, start: int, answer: Sequence[Sequence[Row]]) -> None:
        """Enter the hits of the queries from `start` on."""
        for query, hits in enumerate(answer, start):
            self.numbers[query, : len(hits)] = [self._number(hit) for hit in hits]
            self.similarities[query, : len(hits)] = [hit["distance"] for hit in hits]

    def items_of(self, numbers: IntArray) -> list[Item]:
        """Return the items of numbers."""
        return [self._items[number] for number in numbers.tolist()]

    def _number(self, hit: Row) -> int:
        number = self._number_of.setdefault(hit["id"], len(self._items))
        if number == len(self._items):
            self._items.append(Item(hit["id"], hit["entity"]["path"], hit["entity"]["label"]))
        return number


def search_pages(pages: Iterable[list[Row]], queries: FloatArray, k: int) -> list[list[Row]]:
    """Return the k most similar rows of each of the queries [Q, D], computed here, in the form of Milvus's hits.

    This is for queries of which an index finds too little. The pages hold all rows with id, path, label and vector;
    memory is that of one of them.
    """
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    places = np.full((len(queries), k), -1, np.int64)
    kept: list[Row] = []
    for page in pages:
        vectors = np.array([row["vector"] for row in page], np.float32)
        numbers = np.arange(len(kept), len(kept) + len(page))
        for some in row_chunks(len(queries), QUERIES_AT_A_TIME):
            products = queries[some] @ vectors.T
            similarities[some], places[some] = best(
                np.hstack([similarities[some], products]),
                np.hstack([places[some], np.broadcast_to(numbers, products.shape)]),
                k,
            )
        needed, rows = np.unique(places[places >= 0]), [*kept, *page]
        kept = [rows[place] for place in needed]
        places = np.where(places >= 0, np.searchsorted(needed, places), -1)
    return [
        [
            {"id": kept[place]["id"], "distance": float(similarity), "entity": kept[place]}
            for similarity, place in zip(*row, strict=True)
            if place >= 0
        ]
        for row in zip(similarities, places.tolist(), strict=True)
    ]
