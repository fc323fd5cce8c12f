"""`ke-metric embed`: pictures to files of embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.table import Table

from ke_metric.cli.chosen import list_chosen, load_embedder, require_some, warn_of
from ke_metric.cli.display import Outcome, counting
from ke_metric.cli.options import ModelChoice, PictureChoice
from ke_metric.retrieval.embedding_files import (
    ItemBatch,
    embed_items,
    require_place,
    write_embeddings,
)


def told(batches: Iterable[ItemBatch], what: str, total: int) -> Iterator[ItemBatch]:
    """Pass batches on, show how far they have come, and warn of pictures left out."""
    done = 0
    with counting(what) as progress:
        for batch in batches:
            warn_of(batch.left_out)
            yield batch
            done += len(batch.items) + len(batch.left_out)
            progress(done, total)


def embed_pictures(*, pictures: PictureChoice, model: ModelChoice, folder: Path, overwrite: bool) -> Outcome:
    """Embed pictures into a new folder of files, or one of embeddings that may be replaced."""
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
    return Outcome(document, _table(document))


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
