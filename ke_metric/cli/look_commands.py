"""The commands that look at what there is before and after a training, as click sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ke_metric.cli import importing
from ke_metric.cli.options import FOLDER, column_options
from ke_metric.errors import ExitCode

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")


@click.command()
@click.argument("pictures", type=FOLDER, metavar="FOLDER_OR_CSV")
@click.option("-o", "--output", type=FOLDER, help="File to write; printed on stdout when left out.")
@click.option("--overwrite", is_flag=True, help="Replace the file that is there.")
@click.option(
    "--time", "limit", metavar="TIME", help="What the training may take: 90s, 30m, 2h; as usual when left out."
)
@click.option(
    "--task",
    type=click.Choice(["retrieval", "classification"]),
    help="retrieval: find pictures of classes that were never seen; classification: tell known classes. "
    "Chosen by the classes when left out.",
)
@column_options
@click.option("--device", help="A torch device: cpu, cuda, cuda:1; found by itself when left out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the recipe.")
def recipe(pictures: Path, as_json: bool, **options: Any) -> None:
    """Propose a recipe for your own pictures, with the reason beside every choice, and time it on this machine.

    Looks at every picture: sizes, colours, transparency, classes, copies. Takes a few real steps, so that the minutes
    of a generation are measured; --time fits the training into what there is.

    \b
    ke-metric recipe ~/my_images -o my_recipe.yaml
    ke-metric recipe ~/my_images -o quick.yaml --time 10m
    ke-metric recipe pictures.csv --task classification --json
    """
    with importing():
        from ke_metric.cli.suggest_recipe import propose

    propose(pictures, as_json=as_json, **options)


@click.command()
@click.option(
    "--lineages", type=FOLDER, default=Path("lineages"), show_default=True, help="Folder whose disk is looked at."
)
@JSON
def doctor(lineages: Path, as_json: bool) -> None:
    """Look at the environment: versions, devices, FAISS, fonts, disk; says which command mends what is wrong.

    Exits with 5 when something is broken; advice leaves it at 0.

    \b
    ke-metric doctor
    ke-metric doctor --json
    """
    with importing():
        from ke_metric.cli.doctor import examine

    result = examine(lineages)
    result.print(as_json)
    if not result.document["ok"]:
        raise click.exceptions.Exit(ExitCode.ENVIRONMENT)


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def lineages(context: click.Context, as_json: bool) -> None:
    """List the lineages that were trained, show one, or remove some; without a command: list those of lineages/.

    \b
    ke-metric lineages
    ke-metric lineages show lineages/demo
    ke-metric lineages remove --weights lineages/demo
    """
    context.obj = as_json
    if context.invoked_subcommand is None:
        context.invoke(listed, as_json=as_json)


@lineages.command("list")
@click.argument("folder", type=FOLDER, default=Path("lineages"))
@JSON
@click.pass_context
def listed(context: click.Context, folder: Path, as_json: bool) -> None:
    """List the lineages in FOLDER (lineages when left out), the newest first.

    Of the score that says which generation is best: that of the last generation, and in brackets that of the best one
    where it is another. A lineage that cannot be read is listed as damaged, with the reason below the table.

    \b
    ke-metric lineages list
    ke-metric lineages list ~/trained --json
    """
    with importing():
        from ke_metric.cli.lineage_commands import list_them

    list_them(folder).print(as_json or bool(context.obj))


@lineages.command()
@click.argument("lineage", type=FOLDER)
@JSON
@click.pass_context
def show(context: click.Context, lineage: Path, as_json: bool) -> None:
    """Show LINEAGE: facts, scores, which weights are kept, the command that began it, and how to go on.

    \b
    ke-metric lineages show lineages/demo
    """
    with importing():
        from ke_metric.cli.lineage_commands import show as show_lineage

    show_lineage(lineage).print(as_json or bool(context.obj))


@lineages.command()
@click.argument("lineages", type=FOLDER, nargs=-1, required=True, metavar="LINEAGE...")
@click.option("--weights", is_flag=True, help="Remove only weights: those of all generations but last and best.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where stdin is no terminal.")
@JSON
@click.pass_context
def remove(context: click.Context, /, lineages: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Remove LINEAGEs, all that are named or none, after telling what goes and asking.

    One that a process is writing is refused, and so is a link, a folder that is no lineage, and one with something
    in it that is not the lineage's own, whatever was agreed to. With --weights, scores and records stay.

    \b
    ke-metric lineages remove lineages/first-try lineages/second-try
    ke-metric lineages remove --weights --yes lineages/demo
    """
    with importing():
        from ke_metric.cli.lineage_commands import remove as remove_lineages

    remove_lineages(lineages, **options).print(as_json or bool(context.obj))


@click.command()
@click.option("--lineage", type=FOLDER, help="Folder of the lineage; the newest one when neither is named.")
@click.option("--index", type=FOLDER, help="In place of a lineage: folder of an index.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8050, show_default=True, help="0: one that is free.")
@click.option(
    "--token-file",
    type=FOLDER,
    help="Holds the token that the page asks for; that of $KE_METRIC_SERVE_TOKEN when left out.",
)
@click.option("--device", help="A torch device: cpu, cuda, cuda:1; found by itself when left out.")
@click.option("--no-browser", is_flag=True, help="Do not open the page in the browser.")
def explore(host: str, port: int, no_browser: bool, **options: Any) -> None:
    """Show on a page in the browser what pictures find, generation beside generation, until Ctrl-C.

    Drop a picture, or take one of the lineage's queries; move through the generations; see which queries were mended
    and which were broken, and how the pictures move on the map. docs/explorer.md says more.

    \b
    ke-metric explore
    ke-metric explore --lineage lineages/demo --port 8051
    ke-metric explore --index photos.index --no-browser
    """
    with importing():
        from ke_metric.cli.explore import explore_collection

    explore_collection(address=(host, port), browser=not no_browser, **options)


@click.command()
@click.argument("lineages", nargs=-1, type=FOLDER)
@click.option(
    "-o", "--output", type=FOLDER, help="The page, .html; report.html in the lineage's folder when left out."
)
@click.option(
    "--baseline", "baselines", multiple=True, type=FOLDER, help="A lineage of one long training; again: more seeds."
)
@click.option("--figures", type=FOLDER, help="Folder for the figures as PNG and SVG too.")
@click.option("--device", help="A torch device: cpu, cuda, cuda:1; found by itself when left out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of lines.")
def report(lineages: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Write one page that shows a lineage: scores, curves, cost, what it retrieves, mends and breaks.

    The first of LINEAGES is shown, the newest one when none is named; others of its recipe add seeds to the scores,
    those of other recipes lines.

    \b
    ke-metric report lineages/demo
    ke-metric report lineages/ke-s0 lineages/ke-s1 --baseline lineages/long-s0 -o ke.html --figures figures
    """
    with importing():
        from ke_metric.cli.report import report_lineages

    report_lineages(lineages, **options).print(as_json)
