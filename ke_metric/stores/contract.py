"""The vector store: where the embeddings of a gallery lie with their items, and are searched.

One small interface; every kind of store passes the same contract tests (tests/stores/test_contract.py). A search
can be narrowed to the items that a condition leaves: `label == "crow" and path != "a.jpg"`, in words that Milvus
understands.

Shapes: N items, B batch, D embedding, Q queries, K neighbours.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np

from ke_metric.arrays import FloatArray, IntArray
from ke_metric.errors import ExitCode, KeMetricError, closest

FIELDS = ("id", "path", "label")
LONGEST = 10_000
LONGEST_TEXT = 1024
"""Characters of an id, path or label; what every kind of store can hold."""
# SQLite gives up at about 1,000.
MOST_CONDITIONS = 100
FORM = 'must be FIELD == "text", FIELD != "text" or FIELD in ["text", ...], several of them joined by `and`'


@dataclass(frozen=True)
class Condition:
    """One condition on a field of an item.

    Attributes:
        field: One of `FIELDS`; an unknown path or label is the empty text.
        within: Whether the field must be one of the values, or none of them.
        values: At least one text.
    """

    field: Literal["id", "path", "label"]
    within: bool
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.field not in FIELDS:
            raise KeMetricError(
                f"condition: there is no field {self.field!r}{closest(str(self.field), FIELDS)}; there are "
                f"{', '.join(FIELDS)}",
                ExitCode.USAGE,
            )
        if isinstance(self.values, str) or not self.values or not all(isinstance(text, str) for text in self.values):
            raise KeMetricError(
                f"condition on {self.field}: values = {self.values!r}, must be a tuple of at least one text, as in "
                '("crow",)',
                ExitCode.USAGE,
            )


@dataclass(frozen=True)
class Where:
    """Conditions that all hold.

    Attributes:
        conditions: At least one.
    """

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `label == "crow"`, `label != "crow"`, `label in ["crow", "jay"]`, or several joined by `and`.

        A text is read as Python and JSON write it: `"\\ud83e\\udd9c"`, as JSON may write a character above U+FFFF, is
        that one character.

        Raises:
            KeMetricError: USAGE: it is none of these, the field is unknown, or a text is one that no item can have.
        """
        try:
            if len(text) > LONGEST:
                raise ValueError(f"{len(text)} characters, at most {LONGEST:,} are allowed")
            source = text.strip()
            tree = ast.parse(source, mode="eval").body
        except SyntaxError as error:
            # Its own words for where that is, a line of a file, mean nothing here.
            raise _refused(text, error.msg) from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise _refused(text, str(error) or "it is nested too deeply") from error
        parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
        if len(parts) > MOST_CONDITIONS:
            raise _refused(text, f"{len(parts)} conditions, at most {MOST_CONDITIONS} are allowed")
        return cls(tuple(_condition(part, source) for part in parts))

    def holds(self, item: Any) -> bool:
        """Return whether all conditions hold for an `Item`, or what else has its fields."""
        return all((getattr(item, one.field) in one.values) == one.within for one in self.conditions)


def check_where(where: Where | None) -> None:
    """Refuse what is no condition, such as the text of one, as USAGE."""
    if where is not None and not isinstance(where, Where):
        raise KeMetricError(
            f"where = {str(where)[:80]!r}: is {type(where).__name__}, must be a Where, as Where.parse makes one of a "
            "text",
            ExitCode.USAGE,
        )


def _condition(node: ast.expr, text: str) -> Condition:
    match node:
        case ast.Compare(left=ast.Name(id=name), ops=[operator], comparators=[right]):
            if name not in FIELDS:
                raise _refused(text, f"there is no field {name!r}{closest(name, FIELDS)}; there are id, path, label")
            if isinstance(operator, ast.In) and isinstance(right, ast.List | ast.Tuple) and right.elts:
                return Condition(name, True, tuple(_text(element, text) for element in right.elts))  # type: ignore[arg-type]
            if isinstance(operator, ast.Eq | ast.NotEq):
                return Condition(name, isinstance(operator, ast.Eq), (_text(right, text),))  # type: ignore[arg-type]
    raise _refused(text, f"'{_written(node, text)}' is no condition")


def _text(node: ast.expr, text: str) -> str:
    if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        raise _refused(text, f'{_written(node, text)} is no text in quotes, such as "crow"')
    try:
        # JSON writes a character above U+FFFF as the two halves of a pair, which Python reads as two characters.
        value = node.value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise _refused(text, f"{_written(node, text)} has half a surrogate pair, which no item can have") from error
    if len(value) > LONGEST_TEXT or "\0" in value:
        what = "a NUL" if "\0" in value else f"{len(value):,} characters, of at most {LONGEST_TEXT:,}"
        raise _refused(text, f"{_written(node, text)} has {what}, which no item can have")
    return value


def _written(node: ast.expr, text: str) -> str:
    """Return the beginning of a part as it was written; `ast.unparse` fails on deep nesting and huge numbers."""
    return (ast.get_source_segment(text, node) or text)[:80]


def _refused(text: str, reason: str) -> KeMetricError:
    return KeMetricError(f"where = '{text[:200]}': {reason}; {FORM}", ExitCode.USAGE)


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of a gallery.

    Attributes:
        id: Unique in the store.
        path: Where the picture lies; empty where that is not known. No store ever opens it.
        label: Its class; empty where that is not known.

    Raises:
        KeMetricError: DATA: one of them is no text.
    """

    id: str
    path: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.id, str) and isinstance(self.path, str) and isinstance(self.label, str)):
            name = next(name for name in FIELDS if not isinstance(getattr(self, name), str))
            value = getattr(self, name)
            raise KeMetricError(
                f"item {str(self.id)[:80]!r}: {name} = {value!r} is {type(value).__name__}, must be text: "
                f"{name}={str(value)[:80]!r}",
                ExitCode.DATA,
            )


@dataclass(frozen=True, eq=False)
class Hits:
    """The K most similar items of each query, most similar first.

    What a hit is (`items`) and its embedding (`vectors`) are read from the store when asked for, which must be before
    the store is changed or closed.

    Attributes:
        similarities: [Q, K] float32 cosine similarities, never rising along a row; -inf where a query has fewer hits.
        numbers: [Q, K] int64, equal for equal items; -1 where there is none. The store's own: no meaning elsewhere.
        read_items: [M] different numbers to their M items.
        read_vectors: [M] different numbers to their vectors float32 [M, D].
    """

    similarities: FloatArray
    numbers: IntArray
    read_items: Callable[[IntArray], Sequence[Item]]
    read_vectors: Callable[[IntArray], FloatArray]

    def __post_init__(self) -> None:
        assert self.numbers.ndim == 2, self.numbers.shape
        assert self.numbers.shape == self.similarities.shape, (self.numbers.shape, self.similarities.shape)
        assert self.numbers.dtype == np.int64, self.numbers.dtype
        assert self.similarities.dtype == np.float32, self.similarities.dtype
        assert bool(((self.numbers == -1) == np.isneginf(self.similarities)).all()), "padding is not -1 with -inf"
        assert bool((self.similarities[:, 1:] <= self.similarities[:, :-1]).all()), "similarities rise along a row"

    def items(self) -> list[list[Item]]:
        """Return the items of each query, most similar first; fewer than K where there were no more."""
        distinct = np.unique(self.numbers[self.numbers >= 0])
        found = dict(zip(distinct.tolist(), self.read_items(distinct), strict=True))
        return [[found[number] for number in row if number >= 0] for row in self.numbers.tolist()]

    def vectors(self) -> FloatArray:
        """Return the embeddings of the hits, float32 [Q, K, D]; zeros where there is none."""
        distinct = np.unique(self.numbers[self.numbers >= 0])
        vectors = self.read_vectors(distinct)
        found = np.zeros((*self.numbers.shape, vectors.shape[1]), np.float32)
        there = self.numbers >= 0
        found[there] = vectors[np.searchsorted(distinct, self.numbers[there])]
        return found


class VectorStore(Protocol):
    """Embeddings and their items, searched by inner product.

    Vectors are float32, L2-normalised: the inner product is the cosine similarity, and higher is always better. What
    `add` and `remove` have done when they return is acknowledged: it is on the disk (or with the server), and a
    SIGKILL at any moment later loses none of it. A call that is killed before it returns has happened as a whole or
    not at all. One writer at a time: a second one is refused when it opens the store.

    Where texts are asked for, one text, or something that holds others than texts, is refused: DATA. So is, as USAGE,
    a `where` that is no condition.
    """

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        ...

    def __len__(self) -> int:
        """Return the number of items, N."""
        ...

    def add(self, items: Sequence[Item], vectors: FloatArray, *, replace: bool = False) -> None:
        """Add items; all of them or none.

        Args:
            items: B items of different ids.
            vectors: [B, D] float32, L2-normalised.
            replace: Let items of an id that is there take its place; False: that is an error.

        Raises:
            KeMetricError: DATA, naming the id: it is there already, comes twice, or is empty or too long; or for
                vectors of another shape or type, or not of length 1.
        """
        ...

    def remove(self, ids: Collection[str]) -> None:
        """Remove items; all of them or none.

        Raises:
            KeMetricError: DATA, naming it: there is no item of an id.
        """
        ...

    def search(self, queries: FloatArray, k: int, *, where: Where | None = None) -> Hits:
        """Find the items with the largest inner product with each query.

        An exact store over a gallery computes it in float64, rounded to float32, and gives equally similar items in
        the order of their adding: few neighbours are the beginning of many, whatever the condition and the other
        queries. Other stores choose among equally similar items for themselves.

        Args:
            queries: [Q, D] float32, L2-normalised; Q may be 0.
            k: Neighbours per query, at least 1; more than N are as many as N.
            where: Search only items for which this holds.

        Returns:
            [Q, K] hits, K the smaller one of k and N, and at least 1.

        Raises:
            KeMetricError: DATA for queries of another shape or type, or not of length 1; USAGE for another k.
        """
        ...

    def matching(self, where: Where) -> list[Item]:
        """Return all items for which `where` holds, in the order of `read`."""
        ...

    def count(self, where: Where) -> int:
        """Return the number of items for which `where` holds."""
        ...

    def known_labels(self, labels: Collection[str]) -> set[str]:
        """Return those of the labels that an item has; the empty one is that of an item without."""
        ...

    def items_at(self, paths: Collection[str]) -> dict[str, list[Item]]:
        """Return the items of each of the paths that has some, in the order of `read`."""
        ...

    def known(self, ids: Collection[str]) -> set[str]:
        """Return those of the ids that are in the store."""
        ...

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Return the items of ids, in order.

        Raises:
            KeMetricError: DATA, naming it: there is no item of an id.
        """
        ...

    def read(self, batch_size: int = 8192) -> Iterator[tuple[list[Item], FloatArray]]:
        """Yield everything, at most batch_size items at a time: B items and their vectors float32 [B, D].

        Raises:
            KeMetricError: USAGE: batch_size is less than 1.
        """
        ...

    def flush(self) -> None:
        """Bring what only makes searching faster up to date. Nothing acknowledged ever waits for this."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return facts for people and programs as plain JSON values: kind, whether search is exact, bytes, ..."""
        ...

    def close(self) -> None:
        """Release files, locks and connections. Nothing acknowledged is lost without it."""
        ...


class ServerStore(VectorStore, Protocol):
    """A store of a name, beside others on a server or in a file of theirs."""

    def drop(self) -> None:
        """Delete it with all its items; what else is there stays."""
        ...


def check_addition(items: Sequence[Item], vectors: FloatArray, dimension: int) -> None:
    """Refuse what no store takes; see `VectorStore.add` for errors."""
    _check_vectors(vectors, dimension)
    wrong = [items] if isinstance(items, Item) else [item for item in items if not isinstance(item, Item)]
    if wrong:
        raise KeMetricError(
            f"items: {str(wrong[0])[:80]}, must be a sequence of items: [Item('1.jpg')]", ExitCode.DATA
        )
    if len(items) != len(vectors):
        raise KeMetricError(f"{len(items)} items with {len(vectors)} vectors, must be one for each", ExitCode.DATA)
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise KeMetricError(f"item {item.id!r} comes twice in what is to be added", ExitCode.DATA)
        seen.add(item.id)
        for name, text in (("id", item.id), ("path", item.path), ("label", item.label)):
            if len(text) > LONGEST_TEXT or "\0" in text or not is_unicode(text) or (name == "id" and not text):
                raise KeMetricError(
                    f"item {item.id[:80]!r}: {name} = {text[:80]!r} ({len(text)} characters), must be text of at "
                    f"most {LONGEST_TEXT:,} characters without NUL{', and not empty' if name == 'id' else ''}",
                    ExitCode.DATA,
                )
    _check_lengths(vectors, lambda row: f"item {items[row].id!r}")


def check_queries(queries: FloatArray, k: int, dimension: int) -> None:
    """Refuse queries and numbers of neighbours that no store takes; see `VectorStore.search` for errors."""
    check_count("k", k)
    _check_vectors(queries, dimension)
    _check_lengths(queries, lambda row: f"query {row}")


def most_found(k: int, there: int) -> int:
    """Return the number K of neighbours that a search for k of them gives in a store of so many items.

    Memory grows with K, and there are no more neighbours than items.
    """
    return max(1, min(int(k), there))


def _check_vectors(vectors: FloatArray, dimension: int) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != dimension or vectors.dtype != np.float32:
        raise KeMetricError(
            f"vectors have shape {list(vectors.shape)} and type {vectors.dtype}, must be float32 [B, {dimension}]",
            ExitCode.DATA,
        )


def _check_lengths(vectors: FloatArray, name_of: Callable[[int], str]) -> None:
    """Refuse vectors that are not of length 1, or not finite, naming the first of them by its row."""
    lengths = np.sqrt(np.einsum("bd,bd->b", vectors, vectors, dtype=np.float64))
    for row in np.flatnonzero(~(np.abs(lengths - 1) < 1e-3)).tolist():
        raise KeMetricError(
            f"{name_of(row)}: its vector has length {lengths[row]:.4g}, must be 1 (L2-normalised)", ExitCode.DATA
        )


def check_count(name: str, value: int) -> None:
    """Refuse what is no whole number of at least 1.

    Raises:
        KeMetricError: USAGE, naming it.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise KeMetricError(f"{name} = {value!r}, must be a whole number of at least 1", ExitCode.USAGE)


def texts_of(texts: Iterable[str], name: str = "ids") -> list[str]:
    """Return a collection of texts as a list.

    A text is itself a collection of texts, its characters: given in place of one it means other items.

    Args:
        texts: What was given.
        name: What an error calls it.

    Raises:
        KeMetricError: DATA: it is one text, or holds something that is none.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise KeMetricError(
            f"{name} = {str(texts)[:80]!r}: is one {type(texts).__name__}, must be a collection of texts: "
            f"[{str(texts)[:80]!r}]",
            ExitCode.DATA,
        )
    found = list(texts)
    for text in found:
        if not isinstance(text, str):
            raise KeMetricError(
                f"{name}: {str(text)[:80]} is {type(text).__name__}, must be text: {str(text)[:80]!r}", ExitCode.DATA
            )
    return found


def is_unicode(text: str) -> bool:
    """Return whether a text can be written; file names that are not UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
