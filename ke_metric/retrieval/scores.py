"""The numbers of a scorecard for other data, and through a store.

`score_pictures` scores a stored network on labelled pictures that no benchmark holds; `score_through` scores
embeddings by the neighbours that a store finds.

Shapes: N pictures, Q queries, G gallery items, D embedding, K neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ke_metric.arrays import FloatArray, IntArray
from ke_metric.errors import ExitCode, KeMetricError, some_of
from ke_metric.evaluation.backend import Neighbors
from ke_metric.evaluation.classification import score_classes, score_classification
from ke_metric.evaluation.embeddings import number_rows
from ke_metric.evaluation.recall import (
    Places,
    count_relevant,
    equally_similar,
    find_hits,
    lengths_of_lists,
    level,
    score_lists,
)
from ke_metric.evaluation.retrieval import LONGEST_TIE, Scoring, require_ranks, score_retrieval
from ke_metric.generation import ClassScores
from ke_metric.retrieval.embedder import Embedder, PictureBatch, PictureNetwork
from ke_metric.retrieval.picture_list import LeftOut, PictureList
from ke_metric.retrieval.predictor import Predictor
from ke_metric.retrieval.ranking import MOST_CANDIDATES, Expansion, Reranking, ranked_search
from ke_metric.stores.contract import Hits, Item, VectorStore, texts_of

PARTS = frozenset({"train", "test", "val", "validation", "query", "gallery"})
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LabelledScores:
    """What a network is worth on labelled pictures.

    Attributes:
        scores: As `score_retrieval` names them, of embeddings or of a classifier's features; of a classifier also as
            `score_classification` names them, over the pictures whose class it knows.
        classes: How each class was recognised; None where nothing was classified.
        pictures: Number of pictures scored.
        unknown: Label to number of pictures, of the labels that a classifier has no class for.
        left_out: Pictures that could not be used.
    """

    scores: dict[str, float]
    classes: ClassScores | None = None
    pictures: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()


def require_labels(pictures: PictureList, *, pairs: bool) -> None:
    """Refuse, with DATA, pictures of unknown classes, or with `pairs` of which no two are of one class."""
    bare = [item.path for item in pictures.items if not item.label]
    if bare:
        raise KeMetricError(
            f"{len(bare):,} of {len(pictures.items):,} pictures have no label: {some_of(bare, 3)}; the class of "
            "a picture is the folder that holds it below the one that is named, or the column `label` of a CSV "
            "with path,label",
            ExitCode.DATA,
        )
    counts = Counter(item.label for item in pictures.items)
    parts = {label.partition("/")[0] for label in counts}
    if parts <= PARTS and all("/" in label for label in counts):
        raise KeMetricError(
            f"the classes lie below folders named {' and '.join(sorted(parts))}: name one of these, or the pictures "
            "of one class would be of several",
            ExitCode.DATA,
        )
    if pairs and max(counts.values(), default=1) == 1:
        raise KeMetricError(
            f"none of the {len(counts):,} classes has a second picture to find: {some_of(sorted(counts), 3)}",
            ExitCode.DATA,
        )


def score_pictures(
    items: Sequence[Item],
    *,
    embedder: Embedder | None,
    predictor: Predictor | None = None,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    scoring: Scoring | None = None,
    progress: Progress | None = None,
) -> LabelledScores:
    """Score a network on labelled pictures: every picture queries all others, and a classifier names its class.

    Args:
        items: Pictures with labels, see `require_labels`. One that cannot be used is left out.
        embedder: The network; None for a classifier that has no features.
        predictor: The same network as a classifier, where it is one.
        recall_at: The Ks of Recall@K.
        scoring: See `score_retrieval`.
        progress: Called with the number of pictures done and their total.

    Raises:
        KeMetricError: DATA: no picture can be used.
    """
    result = LabelledScores({})
    if embedder is not None:
        vectors, used, left_out = _computed(embedder, items, progress)
        labels = np.unique([item.label for item in used], return_inverse=True)[1].astype(np.int64)
        scores = score_retrieval(vectors, labels, recall_at, scoring=scoring)
        result = LabelledScores(scores, pictures=len(used), left_out=left_out)
    if predictor is None:
        return result
    unknown = Counter(item.label for item in items if item.label not in set(predictor.class_names))
    known = [item for item in items if item.label not in unknown]
    if not known:
        return replace(result, unknown=dict(unknown))
    logits, used, left_out = _computed(predictor, known, progress)
    number_of = {name: number for number, name in enumerate(predictor.class_names)}
    own = np.array([number_of[item.label] for item in used], np.int64)
    return LabelledScores(
        result.scores | score_classification(logits, own),
        score_classes(logits, own, predictor.class_names),
        pictures=max(result.pictures, len(used)),
        unknown=dict(unknown),
        left_out=result.left_out or left_out,
    )


def _computed(
    network: PictureNetwork, items: Sequence[Item], progress: Progress | None
) -> tuple[FloatArray, list[Item], tuple[LeftOut, ...]]:
    """Return what a network gives for the pictures that can be used [N, D], these, and the others."""
    batches: list[PictureBatch] = []
    done = 0
    for batch in network.stream((item.path for item in items), skip_bad=True):
        batches.append(batch)
        done += len(batch.positions) + len(batch.bad)
        if progress is not None:
            progress(done, len(items))
    used = [items[position] for batch in batches for position in batch.positions.tolist()]
    left_out = tuple(LeftOut(each.name, each.reason) for batch in batches for each in batch.bad)
    if not used:
        raise KeMetricError(f"none of the {len(items):,} pictures can be used: {left_out[0].reason}", ExitCode.DATA)
    return np.concatenate([batch.outputs for batch in batches]), used, left_out


def score_through(
    store: VectorStore,
    queries: FloatArray,
    labels: Sequence[str],
    recall_at: Sequence[int] = (1, 2, 4, 8),
    *,
    ids: Sequence[str] | None = None,
    expand: Expansion | None = None,
    rerank: Reranking | None = None,
) -> dict[str, float]:
    """Score how well the neighbours that a store finds agree with their labels.

    With an exact store and neither option the numbers are those of `score_retrieval`. Equally similar items, among
    those that the store finds, count as there: each score is its mean over all orders of them.

    Args:
        store: The gallery, every item with its label; what has none is of no query's class.
        queries: [Q, D] float32, L2-normalised.
        labels: Q classes, as the store's items name them.
        recall_at: The Ks of Recall@K, each at least 1.
        ids: Q ids of the queries; a gallery item of a query's id is the same picture and never its neighbour. None:
            no query is in the gallery.
        expand: Expand the queries first.
        rerank: Put what is found into a new order.

    Returns:
        `recall@K` for each K, `map@r`, `r_precision`, `queries` and `queries_without_match`, as `score_retrieval`
        gives them; clusters have nothing to do with a store.

    Raises:
        KeMetricError: DATA for a query without a label, or one whose own item has another label in the store; RECIPE
            for a bad K; USAGE where a class is larger than the re-ranking's depth.
    """
    require_ranks(recall_at)
    for name, texts in (("labels", labels), ("ids", ids)):
        if texts is not None and len(texts_of(texts, name)) != len(queries):
            raise KeMetricError(
                f"{name}: {len(texts)} with {len(queries)} queries, must be one for each", ExitCode.DATA
            )
    gallery = _Gallery.read(store)
    classes = gallery.classes_of(labels)
    own = None if ids is None else gallery.positions_of(ids)
    _refuse_two_labels(gallery, labels, own)

    def find(block: IntArray, count: int) -> Places:
        exclude = None if ids is None else [ids[query] for query in block.tolist()]
        found = ranked_search(store, queries[block], count, expand=expand, rerank=rerank, exclude=exclude)
        return gallery.places_of(found, classes[block], None if expand or rerank else queries[block])

    size = len(gallery.classes)
    relevant = count_relevant(classes, gallery.classes, own) if size else np.zeros_like(classes)
    if rerank is not None:
        require_depth(rerank, relevant, recall_at, gallery_size=size)
    longest = min(LONGEST_TIE, size, rerank.depth if rerank else size)
    return score_lists(relevant, recall_at, find, gallery_size=size, longest=longest)


def require_depth(rerank: Reranking, relevant: IntArray, recall_at: Sequence[int], *, gallery_size: int) -> None:
    """Refuse, with USAGE and the depth needed, a re-ranking that looks at fewer candidates than the scores need.

    Args:
        rerank: The re-ranking.
        relevant: [Q] number of other items of each query's class in the gallery.
        recall_at: The Ks of Recall@K.
        gallery_size: Number of items in it.
    """
    needed = int(lengths_of_lists(relevant, recall_at, gallery_size=gallery_size).max(initial=0))
    if needed <= rerank.depth:
        return
    why = (
        f"MAP@R, whose largest class has {needed:,} other pictures"
        if needed == relevant.max()
        else f"Recall@{max(recall_at)}"
    )
    told = f"re-ranking looks at {rerank.depth:,} candidates of each query, and {needed:,} are needed for {why}"
    form = f"{rerank.k1}:{rerank.k2}:{rerank.weight:g}:{needed}"
    cure = f"take {form}" if needed <= MOST_CANDIDATES else f"{MOST_CANDIDATES:,} are the most there can be"
    raise KeMetricError(f"{told}; {cure}", ExitCode.USAGE)


@dataclass(frozen=True, eq=False)
class _Gallery:
    """What is in a store, without the vectors.

    Attributes:
        position: Id of an item to its position, 0 to G - 1, in the order of reading.
        labels: The label of each position.
        number: Label to the number of its class.
        classes: [G] number of each position's class; items without a label are a class that no query is of.
        rows: [G] the same number for equal embeddings.
    """

    position: dict[str, int]
    labels: list[str]
    number: dict[str, int]
    classes: IntArray
    rows: IntArray

    @classmethod
    def read(cls, store: VectorStore) -> _Gallery:
        position: dict[str, int] = {}
        labels: list[str] = []
        number: dict[str, int] = {}

        def vectors() -> Iterator[FloatArray]:
            for items, part in store.read():
                for item in items:
                    position[item.id] = len(labels)
                    labels.append(item.label)
                    number.setdefault(item.label, len(number))
                yield part

        rows = number_rows(vectors())
        return cls(position, labels, number, np.array([number[label] for label in labels], np.int64), rows)

    def classes_of(self, labels: Sequence[str]) -> IntArray:
        """Return the number of each query's class; -2 where nothing in the gallery has its label."""
        for query, label in enumerate(labels):
            if not label:
                raise KeMetricError(f"query {query} has no label, and cannot be scored", ExitCode.DATA)
        return np.array([self.number.get(label, -2) for label in labels], np.int64)

    def positions_of(self, ids: Sequence[str]) -> IntArray:
        """Return the position of each id, -1 where it is not in the gallery."""
        return np.array([self.position.get(item, -1) for item in ids], np.int64)

    def places_of(self, hits: Hits, classes: IntArray, queries: FloatArray | None) -> Places:
        """Return the places of hits [Q, K] of queries of classes [Q]; those with equal embeddings are tied.

        Where the similarities are those of queries [Q, D] and items, different embeddings may be tied too.
        """
        there = hits.numbers >= 0
        distinct = np.unique(hits.numbers[there])
        positions = self.positions_of([item.id for item in hits.read_items(distinct)])
        indices = np.full(hits.numbers.shape, -1, np.int64)
        indices[there] = positions[np.searchsorted(distinct, hits.numbers[there])]
        similarities, numbers = hits.similarities, hits.numbers
        rows = np.where(there, self.rows[indices], -1)
        tied = np.zeros(rows.shape, np.bool_)
        if len(self.rows) > self.rows.max(initial=0) + 1:
            # Backends compute the last bit of equal embeddings differently, and another may come in between.
            similarities = level(similarities, rows)
            order = np.lexsort((rows, -similarities), axis=1)
            similarities, rows, indices, numbers = (
                np.take_along_axis(values, order, axis=1) for values in (similarities, rows, indices, numbers)
            )
            tied[:, 1:] = (rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)
        if queries is not None:
            tied |= equally_similar(similarities, numbers, queries, partial(_read_vectors, hits))
        right = find_hits(Neighbors(indices, similarities), classes, self.classes)
        return Places((indices >= 0).astype(np.int64), right.astype(np.int64), tied)


def _read_vectors(hits: Hits, numbers: IntArray) -> FloatArray:
    distinct, places = np.unique(numbers, return_inverse=True)
    return hits.read_vectors(distinct)[places]


def _refuse_two_labels(gallery: _Gallery, labels: Sequence[str], own: IntArray | None) -> None:
    for query, position in enumerate([] if own is None else own.tolist()):
        if position >= 0 and gallery.labels[position] != labels[query]:
            raise KeMetricError(
                f"query {query} has label {labels[query]!r} and its own picture in the store "
                f"{gallery.labels[position]!r}; both sides must name classes alike",
                ExitCode.DATA,
            )
