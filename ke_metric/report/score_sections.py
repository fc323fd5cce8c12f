"""The first sections of a report: what was reached, and the scores of every generation, over seeds."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from ke_metric.lineage.comparison import Strategy, mean_and_spread, seen_differently, told_rules
from ke_metric.lineage.report import is_share, shown_names, told_baseline, told_best_epochs, told_repairs
from ke_metric.lineage.store import Lineage
from ke_metric.report.charts import Axes, line_chart, network_color
from ke_metric.report.failures import FAILURES, told_failure
from ke_metric.report.page_parts import (
    Chart,
    DataTable,
    HeadlineNumber,
    Number,
    PageSection,
    Part,
    counted,
    score_text,
)
from ke_metric.report.places import places_of, without_places
from ke_metric.report.score_tables import scores_table, sizes_tables
from ke_metric.report.subject import Subject

NAMES = {
    "nmi": "NMI",
    "ami": "AMI",
    "map@r": "MAP@R",
    "r_precision": "R-precision",
    "top1": "Top-1 accuracy",
    "balanced_accuracy": "Balanced accuracy",
}
SCORES = "Scores of every generation"
MOST_STRATEGIES = 4
MOST_NETWORKS = 2
"""Of every other recipe that figures show."""


def score_title(name: str) -> str:
    """Return the name of a score as a heading has it."""
    return NAMES.get(name, name.replace("recall@", "Recall@").replace("_", " ").replace("top5", "Top-5 accuracy"))


# --- the few numbers at the top -----------------------------------------------------------------------------------


def headline(subject: Subject) -> list[HeadlineNumber]:
    """Return what the last generation reached, what it gained, and what its slim network costs and loses."""
    strategy, name, last = subject.strategy, subject.decisive, subject.last
    unit = " %" if is_share(name) else ""
    found: list[HeadlineNumber] = []
    for network in strategy.networks_at(last):
        values = _by_seed(strategy, last, network, name)
        if not values:
            continue
        value = mean_and_spread(list(values.values()))[0]
        number = Number(value, score_text(name, value) + unit, f"{last}/{network}/{name}")
        seeds = _told_seeds(values, strategy.scorecards)
        note = f"generation {last}, {strategy.parameters(network, last):,} parameters{seeds}"
        found.append(HeadlineNumber(f"{score_title(name)}, {network}", number, note))
    return found + _over_first(subject, name) + _over_baseline(subject, name)


def _over_first(subject: Subject, name: str) -> list[HeadlineNumber]:
    """Return the gain over the first generation, of the seeds that have both."""
    strategy, last = subject.strategy, subject.last
    network = strategy.networks_at(last)[0]
    # A slim network that the last generation trains has a counterpart only where slim ones were scored before.
    first = network if strategy.scores(1, network) else strategy.networks_at(1)[0]
    pairs = strategy.paired(name, (1, first), (last, network))
    if last < 2 or not pairs:
        return []
    then, now = (mean_and_spread(side)[0] for side in zip(*pairs.values(), strict=True))
    seeds = _told_seeds(pairs, strategy.scorecards)
    what = f"{first} after one plain training of {strategy.epochs(1):,} epochs, of {strategy.epochs(last):,} in all"
    return [_gain("Gain over generation 1", name, now, then, what, seeds)]


def _over_baseline(subject: Subject, name: str) -> list[HeadlineNumber]:
    """Return the gain over the long baseline, of the seeds that both have; where there is none, of all means."""
    baseline, strategy = subject.baseline, subject.strategy
    if baseline is None:
        return []
    network = strategy.networks_at(subject.last)[0]
    ours = _by_seed(strategy, subject.last, network, name)
    theirs = _by_seed(baseline, baseline.generations, baseline.last_networks[0], name)
    if not ours or not theirs:
        return []
    epochs = baseline.epochs(baseline.generations)
    what = f"{network}, {baseline.name}: {epochs:,} epochs in {counted(baseline.generations, 'generation')}"
    shared = sorted(ours.keys() & theirs.keys())
    if shared:
        seeds = _told_seeds(shared, {*strategy.scorecards, *baseline.scorecards})
        ours, theirs = ({seed: side[seed] for seed in shared} for side in (ours, theirs))
    else:
        seeds = f", other seeds ({_listed(theirs)}, not {_listed(ours)})"
    now, then = (mean_and_spread(list(side.values()))[0] for side in (ours, theirs))
    return [_gain("Gain over the long baseline", name, now, then, what, seeds)]


def _gain(title: str, name: str, now: float, then: float, what: str, seeds: str) -> HeadlineNumber:
    unit = " points" if is_share(name) else ""
    shown = Number(now - then, f"{score_text(name, now - then, signed=True)}{unit}")
    return HeadlineNumber(title, shown, f"{what}: {score_text(name, then)}{seeds}", is_loss=now < then)


def _told_seeds(used: Collection[int], given: Collection[int]) -> str:
    """Return over which seeds a mean was taken, and which ones it leaves out; nothing where there is one."""
    left_out = sorted(set(given) - set(used))
    without = f" (seed{'s' * (len(left_out) > 1)} {_listed(left_out)} left out)" if left_out else ""
    if len(used) > 1:
        return f", mean of {len(used)} seeds{without}"
    return f", seed {_listed(used)} alone{without}" if left_out else ""


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def baseline_notes(subject: Subject) -> list[str]:
    """Return whether the baseline was trained for as long, a sentence; nothing without a baseline."""
    baseline, strategy = subject.baseline, subject.strategy
    if baseline is None:
        return []
    ours, theirs = strategy.epochs(subject.last), baseline.epochs(baseline.generations)
    if ours == theirs:
        return [f"The long baseline ({baseline.name}) was trained for as many epochs: {ours:,}."]
    return [
        f"The long baseline ({baseline.name}) was trained for {theirs:,} epochs, not for {ours:,}: this is unequal."
    ]


# --- scores of every generation -----------------------------------------------------------------------------------


def scores_section(subject: Subject) -> PageSection:
    """Return figures and table of the scores of every generation, dense and slim."""
    names = _names(subject)
    figures = [name for name in dict.fromkeys((subject.decisive, "map@r", "balanced_accuracy")) if name in names]
    table = scores_table(subject.strategies, subject.baseline, names, subject.decisive)
    charts = [_chart(subject, name, table if name == figures[0] else None) for name in figures]
    lead = [*_lead(subject), *baseline_notes(subject)]
    parts: list[Part] = [*charts, *_recipes_table(subject), *sizes_tables(subject, names)]
    missing = [*_incomplete(subject), *subject.not_finite]
    try:
        lead += _unequal_rules(subject.lineage)
    except FAILURES as error:
        missing.append(f"By which rule ties were settled: {told_failure(error, subject.lineage)}")
    return PageSection("scores", SCORES, lead, parts, missing)


def _recipes_table(subject: Subject) -> list[DataTable]:
    """Return what the letters are that recipes are called, where their names are long."""
    rows = [[letter, name] for letter, name in subject.recipes.items()]
    return [DataTable("What the letters of the recipes are", ["recipe", "name"], rows)] if rows else []


def _names(subject: Subject) -> list[str]:
    cards = [
        scores
        for strategy in subject.shown
        for generation in range(1, strategy.generations + 1)
        for network in strategy.networks
        for scores in strategy.scores(generation, network).values()
    ]
    return shown_names(cards)


def _lead(subject: Subject) -> list[str]:
    told = ["Dense is the whole network, slim the fit hypothesis alone, cut out as an ordinary network."]
    strategy, cards = subject.strategy, subject.cards
    if told_repairs(cards):
        told.append(
            "Slim networks were repaired after they had been cut out, by the training pictures; what they scored "
            "before stands in the last column."
        )
    sentences = (told_baseline(card.dense for card in cards.values()), told_best_epochs(cards))
    told += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences if sentence]
    worse = strategy.worse_than_untrained(subject.decisive)
    if worse:
        numbers = ", ".join(str(number) for number in worse)
        told.append(f"Training made the network worse than it began in generation {numbers}.")
    if len(strategy.scorecards) > 1:
        told.append(f"Mean and standard deviation over the seeds {_listed(strategy.scorecards)}.")
    told += [sentence for each in subject.shown for sentence in _unequal_seeds(each)]
    told += _outside_figures(subject)
    for name, fields in seen_differently(subject.strategies).items():
        seen = ", ".join(f"{field} = {value}" for field, value in fields.items())
        told.append(f"{name} saw the test pictures with {seen}.")
    return told


def _unequal_rules(lineage: Lineage) -> list[str]:
    """Return a sentence for each rule by which generations were scored differently; nothing where all are alike."""
    told = told_rules([lineage]).values()
    return [f"{without_places(each[0].upper() + each[1:], *places_of(lineage))}." for each in told]


def _unequal_seeds(strategy: Strategy) -> list[str]:
    """Return which seeds have fewer generations: the means of generations are then of different trainings."""
    ends = {seed: len(cards) for seed, cards in strategy.scorecards.items()}
    short = [f"seed {seed} ends at generation {end}" for seed, end in ends.items() if end < strategy.generations]
    return [f"{strategy.name}: {', '.join(short)}; means of later generations are those of the others."] * bool(short)


def _outside_figures(subject: Subject) -> list[str]:
    """Return what the table alone has because figures would be too full."""
    told, others = [], subject.strategies[1:MOST_STRATEGIES]
    if left_out := len(subject.strategies) - MOST_STRATEGIES:
        told += [f"Figures show {MOST_STRATEGIES} recipes; the table has {left_out} more."] * (left_out > 0)
    if any(len(each.networks) > MOST_NETWORKS for each in others):
        told.append("Of other recipes figures show dense and slim; the table has their slim networks of other rates.")
    return told


def _incomplete(subject: Subject) -> list[str]:
    have, asked = len(subject.lineage.numbers), subject.lineage.recipe.generations
    return [f"{have} of {asked} generations are complete."] if have < asked else []


def _series(subject: Subject) -> list[tuple[Strategy, str, str]]:
    """Return (strategy, network, name in the legend) of every line of a figure."""
    own = [(subject.strategy, network, network) for network in subject.strategy.networks]
    others = subject.strategies[1:MOST_STRATEGIES]
    return own + [
        (each, network, f"{each.name}, {network}") for each in others for network in each.networks[:MOST_NETWORKS]
    ]


def _chart(subject: Subject, name: str, table: DataTable | None) -> Chart:
    rows: list[dict[str, Any]] = []
    colors: dict[str, str] = {}
    told = []
    for position, (strategy, network, series) in enumerate(_series(subject)):
        points = _points(strategy, network, name)
        if points:
            colors[series] = network_color(position)
            rows += [{**point, "series": series} for point in points]
            told.append(f"{series} from {score_text(name, points[0]['y'])} to {score_text(name, points[-1]['y'])}")
    rows += _baseline_points(subject, name, colors)
    title = f"{score_title(name)} by generation"
    with_band = any(row["low"] != row["high"] for row in rows)
    share = ".3~%" if is_share(name) else ""
    axes = Axes("generation", score_title(name), share)
    specification = line_chart(rows, colors, axes, with_band=with_band, with_dashes=True)
    described = f"{title}{', in percent' if share else ''}: {'; '.join(told)}."
    return Chart(f"scores-{_file_name(name)}", title, described, specification, colors, table=table)


def _baseline_points(subject: Subject, name: str, colors: dict[str, str]) -> list[dict[str, Any]]:
    """Return the long baseline as a level line over all generations."""
    baseline = subject.baseline
    reached = _by_seed(baseline, baseline.generations, baseline.last_networks[0], name) if baseline else {}
    if not reached:
        return []
    level = mean_and_spread(list(reached.values()))[0]
    colors["long baseline"] = "@muted"
    ends = (1, max(subject.strategy.generations, 2))
    return [{"x": x, "y": level, "low": level, "high": level, "series": "long baseline"} for x in ends]


def _points(strategy: Strategy, network: str, name: str) -> list[dict[str, Any]]:
    points = []
    for generation in range(1, strategy.generations + 1):
        values = list(_by_seed(strategy, generation, network, name).values())
        if values:
            mean, spread = mean_and_spread(values)
            low, high = mean - (spread or 0), mean + (spread or 0)
            points.append({"x": generation, "y": mean, "low": low, "high": high})
    return points


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _by_seed(strategy: Strategy, generation: int, network: str, name: str) -> dict[int, float]:
    """Return seed to a score of a network, for the seeds that have it."""
    found = strategy.scores(generation, network)
    return {seed: scores[name] for seed, scores in found.items() if name in scores}
