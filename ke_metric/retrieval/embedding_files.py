"""Embeddings as files: `vectors.npy`, `items.csv`, `embeddings.json` and the network that made them, in one folder.

Plain formats that any program reads (docs/retrieval.md). An index is made of items and embeddings batch by batch, of
pictures or of embeddings that exist: such a folder, or another index. Shapes: N items, B batch, D embedding.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy
from pydantic import Field

from ke_metric.arrays import FloatArray
from ke_metric.disk import FolderKind, require_free, whole_folder
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.bundle_config import Sha256, installed_versions
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.index import MODEL
from ke_metric.retrieval.picture_list import LeftOut
from ke_metric.schema import Section, read_object, validated
from ke_metric.stores.contract import Item, check_addition

VECTORS = "vectors.npy"
ITEMS = "items.csv"
FACTS = "embeddings.json"
COLUMNS = ("id", "path", "label")
FORMAT_VERSION: Literal[1] = 1
ROWS_AT_A_TIME = 8192


@dataclass(frozen=True, eq=False)
class ItemBatch:
    """Some items with their embeddings [B, D], and the pictures of this stretch that could not be used."""

    items: Sequence[Item]
    vectors: FloatArray
    left_out: tuple[LeftOut, ...] = ()


def embed_items(
    embedder: Embedder, items: Sequence[Item], *, strict: bool = False, batch_size: int | None = None
) -> Iterator[ItemBatch]:
    """Embed the pictures of items, in order; with `strict` the first one that cannot be used is an error (DATA)."""
    paths = (item.path for item in items)
    for batch in embedder.stream(paths, skip_bad=not strict, batch_size=batch_size):
        yield ItemBatch(
            [items[position] for position in batch.positions.tolist()],
            batch.vectors,
            tuple(LeftOut(bad.name, bad.reason) for bad in batch.bad),
        )


class Facts(Section):
    """What embeddings.json says."""

    format_version: Literal[1] = FORMAT_VERSION
    digest: Sha256
    """Of the embedder that made the vectors."""
    dimension: int = Field(ge=1)
    """Length D of the vectors."""
    count: int = Field(ge=0)
    """Number N of items."""
    description: str
    """Where the embedder came from, in words."""
    left_out: list[dict[str, str]]
    """Pictures that could not be used: name and reason."""
    versions: dict[str, str] = Field(default_factory=installed_versions)
    """Of what made the vectors; for people."""


def _is_embeddings(path: Path) -> bool:
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    return FACTS in names and names <= {VECTORS, ITEMS, FACTS, MODEL}


EMBEDDINGS = FolderKind("a folder of embeddings", f"{VECTORS}, {ITEMS}, {FACTS}, {MODEL}", _is_embeddings)


def require_place(folder: Path, *, overwrite: bool) -> Path:
    """Return where embeddings can be written, links followed; USAGE where the place is taken."""
    return require_free(folder, overwrite=overwrite, kind=EMBEDDINGS)


def write_embeddings(
    folder: Path,
    embedder: Embedder,
    batches: Iterable[ItemBatch],
    *,
    left_out: Sequence[LeftOut] = (),
    overwrite: bool = False,
) -> Facts:
    """Write embeddings and the network that made them, whole or not at all; a batch at a time is in memory.

    Args:
        folder: Folder to make.
        embedder: What made the vectors.
        batches: The items and their vectors.
        left_out: Pictures that were left out before.
        overwrite: Replace the embeddings that are there.

    Raises:
        KeMetricError: The folder is taken (USAGE), a picture is refused (DATA), or the disk is full (ENVIRONMENT).
    """
    place = require_place(folder, overwrite=overwrite)
    with whole_folder(place, overwrite=overwrite) as temporary:
        with (
            (temporary / VECTORS).open("wb") as vectors,
            (temporary / ITEMS).open("w", encoding="utf-8", newline="") as items,
        ):
            count, more_left_out = _write_batches(batches, embedder.dimension, vectors=vectors, items=items)
        facts = Facts(
            digest=embedder.digest,
            dimension=embedder.dimension,
            count=count,
            description=embedder.description,
            left_out=[asdict(picture) for picture in (*left_out, *more_left_out)],
        )
        embedder.save(temporary / MODEL)
        text = json.dumps(facts.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / FACTS).write_text(text + "\n", encoding="utf-8")
    return facts


def _write_batches(
    batches: Iterable[ItemBatch], dimension: int, *, vectors: IO[bytes], items: IO[str]
) -> tuple[int, list[LeftOut]]:
    # Every field is quoted: a carriage return in a file name would otherwise end the row.
    rows = csv.writer(items, lineterminator="\n", quoting=csv.QUOTE_ALL)
    items.write(",".join(COLUMNS) + "\n")
    _write_header(vectors, 0, dimension)
    count = 0
    left_out: list[LeftOut] = []
    for batch in batches:
        check_addition(batch.items, batch.vectors, dimension)
        vectors.write(np.ascontiguousarray(batch.vectors).data)
        rows.writerows((item.id, item.path, item.label) for item in batch.items)
        count += len(batch.items)
        left_out += batch.left_out
    vectors.seek(0)
    # NumPy leaves room for a longer number of rows, so that the header keeps its length.
    _write_header(vectors, count, dimension)
    return count, left_out


def _write_header(file: IO[bytes], count: int, dimension: int) -> None:
    facts = {"descr": "<f4", "fortran_order": False, "shape": (count, dimension)}
    npy.write_array_header_1_0(file, facts)


@dataclass(frozen=True, eq=False)
class EmbeddingFiles:
    """A folder of embeddings; the vectors [N, D] are mapped from the file, and read when looked at."""

    folder: Path
    facts: Facts
    vectors: FloatArray

    @classmethod
    def open(cls, folder: Path) -> EmbeddingFiles:
        """Open a folder that `write_embeddings` made.

        Raises:
            KeMetricError: DATA: there is none, or a file of it is missing, damaged or of another format version.
        """
        facts = _read_facts(folder / FACTS)
        vectors = _read_vectors(folder / VECTORS)
        wanted = (facts.count, facts.dimension)
        if vectors.shape != wanted or vectors.dtype != np.float32:
            raise KeMetricError(
                f"{folder / VECTORS}: {vectors.dtype} {list(vectors.shape)}, must be float32 {list(wanted)} as "
                f"{FACTS} says",
                ExitCode.DATA,
            )
        return cls(folder, facts, vectors)

    def __len__(self) -> int:
        return self.facts.count

    def batches(self, batch_size: int = ROWS_AT_A_TIME) -> Iterator[ItemBatch]:
        """Yield the items and their vectors, in order.

        Raises:
            KeMetricError: DATA: items.csv is damaged or has not as many rows as there are vectors.
        """
        path, done = self.folder / ITEMS, 0
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = csv.reader(file, strict=True)
                if tuple(next(rows, ())) != COLUMNS:
                    raise KeMetricError(f"{path}: the first line must be {','.join(COLUMNS)}", ExitCode.DATA)
                while chunk := [_item(row, path, rows.line_num) for row in islice(rows, batch_size)]:
                    vectors = np.array(self.vectors[done : done + len(chunk)])
                    done += len(chunk)
                    if len(vectors) < len(chunk):
                        break
                    yield ItemBatch(chunk, vectors)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise KeMetricError(f"{path}: cannot be read: {error}", ExitCode.DATA) from error
        if done != self.facts.count:
            raise KeMetricError(
                f"{path}: {'more' if done > self.facts.count else f'{done:,}'} rows, must be {self.facts.count:,} as "
                f"{FACTS} says",
                ExitCode.DATA,
            )


def _item(row: list[str], path: Path, line: int) -> Item:
    if len(row) != len(COLUMNS):
        raise KeMetricError(
            f"{path}, line {line}: {len(row)} cells, must be {len(COLUMNS)}: {','.join(COLUMNS)}", ExitCode.DATA
        )
    return Item(*row)


def _read_vectors(path: Path) -> FloatArray:
    try:
        # Not np.load, which takes other kinds of file as well and then gives something else.
        vectors: FloatArray = npy.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise KeMetricError(f"{path}: cannot be read: {error}", ExitCode.DATA) from error
    return vectors


def _read_facts(path: Path) -> Facts:
    missing = f"{path.parent}: no embeddings here (no {FACTS}); make some with ke-metric embed"
    return validated(Facts, read_object(path, missing), path)
