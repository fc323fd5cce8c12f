"""The published tables, cell by cell: train what is missing, and print published figures beside ours.

    python eval/tables.py --table resnet18 --benchmark flowers --methods ke,llf,long --seeds 0,1,2
    python eval/tables.py --table small --benchmark glyphs --methods all --seeds 0,1,2 --set training.epochs=6
    python eval/tables.py --table resnet18 --benchmark flowers --show

Trains the lineages of the methods one after another, goes on with those that were interrupted, and prints a Markdown
table; with --show it trains nothing. A cell that was never run is blank. What every row has in common can be changed
with --set, and stands under the table. `eval/published.yaml` has the published figures.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from table_cells import (
    METHODS,
    PUBLISHED,
    ROOT,
    TABLES,
    WITH_SLIM,
    Table,
    Variant,
    overrides_of,
    recipe_of,
    recipe_path,
    variants,
)

from ke_metric import Lineage
from ke_metric.cli.train import train_lineage
from ke_metric.data.benchmarks import load_benchmark
from ke_metric.errors import KeMetricError
from ke_metric.generation import Scores
from ke_metric.recipe import Recipe

SHOWN = (1, 3, 5, 10)
"""Generations that have a row; and the last one."""


@dataclass(frozen=True)
class Cell:
    """One network of one generation of one variant.

    Attributes:
        label: What the row is called, as in the published table where it is one of its rows.
        network: dense or slim.
        published: The published figures of the table's scores; None where there are none.
        scores: Seed -> scores.
        first: Seed -> scores of generation 1 of the same lineages.
        epochs: Epochs trained in all until then.
        images: Images that went forward and backward until then, over all epochs; None where the data are not there.
    """

    label: str
    network: str
    published: tuple[float | None, ...]
    scores: dict[int, Scores]
    first: dict[int, Scores]
    epochs: int
    images: int | None


def main() -> None:
    """Train what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--benchmark", required=True)
    parser.add_argument("--methods", default="all", help=f"of {', '.join(METHODS)}; or all")
    parser.add_argument("--losses", default="", help="of ce, smth, cskd, adacos; those of the published rows")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--lineages", type=Path, default=Path("lineages") / "tables")
    parser.add_argument("--show", action="store_true", help="train nothing")
    options = parser.parse_args()
    table = TABLES[options.table]
    if options.benchmark not in table.benchmarks:
        parser.error(f"--benchmark {options.benchmark}: {options.table} has {', '.join(table.benchmarks)}")
    methods = list(METHODS) if options.methods == "all" else options.methods.split(",")
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        parser.error(f"--methods: {unknown[0]} is none of {', '.join(METHODS)}")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    chosen = variants(table, methods, [loss for loss in options.losses.split(",") if loss])
    cells: list[Cell] = []
    for variant in chosen:
        recipes = [recipe_of(table, options.benchmark, variant, options.changes, seed) for seed in seeds]
        if not options.show:
            for recipe in recipes:
                train(recipe, recipe_path(table, options.benchmark), options.lineages)
        cells += cells_of(table, options.benchmark, variant, recipes, options.lineages)
    print(markdown(cells, score_names(recipes[0]), seeds))
    print("\n".join(["", *notes(table, options.benchmark, chosen, options.changes)]))


def train(recipe: Recipe, path: Path, lineages: Path) -> None:
    """Train a lineage, or the rest of it; a finished one stays as it is.

    Raises:
        KeMetricError: A lineage of another recipe is there, or what `ke-metric train` raises.
    """
    folder = folder_of(recipe, lineages)
    is_there = (folder / "lineage.json").exists()
    if is_there:
        lineage = Lineage(folder)
        lineage.require_recipe(recipe)
        if len(lineage.numbers) >= recipe.generations:
            return
    text = path.read_text(encoding="utf-8")
    train_lineage(recipe, text=text, folder=folder, device=None, resume=is_there, overwrite=False)


def folder_of(recipe: Recipe, lineages: Path) -> Path:
    """Return where the lineage of a recipe is."""
    return lineages / f"{recipe.name}-s{recipe.seed}"


def score_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the scores of the published tables."""
    return ("top1",) if recipe.task == "classification" else ("nmi", "recall@1", "recall@4")


def cells_of(table: Table, benchmark: str, variant: Variant, recipes: Sequence[Recipe], lineages: Path) -> list[Cell]:
    """Return the rows of a variant: its generations 1, 3, 5, 10 and the last, dense and slim.

    Generation 1 of Knowledge Evolution is the published N_1: the same training.
    """
    recipe, found = recipes[0], {}
    for each in recipes:
        folder = folder_of(each, lineages)
        if (folder / "lineage.json").exists():
            lineage = Lineage(folder)
            lineage.require_recipe(each)
            found[each.seed] = lineage
    numbers = (
        [1]
        if recipe.generations == 1
        else sorted({*(n for n in SHOWN if n <= recipe.generations), recipe.generations})
    )
    images = images_per_epoch(recipe)
    cells = []
    for number in numbers:
        cards = {seed: each.scorecard(number) for seed, each in found.items() if number in each.numbers}
        firsts = {seed: found[seed].scorecard(1) for seed in cards}
        epochs = number * recipe.training.epochs
        label = variant.title if recipe.generations == 1 else f"{variant.title}-N_{number}"
        published = published_figures(table, benchmark, variant, number if recipe.generations > 1 else None)
        passes = None if images is None else epochs * images
        network = "slim" if variant.method == "slim_alone" else "dense"
        dense = {seed: card.dense for seed, card in cards.items()}
        first = {seed: card.dense for seed, card in firsts.items()}
        cells.append(Cell(label, network, published, dense, first, epochs, passes))
        if recipe.has_slim and variant.method in WITH_SLIM:
            slim = {seed: card.slim for seed, card in cards.items() if card.slim is not None}
            first = {seed: card.slim for seed, card in firsts.items() if card.slim is not None}
            cells.append(Cell(label, "slim", (None,) * len(published), slim, first, epochs, passes))
    return cells


def published_figures(table: Table, benchmark: str, variant: Variant, number: int | None) -> tuple[float | None, ...]:
    """Return the published figures of a row, one for every score.

    Args:
        table: The table.
        benchmark: One of its benchmarks.
        variant: The row's.
        number: Generation; None where there is one only.
    """
    if table.published is None:
        return (None,)
    figures = _published_tables()[table.published]
    if table.losses:
        row = figures["rows"].get(_published_label(variant, number))
        return (row[figures["columns"].index(benchmark)] if row else None,)
    names = {"cub": "CUB", "cars": "Cars"}
    label = {1: " (N_1)", 3: " + KE-N_3", 10: " + KE-N_10"}.get(number or 1)
    row = figures["rows"].get(f"{names[benchmark]}{label}") if variant.method in ("ke", "plain") else None
    columns = [f"{table.network}_{name}" for name in ("nmi", "r@1", "r@4")]
    return tuple(row[figures["columns"].index(column)] if row else None for column in columns)


@cache
def _published_tables() -> dict[str, Any]:
    """Return what stands in `eval/published.yaml`."""
    tables: dict[str, Any] = yaml.safe_load((ROOT / "eval" / "published.yaml").read_text(encoding="utf-8"))
    return tables


def _published_label(variant: Variant, number: int | None) -> str | None:
    if (variant.loss, variant.method) not in PUBLISHED:
        return None
    if variant.loss == "adacos" or variant.method in ("repr", "dsd"):
        return variant.title if number in (None, 3) else None
    if variant.method == "bans":
        return f"{variant.title}-N_10" if number == 10 else None
    plain = Variant(variant.loss, "plain").title
    return f"{plain} (N_1)" if number in (None, 1) else f"{variant.title}-N_{number}"


def images_per_epoch(recipe: Recipe) -> int | None:
    """Return how many images an epoch trains on; None where the data are not there."""
    try:
        return len(load_benchmark(recipe.data, recipe.task).train)
    except KeMetricError:
        return None


def markdown(cells: Sequence[Cell], names: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the table; a cell that was never run is blank."""
    columns = [f"{name} {kind}" for name in names for kind in ("published", "ours", "gain over own N_1")]
    head = ["row", "network", "seeds", *columns, "epochs in all", "images in all"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for cell in cells:
        shown = [cell.label, cell.network, str(len(cell.scores)) if cell.scores else ""]
        for name, published in zip(names, cell.published, strict=True):
            ours = [cell.scores[seed][name] for seed in cell.scores]
            gains = [cell.scores[seed][name] - cell.first[seed][name] for seed in cell.scores]
            shown += [
                "" if published is None else f"{published:g}",
                spread(name, ours),
                spread(name, gains, signed=True),
            ]
        images = "" if cell.images is None else f"{cell.images:,}"
        lines.append(f"| {' | '.join([*shown, str(cell.epochs), images])} |")
    return "\n".join(lines)


def spread(name: str, values: Sequence[float], *, signed: bool = False) -> str:
    """Return mean and standard deviation: NMI in [0, 1], all others in percent; nothing where there is no value."""
    if not values:
        return ""
    scale, digits, sign = (1, 3, "+") if name == "nmi" else (100, 1, "+")
    mean = f"{scale * statistics.fmean(values):{sign if signed else ''}.{digits}f}"
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def notes(table: Table, benchmark: str, chosen: Sequence[Variant], changes: Sequence[str]) -> list[str]:
    """Return what a reader needs beside the table."""
    lines = ["Mean and standard deviation over seeds, in percent but for NMI. Blank: not run."]
    lines.append(f"Recipe: `{recipe_path(table, benchmark).relative_to(ROOT)}`, of every row changed by:")
    for variant in chosen:
        own: list[Any] = [each for each in overrides_of(table, benchmark, variant, changes) if each not in changes]
        lines.append(f"- {variant.title}: {', '.join(f'`{each}`' for each in own if not each.startswith('name='))}")
    if changes:
        lines.append(f"- all rows: {', '.join(f'`{each}`' for each in changes)}")
    return lines


if __name__ == "__main__":
    main()
