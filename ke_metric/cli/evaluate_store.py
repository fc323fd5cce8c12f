"""`ke-metric eval --store`: the same embeddings scored through a store, and what that costs in scores.

Shapes: Q queries, G gallery items, D embedding.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from rich import box
from rich.table import Table

from ke_metric.arrays import FloatArray, row_chunks
from ke_metric.cli.display import say
from ke_metric.cli.index import read_settings
from ke_metric.cli.options import ThroughChoice
from ke_metric.evaluation.backend import find_self_matches
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.evaluation.recall import count_relevant
from ke_metric.images.image_set import Benchmark
from ke_metric.lineage.report import number_columns
from ke_metric.retrieval.index import SERVERS, StoreSettings, open_store
from ke_metric.retrieval.ranking import Expansion, Reranking, ranked_search
from ke_metric.retrieval.scores import require_depth, score_through
from ke_metric.scoring import Scorer
from ke_metric.stores.contract import Item, ServerStore, VectorStore
from ke_metric.stores.milvus_collection import kind_of

ITEMS_AT_A_TIME = 65_536
# What a temporary store says of itself that is of no use when it is gone.
FLEETING = ("uri", "collection", "facts", "kind", "exact")


@dataclass(frozen=True)
class StoreScoring:
    """How embeddings are scored through a store: which one, and how it is searched."""

    settings: StoreSettings
    expand: Expansion | None
    rerank: Reranking | None

    @classmethod
    def of(cls, choice: ThroughChoice) -> Self:
        """Read what was asked for on the command line; USAGE for what is not allowed, or read by nothing."""
        return cls(
            read_settings(choice.store),
            None if choice.expand is None else Expansion.parse(choice.expand),
            None if choice.rerank is None else Reranking.parse(choice.rerank),
        )

    def require_makeable(self, dimension: int) -> None:
        """Refuse a store for embeddings of length D that could not be made, or not be searched as its settings say.

        A Milvus server is asked only when the gallery is there.

        Raises:
            KeMetricError: USAGE: no such kind of index, or no such setting; ENVIRONMENT: its library is missing.
        """
        if self.settings.kind == "milvus":
            kind_of(self.settings.index)
        else:
            with temporary_store(self.settings, dimension):
                pass

    def require_depth(self, benchmark: Benchmark, recall_at: Sequence[int]) -> None:
        """Refuse a re-ranking too shallow for the scores of a benchmark, and warn of one too wide for its classes.

        Raises:
            KeMetricError: USAGE, with the depth that is needed.
        """
        if self.rerank is None:
            return
        query, gallery = benchmark.query, benchmark.gallery
        relevant = count_relevant(query.labels, gallery.labels, find_self_matches(query.keys, gallery.keys))
        require_depth(self.rerank, relevant, recall_at, gallery_size=len(gallery))
        found = relevant[relevant > 0]
        if len(found) and self.rerank.k2 > (pictures := int(np.median(found)) + 1):
            say(
                f"warning: K2 = {self.rerank.k2} averages over more neighbours than a class has pictures ({pictures} "
                "in the median), which costs Recall@1: see docs/ranking.md",
                style="yellow",
            )

    def document(
        self,
        scorer: Scorer,
        embeddings: Mapping[str, tuple[FloatArray, FloatArray]],
        *,
        exact: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Score networks through a store each, made for them and removed again.

        Args:
            scorer: Who has the pictures' labels and keys, and knows the Ks of Recall@K.
            embeddings: Of each network, those of the queries [Q, D] and of the gallery [G, D].
            exact: The scores of each network without a store.

        Returns:
            Plain JSON values: `kind`, `exact`, `expand` and `rerank` where they were asked for; for each network its
            scores by its name, and `loss` (exact - store), `queries_per_second` and `facts` of its store.
        """
        document: dict[str, Any] = {"kind": self.settings.kind}
        document |= {
            name: asdict(option)
            for name, option in (("expand", self.expand), ("rerank", self.rerank))
            if option is not None
        }
        document |= {name: {} for name in ("loss", "queries_per_second", "facts")}
        for network, (query, gallery) in embeddings.items():
            say(f"{network}: scoring through a store of kind {self.settings.kind} ...")
            with self._filled(scorer, gallery) as store:
                facts = dict(store.describe())
                document["exact"] = facts["exact"]
                document["facts"][network] = {name: facts[name] for name in facts if name not in FLEETING}
                document[network], document["queries_per_second"][network] = self._score(store, scorer, query)
            document["loss"][network] = _loss(exact[network], document[network])
        return document

    @contextmanager
    def _filled(self, scorer: Scorer, gallery: FloatArray) -> Iterator[VectorStore]:
        """Make a store of the gallery, as long as the block lasts."""
        images = scorer.pictures.benchmark.gallery
        # Normalised once more, in float64: the very numbers that the exact scores are of.
        vectors = Embeddings(gallery, images.labels, images.keys).vectors
        items = [Item(key, label=str(label)) for key, label in zip(images.keys, images.labels.tolist(), strict=True)]
        with temporary_store(self.settings, vectors.shape[1], device=scorer.engine.device) as store:
            for rows in row_chunks(len(items), ITEMS_AT_A_TIME):
                store.add(items[rows], vectors[rows])
            store.flush()
            yield store

    def _score(self, store: VectorStore, scorer: Scorer, query: FloatArray) -> tuple[dict[str, float], float]:
        """Return the scores, and queries per second of searching for the largest K, all queries in one call."""
        images, recall_at = scorer.pictures.benchmark.query, scorer.recipe.evaluation.recall_at
        vectors = Embeddings(query, images.labels, images.keys).vectors
        labels = [str(label) for label in images.labels.tolist()]
        scores = score_through(
            store, vectors, labels, recall_at, ids=images.keys, expand=self.expand, rerank=self.rerank
        )
        started = time.perf_counter()
        ranked_search(store, vectors, max(recall_at, default=1), expand=self.expand, rerank=self.rerank)
        return scores, len(vectors) / (time.perf_counter() - started)


@contextmanager
def temporary_store(
    settings: StoreSettings, dimension: int, *, device: torch.device | str = "cpu"
) -> Iterator[VectorStore]:
    """Open a new store for writing that is gone after the block.

    It lies in a temporary folder, or at the URI of the settings in a collection or table of a new name.
    """
    if settings.kind in SERVERS:
        settings = settings.model_copy(update={"collection": f"ke_metric_eval_{secrets.token_hex(8)}"})
    with (
        tempfile.TemporaryDirectory(prefix="ke-metric-eval-") as folder,
        closing(open_store(Path(folder), dimension, settings, writing=True, device=device)) as store,
    ):
        try:
            yield store
        finally:
            if settings.kind in SERVERS:
                cast(ServerStore, store).drop()


def _loss(exact: Mapping[str, float], scores: Mapping[str, float]) -> dict[str, float]:
    """Return exact - store of every score of both; how many queries there were is no score."""
    counts = ("queries", "queries_without_match")
    return {name: exact[name] - scores[name] for name in scores if name in exact and name not in counts}


def store_table(exact: Mapping[str, Any], document: Mapping[str, Any]) -> Table:
    """Return the table of one generation: exact, through the store, and the loss, in percent.

    Args:
        exact: `generation`, its number, and the scores of each network without a store.
        document: From `StoreScoring.document`.
    """
    names = list(next(iter(document["loss"].values())))
    table = Table(
        "network",
        "search",
        *number_columns((), names),
        *number_columns(("queries/s",), ()),
        title=f"generation {exact['generation']} through a store of kind {document['kind']}, in percent",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for network, loss in document["loss"].items():
        speed = f"{document['queries_per_second'][network]:,.0f}"
        rows = (("exact", exact[network], ""), ("store", document[network], speed), ("loss", loss, ""))
        for position, (what, scores, last) in enumerate(rows):
            # Adding 0 turns the -0.00 of a last bit into 0.00.
            cells = [f"{round(100 * scores[name], 2) + 0:.2f}" for name in names]
            table.add_row("" if position else network, what, *cells, last)
    return table
