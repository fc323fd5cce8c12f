"""The commands that take a trained network into a pipeline, as click sees them: `commands` puts them under `main`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ke_metric.cli.choices import FOLDER, model_options, picture_options, store_options

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
INDEX = click.option("--index", "folder", type=FOLDER, required=True, help="Folder of the index.")
FROM = click.option(
    "--from", "origin", type=FOLDER, help="In place of PICTURES: a folder of ke-metric embed, or another index."
)


@click.command()
@picture_options
@model_options
@click.option("-o", "--output", "folder", type=FOLDER, required=True, help="Folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace the embeddings that are there.")
@JSON
def embed(as_json: bool, **options: Any) -> None:
    """Embed PICTURES (files, folders, or CSV files with path,label) into vectors.npy and items.csv.

    \b
    ke-metric embed photos -o embeddings --lineage lineages/demo
    ke-metric embed photos list.csv -o embeddings --bundle slim --overwrite
    """
    from ke_metric.cli.embed import embed_pictures

    embed_pictures(**options).print(as_json)


@click.group()
def index() -> None:
    """Build an index of pictures that can be searched, add to it, remove from it, look at it."""


@index.command()
@picture_options
@FROM
@click.option("-o", "--output", "folder", type=FOLDER, required=True, help="Folder to make.")
@store_options
@model_options
@JSON
def build(as_json: bool, **options: Any) -> None:
    """Build an index of PICTURES, or of what --from names.

    An index that was interrupted holds what was added until then; `ke-metric index add` with the same pictures
    completes it.

    \b
    ke-metric index build photos -o photos.index --lineage lineages/demo
    ke-metric index build --from embeddings -o photos.index --factory HNSW32
    ke-metric index build --from photos.index -o photos.milvus --store milvus --uri http://localhost:19530
    """
    from ke_metric.cli.index import build_index

    build_index(**options).print(as_json)


@index.command()
@picture_options
@FROM
@INDEX
@click.option("--replace", is_flag=True, help="Embed pictures anew whose ids are there; left as they are otherwise.")
@model_options
@JSON
def add(as_json: bool, **options: Any) -> None:
    """Add PICTURES to an index; those whose ids are there already are left as they are.

    \b
    ke-metric index add photos --index photos.index
    """
    from ke_metric.cli.index import add_to_index

    add_to_index(**options).print(as_json)


@index.command()
@click.argument("ids", nargs=-1, metavar="ID...")
@INDEX
@click.option("--where", metavar="CONDITION", help="In place of IDs: all for which it holds: 'label == \"crow\"'")
@JSON
def remove(ids: tuple[str, ...], folder: Path, where: str | None, as_json: bool) -> None:
    """Remove items from an index, all that are named or none.

    \b
    ke-metric index remove crow/1.jpg crow/2.jpg --index photos.index
    ke-metric index remove --index photos.index --where 'label == "crow"'
    """
    if bool(ids) == (where is not None):
        raise click.UsageError("name either IDs or --where")
    from ke_metric.cli.index import remove_from_index

    remove_from_index(ids, folder=folder, where=where).print(as_json)


@index.command()
@INDEX
@JSON
def info(folder: Path, as_json: bool) -> None:
    """Say what an index holds: items, network, store, bytes."""
    from ke_metric.cli.index import describe_index

    describe_index(folder).print(as_json)


GALLERY_COMMANDS: list[click.Command] = [embed, index]
"""What `commands` adds to `main`."""
