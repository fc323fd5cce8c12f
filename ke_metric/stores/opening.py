"""Which kind of store an index has, and how it is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.schema import Section, in_words
from ke_metric.stores.contract import VectorStore
from ke_metric.stores.gallery import VECTORS

MILVUS_FILE = "milvus.db"
TOKEN_VARIABLE = "KE_METRIC_MILVUS_TOKEN"
# Which kind of store reads a field; a field of another kind would be an option that nothing reads.
KIND_OF_FIELD = {"factory": "faiss", "search": "faiss", "uri": "milvus", "collection": "milvus", "index": "milvus"}


class StoreSettings(Section):
    """What an index says of its store."""

    kind: Literal["faiss", "memmap", "milvus"] = "faiss"
    """faiss: a FAISS file, exact or approximate. memmap: exact, streamed from the disk. milvus: a database."""
    factory: str = "auto"
    """faiss: a factory string such as Flat, HNSW32 or IVF1024,Flat; auto: chosen by size."""
    search: dict[str, int] = Field(default_factory=dict)
    """faiss: how thoroughly is searched, such as {"nprobe": 32}; the kind's own defaults where left out."""
    uri: str | None = None
    """milvus: a cluster, http://host:19530, or a file; a file in the index's folder when left out."""
    collection: str = "ke_metric"
    """milvus: name of the collection."""
    index: str = "FLAT"
    """milvus: FLAT is exact; HNSW, IVF_FLAT or AUTOINDEX are not."""

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Return settings from plain values; those that are None take their defaults.

        Raises:
            KeMetricError: USAGE: a value is not allowed, or the kind of store would not read a field.
        """
        try:
            return cls(**{name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            raise KeMetricError(f"store: {in_words(error)}", ExitCode.USAGE) from error

    def from_anywhere(self) -> Self:
        """Return settings that mean the same whatever the current folder is: a file's URI with its whole path."""
        if not self.uri or "://" in self.uri:
            return self
        return self.model_copy(update={"uri": os.path.abspath(self.uri)})  # noqa: PTH100  (Path.absolute keeps `..`)

    @model_validator(mode="after")
    def _nothing_unread(self) -> Self:
        for name in sorted(self.model_fields_set & KIND_OF_FIELD.keys()):
            if KIND_OF_FIELD[name] != self.kind and getattr(self, name) != type(self).model_fields[name].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"{name} is for a store of kind {KIND_OF_FIELD[name]!r}, this one is {self.kind!r}")
        return self


def open_store(
    folder: Path,
    dimension: int,
    settings: StoreSettings,
    *,
    writing: bool,
    making: bool = True,
    device: torch.device | str = "cpu",
    facts: Mapping[str, str] | None = None,
) -> VectorStore:
    """Open a store in a folder, where its files lie but for a Milvus cluster's.

    Args:
        folder: The folder.
        dimension: Length D of the vectors.
        settings: Which kind.
        writing: Hold its lock, to add and remove.
        making: Make one that is not there, when writing.
        device: Where a memmap store searches.
        facts: What a Milvus collection is to say of itself; one that says otherwise is refused.

    Raises:
        KeMetricError: It cannot be opened: missing, damaged, of another dimension, written by another process, a
            library that is missing, or a server that does not answer.
    """
    if writing and not making:
        _require_file(folder / VECTORS if settings.kind != "milvus" else _milvus_file(folder, settings))
    if settings.kind == "memmap":
        from ke_metric.stores.memmap import MemmapStore

        return MemmapStore(folder, dimension, writing=writing, device=device)
    if settings.kind == "faiss":
        from ke_metric.stores.faiss_store import FaissStore

        return FaissStore(folder, dimension, writing=writing, factory=settings.factory, search=settings.search)
    assert settings.kind == "milvus", "a kind that nothing opens"
    from ke_metric.stores.milvus_store import MilvusStore

    return MilvusStore(
        str(folder / MILVUS_FILE) if settings.uri is None else settings.uri,
        dimension,
        writing=writing,
        making=making,
        collection=settings.collection,
        kind=settings.index,
        token=os.environ.get(TOKEN_VARIABLE),
        facts=facts,
    )


def _milvus_file(folder: Path, settings: StoreSettings) -> Path | None:
    """Return the file of Milvus Lite; None for a server."""
    if settings.uri is None:
        return folder / MILVUS_FILE
    return None if "://" in settings.uri else Path(settings.uri)


def _require_file(path: Path | None) -> None:
    """Refuse a store whose files are gone: an empty one in its place would look as if nothing had ever been added."""
    if path is not None and not path.exists():
        raise KeMetricError(
            f"{path}: is missing, and no empty one is made in its place; restore it from a copy, or delete the index "
            "and build it again",
            ExitCode.LINEAGE,
        )
