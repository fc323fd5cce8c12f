"""Embeddings as Parquet: columns id, path, label and vector, in one file or many; who made them is in their metadata.

A table for pandas, DuckDB, Polars and Spark, of which many programs may each write a part (`parts_of`, `embed_part`).
Shapes: N items, B batch, D embedding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field

from ke_metric.disk import whole_file
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.preparation import Preparation
from ke_metric.networks.bundle_config import Sha256, installed_versions
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.embedding_files import COLUMNS, ROWS_AT_A_TIME, Facts, ItemBatch, embed_items
from ke_metric.retrieval.picture_list import LeftOut
from ke_metric.schema import Section, validated
from ke_metric.stores.contract import Item, check_addition, check_count

if TYPE_CHECKING:
    import pyarrow

SUFFIX = ".parquet"
KEY = b"ke_metric"

MOST_PARTS = 100_000
"""Files of one folder: with more of them, the order of their names would not be that of the pictures."""

OnDone = Callable[[int, Sequence[LeftOut]], Any]


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
    entries = _files_of(path) if path.is_dir() else [path]
    return bool(entries) and all(entry.suffix == SUFFIX for entry in entries)


def _files_of(folder: Path) -> list[Path]:
    # As pyarrow and Spark have it, such names are none of the data: a file that is being written, _SUCCESS.
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))


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
    """Write embeddings as one file, whole or not at all; some thousand at a time are in memory.

    Raises:
        KeMetricError: The place is taken (USAGE), a picture is refused (DATA), the disk is full or pyarrow is not
            installed (ENVIRONMENT).
    """
    require_parquet_place(path, overwrite=overwrite)
    arrow = _load()
    schema = _schema(arrow, embedder)
    more, count = list(left_out), 0

    def tables(temporary: Path) -> Iterator[pyarrow.Table]:
        nonlocal count
        for batch in batches:
            check_addition(batch.items, batch.vectors, embedder.dimension)
            os.utime(temporary)  # hours may pass before a group is written, and it is not abandoned
            yield _table(arrow, schema, batch)
            count += len(batch.items)
            more.extend(batch.left_out)

    # Numbers of an embedding do not repeat: a dictionary of them would cost three times the time, and bytes.
    how = {"use_dictionary": ["label"], "compression": "zstd"}
    with whole_file(path) as temporary, arrow.parquet.ParquetWriter(temporary, schema, **how) as writer:
        for group in _row_groups(tables(temporary)):
            writer.write_table(arrow.concat_tables(group))
    return _facts(embedder, count, more)


def _row_groups(tables: Iterable[pyarrow.Table]) -> Iterator[list[pyarrow.Table]]:
    """Gather tables until they are worth a row group: each of these costs the end of the file 700 bytes."""
    group: list[pyarrow.Table] = []
    for table in tables:
        group.append(table)
        if sum(map(len, group)) >= ROWS_AT_A_TIME:
            yield group
            group = []
    if group:
        yield group


def _facts(embedder: Embedder, count: int, left_out: Sequence[LeftOut]) -> Facts:
    return Facts(
        digest=embedder.digest,
        dimension=embedder.dimension,
        count=count,
        description=embedder.description,
        left_out=[asdict(picture) for picture in left_out],
    )


def parts_of(items: Sequence[Item], size: int, called: str = "size") -> Iterator[tuple[str, Sequence[Item]]]:
    """Yield stretches of `size` items, the last one of fewer, each with the name of the file that is to hold it.

    An error calls the size by the name that somebody gave it under, `called`.

    Raises:
        KeMetricError: USAGE: the size is no whole number of at least 1, or makes more than 100,000 files.
    """
    check_count(called, size)
    if len(items) > MOST_PARTS * size:
        raise KeMetricError(
            f"{called} = {size}: makes {-(-len(items) // size):,} files, must be at most {MOST_PARTS:,}: "
            f"{-(-len(items) // MOST_PARTS)} or more in each",
            ExitCode.USAGE,
        )
    for number, start in enumerate(range(0, len(items), size)):
        yield f"part-{number:05d}{SUFFIX}", items[start : start + size]


def embed_parts(
    folder: Path,
    embedder: Embedder,
    items: Sequence[Item],
    *,
    rows: int,
    strict: bool = False,
    batch_size: int | None = None,
    on_done: OnDone = lambda pictures, left_out: None,
) -> Facts:
    """Embed the pictures of items into a folder of files, `rows` in each; those that are there are left as they are.

    See `embed_part`, by which several programs may share this work.

    Raises:
        KeMetricError: As of `embed_part`; USAGE: the folder holds something else.
    """
    parts = list(parts_of(items, rows, "rows"))
    require_parts_place(folder, {name for name, _ in parts})
    made = [
        embed_part(folder / name, embedder, part, strict=strict, batch_size=batch_size, on_done=on_done)
        for name, part in parts
    ]
    left_out = [LeftOut(**picture) for facts in made for picture in facts.left_out]
    return _facts(embedder, sum(facts.count for facts in made), left_out)


def require_parts_place(folder: Path, names: Set[str]) -> None:
    """Make a folder for the files of these names; USAGE where it holds others, ENVIRONMENT: pyarrow is missing."""
    _load()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        other = next((path.name for path in _files_of(folder) if path.name not in names), None)
    except OSError as error:
        raise KeMetricError(f"{folder}: cannot be a folder of files: {error.strerror}", ExitCode.USAGE) from error
    if other is not None:
        raise KeMetricError(
            f"{folder}: holds {other}, which is none of the {len(names):,} files of these pictures; choose another "
            "folder",
            ExitCode.USAGE,
        )


class _FewerError(Exception):
    """A file would hold fewer pictures than the one that is there, or none."""


def embed_part(
    path: Path,
    embedder: Embedder,
    items: Sequence[Item],
    *,
    strict: bool = False,
    batch_size: int | None = None,
    on_done: OnDone = lambda pictures, left_out: None,
) -> Facts:
    """Embed the pictures of items into one file of many, whole or not at all; one that holds them is left as it is.

    So no picture is lost or doubled where somebody begins again, or takes over from a worker that was killed. Items
    are known by id, path and label: a picture that was changed under its path keeps the vector that it has there. Of
    a file that holds only some of the items, the others alone are tried: where none of them can be used, it is left
    as it is too, and where one can be, it is written anew, unless fewer can be used in all. Where no item can be
    used, no file is made. The vectors are those of one file of all items, bit for bit, where each part but the last
    has a multiple of the batch size of items, and is computed by as many threads of the same kind of processor.

    Args:
        path: The file.
        embedder: What embeds them.
        items: The pictures, see `parts_of`.
        strict: The first picture that cannot be used is an error.
        batch_size: Pictures per forward pass; the network's own when None.
        on_done: Called as it goes on with how many more pictures are done, and which of them were left out; for a
            file that was kept since fewer pictures can be used now, with 0 and why.

    Raises:
        KeMetricError: The file there is of another network, of other pictures or damaged, a picture is refused (all
            DATA), the disk is full or pyarrow is not installed (ENVIRONMENT).
    """
    there = _held(path, embedder, items)
    held = set(there)
    if there and there == [item for item in items if item in held]:
        others = _unusable(embedder, [item for item in items if item not in held], strict=strict)
        if others is not None:
            on_done(len(items), others)
            return _facts(embedder, len(there), others)
    left_out: list[LeftOut] = []

    def told() -> Iterator[ItemBatch]:
        nonlocal there
        for batch in embed_items(embedder, items, strict=strict, batch_size=batch_size):
            yield batch
            left_out.extend(batch.left_out)
            on_done(len(batch.items) + len(batch.left_out), batch.left_out)
        # Read again: somebody else may have written it in the meantime.
        there = _held(path, embedder, items)
        if len(items) - len(left_out) < max(len(there), 1):
            raise _FewerError

    try:
        return write_parquet(path, embedder, told(), overwrite=True)
    except _FewerError:
        if not there:
            return _facts(embedder, 0, left_out)
    kept = (
        f"{path}: kept, with {len(there):,} of its {len(items):,} pictures: only {len(items) - len(left_out):,} "
        "could be used now"
    )
    on_done(0, [LeftOut(str(path), kept)])
    held = set(there)
    lacking = [item.path for item in items if item not in held]
    return _facts(embedder, len(there), [LeftOut(name, f"{name}: is not in {kept}") for name in lacking])


def _unusable(embedder: Embedder, items: Sequence[Item], *, strict: bool) -> list[LeftOut] | None:
    """Return why none of these items can be used; None as soon as one can be."""
    left_out: list[LeftOut] = []
    for batch in embed_items(embedder, items, strict=strict, batch_size=1):
        if batch.items:
            return None
        left_out += batch.left_out
    return left_out


def _held(path: Path, embedder: Embedder, items: Sequence[Item]) -> list[Item]:
    """Return which of the items a file holds; DATA where it is another network's, or holds other items."""
    if not path.exists():
        return []
    stored = ParquetFiles.open(path)
    there = [item for batch in stored.batches() for item in batch.items]
    if stored.facts.digest != embedder.digest or not set(there) <= set(items):
        what = "other pictures" if stored.facts.digest == embedder.digest else "vectors of another network"
        raise KeMetricError(
            f"{path}: is there already and holds {what}; choose another folder, or delete the file yourself",
            ExitCode.DATA,
        )
    return there


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
            paths = _files_of(path)
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
