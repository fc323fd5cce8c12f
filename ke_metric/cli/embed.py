"""`ke-metric embed`: pictures to files of embeddings. And, for the commands beside it, which pictures are meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.table import Table

from ke_metric.benchmarks.listings import Columns
from ke_metric.cli.chosen import load_embedder
from ke_metric.cli.display import Result, counting, say, say_skipped
from ke_metric.cli.options import ModelChoice, PictureChoice
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.embedding_files import (
    ItemBatch,
    embed_items,
    require_all_usable,
    require_place,
    write_embeddings,
)
from ke_metric.retrieval.picture_list import LeftOut, PictureList, list_pictures


def list_chosen(pictures: PictureChoice, *, unique: bool = True) -> PictureList:
    """List the pictures that were named, and tell of those that cannot be used already by their names.

    Args:
        pictures: Which ones.
        unique: Whether two may not have the same id.

    Raises:
        KeMetricError: None was named (USAGE), see `list_pictures`, or one cannot be used and all must (DATA).
    """
    if not pictures.sources:
        raise KeMetricError("no pictures are named: files, folders or CSV files with path,label", ExitCode.USAGE)
    columns = Columns(pictures.path_column, pictures.label_column)
    listed = list_pictures(pictures.sources, labels=pictures.labels, unique=unique, columns=columns)
    if pictures.strict:
        require_all_usable(listed)
    warn_of(listed.left_out)
    say_skipped("files", listed.skipped)
    return listed


def warn_of(left_out: Iterable[LeftOut]) -> None:
    """Say which pictures cannot be used, a line for each."""
    for picture in left_out:
        say(f"warning: {picture.reason}", style="yellow")


def told(batches: Iterable[ItemBatch], what: str, total: int) -> Iterator[ItemBatch]:
    """Pass batches on, show how far they have come, and warn of pictures left out."""
    done = 0
    with counting(what) as progress:
        for batch in batches:
            warn_of(batch.left_out)
            yield batch
            done += len(batch.items) + len(batch.left_out)
            progress(done, total)


def require_some(used: int, listed: int) -> None:
    """Refuse a result of nothing.

    Raises:
        KeMetricError: DATA: not one picture could be used.
    """
    if not used:
        raise KeMetricError(f"none of the {listed:,} pictures can be used", ExitCode.DATA)


def embed_pictures(*, pictures: PictureChoice, model: ModelChoice, folder: Path, overwrite: bool) -> Result:
    """Embed pictures into a folder of files.

    Args:
        pictures: Which ones.
        model: What embeds them.
        folder: Folder to make.
        overwrite: Replace the embeddings that are there.

    Raises:
        KeMetricError: The folder is taken, there are no such pictures or network, or none of them can be used.
    """
    require_place(folder, overwrite=overwrite)
    listed = list_chosen(pictures)
    embedder = load_embedder(model)
    batches = embed_items(embedder, listed.items, strict=pictures.strict, batch_size=model.batch_size)
    facts = write_embeddings(
        folder,
        embedder,
        told(_not_empty(batches, len(listed.items)), "embedding", len(listed.items)),
        left_out=listed.left_out,
        overwrite=overwrite,
    )
    document = {
        "folder": str(folder),
        "count": facts.count,
        "dimension": facts.dimension,
        "model": {"digest": facts.digest, "description": facts.description},
        "left_out": facts.left_out,
        "skipped": list(listed.skipped),
    }
    return Result(document, _table(document))


def _not_empty(batches: Iterable[ItemBatch], listed: int) -> Iterator[ItemBatch]:
    """Pass batches on; where they were all empty, nothing is to be written."""
    used = 0
    for batch in batches:
        used += len(batch.items)
        yield batch
    require_some(used, listed)


def _table(document: dict[str, object]) -> Table:
    table = Table(show_header=False, title=str(document["folder"]), title_justify="left")
    model, left_out = document["model"], document["left_out"]
    assert isinstance(model, dict), model
    assert isinstance(left_out, list), left_out
    table.add_row("embeddings", f"{document['count']:,} of {document['dimension']} numbers")
    table.add_row("left out", f"{len(left_out):,}")
    table.add_row("network", f"{model['description']} ({model['digest'][:12]})")
    return table
