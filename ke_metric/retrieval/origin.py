"""Where the vectors of a new index may come from without a picture: a folder of embeddings, or another index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.embedding_files import EmbeddingFiles, holds_embeddings
from ke_metric.retrieval.index import MODEL, Index
from ke_metric.retrieval.item_embeddings import ItemBatch
from ke_metric.retrieval.manifest import MANIFEST

BATCH_SIZE = 8192


@dataclass(frozen=True)
class Origin:
    """Embeddings that exist. Made by `open`; close it, or use it as a context manager.

    Attributes:
        folder: Where they lie.
        digest: Of the embedder that made them.
        dimension: Length D of the vectors.
        description: Where that embedder came from, in words.
        count: Number of items.
        content: The embeddings themselves.
        model: The bundle of that embedder; None where it is not stored with them.
    """

    folder: Path
    digest: str
    dimension: int
    description: str
    count: int
    content: EmbeddingFiles | Index
    model: Path | None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder of embeddings or an index.

        Raises:
            KeMetricError: DATA: it is neither, or damaged.
        """
        if holds_embeddings(folder):
            files = EmbeddingFiles.open(folder)
            facts = files.facts
            return cls(folder, facts.digest, facts.dimension, facts.description, facts.count, files, files.model)
        if not (folder / MANIFEST).is_file():
            raise KeMetricError(
                f"{folder}: neither an index nor embeddings (ke-metric embed) are here", ExitCode.DATA
            )
        index = Index.open(folder)
        model = folder / MODEL if index.has_embedder else None
        description = index.manifest.description
        return cls(folder, index.digest, index.dimension, description, len(index), index, model)

    def embedder(self) -> Embedder | None:
        """Load the embedder that made the vectors; None where it is not stored with them.

        Raises:
            KeMetricError: It is damaged, or another one.
        """
        if self.model is None:
            return None
        embedder = Embedder.load(self.model, device="cpu")
        self.require_digest(embedder.digest, str(self.model))
        embedder.description = self.description
        return embedder

    def require_digest(self, digest: str, whose: str) -> None:
        """Refuse another network than the one that made the vectors.

        Raises:
            KeMetricError: DATA: it is another one.
        """
        if digest != self.digest:
            raise KeMetricError(
                f"{whose}: another network than the one that made the vectors of {self.folder} (digest "
                f"{digest[:12]}, theirs is {self.digest[:12]}: {self.description})",
                ExitCode.DATA,
            )

    def batches(self) -> Iterator[ItemBatch]:
        """Yield the items and their vectors.

        Raises:
            KeMetricError: DATA: what lies there is damaged.
        """
        if isinstance(self.content, EmbeddingFiles):
            yield from self.content.batches(BATCH_SIZE)
        else:
            for items, vectors in self.content.store.read(BATCH_SIZE):
                yield ItemBatch(items, vectors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self.content, Index):
            self.content.close()
