"""The first sections of a report: what was reached, and the scores of every generation, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import Scores
from ke_metric.lineage.comparison import Strategy, gather, mean_and_spread, seen_differently, told_ties
from ke_metric.lineage.report import decisive_score, is_share, shown_names, told_baseline, told_repairs
from ke_metric.lineage.store import Lineage
from ke_metric.report.charts import Axes, line_chart, network_color
from ke_metric.report.page_parts import (
    Chart,
    DataTable,
    HeadlineNumber,
    Number,
    PageSection,
    Part,
    counted,
    score_text,
    without_places,
)
from ke_metric.report.score_tables import scores_table, sizes_tables

NAMES = {
    "nmi": "NMI",
    "ami": "AMI",
    "map@r": "MAP@R",
    "r_precision": "R-precision",
    "top1": "Top-1 accuracy",
    "balanced_accuracy": "Balanced accuracy",
}
MOST_STRATEGIES = 4


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    Attributes:
        lineage: The lineage that is shown in everything.
        strategies: Its recipe with all seeds that are given, then other recipes.
        baseline: The long training that it is held against; None where none is given.
    """

    lineage: Lineage
    strategies: Sequence[Strategy]
    baseline: Strategy | None = None

    @classmethod
    def of(cls, lineages: Sequence[Lineage], baselines: Sequence[Lineage] = ()) -> Subject:
        """Gather lineages, the first of which the report is about.

        Raises:
            KeMetricError: One has no generation, they were not tested alike, or a baseline is no other recipe.
        """
        strategies = [_named(each) for each in gather(lineages)]
        if not baselines:
            return cls(lineages[0], strategies)
        # All together, so that what was not tested alike is refused.
        gather([*lineages, *baselines])
        found = gather(baselines)
        if len(found) > 1:
            raise KeMetricError("--baseline: these are of several recipes; one is meant", ExitCode.USAGE)
        if len(gather([lineages[0], *baselines])) == 1:
            raise KeMetricError(
                f"--baseline: {baselines[0].folder} is of the recipe of {lineages[0].folder}: a baseline is another "
                "one, of one generation and as many epochs",
                ExitCode.USAGE,
            )
        return cls(lineages[0], strategies, _named(found[0]))

    @property
    def strategy(self) -> Strategy:
        """The recipe of the lineage, with all its seeds."""
        return self.strategies[0]

    @property
    def decisive(self) -> str:
        """The score that the training is for, of those that were computed."""
        scores = next(iter(self.strategy.scores(1, self.strategy.networks[0]).values()))
        return decisive_score(scores) or next(iter(scores))

    @property
    def last(self) -> int:
        """Number of the lineage's last generation."""
        return self.lineage.numbers[-1]

    def own(self, generation: int, network: str) -> Scores | None:
        """Return the scores of a network of the lineage itself, of one seed; None where it has none."""
        return self.strategy.scores(generation, network).get(self.lineage.recipe.seed)


def _named(strategy: Strategy) -> Strategy:
    """Return a strategy with no path in its name, which tells of a folder where recipes differ in nothing else."""
    return replace(strategy, name=without_places(strategy.name))


def score_title(name: str) -> str:
    """Return the name of a score as a heading has it."""
    return NAMES.get(name, name.replace("recall@", "Recall@").replace("_", " ").replace("top5", "Top-5 accuracy"))


# --- the few numbers at the top -----------------------------------------------------------------------------------


def headline(subject: Subject) -> list[HeadlineNumber]:
    """Return what the last generation reached, what it gained, and what its slim network costs and loses."""
    strategy, name, last = subject.strategy, subject.decisive, subject.strategy.generations
    unit = " %" if is_share(name) else ""
    seeds = _told_seeds(strategy, last)
    found: list[HeadlineNumber] = []
    for network in strategy.last_networks:
        value = _mean(strategy, last, network, name)
        if value is None:
            continue
        number = Number(value, score_text(name, value) + unit, f"{last}/{network}/{name}")
        size = f"{strategy.parameters(network, last):,} parameters"
        found.append(HeadlineNumber(f"{score_title(name)}, {network}", number, f"generation {last}, {size}{seeds}"))
    network = strategy.last_networks[0]
    now = _mean(strategy, last, network, name)
    if now is None:
        return found
    first = _mean(strategy, 1, network if network in strategy.networks else strategy.networks[0], name)
    if last > 1 and first is not None:
        found.append(_gain("Gain over generation 1", name, now, first, f"{network} after one plain training"))
    return found + _over_baseline(subject, name, now, network)


def _over_baseline(subject: Subject, name: str, now: float, network: str) -> list[HeadlineNumber]:
    baseline = subject.baseline
    if baseline is None:
        return []
    then = _mean(baseline, baseline.generations, baseline.last_networks[0], name)
    if then is None:
        return []
    epochs = baseline.epochs(baseline.generations)
    what = f"{network}, {baseline.name}: {epochs:,} epochs in {counted(baseline.generations, 'generation')}"
    return [_gain("Gain over the long baseline", name, now, then, what)]


def _gain(title: str, name: str, now: float, then: float, what: str) -> HeadlineNumber:
    unit = " points" if is_share(name) else ""
    shown = Number(now - then, f"{score_text(name, now - then, signed=True)}{unit}")
    return HeadlineNumber(title, shown, f"{what}: {score_text(name, then)}", is_loss=now < then)


def baseline_notes(subject: Subject) -> list[str]:
    """Return whether the baseline was trained for as long, a sentence; nothing without a baseline."""
    baseline, strategy = subject.baseline, subject.strategy
    if baseline is None:
        return []
    ours, theirs = strategy.epochs(strategy.generations), baseline.epochs(baseline.generations)
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
    parts: list[Part] = [*charts, *sizes_tables(subject.lineage, names)]
    return PageSection("scores", "Scores of every generation", lead, parts, _incomplete(subject))


def _names(subject: Subject) -> list[str]:
    shown = [*subject.strategies, *([subject.baseline] if subject.baseline else [])]
    cards = [
        scores
        for strategy in shown
        for generation in range(1, strategy.generations + 1)
        for network in strategy.networks
        for scores in strategy.scores(generation, network).values()
    ]
    return shown_names(cards)


def _lead(subject: Subject) -> list[str]:
    told = ["Dense is the whole network, slim the fit hypothesis alone, cut out as an ordinary network."]
    lineage, strategy = subject.lineage, subject.strategy
    cards = {number: lineage.scorecard(number) for number in lineage.numbers}
    if told_repairs(cards):
        told.append(
            "Slim networks were repaired after they had been cut out, by the training pictures; what they scored "
            "before stands in the last column."
        )
    sentence = told_baseline(card.dense for card in cards.values())
    told += [f"{sentence[0].upper()}{sentence[1:]}."] if sentence else []
    worse = strategy.worse_than_untrained(subject.decisive)
    if worse:
        numbers = ", ".join(str(number) for number in worse)
        told.append(f"Training made the network worse than it began in generation {numbers}.")
    if len(strategy.scorecards) > 1:
        seeds = ", ".join(str(seed) for seed in strategy.scorecards)
        told.append(f"Mean and standard deviation over the seeds {seeds}.")
    for name, fields in seen_differently(subject.strategies).items():
        seen = ", ".join(f"{field} = {value}" for field, value in fields.items())
        told.append(f"{name} saw the test pictures with {seen}.")
    ties = told_ties([lineage])
    return told + ([without_places(ties[0].upper() + ties[1:]) + "."] if ties else [])


def _incomplete(subject: Subject) -> list[str]:
    have, asked = len(subject.lineage.numbers), subject.lineage.recipe.generations
    return [f"{have} of {asked} generations are complete."] if have < asked else []


def _series(subject: Subject) -> list[tuple[Strategy, str, str]]:
    """Return (strategy, network, name in the legend) of every line of a figure."""
    own = [(subject.strategy, network, network) for network in subject.strategy.networks]
    others = subject.strategies[1:MOST_STRATEGIES]
    return own + [(each, network, f"{each.name}, {network}") for each in others for network in each.networks[:2]]


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
    level = _mean(baseline, baseline.generations, baseline.last_networks[0], name) if baseline else None
    if level is None:
        return []
    colors["long baseline"] = "@muted"
    ends = (1, max(subject.strategy.generations, 2))
    return [{"x": x, "y": level, "low": level, "high": level, "series": "long baseline"} for x in ends]


def _points(strategy: Strategy, network: str, name: str) -> list[dict[str, Any]]:
    points = []
    for generation in range(1, strategy.generations + 1):
        values = _values(strategy, generation, network, name)
        if values:
            mean, spread = mean_and_spread(values)
            low, high = mean - (spread or 0), mean + (spread or 0)
            points.append({"x": generation, "y": mean, "low": low, "high": high})
    return points


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _values(strategy: Strategy, generation: int, network: str, name: str) -> list[float]:
    return [scores[name] for scores in strategy.scores(generation, network).values() if name in scores]


def _mean(strategy: Strategy, generation: int, network: str, name: str) -> float | None:
    values = _values(strategy, generation, network, name)
    return mean_and_spread(values)[0] if values else None


def _told_seeds(strategy: Strategy, generation: int) -> str:
    count = len(strategy.scores(generation, strategy.last_networks[0]))
    return f", mean of {count} seeds" if count > 1 else ""
