"""Embeddings that exist, wherever they lie: what an index is made of in place of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.embedding_files import FACTS, ROWS_AT_A_TIME, EmbeddingFiles, Facts, ItemBatch
from ke_metric.retrieval.index import MANIFEST, MODEL, Index, Manifest
from ke_metric.retrieval.parquet_files import ParquetFacts, ParquetFiles, is_parquet


@dataclass(frozen=True)
class StoredEmbeddings:
    """Embeddings that exist: a folder of files, Parquet, or an index. Made by `open`; close it, or use it in `with`.

    Attributes:
        folder: Where they lie.
        facts: Digest, dimension and description of the embedder that made them.
        content: The embeddings themselves.
    """

    folder: Path
    facts: Facts | ParquetFacts | Manifest
    content: EmbeddingFiles | ParquetFiles | Index

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open embeddings: see `EmbeddingFiles`, `ParquetFiles` and `Index`; DATA where it is none, or damaged."""
        if is_parquet(folder):
            parquet = ParquetFiles.open(folder)
            return cls(folder, parquet.facts, parquet)
        if (folder / FACTS).is_file():
            files = EmbeddingFiles.open(folder)
            return cls(folder, files.facts, files)
        if not (folder / MANIFEST).is_file():
            raise KeMetricError(
                f"{folder}: neither an index nor embeddings (ke-metric embed) are here", ExitCode.DATA
            )
        index = Index.open(folder)
        return cls(folder, index.manifest, index)

    def __len__(self) -> int:
        return len(self.content)

    def embedder(self) -> Embedder | None:
        """Load the embedder that made the vectors; None where it is not stored with them."""
        model = self.folder / MODEL
        if not model.is_dir():
            return None
        embedder = Embedder.load(model, device="cpu")
        self.require_digest(embedder.digest, str(model))
        embedder.description = self.facts.description
        return embedder

    def require_digest(self, digest: str, whose: str) -> None:
        """Refuse, with DATA, another network than the one that made the vectors; `whose` is its name in the error."""
        if digest != self.facts.digest:
            raise KeMetricError(
                f"{whose}: another network than the one that made the vectors of {self.folder} (digest "
                f"{digest[:12]}, theirs is {self.facts.digest[:12]}: {self.facts.description})",
                ExitCode.DATA,
            )

    def batches(self) -> Iterator[ItemBatch]:
        """Yield the items and their vectors; DATA where what lies there is damaged."""
        if not isinstance(self.content, Index):
            yield from self.content.batches()
        else:
            for items, vectors in self.content.store.read(ROWS_AT_A_TIME):
                yield ItemBatch(items, vectors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if isinstance(self.content, Index):
            self.content.close()
