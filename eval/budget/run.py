"""What to do with a fixed budget: strategies at equal epochs, and at equal measured compute.

    python -m eval.budget.run eval/budget/grids/glyphs_retrieval.yaml --seeds 0,1,2
    python -m eval.budget.run eval/budget/grids/glyphs_retrieval.yaml --seeds 0,1,2 --equal compute
    python -m eval.budget.run eval/budget/grids/glyphs_retrieval.yaml --seeds 0,1,2 --show

Every strategy of the file gets the same number of epochs, divided among its generations. With `--equal compute` it
gets as many as the reference's arithmetic buys, counted while a few epochs of each run (operations.py), and kept in
`<grid>_operations.json` beside the results; where an epoch takes as much, to a twentieth, a strategy keeps the
lineages it has. What a method does between generations (the saliency of neural_regeneration takes a fifth of an
epoch) is not counted.

Missing lineages are trained, interrupted ones go on; the table is printed as Markdown. What a finished one shows is
written to `eval/budget/results/<grid>.jsonl`, and stands for it where its folder is gone. Differences are paired by
seed, with a 95 % bootstrap interval, and only between networks with as many parameters; the dense network of a
strategy that the file has under `beside` is compared with the one named there, which stands behind the difference. An
average (`of` a strategy,
see averages.py) is scored from the lineage that was trained for that strategy, and written down with it.
"""

import argparse
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import yaml

from eval.budget.averages import KINDS, score_average
from eval.budget.operations import operations_per_epoch, training_pictures
from eval.shared.lineages import Results, StoredResult, folder_of, train, training_seconds
from ke_metric import Lineage
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.generation import Scorecard
from ke_metric.images.image_set import without_training
from ke_metric.images.pixel_store import Pictures
from ke_metric.lineage.comparison import Strategy, gather, mean_and_spread, paired_difference
from ke_metric.recipe.file import load_recipe
from ke_metric.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
FIELDS = {"recipe", "epochs", "reference", "slim_reference", "strategies", "set", "averages", "beside"}
OPTIONAL = {"set", "averages", "beside"}
# Epochs whose arithmetic differs by less are taken for equal.
TOLERANCE = 0.05


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
        averages: Name -> the strategy whose generations are averaged, and what of them: `outputs` or `weights`.
        beside: Strategy -> the one that its dense network is compared with in place of the reference.
    """

    recipe: Path
    epochs: int
    reference: str
    slim_reference: str
    shared: tuple[str, ...]
    strategies: Mapping[str, tuple[int, tuple[str, ...]]]
    averages: Mapping[str, tuple[str, str]]
    beside: Mapping[str, str] = field(default_factory=dict)


def read_grid(path: Path) -> Grid:
    """Read a file of strategies.

    Raises:
        SystemExit: A field is missing or unknown, or a reference or an average is of no strategy.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    wrong = sorted((set(document) ^ FIELDS) - OPTIONAL)
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
    beside = document.get("beside", {})
    for name in [*beside, *beside.values()]:
        if name not in strategies:
            raise SystemExit(f"{path}: beside has {name!r}, which is no strategy")
    averages = {name: (own.get("of"), own.get("average")) for name, own in document.get("averages", {}).items()}
    for name, (base, kind) in averages.items():
        if base not in strategies or kind not in KINDS or "method.slim_last=true" in strategies[base][1]:
            allowed = f"of: one of {', '.join(strategies)}, but for slim_last; average: {' or '.join(KINDS)}"
            raise SystemExit(f"{path}: averages.{name} is of {base!r}, average {kind!r}; {allowed}")
    return Grid(
        ROOT / document["recipe"],
        document["epochs"],
        document["reference"],
        document["slim_reference"],
        tuple(document.get("set", ())),
        strategies,
        averages,
        beside,
    )


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
            *grid.shared, f"name={prefix}-{name}-{total}", f"generations={generations}",
            f"training.epochs={total // generations}", *own,
        ]  # fmt: skip
        if any(base == name for base, _ in grid.averages.values()):
            overrides.append("keep=all")
        found[name] = [load_recipe(grid.recipe, overrides, seed=seed) for seed in seeds]
        if any(recipe.generations * recipe.training.epochs != total for recipe in found[name]):
            raise SystemExit(f"{name}: its set changes generations or training.epochs, which the budget decides")
    return found


def equal_compute(grid: Grid, per_epoch: Mapping[str, float]) -> dict[str, int]:
    """Return strategy -> epochs that the reference's arithmetic buys, divisible by its generations.

    More than its warm-up; a strategy that takes as much as the reference, to the tolerance, gets the same epochs.

    Args:
        grid: The strategies.
        per_epoch: Strategy -> operations per epoch.
    """
    budget = grid.epochs * per_epoch[grid.reference]
    epochs = {}
    for name, (generations, own) in grid.strategies.items():
        if abs(per_epoch[name] / per_epoch[grid.reference] - 1) <= TOLERANCE:
            epochs[name] = grid.epochs
            continue
        warmup = load_recipe(grid.recipe, [*grid.shared, *own]).training.warmup_epochs
        epochs[name] = generations * max(math.floor(warmup) + 1, round(budget / per_epoch[name] / generations))
    return epochs


def markdown(
    grid: Grid,
    lineages: Mapping[str, Sequence[Lineage | StoredResult]],
    averages: Mapping[str, Mapping[int, Scorecard]] | None = None,
) -> str:
    """Return the table of the strategies that were run: last generation, dense and slim; and of averages.

    Args:
        grid: The strategies.
        lineages: Strategy -> finished lineages.
        averages: Average -> seed -> its scorecard.
    """
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
        own = grid.beside.get(name)
        for network, reference in (("dense", own or grid.reference), ("slim", grid.slim_reference)):
            told = _cells(strategy, strategies.get(reference), network, score, is_reference=name == reference)
            cells += [*told[:2], f"{told[2]} ({own})" if own == reference and told[2] else told[2]]
        lines.append(f"| {' | '.join(cells)} |")
        for network in strategy.last_networks:
            if network in ("dense", "slim"):
                continue
            # The control of a further rate is its own architecture alone.
            alone = strategies.get(f"{grid.slim_reference}_rate_{network.removeprefix('slim ')}")
            told = _cells(strategy, alone, network, score, is_reference=False, of_reference="slim")
            lines.append(f"| {' | '.join([f'{name}, {network}', *cells[1:5], '', '', '', *told])} |")
        for average, cards in (averages or {}).items():
            if grid.averages[average][0] == name and cards:
                whole = replace(strategy, name=average, scorecards={seed: [card] for seed, card in cards.items()})
                told = [average, *cells[1:4], str(len(cards))]
                told += _cells(whole, strategies.get(grid.reference), "dense", score, is_reference=False)
                lines.append(f"| {' | '.join([*told, '', '', ''])} |")
    if any(1 < len(strategy.scorecards) < 5 for strategy in strategies.values()):
        lines += ["", "Intervals of fewer than five seeds are too narrow to be trusted."]
    return "\n".join(lines)


def _cells(
    strategy: Strategy,
    reference: Strategy | None,
    network: str,
    score: str,
    *,
    is_reference: bool,
    of_reference: str | None = None,
) -> tuple[str, str, str]:
    """Return parameters, mean and spread, and the difference to the reference's network of this or another name.

    Nothing where there is no such network, no difference to a network of another size.
    """
    if network not in strategy.last_networks:
        return "", "", ""
    theirs = of_reference or network
    size = strategy.parameters(network, strategy.generations)
    ours = _values(strategy, network, score)
    mean, spread = mean_and_spread(list(ours.values()))
    told = f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
    if is_reference or reference is None or theirs not in reference.last_networks:
        return f"{size:,}", told, ""
    if reference.parameters(theirs, reference.generations) != size:
        return f"{size:,}", told, ""
    found = paired_difference(ours, _values(reference, theirs, score))
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
    parser.add_argument("--results", type=Path, default=ROOT / "eval" / "budget" / "results")
    parser.add_argument("--show", action="store_true", help="train nothing")
    options = parser.parse_args()
    grid = read_grid(options.grid)
    if options.strategies:
        chosen = {*options.strategies.split(","), grid.reference, grid.slim_reference}
        unknown = chosen - set(grid.strategies)
        if unknown:
            parser.error(f"--strategies: {min(unknown)} is none of {', '.join(grid.strategies)}")
        grid = replace(
            grid,
            strategies={name: each for name, each in grid.strategies.items() if name in chosen},
            averages={name: each for name, each in grid.averages.items() if each[0] in chosen},
        )
    seeds = [int(seed) for seed in options.seeds.split(",")]
    recipes = recipes_of(grid, options.grid.stem, seeds)
    results = Results(options.results / f"{options.grid.stem}.jsonl")
    if options.equal == "compute":
        path = options.results / f"{options.grid.stem}_operations.json"
        per_epoch = counted(path, {name: found[0] for name, found in recipes.items()})
        recipes = recipes_of(grid, options.grid.stem, seeds, equal_compute(grid, per_epoch))
    if not options.show:
        # Seed by seed: what is there when time runs out can be compared.
        for number in range(len(seeds)):
            for name, found in recipes.items():
                kinds = {kind for base, kind in grid.averages.values() if base == name}
                grow(found[number], grid.recipe, kinds, lineages=options.lineages, results=results)
    there = {name: _there(found, results) for name, found in recipes.items()}
    averages = {
        name: {each.recipe.seed: each.averages[kind] for each in there[base] if kind in each.averages}
        for name, (base, kind) in grid.averages.items()
    }
    print(markdown(grid, there, averages))


def grow(recipe: Recipe, path: Path, kinds: Collection[str], *, lineages: Path, results: Results) -> None:
    """Train a lineage, score averages of it, and write down what it shows; what was written down before stays.

    Args:
        recipe: The recipe.
        path: The file it was changed from.
        kinds: `outputs` and `weights`: which averages.
        lineages: Where lineages are.
        results: Where results are.
    """
    before = results.get(recipe)
    if before is not None and set(kinds) <= set(before.averages):
        return
    train(recipe, path, lineages)
    lineage = Lineage(folder_of(recipe, lineages))
    if len(lineage.numbers) < recipe.generations:
        return
    averages = {}
    if kinds:
        benchmark = without_training(load_benchmark(recipe.data, recipe.task))
        pictures = Pictures.decode(benchmark, recipe.data.store_size, store_shape=recipe.data.store_shape)
        averages = {kind: asdict(score_average(lineage, kind, pictures)) for kind in sorted(kinds)}
    results.add(lineage, averages)


def counted(path: Path, recipes: Mapping[str, Recipe]) -> dict[str, float]:
    """Return strategy -> operations per epoch, those that were counted before where there are any.

    Args:
        path: Where they are kept.
        recipes: Strategy -> its recipe; all train on the same pictures.
    """
    kept: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = {name: recipe for name, recipe in recipes.items() if name not in kept}
    if missing:
        pictures = training_pictures(next(iter(missing.values())))
        kept |= {name: operations_per_epoch(recipe, pictures) for name, recipe in missing.items()}
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return kept


def _there(recipes: Sequence[Recipe], results: Results) -> list[StoredResult]:
    """Return what there is of some recipes.

    Raises:
        KeMetricError: One is of another recipe.
    """
    return [found for found in map(results.get, recipes) if found is not None]


if __name__ == "__main__":
    main()
