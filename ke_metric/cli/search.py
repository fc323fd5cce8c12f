"""`ke-metric search`: the most similar items of an index for each picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from ke_metric.arrays import FloatArray
from ke_metric.cli.chosen import embedder_of
from ke_metric.cli.display import Result, say
from ke_metric.cli.embed import list_chosen, require_some, told
from ke_metric.cli.options import ModelChoice, PictureChoice
from ke_metric.images.decoding import Decoding
from ke_metric.retrieval.embedding_files import embed_items
from ke_metric.retrieval.index import Index, results_of
from ke_metric.retrieval.index import Result as Found
from ke_metric.retrieval.montage import MOST_QUERIES, MOST_RESULTS, MontageRow, require_picture_name, write_montage
from ke_metric.retrieval.picture_list import LeftOut
from ke_metric.retrieval.preparation import decoding_of
from ke_metric.retrieval.ranking import Expansion, Reranking, ranked_search, require_candidates, search_others
from ke_metric.stores.contract import Hits, Item, VectorStore
from ke_metric.stores.where import Condition, Where

QUERIES_AT_A_TIME = 1024
TABLES = 20
"""The most that are printed for people."""
Search = Callable[..., Hits]
"""Searches with all queries; takes `exclude`, see `search_others`."""


@dataclass(frozen=True)
class How:
    """How is searched.

    Attributes:
        k: Results for each query.
        where: Search only items for which this holds.
        expand: Expand the queries.
        rerank: Re-rank what is found.
        keep_self: Keep the item that is the query's own picture.
        text: The condition as it was written.
    """

    k: int
    where: Where | None = None
    expand: Expansion | None = None
    rerank: Reranking | None = None
    keep_self: bool = False
    text: str = ""

    @property
    def depth(self) -> int:
        """The most neighbours of a query that anything depends on."""
        expanded = self.expand.neighbors if self.expand else 0
        return max(self.k, expanded, self.rerank.depth if self.rerank else 0)

    @classmethod
    def of(cls, k: int, *, where: str | None, expand: str | None, rerank: str | None, keep_self: bool) -> How:
        """Read what the command line says.

        Raises:
            KeMetricError: USAGE: one of the texts is malformed, or re-ranking looks at fewer items than k.
        """
        reranking = None if rerank is None else Reranking.parse(rerank)
        require_candidates(k, reranking)
        return cls(
            k,
            None if where is None else Where.parse(where),
            None if expand is None else Expansion.parse(expand),
            reranking,
            keep_self,
            where or "",
        )


@dataclass(frozen=True)
class Answer:
    """What was found for one picture.

    Attributes:
        query: The picture.
        results: Most similar first.
        own_ids: Ids of the items that are the query's own picture and were left out; most often one, or none.
        nearest: Similarity of the first result and its own nearest item. A network may find everything similar to
            everything: whether 0.98 is near, only the gallery tells. None where there is no other item.
    """

    query: Item
    results: list[Found]
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


def search_index(
    *, pictures: PictureChoice, folder: Path, how: How, montage: Path | None, model: ModelChoice
) -> Result:
    """Search an index with pictures.

    Args:
        pictures: Which ones.
        folder: The index.
        how: How is searched.
        montage: File to draw the results into.
        model: What embeds the pictures; the index's own network where none is named.

    Raises:
        KeMetricError: There is no such index, the network is not the one that made its vectors, or none of the
            pictures can be used.
    """
    if montage is not None:
        require_picture_name(montage)
    with Index.open(folder, device=model.device) as index:
        listed = list_chosen(pictures, unique=False)
        embedder = embedder_of(index, model)
        index.require_digest(embedder.digest, embedder.description)
        queries = _with_labels(listed.items, index) if pictures.labels else listed.items
        batches = embed_items(embedder, queries, strict=pictures.strict, batch_size=model.batch_size)
        if how.where is not None and not has_any(index.store, how.where):
            say(f"--where '{how.text}' holds for none of the {len(index):,} items of {folder}")
        if how.rerank is None:  # whose depth is its own limit
            how = replace(how, k=min(how.k, max(1, len(index))))  # memory grows with k
        answers: list[Answer] = []
        left_out = list(listed.left_out)
        for batch in told(batches, "searching", len(listed.items)):
            left_out += batch.left_out
            for start in range(0, len(batch.items), QUERIES_AT_A_TIME):
                part = slice(start, start + QUERIES_AT_A_TIME)
                answers += _answers(index.store, batch.items[part], batch.vectors[part], how)
    require_some(len(answers), len(listed.items))
    if montage is not None:
        _draw(answers, montage, decoding_of(embedder.normalization))
    return Result(_document(folder, answers, left_out, montage), _tables(answers))


def _with_labels(queries: Sequence[Item], index: Index) -> list[Item]:
    """Give a picture that was named by itself its folder's name as label, where the index has items of that label."""
    names = {Path(query.path).parent.name for query in queries if not query.label} - {""}
    known = {name for name in names if has_any(index.store, Where((Condition("label", True, (name,)),)))}
    folders = [Path(query.path).parent.name for query in queries]
    return [
        replace(query, label=name) if not query.label and name in known else query
        for query, name in zip(queries, folders, strict=True)
    ]


def has_any(store: VectorStore, where: Where) -> bool:
    """Return whether a condition holds for any item."""
    anything = np.eye(1, store.dimension, dtype=np.float32)
    return bool((store.search(anything, 1, where=where).numbers >= 0).any())


def _answers(store: VectorStore, queries: Sequence[Item], vectors: FloatArray, how: How) -> list[Answer]:
    own: list[list[Item]] = [[] for _ in queries] if how.keep_self else _own_items(store, queries, how.where)
    search: Search = partial(
        ranked_search, store, vectors, how.k, where=how.where, expand=how.expand, rerank=how.rerank
    )
    if how.keep_self:
        hits = search()
    else:
        if how.expand or how.rerank:  # what is not a result must not move the query, or the order of the others
            _without_own(queries, own, partial(search_others, store, vectors, how.depth, where=how.where))
        hits = _without_own(queries, own, search)
    return [
        # What the index knows of a picture that is in it is known of the query.
        Answer(_known_label(query, items), results, tuple(item.id for item in items), nearest)
        for query, results, items, nearest in zip(
            queries, results_of(hits), own, _own_nearest(store, hits, how.where), strict=True
        )
    ]


def _without_own(queries: Sequence[Item], own: list[list[Item]], search: Search) -> Hits:
    """Search, and again as long as a hit is the query's own picture by another path, to which a link leads.

    Which paths of an index are links, only the disk tells: asking it of all items would take longer than a search.

    Args:
        queries: What is searched with.
        own: The items of each that are left out; those that are found are added.
        search: Searches with all of them.
    """
    real_folder = cache(os.path.realpath)

    def real(path: str) -> str:
        folder, name = os.path.split(path)
        found = os.path.join(real_folder(folder), name)  # noqa: PTH118  (pathlib takes five times as long)
        return os.path.realpath(found) if os.path.islink(found) else found  # noqa: PTH114

    pictures = [real(query.path) for query in queries]
    while True:
        hits = search(exclude=[[item.id for item in items] for items in own])
        found = False
        for picture, items, known in zip(pictures, hits.items(), own, strict=True):
            linked = [item for item in items if item.path and real(item.path) == picture]
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


def _own_items(store: VectorStore, queries: Sequence[Item], where: Where | None) -> list[list[Item]]:
    """Return, for each query, all items of its path, or of what its path is a link to; whatever they look like."""
    paths = [dict.fromkeys((query.path, os.path.realpath(query.path))) for query in queries]
    asked = tuple(dict.fromkeys(path for some in paths for path in some))
    found: dict[str, list[Item]] = {}
    for item in store.matching(Where((Condition("path", True, asked),))) if asked else ():
        if where is None or where.holds(item):
            found.setdefault(item.path, []).append(item)
    return [[item for path in some for item in found.get(path, ())] for some in paths]


def _draw(answers: Sequence[Answer], path: Path, decoding: Decoding) -> None:
    rows = [MontageRow(answer.query.id, answer.query.path, answer.query.label, answer.results) for answer in answers]
    write_montage(rows, path, decoding)
    if len(rows) > MOST_QUERIES or any(len(row.results) > MOST_RESULTS for row in rows):
        say(f"{path}: shows at most {MOST_QUERIES} of the {len(rows):,} queries and {MOST_RESULTS} results of each")


def _document(
    folder: Path, answers: Sequence[Answer], left_out: Sequence[LeftOut], montage: Path | None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "index": str(folder),
        "queries": [answer.document for answer in answers],
        "left_out": [{"name": picture.name, "reason": picture.reason} for picture in left_out],
    }
    return document if montage is None else document | {"montage": str(montage)}


def _tables(answers: Sequence[Answer]) -> Group:
    more = len(answers) - TABLES
    rest = [f"and {more:,} more queries; --json prints all"] if more > 0 else []
    return Group(*map(_table, answers[:TABLES]), *rest)


def _table(answer: Answer) -> Table:
    label = f" ({answer.query.label})" if answer.query.label else ""
    be = "is" if len(answer.own_ids) == 1 else "are"
    own = f"; is in the index as {', '.join(answer.own_ids)}, which {be} left out" if answer.own_ids else ""
    compared = f"for comparison: the first one's own nearest item has similarity {answer.nearest or 0:.4f}"
    table = Table(
        title=f"{answer.query.path}{label}{own}",
        title_justify="left",
        caption=None if answer.nearest is None else compared,
        caption_justify="left",
    )
    for name in ("rank", "similarity"):
        table.add_column(name, justify="right")
    for name in ("label", "id"):
        table.add_column(name, overflow="fold")
    for result in answer.results:
        table.add_row(str(result.rank), f"{result.similarity:.4f}", result.label, result.id)
    return table
