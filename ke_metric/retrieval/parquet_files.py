"""Embeddings as Parquet: columns id, path, label and vector, in one file or many; who made them is in their metadata.

A table for pandas, DuckDB, Polars and Spark, of which many programs may each write a part. Shapes: N items, B batch,
D embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field

from ke_metric.disk import disk_error, reach_disk, temporary_name
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.preparation import Preparation
from ke_metric.networks.bundle_config import Sha256, installed_versions
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.embedding_files import COLUMNS, ROWS_AT_A_TIME, Facts, ItemBatch
from ke_metric.retrieval.picture_list import LeftOut
from ke_metric.schema import Section, validated
from ke_metric.stores.contract import Item, check_addition

if TYPE_CHECKING:
    import pyarrow

SUFFIX = ".parquet"
KEY = b"ke_metric"


class ParquetFacts(Section):
    """What the metadata of a file says under `ke_metric`."""

    format_version: Literal[1] = 1
    digest: Sha256
    """Of the embedder that made the vectors."""
    dimension: int = Field(ge=1)
    """Length D of the vectors."""
    description: str
    """Where the embedder came from, in words."""
    versions: dict[str, str] = Field(default_factory=installed_versions)
    """Of what made the vectors; for people."""
    preparation: Preparation
    """What became of a picture before the network saw it."""


def is_parquet(path: Path) -> bool:
    """Return whether a path means files of Parquet: one, a pattern of their names, or a folder of nothing else."""
    entries = list(path.iterdir()) if path.is_dir() else [path]
    return bool(entries) and all(entry.suffix == SUFFIX for entry in entries)


def _load() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise KeMetricError(f"Parquet: {error}: pip install 'ke_metric[parquet]'", ExitCode.ENVIRONMENT) from error
    return pyarrow


def require_parquet_place(path: Path, *, overwrite: bool) -> None:
    """Refuse, as USAGE, a place that is taken; ENVIRONMENT: pyarrow is not installed."""
    _load()
    if path.is_dir() or (path.exists() and not overwrite):
        raise KeMetricError(
            f"{path}: exists; choose another name" + ("" if path.is_dir() else ", or replace it (--overwrite)"),
            ExitCode.USAGE,
        )


def write_parquet(
    path: Path,
    embedder: Embedder,
    batches: Iterable[ItemBatch],
    *,
    left_out: Sequence[LeftOut] = (),
    overwrite: bool = False,
) -> Facts:
    """Write embeddings as one file, whole or not at all; a batch at a time is in memory.

    Raises:
        KeMetricError: The place is taken (USAGE), a picture is refused (DATA), the disk is full or pyarrow is not
            installed (ENVIRONMENT).
    """
    require_parquet_place(path, overwrite=overwrite)
    arrow, temporary = _load(), temporary_name(path)
    schema = _schema(arrow, embedder)
    more, count = list(left_out), 0
    try:
        with arrow.parquet.ParquetWriter(temporary, schema) as writer:
            for batch in batches:
                check_addition(batch.items, batch.vectors, embedder.dimension)
                writer.write_table(_table(arrow, schema, batch))
                count += len(batch.items)
                more += batch.left_out
        reach_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Facts(
        digest=embedder.digest,
        dimension=embedder.dimension,
        count=count,
        description=embedder.description,
        left_out=[asdict(picture) for picture in more],
    )


def _schema(arrow: Any, embedder: Embedder) -> pyarrow.Schema:
    facts = ParquetFacts(
        digest=embedder.digest,
        dimension=embedder.dimension,
        description=embedder.description,
        preparation=embedder.preparation,
    )
    columns = [(name, arrow.string()) for name in COLUMNS]
    text = json.dumps(facts.model_dump(mode="json"), ensure_ascii=False)
    return arrow.schema([*columns, ("vector", arrow.list_(arrow.float32(), embedder.dimension))], {KEY: text})


def _table(arrow: Any, schema: pyarrow.Schema, batch: ItemBatch) -> pyarrow.Table:
    texts = [[getattr(item, name) for item in batch.items] for name in COLUMNS]
    vectors = arrow.array(np.ascontiguousarray(batch.vectors).reshape(-1))
    return arrow.table([*texts, arrow.FixedSizeListArray.from_arrays(vectors, batch.vectors.shape[1])], schema=schema)


@dataclass(frozen=True)
class ParquetFiles:
    """Files of Parquet that one network made. Made by `open`.

    Attributes:
        paths: The files, in the order of their names.
        facts: What they say.
        count: Number N of items in all of them.
    """

    paths: tuple[Path, ...]
    facts: ParquetFacts
    count: int

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file, all files of a folder, or those that a pattern such as `part-*.parquet` names.

        Raises:
            KeMetricError: DATA: there is none, one is damaged or has other columns, or they are of several networks.
        """
        arrow = _load()
        if path.is_dir():
            paths = sorted(path.iterdir())
        else:
            paths = [path] if path.is_file() else sorted(path.parent.glob(path.name))
        if not paths:
            raise KeMetricError(f"{path}: there is no such file, and none of such a name", ExitCode.DATA)
        said = [_read_facts(arrow, each) for each in paths]
        for each, (facts, _) in zip(paths, said, strict=True):
            if facts.digest != said[0][0].digest:
                raise KeMetricError(
                    f"{each}: made by another network than {paths[0]} (digest {facts.digest[:12]}, that one's is "
                    f"{said[0][0].digest[:12]}); vectors of two networks cannot be compared",
                    ExitCode.DATA,
                )
        return cls(tuple(paths), said[0][0], sum(rows for _, rows in said))

    def __len__(self) -> int:
        return self.count

    def batches(self, batch_size: int = ROWS_AT_A_TIME) -> Iterator[ItemBatch]:
        """Yield the items and their vectors, file by file, a batch at a time in memory; DATA where one is damaged."""
        arrow = _load()
        for path in self.paths:
            try:
                with arrow.parquet.ParquetFile(path) as file:
                    for part in file.iter_batches(batch_size, columns=[*COLUMNS, "vector"]):
                        yield _batch(part, self.facts.dimension, path)
            except (OSError, arrow.ArrowException) as error:
                raise KeMetricError(f"{path}: cannot be read: {error}", ExitCode.DATA) from error


def _read_facts(arrow: Any, path: Path) -> tuple[ParquetFacts, int]:
    """Return what a file says of itself, and its number of rows."""
    try:
        with arrow.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, arrow.ArrowException) as error:
        raise KeMetricError(f"{path}: cannot be read: {error}", ExitCode.DATA) from error
    metadata = schema.metadata or {}
    missing = [name for name in (*COLUMNS, "vector") if name not in schema.names]
    if missing or KEY not in metadata:
        what = f"no column {missing[0]!r}" if missing else "no word of the network that made its vectors"
        raise KeMetricError(f"{path}: has {what}; ke-metric embed -o NAME{SUFFIX} writes both", ExitCode.DATA)
    try:
        document = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise KeMetricError(
            f"{path}: what it says under {KEY.decode()} is damaged: {error}", ExitCode.DATA
        ) from error
    return validated(ParquetFacts, document, path), rows


def _batch(part: pyarrow.RecordBatch, dimension: int, path: Path) -> ItemBatch:
    texts = [part.column(name).to_pylist() for name in COLUMNS]
    column = part.column("vector")
    flat = column.flatten()
    if column.null_count or flat.null_count or str(flat.type) != "float" or len(flat) != len(column) * dimension:
        raise KeMetricError(f"{path}: its vectors must be {dimension} numbers of float32 each", ExitCode.DATA)
    vectors = np.array(flat.to_numpy(zero_copy_only=False)).reshape(-1, dimension)
    return ItemBatch([Item(*row) for row in zip(*texts, strict=True)], vectors)
