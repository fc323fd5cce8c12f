"""The published tables, cell by cell: train what is missing, and print published figures beside ours.

    python -m eval.tables.run --table resnet18 --benchmark flowers --methods ke,llf,long --seeds 0,1,2
    python -m eval.tables.run --table small --benchmark glyphs --methods all --seeds 0,1,2 --set training.epochs=6
    python -m eval.tables.run --table resnet18 --benchmark flowers --show

Trains the lineages of the methods one after another, goes on with those that were interrupted, and prints a Markdown
table; with --show it trains nothing. What a finished lineage shows is written to
`eval/tables/results/<table>_<benchmark>.jsonl`, and stands for it where its folder is gone. A cell that was never run
is blank. What every row has in common can be changed with --set, and stands under the table. `published.yaml` has the
published figures.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from eval.shared.lineages import Results, StoredResult, folder_of, train
from eval.tables.cells import (
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
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.errors import KeMetricError
from ke_metric.generation import Scorecard, Scores
from ke_metric.recipe.schema import Recipe

SHOWN = (1, 3, 5, 10)
"""Generations that have a row; and the last one."""


@dataclass(frozen=True)
class Cell:
    """One network of one generation of one variant.

    Attributes:
        label: What the row is called: as in the published table where it is one of its rows.
        network: dense or slim.
        published: The published figures of the table's scores; None where there are none.
        scores: Seed -> scores.
        first: Seed -> scores of the plain training that the gain is over, N_1 of the same loss; empty for N_1 itself.
        epochs: Epochs trained in all until then.
        images: Epochs times training images; None where the data are not there.
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
    parser.add_argument("--results", type=Path, default=ROOT / "eval" / "tables" / "results")
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
    losses = [loss for loss in options.losses.split(",") if loss]
    unknown = [loss for loss in losses if loss not in table.losses]
    if unknown:
        parser.error(
            f"--losses {unknown[0]}: {options.table} has {', '.join(table.losses) or 'the one of its recipes'}"
        )
    chosen = variants(table, methods, losses)
    if not chosen:
        parser.error(f"--methods {options.methods}: {options.table} has no such rows")

    def recipes_of(variant: Variant) -> list[Recipe]:
        return [recipe_of(table, options.benchmark, variant, options.changes, seed) for seed in seeds]

    # All of them before the first is trained: what a recipe gets wrong shows at once.
    recipes = {variant: recipes_of(variant) for variant in chosen}
    plain = {variant.loss: recipes_of(Variant(variant.loss, "ke")) for variant in chosen}
    results = Results(options.results / f"{options.table}_{options.benchmark}.jsonl")
    if not options.show:
        for recipe in (recipe for variant in chosen for recipe in recipes[variant]):
            if results.get(recipe) is None:
                train(recipe, recipe_path(table, options.benchmark), options.lineages)
                keep(recipe, options.lineages, results)
    cells = [
        cell
        for variant in chosen
        for cell in cells_of(
            table,
            options.benchmark,
            variant,
            recipes[variant],
            options.lineages,
            plain=plain[variant.loss],
            results=results,
        )
    ]
    print(markdown(cells, score_names(recipes[chosen[0]][0])))
    print("\n".join(["", *notes(table, options.benchmark, chosen, options.changes)]))


def keep(recipe: Recipe, lineages: Path, results: Results) -> None:
    """Write down what a lineage shows, if it is finished."""
    lineage = Lineage(folder_of(recipe, lineages))
    if len(lineage.numbers) == recipe.generations:
        results.add(lineage)


def score_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the scores of the published tables."""
    return ("top1",) if recipe.task == "classification" else ("nmi", "recall@1", "recall@4")


def cells_of(
    table: Table,
    benchmark: str,
    variant: Variant,
    recipes: Sequence[Recipe],
    lineages: Path,
    *,
    plain: Sequence[Recipe],
    results: Results,
) -> list[Cell]:
    """Return the rows of a variant: its generations 1, 3, 5, 10 and the last, dense and slim.

    Args:
        table: The table.
        benchmark: One of its benchmarks.
        variant: Which rows.
        recipes: The variant's, for all seeds.
        lineages: Where lineages are.
        plain: Recipes of Knowledge Evolution with the same loss, whose generation 1 is the plain training.
        results: What is left of lineages that are gone.
    """
    recipe = recipes[0]
    found, first = (
        _there(recipes, lineages, results),
        {seed: each.scorecard(1) for seed, each in _there(plain, lineages, results).items()},
    )
    is_single = recipe.generations == 1
    numbers = [1] if is_single else sorted({*(n for n in SHOWN if n <= recipe.generations), recipe.generations})
    images = images_per_epoch(recipe)
    cells = []
    for number in numbers:
        cards = {seed: each.scorecard(number) for seed, each in found.items() if number in each.numbers}
        is_plain = number == 1 and recipe.training.epochs == plain[0].training.epochs
        base = {} if is_plain else first
        epochs = number * recipe.training.epochs
        published = published_figures(table, benchmark, variant, None if is_single else number)
        label = variant.title if is_single else f"{variant.title}-N_{number}"
        if published[0] is not None and table.losses:
            label = _published_label(variant, None if is_single else number) or label
        passes = None if images is None else epochs * images
        network = "slim" if variant.method == "slim_alone" else "dense"
        dense = {seed: card.dense for seed, card in cards.items()}
        # The slim architecture alone is set against the slim network of the plain training.
        dense_base = {seed: card.dense for seed, card in base.items()} if network == "dense" else _slim(base)
        cells.append(Cell(label, network, published, dense, dense_base, epochs, passes))
        if recipe.has_slim and variant.method in WITH_SLIM:
            cells.append(Cell(label, "slim", (None,) * len(published), _slim(cards), _slim(base), epochs, passes))
    return cells


def _slim(cards: dict[int, Scorecard]) -> dict[int, Scores]:
    return {seed: card.slim for seed, card in cards.items() if card.slim is not None}


def _there(recipes: Sequence[Recipe], lineages: Path, results: Results) -> dict[int, Lineage | StoredResult]:
    """Return seed -> lineage, for those that have a generation, or what is left of it.

    Raises:
        KeMetricError: A lineage of another recipe is in the place of one.
    """
    found: dict[int, Lineage | StoredResult] = {}
    for recipe in recipes:
        stored, folder = results.get(recipe), folder_of(recipe, lineages)
        if stored is not None:
            found[recipe.seed] = stored
            continue
        if (folder / "lineage.json").exists():
            lineage = Lineage(folder)
            lineage.require_recipe(recipe)
            if lineage.numbers:
                found[recipe.seed] = lineage
    return found


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
    """Return what stands in `eval/tables/published.yaml`."""
    tables: dict[str, Any] = yaml.safe_load((ROOT / "eval" / "tables" / "published.yaml").read_text(encoding="utf-8"))
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


def markdown(cells: Sequence[Cell], names: Sequence[str]) -> str:
    """Return the table; a cell that was never run is blank."""
    columns = [f"{name} {kind}" for name in names for kind in ("published", "ours", "gain over N_1")]
    head = ["row", "network", "seeds", *columns, "epochs in all", "images in all"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for cell in cells:
        shown = [cell.label, cell.network, str(len(cell.scores)) if cell.scores else ""]
        for name, published in zip(names, cell.published, strict=True):
            ours = [cell.scores[seed][name] for seed in cell.scores]
            gains = [cell.scores[seed][name] - cell.first[seed][name] for seed in cell.scores if seed in cell.first]
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
    lines = [
        "Mean and standard deviation over seeds, in percent but for NMI. Blank: not run. The gain is over "
        "generation 1 of Knowledge Evolution with the same loss and seed. Images in all: epochs times training "
        "images; the second picture of CS-KD and a teacher's forward passes come on top."
    ]
    guessed = sorted({METHODS[each.method][0] for each in chosen if each.method in ("repr", "dsd", "bans")})
    guessed += ["AdaCos"] if any(each.loss == "adacos" for each in chosen) else []
    if table.published and guessed:
        lines.append(
            f"How the source trained its rows of {', '.join(guessed)} is not known: ours have guessed settings."
        )
    lines.append(f"Recipe: `{recipe_path(table, benchmark).relative_to(ROOT)}`, of every row changed by:")
    for variant in chosen:
        own: list[Any] = [each for each in overrides_of(table, benchmark, variant, changes) if each not in changes]
        lines.append(f"- {variant.title}: {', '.join(f'`{each}`' for each in own if not each.startswith('name='))}")
    if changes and table.published:
        lines.append("Published figures are those of the unchanged protocol.")
    if changes:
        lines.append(f"- all rows: {', '.join(f'`{each}`' for each in changes)}")
    return lines


if __name__ == "__main__":
    main()
