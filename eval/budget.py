"""What to do with a fixed budget: strategies at equal epochs, and at equal measured compute.

    python eval/budget.py eval/budgets/glyphs_retrieval.yaml --seeds 0,1,2
    python eval/budget.py eval/budgets/glyphs_retrieval.yaml --seeds 0,1,2 --equal compute
    python eval/budget.py eval/budgets/glyphs_retrieval.yaml --seeds 0,1,2 --show

Every strategy of the file gets the same number of epochs, divided among its generations. With `--equal compute` it
gets as many as the reference's training time buys. Seconds per epoch are wall-clock, as they were measured at equal
epochs, which is therefore run first, on one machine with nothing beside it; what a method does between generations
(the saliency of neural_regeneration takes a fifth of an epoch) is not in them. They are fixed when they are first
used, in `<grid>-compute.json` beside the lineages.

Missing lineages are trained, interrupted ones go on; the table is printed as Markdown. Differences are paired by
seed, with a 95 % bootstrap interval, and only between networks with as many parameters.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from tables import folder_of, train

from ke_metric import Lineage
from ke_metric.comparison import Strategy, gather, mean_and_spread, paired_difference
from ke_metric.recipe import Recipe
from ke_metric.recipe_file import load_recipe

ROOT = Path(__file__).parents[1]
FIELDS = {"recipe", "epochs", "reference", "slim_reference", "strategies", "set"}


@dataclass(frozen=True)
class Grid:
    """A file of strategies.

    Attributes:
        recipe: The recipe they change.
        epochs: Epochs of every strategy, over all generations.
        reference: Name of the strategy whose dense network the others are compared with.
        slim_reference: Name of the strategy whose slim network the others are compared with.
        shared: Overrides of all strategies.
        strategies: Name -> number of generations, and its own overrides.
    """

    recipe: Path
    epochs: int
    reference: str
    slim_reference: str
    shared: tuple[str, ...]
    strategies: Mapping[str, tuple[int, tuple[str, ...]]]


def read_grid(path: Path) -> Grid:
    """Read a file of strategies.

    Raises:
        SystemExit: A field is missing or unknown, or a reference is no strategy.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    wrong = sorted((set(document) ^ FIELDS) - {"set"})
    if wrong:
        raise SystemExit(f"{path}: {wrong[0]} is {'unknown' if wrong[0] in document else 'missing'}")
    strategies = {}
    for name, own in document["strategies"].items():
        if set(own) - {"generations", "set"} or "generations" not in own:
            raise SystemExit(f"{path}: strategies.{name} has {sorted(own)}; give generations, and set where needed")
        strategies[name] = (own["generations"], tuple(own.get("set", ())))
    for role in ("reference", "slim_reference"):
        if document[role] not in strategies:
            raise SystemExit(f"{path}: {role} = {document[role]!r} is no strategy")
    shared = tuple(document.get("set", ()))
    recipe = ROOT / document["recipe"]
    return Grid(recipe, document["epochs"], document["reference"], document["slim_reference"], shared, strategies)


def recipes_of(
    grid: Grid, prefix: str, seeds: Sequence[int], epochs: Mapping[str, int] | None = None
) -> dict[str, list[Recipe]]:
    """Return strategy -> recipes of all seeds.

    Args:
        grid: The strategies.
        prefix: What the names of their lineages begin with.
        seeds: The seeds.
        epochs: Strategy -> epochs over all generations; the grid's for all when None.

    Raises:
        SystemExit: The epochs do not divide among a strategy's generations, or it sets others.
    """
    found = {}
    for name, (generations, own) in grid.strategies.items():
        total = grid.epochs if epochs is None else epochs[name]
        if total % generations:
            raise SystemExit(f"{name}: {total} epochs do not divide among {generations} generations")
        overrides = [
            *grid.shared, f"name={prefix}-{name}", f"generations={generations}",
            f"training.epochs={total // generations}", *own,
        ]  # fmt: skip
        found[name] = [load_recipe(grid.recipe, overrides, seed=seed) for seed in seeds]
        if any(recipe.generations * recipe.training.epochs != total for recipe in found[name]):
            raise SystemExit(f"{name}: its set changes generations or training.epochs, which the budget decides")
    return found


def seconds_per_epoch(lineages: Sequence[Lineage]) -> float:
    """Return the training time of finished lineages over their epochs, as it was measured."""
    seconds = epochs = 0.0
    for lineage in lineages:
        for number in lineage.numbers:
            seconds += training_seconds(lineage, number)
            epochs += lineage.recipe.training.epochs
    return seconds / epochs


def training_seconds(lineage: Lineage, number: int) -> float:
    """Return how long a generation was trained."""
    provenance = json.loads((lineage.generation_folder(number) / "provenance.json").read_text(encoding="utf-8"))
    return float(provenance["seconds"]["training"])


def equal_compute(grid: Grid, per_epoch: Mapping[str, float]) -> dict[str, int]:
    """Return strategy -> epochs that the reference's time buys, divisible by its generations; more than its warm-up.

    Args:
        grid: The strategies.
        per_epoch: Strategy -> seconds per epoch.
    """
    budget = grid.epochs * per_epoch[grid.reference]
    epochs = {}
    for name, (generations, own) in grid.strategies.items():
        warmup = load_recipe(grid.recipe, [*grid.shared, *own]).training.warmup_epochs
        epochs[name] = generations * max(math.floor(warmup) + 1, round(budget / per_epoch[name] / generations))
    return epochs


def markdown(grid: Grid, lineages: Mapping[str, Sequence[Lineage]]) -> str:
    """Return the table of the strategies that were run: last generation, dense and slim."""
    strategies = {name: gather(found)[0] for name, found in lineages.items() if found}
    if not strategies:
        return "nothing was run yet"
    first = next(iter(strategies.values()))
    score = "top1" if first.recipe.task == "classification" else f"recall@{min(first.recipe.evaluation.recall_at)}"
    head = [
        "strategy", "generations x epochs", "epochs", "training minutes", "seeds", "dense parameters",
        f"dense {score}", f"- {grid.reference}", "slim parameters", f"slim {score}", f"- {grid.slim_reference}",
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, strategy in strategies.items():
        last, epochs = strategy.generations, strategy.recipe.training.epochs
        minutes = [
            sum(training_seconds(each, number) for number in each.numbers[:last]) / 60 for each in lineages[name]
        ]
        cells = [name, f"{last} x {epochs}", str(last * epochs), f"{sum(minutes) / len(minutes):.1f}"]
        cells.append(str(len(strategy.scorecards)))
        for network, reference in (("dense", grid.reference), ("slim", grid.slim_reference)):
            cells += _cells(strategy, strategies.get(reference), network, score, is_reference=name == reference)
        lines.append(f"| {' | '.join(cells)} |")
    if any(1 < len(strategy.scorecards) < 5 for strategy in strategies.values()):
        lines += ["", "Intervals of fewer than five seeds are too narrow to be trusted."]
    return "\n".join(lines)


def _cells(
    strategy: Strategy, reference: Strategy | None, network: str, score: str, *, is_reference: bool
) -> tuple[str, str, str]:
    """Return parameters, mean and spread, and the difference to the reference, in percent.

    Nothing where there is no such network, no difference to a network of another size.
    """
    if network not in strategy.networks:
        return "", "", ""
    size = strategy.parameters(network)
    ours = _values(strategy, network, score)
    mean, spread = mean_and_spread(list(ours.values()))
    told = f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
    if is_reference or reference is None or network not in reference.networks:
        return f"{size:,}", told, ""
    if reference.parameters(network) != size:
        return f"{size:,}", told, ""
    found = paired_difference(ours, _values(reference, network, score))
    if found is None:
        return f"{size:,}", told, ""
    interval = (
        "" if found.low is None or found.high is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    )
    return f"{size:,}", told, f"{100 * found.mean:+.1f}{interval}"


def _values(strategy: Strategy, network: str, score: str) -> dict[int, float]:
    scores = strategy.scores(strategy.generations, network)
    return {seed: each[score] for seed, each in scores.items()}


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--strategies", help="only these, separated by commas")
    parser.add_argument("--equal", choices=["epochs", "compute"], default="epochs")
    parser.add_argument("--lineages", type=Path, default=Path("lineages") / "budget")
    parser.add_argument("--show", action="store_true", help="train nothing")
    options = parser.parse_args()
    grid = read_grid(options.grid)
    if options.strategies:
        chosen = {*options.strategies.split(","), grid.reference, grid.slim_reference}
        unknown = chosen - set(grid.strategies)
        if unknown:
            parser.error(f"--strategies: {min(unknown)} is none of {', '.join(grid.strategies)}")
        grid = Grid(**{**vars(grid), "strategies": {n: s for n, s in grid.strategies.items() if n in chosen}})
    seeds = [int(seed) for seed in options.seeds.split(",")]
    recipes = recipes_of(grid, f"{options.grid.stem}-epochs", seeds)
    if options.equal == "compute":
        per_epoch = measured(options.lineages / f"{options.grid.stem}-compute.json", recipes, options.lineages)
        recipes = recipes_of(grid, f"{options.grid.stem}-compute", seeds, equal_compute(grid, per_epoch))
    if not options.show:
        # Seed by seed: what is there when time runs out can be compared.
        for number in range(len(seeds)):
            for found in recipes.values():
                train(found[number], grid.recipe, options.lineages)
    print(markdown(grid, {name: _there(found, options.lineages) for name, found in recipes.items()}))


def measured(path: Path, recipes: Mapping[str, Sequence[Recipe]], lineages: Path) -> dict[str, float]:
    """Return strategy -> seconds per epoch, those that were used before where there are any.

    Args:
        path: Where they are kept: with other times, lineages at equal compute would have other epochs.
        recipes: The strategies at equal epochs.
        lineages: Where their lineages are.

    Raises:
        SystemExit: A strategy has no finished lineage at equal epochs.
    """
    kept: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in recipes.keys() - kept.keys():
        done = _there(recipes[name], lineages)
        if not done:
            raise SystemExit(f"{name}: no lineage at equal epochs yet, whose time per epoch is needed first")
        kept[name] = seconds_per_epoch(done)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return kept


def _there(recipes: Sequence[Recipe], lineages: Path) -> list[Lineage]:
    """Return the finished lineages of recipes.

    Raises:
        KeMetricError: A lineage of another recipe is in its place.
    """
    found = []
    for recipe in recipes:
        folder = folder_of(recipe, lineages)
        if (folder / "lineage.json").exists():
            lineage = Lineage(folder)
            lineage.require_recipe(recipe)
            if len(lineage.numbers) == recipe.generations:
                found.append(lineage)
    return found


if __name__ == "__main__":
    main()
