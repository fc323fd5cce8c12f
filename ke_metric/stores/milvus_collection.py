"""A Milvus collection of items: how it is made, and the requests that it is read and changed with.

Everything goes through pymilvus, in calls that Milvus Lite and a Milvus cluster both have. Vectors are compared by
inner product; being normalised, that is their cosine similarity. (Milvus Lite computes COSINE as a distance.) What is
searched for is said in Milvus's expression language; text never becomes syntax.

Shapes: Q queries, D embedding, K neighbours, M rows of a page.
"""

from __future__ import annotations

import re
import time
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
MESSAGE_BYTES = 4 * 2**20
"""Of a request that a server writes into its log as one message, of 5 MiB at most as it is installed."""
REQUEST_ROWS = 16_384
"""Most rows of an answer, neighbours of a query or queries of a request; Milvus's own limit."""
TEXTS = ("id", "path", "label")
STRONG = "Strong"
"""Sees all that was acknowledged anywhere before: it waits until the server has ticked, which takes about 0.3 seconds
(eval/stores/milvus_reader.md)."""
BOUNDED = "Bounded"
"""At most as old as the server is set up to allow: five seconds."""
CONSISTENCIES = (STRONG, BOUNDED, "Eventually")
QUERIES_AT_A_TIME = 256
SECONDS_TO_FLUSH = 600.0
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_WITHOUT_PROGRESS = 120.0
JOURNAL = "_journal"
LONGEST_NAME = 255 - len(JOURNAL)
NAME = re.compile(rf"[A-Za-z_][A-Za-z0-9_]{{0,{LONGEST_NAME - 1}}}")
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


def check_name(name: str) -> None:
    """Refuse a name that no collection of a server can have, or whose journal could have none, as USAGE."""
    if not NAME.fullmatch(name):
        raise KeMetricError(
            f"milvus: collection = {name[:80]!r} ({len(name)} characters), must be at most {LONGEST_NAME} letters of "
            "a to z, digits and underscores, and not begin with a digit",
            ExitCode.USAGE,
        )


@dataclass(frozen=True)
class Collection:
    """A collection of items; errors call it by its `place`.

    A request takes at most `timeout` seconds, and an error says what was waited for; None: for ever.
    """

    client: MilvusClient
    name: str
    place: str
    timeout: float | None = None

    def _ask(self, doing: str, request: str, *what: Any, seconds: float | None = None, **settings: Any) -> Any:
        """Make a request to the client; each of them goes through here, and none without a time limit."""
        timeout = self.timeout if seconds is None or self.timeout is None else seconds
        with explained(self.place, doing, timeout):
            return getattr(self.client, request)(self.name, *what, timeout=timeout, **settings)

    @property
    def exists(self) -> bool:
        """Whether it is there, be it half made."""
        return bool(self._ask("looking for it", "has_collection"))

    def make(self, dimension: int) -> None:
        """Make it; without an index."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        for name in TEXTS:
            schema.add_field(name, DataType.VARCHAR, max_length=TEXT_BYTES, is_primary=name == "id")
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        # More than one shard would make several messages of the smallest request.
        self._ask("making it", "create_collection", schema=schema, consistency_level=STRONG, num_shards=1)

    def drop(self) -> None:
        """Delete it and all its items."""
        self._ask("deleting it", "drop_collection")

    def load(self, kind: str) -> None:
        """Index it if it is not, and begin to have it searched from memory. However often, after whatever kill."""
        if not self._index_names():
            parameters = self.client.prepare_index_params()
            parameters.add_index(
                "vector", index_type=kind, metric_type="IP", index_name="vector", params=dict(KINDS[kind].build)
            )
            # There is nothing in it yet: nothing to wait for.
            self._ask("making its index", "create_index", parameters, sync=False)
        self._ask("beginning to load it", "load_collection", _async=True)

    def wait_until_loaded(self) -> None:
        """Wait until it is searched from memory, for as long as that goes on."""
        progress, since = -1, time.monotonic()
        while (found := self._ask("loading it", "get_load_state"))["state"].name != "Loaded":
            state, now = found["state"].name, time.monotonic()
            if found.get("progress", 0) > progress:
                progress, since = found.get("progress", 0), now
            if now - since > (limit := self.timeout or SECONDS_WITHOUT_PROGRESS):
                what = (
                    f"Milvus is at {progress} % for {limit:.0f} seconds now; it goes on by itself, try again later"
                    if state == "Loading"
                    else f"its state is {state} for {limit:.0f} seconds now: somebody releases or deletes it"
                )
                raise KeMetricError(f"{self.place}: loading it: {what}", ExitCode.ENVIRONMENT)
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _index_names(self) -> list[str]:
        return list(self._ask("looking for its index", "list_indexes", field_name="vector"))

    def check_fields(self) -> int:
        """Refuse other fields than those of a collection of ours, as DATA; return the dimension of its vectors."""
        described = self._ask("looking what it is", "describe_collection")
        fields = {entry["name"]: entry for entry in described["fields"]}
        if set(fields) != {*TEXTS, "vector"}:
            raise KeMetricError(
                f"{self.place}: {self.name} is a collection of something else: its fields are "
                f"{', '.join(sorted(fields))}, must be id, path, label, vector; choose another name",
                ExitCode.DATA,
            )
        return int(fields["vector"]["params"]["dim"])

    def check(self, dimension: int, kind: str) -> None:
        """Refuse other fields (DATA), another dimension (LINEAGE) or another kind of index (USAGE)."""
        found = self.check_fields()
        if found != dimension:
            raise KeMetricError(
                f"{self.place}: holds vectors of dimension {found}, asked for is dimension {dimension}",
                ExitCode.LINEAGE,
            )
        names = self._index_names()
        index = dict(self._ask("looking what its index is", "describe_index", names[0]) or {}) if names else None
        if index and (index["index_type"], index["metric_type"]) != (kind, "IP"):
            raise KeMetricError(
                f"{self.place}: its index is {index['index_type']} by {index['metric_type']}, asked for is {kind} "
                "by IP; open it as what it is, or build another collection",
                ExitCode.USAGE,
            )

    def count(self, expression: str = "", *, level: str = STRONG) -> int:
        """Return the number of rows for which an expression holds."""
        return int(self.query(expression, ["count(*)"], level=level)[0]["count(*)"])

    def has(self, expression: str, *, level: str = STRONG) -> bool:
        """Return whether an expression holds for any row."""
        return bool(self.query(expression, ["id"], level=level, limit=1))

    def put(self, rows: list[Row]) -> None:
        """Write rows, in place of those of the same ids; one request: all or none."""
        # Not insert: pymilvus repeats a request that got no answer, and a second insert doubles the rows.
        self._ask(f"writing {len(rows):,} rows", "upsert", rows)

    def delete(self, expression: str) -> None:
        """Delete the rows for which an expression holds; one request: all or none."""
        self._ask("deleting rows", "delete", filter=expression)

    def find(
        self, ids: Iterable[str], fields: Sequence[str], *, level: str = STRONG, width: int = 0
    ) -> Iterator[Row]:
        """Yield the rows of those ids that are there, in no order; width: bytes of a row that are no text."""
        for part in parts(possible(ids), lambda text: len(quoted(text).encode()) + width, rows=REQUEST_ROWS // 2):
            yield from self.query(one_of("id", part), fields, level=level)

    def pages(  # which rows, what of them, how many, and how fresh
        self,
        fields: Sequence[str],
        *,
        width: int,
        after: str = "",
        most: int = REQUEST_ROWS,
        expression: str = "",
        level: str = STRONG,
    ) -> Iterator[list[Row]]:
        """Yield the rows for which an expression holds in the order of their ids, a page of at most `most` at a time.

        Their `fields`, the id among them, are read, about `width` bytes a row, from the id `after` on. pymilvus has
        an iterator for this, but it does not escape ids that have quotes in them.
        """
        rows = max(1, min(most, REQUEST_ROWS, REQUEST_BYTES // width))
        narrowed = f" and ({expression})" if expression else ""
        while page := self.query(
            f"id > {quoted(after)}{narrowed}",
            fields,
            level=level,
            limit=rows,
            iterator="True",
            reduce_stop_for_best="True",
        ):
            yield page
            after = page[-1]["id"]

    def query(self, expression: str, fields: Sequence[str], *, level: str = STRONG, **settings: Any) -> list[Row]:
        """Return fields of the rows for which an expression holds."""
        return list(
            self._ask(
                "reading rows",
                "query",
                filter=expression,
                output_fields=list(fields),
                consistency_level=level,
                **settings,
            )
        )

    def search(  # what is looked for, where, how thoroughly, and how fresh
        self, queries: Sequence[Any], k: int, *, expression: str, settings: Mapping[str, int], level: str
    ) -> list[list[Row]]:
        """Return the hits of each query, with their id, path and label in "entity"."""
        return list(
            self._ask(
                f"a search of {len(queries):,} queries",
                "search",
                data=list(queries),
                anns_field="vector",
                limit=k,
                filter=expression,
                output_fields=["path", "label"],
                search_params={"metric_type": "IP", "params": dict(settings)},
                consistency_level=level,
            )
        )

    def flush(self) -> None:
        """Have what was written last brought into data files and indexed."""
        self._ask("flushing it", "flush", seconds=SECONDS_TO_FLUSH)


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
def explained(place: str, doing: str, seconds: float | None) -> Iterator[None]:
    """Tell errors of Milvus as ours, ENVIRONMENT, with what was being done for at most so many seconds."""
    import grpc  # type: ignore[import-untyped]
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        raise KeMetricError(f"{place}: {doing}: {_in_words(error, seconds)}", ExitCode.ENVIRONMENT) from None


def _codes_of(error: BaseException) -> set[str]:
    """Return the names of the codes of an error and of what it came from, which in pymilvus may be itself."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__
    codes = [getattr(one, "code", None) for one in causes]
    return {getattr(code() if callable(code) else code, "name", "") for code in codes}


def _in_words(error: BaseException, seconds: float | None) -> str:
    """Return what Milvus says; pymilvus has words of its own around what gRPC knows."""
    codes = _codes_of(error)
    if "DEADLINE_EXCEEDED" in codes:
        return (
            f"Milvus does not answer any more; {seconds:.0f} seconds were waited" if seconds else "no answer in time"
        )
    if "UNAUTHENTICATED" in codes:
        return (
            "the server does not take the token, or asks for one: it goes into the variable KE_METRIC_MILVUS_TOKEN, "
            "as user:password or an API key"
        )
    said = getattr(error, "details", lambda: None)() or getattr(error, "message", None) or str(error)
    return f"Milvus says: {said[:1000]}"


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

    @property
    def counts(self) -> IntArray:
        """How many hits each query has."""
        return np.asarray(np.count_nonzero(self.numbers >= 0, axis=1))

    @property
    def is_full(self) -> bool:
        """Whether each query has as many as were asked for."""
        return bool((self.numbers >= 0).all())

    def narrow(self, k: int) -> None:
        """Keep k hits of each query, or as many as there are."""
        k = max(k, int(self.counts.max(initial=0)))
        self.similarities, self.numbers = self.similarities[:, :k], self.numbers[:, :k]

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
