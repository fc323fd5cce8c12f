"""The index: a searched gallery together with the network that made its vectors.

A folder: index.json (never trusted: a closed schema, checked when it is read), `model/` (the network as a bundle, so
that the folder is all that a search needs) and the files of the store, of whichever kind index.json says. Shapes: B
batch, D embedding, Q queries.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator

from ke_metric.arrays import FloatArray
from ke_metric.disk import remove_folder, to_json, whole_folder
from ke_metric.errors import ExitCode, KeMetricError, either
from ke_metric.networks.bundle_config import Sha256, installed_versions
from ke_metric.retrieval.embedder import Embedder
from ke_metric.schema import Section, in_words, read_object, require_version, validated
from ke_metric.stores.contract import Hits, Item, VectorStore, Where
from ke_metric.stores.gallery import VECTORS

MANIFEST = "index.json"
MODEL = "model"
FORMAT_VERSION: Literal[1] = 1
ITEMS_AT_A_TIME = 10_000
MILVUS_FILE = "milvus.db"
SERVERS = ("milvus", "postgres")  # the others are files of the index's folder
# Which kind of store reads a field; a field of another kind would be an option that nothing reads.
KINDS_OF_FIELD = {
    "factory": ("faiss",), "search": ("faiss",), "uri": SERVERS, "collection": SERVERS, "index": SERVERS,
}  # fmt: skip


class StoreSettings(Section):
    """What an index says of its store."""

    kind: Literal["faiss", "memmap", "milvus", "postgres"] = "faiss"
    """faiss: a FAISS file, exact or not. memmap: exact, streamed from the disk. milvus, postgres: a database."""
    factory: str = "auto"
    """faiss: a factory string such as Flat, HNSW32 or IVF1024,Flat; auto: chosen by size."""
    search: dict[str, int] = Field(default_factory=dict)
    """faiss: how thoroughly is searched, such as {"nprobe": 32}; the kind's own defaults where left out."""
    uri: str | None = None
    """milvus: a server or a file; a file in the index's folder when left out. postgres: postgresql://user@host/database."""
    collection: str = "ke_metric"
    """milvus: name of the collection. postgres: of the table, TABLE or SCHEMA.TABLE."""
    index: str = "FLAT"
    """FLAT is exact. milvus: HNSW, IVF_FLAT or AUTOINDEX, postgres: HNSW or HNSW_HALFVEC are not."""

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
        for name in sorted(self.model_fields_set & KINDS_OF_FIELD.keys()):
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if self.kind not in KINDS_OF_FIELD[name] and getattr(self, name) != default:
                kinds = either([repr(kind) for kind in KINDS_OF_FIELD[name]])
                raise ValueError(f"{name} is for a store of kind {kinds}, this one is {self.kind!r}")
        if self.kind == "postgres" and not self.uri:
            raise ValueError("uri is missing: a store of kind 'postgres' is at postgresql://user@host/database")
        return self


FAISS_STORE = StoreSettings()


class Manifest(Section):
    """What index.json says."""

    format_version: Literal[1] = FORMAT_VERSION
    digest: Sha256
    """Of the embedder that made the vectors."""
    dimension: int = Field(ge=1)
    """Length D of the vectors."""
    description: str
    """Where that embedder came from, in words."""
    store: StoreSettings
    versions: dict[str, str] = Field(default_factory=installed_versions)
    """Of what made the index; for people."""


def read_manifest(folder: Path) -> Manifest:
    """Read index.json.

    Raises:
        KeMetricError: There is none, it is damaged, or of another format version.
    """
    path = folder / MANIFEST
    missing = f"{folder}: no index here (no {MANIFEST}); make one with ke-metric index build"
    document = read_object(path, missing)
    require_version(path, document, FORMAT_VERSION)
    return validated(Manifest, document, path)


@dataclass(frozen=True)
class Result:
    """One item that was found: its rank from 1, what its store says of it, and how similar it is to the query.

    The similarity is the cosine, or what a re-ranking puts in its place; higher is better.
    """

    rank: int
    id: str
    path: str
    label: str
    similarity: float

    @property
    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def results_of(hits: Hits) -> list[list[Result]]:
    """Return the results of each query."""
    return [
        [
            Result(rank, item.id, item.path, item.label, float(similarity))
            for rank, (item, similarity) in enumerate(zip(items, row, strict=False), start=1)
        ]
        for items, row in zip(hits.items(), hits.similarities, strict=True)
    ]


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
    """Open a store in a folder, where its files lie but for those of a server.

    Args:
        folder: The folder.
        dimension: Length D of the vectors.
        settings: Which kind.
        writing: Hold its lock, to add and remove.
        making: Make one that is not there, when writing.
        device: Where a memmap store searches.
        facts: What a collection or a table is to say of itself; one that says otherwise is refused.

    Raises:
        KeMetricError: It cannot be opened: missing, damaged, of another dimension, written by another process, a
            library that is missing, or a server that does not answer.
    """
    if writing and not making:
        _require_file(folder / VECTORS if settings.kind not in SERVERS else _milvus_file(folder, settings))
    if settings.kind == "memmap":
        from ke_metric.stores.memmap import MemmapStore

        return MemmapStore(folder, dimension, writing=writing, device=device)
    if settings.kind == "faiss":
        from ke_metric.stores.faiss_store import FaissStore

        return FaissStore(folder, dimension, writing=writing, factory=settings.factory, search=settings.search)
    from ke_metric.stores.opening import server_store

    return server_store(settings.kind)(
        str(folder / MILVUS_FILE) if settings.uri is None else settings.uri,
        dimension,
        writing=writing,
        making=making,
        collection=settings.collection,
        kind=settings.index,
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


class Index:
    """A gallery that is searched. Made by `create` or `open`; close it, or use it as a context manager.

    Args:
        folder: Where it lies.
        manifest: What its index.json says.
        writing: Whether it can be changed; one process at a time can.
        device: Where its embedder runs and a memmap store searches; see `Embedder.load`.
        making: Make a store that is not there, when writing.

    Attributes:
        store: Its vectors and items.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        writing: bool,
        device: torch.device | str | None = None,
        making: bool = False,
    ) -> None:
        self.folder, self.manifest, self._device = folder, manifest, device
        self.store: VectorStore = open_store(
            folder,
            manifest.dimension,
            manifest.store,
            writing=writing,
            making=making,
            device=device or "cpu",
            facts={"digest": manifest.digest},
        )

    @classmethod
    def create(
        cls,
        folder: Path | str,
        *,
        embedder: Embedder | None = None,
        digest: str | None = None,
        dimension: int | None = None,
        description: str = "vectors given",
        settings: StoreSettings = FAISS_STORE,
    ) -> Self:
        """Make an empty index and open it for writing.

        Args:
            folder: A folder that is not there, or is empty.
            embedder: What makes its vectors; it is stored beside them.
            digest: In place of an embedder: SHA-256 of whatever makes the vectors.
            dimension: In place of an embedder: length D of the vectors.
            description: In place of an embedder: where the vectors come from, in words.
            settings: Kind of store.

        Raises:
            KeMetricError: The folder is taken, the disk is full, or the store cannot be made or holds items of
                another index.
        """
        place = Path(folder)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise KeMetricError(
                f"{place}: exists; choose another folder, add to the index there is, or delete it yourself",
                ExitCode.USAGE,
            )
        if embedder is not None:
            digest, dimension, description = embedder.digest, embedder.dimension, embedder.description
        assert digest is not None, "an index needs an embedder, or a digest"
        assert dimension is not None, "an index needs an embedder, or a dimension"
        manifest = Manifest(
            digest=digest, dimension=dimension, description=description, store=settings.from_anywhere()
        )
        with whole_folder(place.resolve()) as temporary:
            (temporary / MANIFEST).write_text(to_json(manifest.model_dump(mode="json")), encoding="utf-8")
            if embedder is not None:
                embedder.save(temporary / MODEL)
            if settings.kind not in SERVERS:  # killed at any moment, an index that is there has its store
                open_store(temporary, dimension, settings, writing=True).close()
        try:
            index = cls(place, manifest, writing=True, making=True)
            try:
                index._require_empty()
            except BaseException:
                index.close()
                raise
        except BaseException:
            remove_folder(place)
            raise
        return index

    @classmethod
    def open(cls, folder: Path | str, *, writing: bool = False, device: torch.device | str | None = None) -> Self:
        """Open an index, to be changed as well (one process at a time can), or to be searched.

        The device is where its embedder runs and a memmap store searches, see `Embedder.load`.

        Raises:
            KeMetricError: There is none, it or its store is damaged or missing, or another process writes it.
        """
        return cls(Path(folder), read_manifest(Path(folder)), writing=writing, device=device)

    def _require_empty(self) -> None:
        if count := len(self):
            raise KeMetricError(
                f"{self.folder}: collection {self.manifest.store.collection} of {self.manifest.store.uri} holds "
                f"{count:,} items already; name another one (--collection), or copy the folder of the index whose it "
                "is, to search it or add to it",
                ExitCode.USAGE,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.store)

    @property
    def digest(self) -> str:
        """Digest of the embedder that made the vectors."""
        return self.manifest.digest

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return self.manifest.dimension

    @property
    def has_embedder(self) -> bool:
        """Whether the network that made the vectors is stored beside them."""
        return (self.folder / MODEL).is_dir()

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder that made the vectors, loaded when first asked for.

        Raises:
            KeMetricError: It is not stored here, is damaged, or is another one.
        """
        if not self.has_embedder:
            raise KeMetricError(
                f"{self.folder}: made of vectors alone ({self.manifest.description}), without the network that made "
                f"them: pictures cannot be embedded here. Name the network: its digest must be {self.digest[:12]}",
                ExitCode.DATA,
            )
        embedder = Embedder.load(self.folder / MODEL, device=self._device)
        self.require_digest(embedder.digest, f"{self.folder / MODEL}")
        return embedder

    def require_digest(self, digest: str, whose: str) -> None:
        """Refuse, with DATA, vectors of an embedder of another digest; `whose` is what the error calls them."""
        if digest != self.digest:
            raise KeMetricError(
                f"{whose}: made by another network than the vectors of {self.folder} (digest {digest[:12]}, the "
                f"index's is {self.digest[:12]}: {self.manifest.description}); vectors of two networks cannot be "
                "compared",
                ExitCode.DATA,
            )

    def add(self, items: Sequence[Item], vectors: FloatArray, *, digest: str, replace: bool = False) -> None:
        """Add items and their vectors [B, D], all or none; acknowledged when this returns.

        Args:
            items: B items of different ids.
            vectors: [B, D] float32, L2-normalised.
            digest: Of the embedder that made the vectors.
            replace: Let items of an id that is there take its place.

        Raises:
            KeMetricError: DATA: vectors of another network, or what `VectorStore.add` refuses.
        """
        self.require_digest(digest, "vectors to be added")
        self.store.add(items, vectors, replace=replace)

    def require_same_pictures(self, items: Sequence[Item]) -> None:
        """Refuse items of which another picture has the id already; what is there would be taken for it, or lost.

        An id says which picture within a folder that was named, so two folders may use the same ids.

        Args:
            items: What is to be added or replaced. An item whose path, here or there, is not known is let through.

        Raises:
            KeMetricError: DATA, naming the id and both paths.
        """
        for start in range(0, len(items), ITEMS_AT_A_TIME):
            part = items[start : start + ITEMS_AT_A_TIME]
            known = self.store.known([item.id for item in part])
            there = {item.id: item for item in self.store.get(sorted(known))}
            for item in part:
                if item.id in there and not _same_picture(item.path, there[item.id].path):
                    raise KeMetricError(
                        f"{self.folder}: has an item {item.id!r} already, of another picture: {there[item.id].path} "
                        f"there, {item.path} here. Nothing is added. Give these pictures ids of their own (--prefix "
                        "NAME puts NAME/ before each), or remove those that are there first",
                        ExitCode.DATA,
                    )

    def remove(self, ids: Collection[str]) -> None:
        """Remove the items of ids, all or none; DATA where one is not there."""
        self.store.remove(ids)

    def search(self, queries: FloatArray, k: int, *, digest: str, where: Where | None = None) -> Hits:
        """Find the k most similar items of each query [Q, D], L2-normalised, among those that `where` allows.

        Raises:
            KeMetricError: DATA: queries of another network, or of another shape.
        """
        self.require_digest(digest, "queries")
        return self.store.search(queries, k, where=where)

    def describe(self) -> dict[str, Any]:
        """Return facts for people and programs: items, model, store."""
        return {
            "index": str(self.folder),
            "items": len(self.store),
            "dimension": self.dimension,
            "model": {
                "digest": self.digest,
                "description": self.manifest.description,
                "stored_here": self.has_embedder,
            },
            "store": dict(self.store.describe()),
        }

    def close(self) -> None:
        """Close the store; everything acknowledged stays."""
        self.store.close()


def _same_picture(path: str, other: str) -> bool:
    """Return whether two paths may lead to one file, links followed; of an unknown one nobody can tell."""
    return not path or not other or path == other or os.path.realpath(path) == os.path.realpath(other)
