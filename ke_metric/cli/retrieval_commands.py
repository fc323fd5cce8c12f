"""The commands that take a trained network into a pipeline, as click sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ke_metric.cli import importing
from ke_metric.cli.options import (
    FOLDER,
    model_options,
    network_options,
    picture_options,
    size_option,
    store_options,
    views_option,
)

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
INDEX = click.option("--index", "folder", type=FOLDER, required=True, help="Folder of the index.")
FROM = click.option(
    "--from",
    "origin",
    type=FOLDER,
    help="In place of PICTURES: what ke-metric embed wrote, a pattern such as 'part-*.parquet', or an index.",
)
PREFIX = click.option(
    "--prefix", default="", metavar="NAME", help="Put NAME/ before each id: two folders may hold the same names."
)


@click.command()
@picture_options
@model_options
@views_option
@size_option
@click.option("-o", "--output", "folder", type=FOLDER, required=True, help="Folder to make, or a file: NAME.parquet.")
@click.option("--overwrite", is_flag=True, help="Replace the embeddings that are there.")
@click.option(
    "--rows-per-file",
    type=click.IntRange(1),
    metavar="N",
    help="Make a folder of Parquet files of N pictures each; those there with the same ids, paths, labels stay.",
)
@JSON
def embed(as_json: bool, **options: Any) -> None:
    """Embed PICTURES (files, folders, or CSV files with path,label) into vectors.npy and items.csv, or Parquet.

    \b
    ke-metric embed photos -o embeddings --lineage lineages/demo
    ke-metric embed photos list.csv -o embeddings --bundle slim --overwrite
    ke-metric embed photos -o embeddings --size 32
    ke-metric embed photos -o vectors.parquet
    ke-metric embed photos -o parts --rows-per-file 102400
    """
    with importing():
        from ke_metric.cli.index import embed_pictures

    embed_pictures(**options).print(as_json)


@click.command()
@picture_options
@model_options
@views_option
@click.option("-k", type=click.IntRange(1), default=5, show_default=True, help="Classes for each picture.")
@click.option("-o", "--output", "file", type=FOLDER, help="Write all of it into this .csv or .json file as well.")
@click.option("--overwrite", is_flag=True, help="Replace the file that is there.")
@JSON
def predict(as_json: bool, **options: Any) -> None:
    """Tell which classes PICTURES (files, folders, or CSV files with path,label) are of, by a trained classifier.

    Pictures whose folder or CSV names a class of it are scored: top-1 as in ke-metric eval.

    \b
    ke-metric predict new.jpg --lineage lineages/birds
    ke-metric predict photos -k 3 -o predictions.csv
    ke-metric predict photos --bundle slim --json
    """
    with importing():
        from ke_metric.cli.predict import predict_pictures

    predict_pictures(**options).print(as_json)


@click.group()
def index() -> None:
    """Build an index of pictures that can be searched, add to it, remove from it, look at it."""


@index.command()
@picture_options
@FROM
@PREFIX
@click.option("-o", "--output", "folder", type=FOLDER, required=True, help="Folder to make.")
@store_options
@model_options
@views_option
@size_option
@JSON
def build(as_json: bool, pictures: Any, origin: Path | None, prefix: str, **options: Any) -> None:
    """Build an index of PICTURES, or of what --from names.

    An index that was interrupted holds what was added until then; `ke-metric index add` with the same pictures
    completes it.

    \b
    ke-metric index build photos -o photos.index --lineage lineages/demo
    ke-metric index build --from embeddings -o photos.index --factory HNSW32
    ke-metric index build --from photos.index -o photos.milvus --store milvus --uri http://localhost:19530
    ke-metric index build --from photos.index -o photos.postgres --store postgres --uri postgresql://me@localhost/db
    """
    with importing():
        from ke_metric.cli.index import Source, build_index

    build_index(source=Source(pictures, origin, prefix), **options).print(as_json)


@index.command()
@picture_options
@FROM
@PREFIX
@INDEX
@click.option(
    "--replace", "replace_there", is_flag=True, help="Embed anew what is there already; left as it is otherwise."
)
@model_options
@JSON
def add(as_json: bool, pictures: Any, origin: Path | None, prefix: str, **options: Any) -> None:
    """Add PICTURES to an index; those that are there already are left as they are.

    An id that is there with the path of another picture is refused, and nothing is added.

    \b
    ke-metric index add photos --index photos.index
    ke-metric index add camera2 --index photos.index --prefix camera2
    """
    with importing():
        from ke_metric.cli.index import Source, add_to_index

    add_to_index(source=Source(pictures, origin, prefix), **options).print(as_json)


@index.command()
@click.argument("ids", nargs=-1, metavar="ID...")
@INDEX
@click.option("--where", metavar="CONDITION", help="In place of IDs: all for which it holds: 'label == \"crow\"'")
@click.option("--yes", is_flag=True, help="Let --where remove more than half of the items.")
@click.option("--dry-run", is_flag=True, help="Remove nothing; say how many items it would be.")
@JSON
def remove(ids: tuple[str, ...], where: str | None, as_json: bool, **options: Any) -> None:
    """Remove items from an index, all that are named or none.

    Texts of a condition are written as Python and JSON write them.

    \b
    ke-metric index remove crow/1.jpg crow/2.jpg --index photos.index
    ke-metric index remove --index photos.index --where 'label == "crow"'
    """
    if bool(ids) == (where is not None):
        raise click.UsageError("name either IDs or --where")
    with importing():
        from ke_metric.cli.index import remove_from_index

    remove_from_index(ids, where=where, **options).print(as_json)


@index.command()
@INDEX
@JSON
def info(folder: Path, as_json: bool) -> None:
    """Say what an index holds: items, network, store, bytes."""
    with importing():
        from ke_metric.cli.index import describe_index

    describe_index(folder).print(as_json)


@click.command()
@picture_options
@INDEX
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Results for each picture.")
@click.option("--where", metavar="CONDITION", help="Search only items for which it holds: 'label != \"crow\"'")
@click.option("--expand", metavar="N[:ALPHA]", help="Query expansion by the N nearest items: --expand 4:3")
@click.option("--rerank", metavar="K1:K2:LAMBDA[:DEPTH]", help="k-reciprocal re-ranking: --rerank 5:3:0.3")
@click.option("--keep-self", is_flag=True, help="Keep the item whose path is that of the picture searched with.")
@click.option("--montage", type=FOLDER, help="Draw the pictures and what they found into this file.")
@model_options
@JSON
def search(as_json: bool, **options: Any) -> None:
    """Find the most similar items of an index for each of PICTURES.

    The similarity is the cosine of the embeddings: higher is better. How high is near differs from network to
    network, so the similarity of the first result and its own nearest item is printed beside: a picture of something
    else may be similar to everything, but less so. The item of the picture's own path is left out, by whatever ids it
    is there. A picture that is named by itself has its folder's name as label where the index knows that label; in
    the montage right results are green, wrong ones red.

    \b
    ke-metric search new.jpg --index photos.index
    ke-metric search queries --index photos.index -k 5 --montage found.png
    ke-metric search new.jpg --index photos.index --where 'label in ["crow", "jay"]' --json
    """
    with importing():
        from ke_metric.cli.search import search_index
        from ke_metric.retrieval.query import SearchOptions

    asked = {name: options.pop(name) for name in ("k", "expand", "rerank", "keep_self")}
    how = SearchOptions.parse(where=options["where"], **asked)
    search_index(options=how, **options).print(as_json)


@click.command()
@network_options
@views_option
@size_option
@click.option(
    "--format", "kind", type=click.Choice(["onnx", "torch-export"]), required=True, help="What runs it later."
)
@click.option("-o", "--output", "folder", type=FOLDER, required=True, help="Folder to make.")
@click.option(
    "--int8",
    type=click.Choice(["none", "dynamic", "static"]),
    default="none",
    show_default=True,
    help="onnx: 8-bit integers, whose ranges are measured in every batch or once, on training pictures.",
)
@click.option(
    "--max-loss",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Recall@1, or top-1, that 8-bit integers may cost, 5 when left out; a file that costs more is not kept.",
)
@click.option("--pictures", type=FOLDER, help="Compare on the pictures of this folder; needed with --bundle.")
@click.option("--overwrite", is_flag=True, help="Replace the export that is there.")
@JSON
def export(kind: str, int8: str, max_loss: float | None, as_json: bool, **options: Any) -> None:
    """Write a network as ONNX or torch.export, and compare it with PyTorch: what differs is not kept.

    The file takes float32 pictures [B, 3, S, S] in [0, 1] and gives L2-normalised embeddings, or the logits of a
    classifier, whose class names are in it; export.json beside it says how pictures are prepared and what the
    comparison found.

    \b
    ke-metric export --format onnx -o onnx
    ke-metric export --format onnx --int8 static --gen best --network dense -o onnx8
    ke-metric export --format torch-export --bundle slim --pictures photos -o program
    """
    if max_loss is not None and (int8 == "none" or options["pictures"] is not None):
        raise click.UsageError(
            "--max-loss: Recall@1 is scored for --int8 alone, on the lineage's benchmark; it excludes --pictures"
        )
    with importing():
        from ke_metric.cli.export import export_network
        from ke_metric.export.export import MAX_LOSS, ExportSettings

    most = MAX_LOSS if max_loss is None else max_loss
    settings = ExportSettings(kind, int8, most)  # type: ignore[arg-type]  # click let these words through
    export_network(settings=settings, **options).print(as_json)


@click.command()
@click.option("--index", "folder", type=FOLDER, help="Folder of the index to be searched.")
@network_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: one that is free.")
@click.option(
    "--token-file",
    type=FOLDER,
    help="Holds the token that requests must carry; that of $KE_METRIC_SERVE_TOKEN when left out.",
)
@click.option("--device", help="A torch device: cpu, cuda, cuda:1; found by itself when left out.")
@click.option("--threads", type=click.IntRange(1), help="Of the network; chosen by its speed when left out.")
@click.option("--max-bytes", type=click.IntRange(1), default=10_000_000, show_default=True, help="Of an upload.")
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 100_000_000),
    default=25_000_000,
    show_default=True,
    help="Of an uploaded picture.",
)
@click.option("--max-k", type=click.IntRange(1), default=100, show_default=True, help="Neighbours asked for.")
@click.option("--max-batch", type=click.IntRange(1), default=64, show_default=True, help="Pictures per forward pass.")
@click.option("--queue", type=click.IntRange(1), default=256, show_default=True, help="Pictures that may wait.")
@click.option(
    "--upload-seconds",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="By which an upload must have come.",
)
def serve(host: str, port: int, **options: Any) -> None:
    """Answer over HTTP until Ctrl-C or SIGTERM; docs/serving.md says what is asked and answered.

    An index is searched (/search, /embed); a classifier, of a lineage or a bundle, tells classes (/predict).

    \b
    ke-metric serve --index photos.index
    curl --data-binary @crow.jpg -H "Content-Type: image/jpeg" "http://127.0.0.1:8000/search?k=5"
    ke-metric serve --lineage lineages/birds
    """
    with importing():
        from ke_metric.cli.serve import serve_network

    serve_network(address=(host, port), **options)
