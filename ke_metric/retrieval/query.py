"""Pictures in, answers out: searching an index with pictures, as `ke-metric search`, the service and a program do.

A query's own picture is left out of what it finds, by its path and by every link that leads to the same file.

    with Index.open("photos.index") as index:
        for answer in search_pictures(index, ["new.jpg"], SearchOptions(k=5)):
            print(answer.query.path, [(result.id, result.similarity) for result in answer.results])

Shapes: Q queries, D embedding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from ke_metric.arrays import FloatArray
from ke_metric.images.preparation import Picture, name_of, pictures_of
from ke_metric.retrieval.embedder import BadPicture, Embedder
from ke_metric.retrieval.index import Index, Result, results_of
from ke_metric.retrieval.ranking import Expansion, Reranking, ranked_search, require_candidates, search_others
from ke_metric.stores.contract import Hits, Item, VectorStore, Where

QUERIES_AT_A_TIME = 1024


@dataclass(frozen=True)
class SearchOptions:
    """How is searched.

    Attributes:
        k: Results for each query.
        where: Search only items for which this holds.
        expand: Move the queries towards their nearest items first.
        rerank: Put what is found into a new order.
        keep_self: Keep the items that are the query's own picture.

    Raises:
        KeMetricError: USAGE: re-ranking looks at fewer items than k.
    """

    k: int = 10
    where: Where | None = None
    expand: Expansion | None = None
    rerank: Reranking | None = None
    keep_self: bool = False

    def __post_init__(self) -> None:
        require_candidates(self.k, self.rerank)

    @classmethod
    def parse(
        cls, k: int, *, where: str | None, expand: str | None, rerank: str | None, keep_self: bool = False
    ) -> SearchOptions:
        """Read what a command line or a query string says.

        Raises:
            KeMetricError: USAGE: one of the texts is malformed, or re-ranking looks at fewer items than k.
        """
        return cls(
            k,
            None if where is None else Where.parse(where),
            None if expand is None else Expansion.parse(expand),
            None if rerank is None else Reranking.parse(rerank),
            keep_self,
        )

    @property
    def depth(self) -> int:
        """The most neighbours of a query that anything depends on."""
        expanded = self.expand.neighbors if self.expand else 0
        return max(self.k, expanded, self.rerank.depth if self.rerank else 0)


PLAIN_SEARCH = SearchOptions()


@dataclass(frozen=True)
class Answer:
    """What was found for one picture.

    Attributes:
        query: The picture; its label may be what the index knows of it.
        results: Most similar first.
        own_ids: Ids of the items that are the query's own picture and were left out; most often one, or none.
        nearest: Similarity of the first result and its own nearest item. A network may find everything similar to
            everything: whether 0.98 is near, only the gallery tells. None where there is no other item, or nobody
            asked.
    """

    query: Item
    results: list[Result]
    own_ids: tuple[str, ...]
    nearest: float | None

    @property
    def document(self) -> dict[str, Any]:
        """Plain JSON values; what is not known is absent."""
        facts = {
            "query": self.query.path,
            "label": self.query.label or None,
            "self_left_out": self.own_ids[0] if self.own_ids else None,
            "all_left_out": list(self.own_ids) if len(self.own_ids) > 1 else None,
        }
        known = {name: value for name, value in facts.items() if value is not None}
        compared = {} if self.nearest is None else {"first_to_its_nearest": self.nearest}
        return {**known, "results": [result.document for result in self.results], **compared}


def search_pictures(
    index: Index,
    pictures: Picture | Iterable[Picture] | Iterable[Item],
    options: SearchOptions = PLAIN_SEARCH,
    *,
    embedder: Embedder | None = None,
    labels: bool = True,
    on_bad: Callable[[BadPicture], Any] | None = None,
    batch_size: int | None = None,
) -> Iterator[Answer]:
    """Search an index with pictures, one answer for each that can be used, in order.

    Args:
        index: What is searched.
        pictures: Items as `list_pictures` gives them, or any that `Embedder.__call__` takes.
        options: How is searched.
        embedder: What embeds the pictures; the index's own network when None.
        labels: Whether a picture without a label gets its folder's name, where the index has items of that label.
        on_bad: Called for every picture that cannot be used, which is then left out; None: the first one is an error.
        batch_size: Pictures per forward pass; the embedder's own when None.

    Raises:
        KeMetricError: DATA: the embedder is not the one that made the index's vectors, or a picture cannot be used.
    """
    embedder = embedder or index.embedder
    index.require_digest(embedder.digest, embedder.description)
    if options.rerank is None:  # whose depth is its own limit
        options = replace(options, k=min(options.k, max(1, len(index))))  # memory grows with k
    queries: list[Item] = []

    def numbered() -> Iterator[Picture]:
        given = cast(Iterable[Item | Picture], pictures_of(cast(Iterable[Picture], pictures)))
        for picture in given:
            queries.append(_item_of(len(queries), picture))
            yield picture.path if isinstance(picture, Item) else picture

    for batch in embedder.stream(numbered(), skip_bad=on_bad is not None, batch_size=batch_size):
        if on_bad is not None:
            for bad in batch.bad:
                on_bad(bad)
        for start in range(0, len(batch.positions), QUERIES_AT_A_TIME):
            part = slice(start, start + QUERIES_AT_A_TIME)
            asked = [queries[position] for position in batch.positions[part].tolist()]
            asked = _with_labels(asked, index.store) if labels else asked
            yield from answer_queries(index.store, asked, batch.vectors[part], options)


def answer_queries(
    store: VectorStore,
    queries: Sequence[Item],
    vectors: FloatArray,
    options: SearchOptions,
    *,
    exclude: Sequence[Collection[str]] | None = None,
    compare: bool = True,
) -> list[Answer]:
    """Search a store with embedded pictures.

    Args:
        store: What is searched.
        queries: Q pictures; one without a path is no item's own picture.
        vectors: [Q, D] float32, L2-normalised.
        options: How is searched.
        exclude: Q collections of ids that are never results of a query, besides those of its own picture.
        compare: Whether `Answer.nearest` is looked for, in a search of its own.
    """
    excluded = [list(ids) for ids in exclude] if exclude is not None else [[] for _ in queries]
    own: list[list[Item]] = [[] for _ in queries] if options.keep_self else _own_items(store, queries, options.where)
    others = partial(search_others, store, vectors, options.depth, where=options.where)
    ranked = partial(
        ranked_search,
        store,
        vectors,
        options.k,
        where=options.where,
        expand=options.expand,
        rerank=options.rerank,
    )
    if options.keep_self or not any(query.path for query in queries):
        hits = ranked(exclude=excluded) if any(excluded) else ranked()
    else:
        if options.expand or options.rerank:  # what is no result must not move the query, or the order of the others
            _without_own(queries, own, excluded, others)
        hits = _without_own(queries, own, excluded, ranked)
    nearest = _own_nearest(store, hits, options.where) if compare else [None] * len(queries)
    return [
        # What the index knows of a picture that is in it is known of the query.
        Answer(_known_label(query, items), results, tuple(item.id for item in items), similarity)
        for query, results, items, similarity in zip(queries, results_of(hits), own, nearest, strict=True)
    ]


def _item_of(position: int, picture: Item | Picture) -> Item:
    if isinstance(picture, Item):
        return picture
    name = name_of(position, picture)
    return Item(name, os.path.abspath(name) if isinstance(picture, str | Path) else "")  # noqa: PTH100


def _with_labels(queries: Sequence[Item], store: VectorStore) -> list[Item]:
    folders = [Path(query.path).parent.name for query in queries]
    names = {folder for query, folder in zip(queries, folders, strict=True) if not query.label} - {""}
    known = store.known_labels(names)
    return [
        replace(query, label=folder) if not query.label and folder in known else query
        for query, folder in zip(queries, folders, strict=True)
    ]


def _own_items(store: VectorStore, queries: Sequence[Item], where: Where | None) -> list[list[Item]]:
    """Return, for each query, all items of its path, or of what its path is a link to; whatever they look like."""
    paths = [dict.fromkeys((query.path, os.path.realpath(query.path)) if query.path else ()) for query in queries]
    found = store.items_at({path for some in paths for path in some})
    own = [[item for path in some for item in found.get(path, ())] for some in paths]
    return [[item for item in items if where is None or where.holds(item)] for items in own]


def _without_own(
    queries: Sequence[Item], own: list[list[Item]], excluded: Sequence[list[str]], search: Callable[..., Hits]
) -> Hits:
    """Search, and again as long as a hit is the query's own picture by another path, to which a link leads.

    Which paths of an index are links, only the disk tells: asking it of all items would take longer than a search.

    Args:
        queries: What is searched with.
        own: The items of each that are left out; those that are found are added.
        excluded: Ids that are left out besides.
        search: Searches with all of them; takes `exclude`, see `search_others`.
    """
    real_folder = cache(os.path.realpath)

    def real(path: str) -> str:
        folder, name = os.path.split(path)
        found = os.path.join(real_folder(folder), name)  # noqa: PTH118  (pathlib takes five times as long)
        return os.path.realpath(found) if os.path.islink(found) else found  # noqa: PTH114

    pictures = [real(query.path) if query.path else None for query in queries]
    while True:
        hits = search(
            exclude=[[*ids, *(item.id for item in items)] for ids, items in zip(excluded, own, strict=True)]
        )
        found = False
        for picture, items, known in zip(pictures, hits.items(), own, strict=True):
            linked = [item for item in items if picture and item.path and real(item.path) == picture]
            known.extend(linked)
            found = found or bool(linked)
        if not found:
            return hits


def _own_nearest(store: VectorStore, hits: Hits, where: Where | None) -> list[float | None]:
    """Return, for each query, the similarity of its first hit and the nearest other item."""
    firsts = hits.numbers[:, 0].tolist() if hits.numbers.size else []
    distinct = np.unique([number for number in firsts if number >= 0]).astype(np.int64)
    if not len(distinct):
        return [None] * len(hits.numbers)
    ids = [item.id for item in hits.read_items(distinct)]
    found = search_others(store, hits.read_vectors(distinct), 1, exclude=ids, where=where)
    nearest = {
        number: float(similarity)
        for number, similarity in zip(distinct.tolist(), found.similarities[:, 0], strict=True)
        if similarity > -np.inf
    }
    return [nearest.get(number) for number in firsts]


def _known_label(query: Item, own: Sequence[Item]) -> Item:
    return replace(query, label=query.label or own[0].label) if own else query
