"""`ke-metric compare`: lineages side by side, over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from ke_metric.cli.display import Outcome
from ke_metric.lineage.comparison import (
    CONFIDENCE,
    Strategy,
    gather,
    mean_and_spread,
    paired_difference,
    seen_differently,
    told_rules,
)
from ke_metric.lineage.report import FittingTable, decisive_score, header, is_share, number_columns, shown_names
from ke_metric.lineage.store import Lineage

COLUMNS = ("generation", "epochs", "network", "parameters", "seeds")
# Those that a narrow terminal does without.
FACTS = ("epochs", "parameters", "seeds")


def compare_lineages(folders: Sequence[Path]) -> Outcome:
    """Compare lineages.

    Args:
        folders: Their folders; the first one's recipe is the reference of the differences.

    Raises:
        KeMetricError: No such lineage, none of its generations is complete, or they were not tested alike.
    """
    lineages = [Lineage(folder) for folder in folders]
    strategies = gather(lineages)
    incomplete = [
        {"lineage": str(lineage.folder), "generations": len(lineage.numbers), "of": lineage.recipe.generations}
        for lineage in lineages
        if len(lineage.numbers) < lineage.recipe.generations
    ]
    document = {
        "scores": [row for each in strategies for row in _rows(each, range(1, each.generations + 1))],
        "untrained": [row for each in strategies if each.untrained for row in _rows(each, (0,))],
        "differences": _differences(strategies),
        "seen_differently": seen_differently(strategies),
        "incomplete": incomplete,
    }
    rules = told_rules(lineages)
    document |= rules
    return Outcome(document, Group(*_shown(document, strategies), *map(Text, rules.values())))


def _rows(strategy: Strategy, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Return a row for every network that these generations have."""
    return [
        {
            "strategy": strategy.name,
            "generation": generation,
            "epochs": strategy.epochs(generation),
            "network": network,
            "parameters": strategy.parameters(network, generation),
            "seeds": list(strategy.scores(generation, network)),
            "scores": {
                name: dict(zip(("mean", "spread"), mean_and_spread(values), strict=True))
                for name, values in _by_name(strategy, generation, network).items()
            },
        }
        for generation in numbers
        for network in strategy.networks
        if strategy.scores(generation, network)
    ]


def _by_name(strategy: Strategy, generation: int, network: str) -> dict[str, list[float]]:
    """Return score -> values of the seeds, for the scores that all of them have."""
    found = list(strategy.scores(generation, network).values())
    return {name: [scores[name] for scores in found] for name in found[0] if all(name in each for each in found)}


def _differences(strategies: Sequence[Strategy]) -> list[dict[str, Any]]:
    """Return the last generations against that of the first strategy, for the networks that both have."""
    reference, *others = strategies
    documents = []
    for strategy in others:
        for network in (network for network in strategy.last_networks if network in reference.last_networks):
            ours = strategy.scores(strategy.generations, network)
            theirs = reference.scores(reference.generations, network)
            names = [name for name in next(iter(ours.values())) if name in next(iter(theirs.values()))]
            found = {
                name: paired_difference(
                    {seed: scores[name] for seed, scores in ours.items() if name in scores},
                    {seed: scores[name] for seed, scores in theirs.items() if name in scores},
                )
                for name in names
            }
            documents.append(
                {
                    "strategy": strategy.name,
                    "reference": reference.name,
                    "network": network,
                    "epochs": strategy.epochs(strategy.generations),
                    "reference_epochs": reference.epochs(reference.generations),
                    "parameters": strategy.parameters(network, strategy.generations),
                    "reference_parameters": reference.parameters(network, reference.generations),
                    "seeds": sorted(ours.keys() & theirs.keys()),
                    "scores": {
                        name: {"difference": each.mean, "low": each.low, "high": each.high}
                        for name, each in found.items()
                        if each is not None
                    },
                }
            )
    return documents


def _shown(document: dict[str, Any], strategies: Sequence[Strategy]) -> list[RenderableType]:
    """Return the tables: all but NMI, which lies in [0, 1], in percent."""
    names = shown_names(row["scores"] for row in document["scores"])
    rows = _in_order(document, strategies)
    shown: list[RenderableType] = [FittingTable(partial(_scores_table, rows), names, facts=FACTS)]
    differences = document["differences"]
    if differences:
        reference = strategies[0].name
        shown.append(FittingTable(partial(_differences_table, differences, reference), names, facts=FACTS))
    shown += [Text(sentence) for strategy in strategies if (sentence := _told_worse(strategy))]
    shown += [
        Text(
            f"{name} saw the test pictures with {', '.join(f'{field} = {value}' for field, value in fields.items())}"
        )
        for name, fields in document["seen_differently"].items()
    ]
    shown += [
        Text(f"{each['lineage']} has {each['generations']} of {each['of']} generations")
        for each in document["incomplete"]
    ]
    if any(1 < len(row["seeds"]) < 5 for row in document["differences"]):
        shown.append(Text("Intervals of fewer than five seeds are too narrow to be trusted."))
    return shown


def _in_order(document: dict[str, Any], strategies: Sequence[Strategy]) -> list[dict[str, Any]]:
    """Return the rows of the table: those of a strategy together, the untrained network before its generations."""
    rows = [*document["untrained"], *document["scores"]]
    return [row for strategy in strategies for row in rows if row["strategy"] == strategy.name]


def _told_worse(strategy: Strategy) -> str | None:
    """Return the sentence on generations that training made worse than they began; None where there is none."""
    name = decisive_score(next(iter(strategy.untrained.values())).dense) if strategy.untrained else None
    worse = strategy.worse_than_untrained(name) if name else {}
    if name is None or not worse:
        return None
    told = ", ".join(
        f"{_number(name, after)} in generation {generation} ({_number(name, before)} untrained)"
        for generation, (before, after) in worse.items()
    )
    return f"{strategy.name}: training made it worse: {header(name)} {told}"


def _scores_table(rows: Sequence[dict[str, Any]], names: Sequence[str], facts: Sequence[str]) -> Table:
    shown = [fact for fact in COLUMNS if fact not in FACTS or fact in facts]
    table = _table("mean ± standard deviation over seeds", shown, names)
    before = None
    for row in rows:
        cells = {**row, "parameters": f"{row['parameters']:,}", "seeds": len(row["seeds"])}
        told = row["strategy"] if row["strategy"] != before else ""
        scores = (_spread(name, row["scores"].get(name)) for name in names)
        table.add_row(told, *(str(cells[fact]) for fact in shown), *scores)
        before = row["strategy"]
    return table


def _differences_table(
    rows: Sequence[dict[str, Any]], reference: str, names: Sequence[str], facts: Sequence[str]
) -> Table:
    title = f"last generations, strategy - {reference}, paired by seed [{100 * CONFIDENCE:.0f} % bootstrap interval]"
    shown = [fact for fact in COLUMNS[1:] if fact not in FACTS or fact in facts]
    table = _table(title, shown, names)
    for row in rows:
        parameters = f"{row['parameters']:,}"
        if row["parameters"] != row["reference_parameters"]:
            parameters += f" - {row['reference_parameters']:,}"
        epochs = f"{row['epochs']} - {row['reference_epochs']}"
        cells = {**row, "epochs": epochs, "parameters": parameters, "seeds": len(row["seeds"])}
        scores = (_interval(name, row["scores"].get(name)) for name in names)
        table.add_row(row["strategy"], *(str(cells[fact]) for fact in shown), *scores)
    return table


def _table(title: str, facts: Sequence[str], names: Sequence[str]) -> Table:
    return Table(
        Column("strategy", overflow="fold"),
        *number_columns(facts, names),
        title=Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )


def _number(name: str, value: float, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f}" if is_share(name) else f"{value:{sign}.3f}"


def _spread(name: str, score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    mean = _number(name, score["mean"])
    return mean if score["spread"] is None else f"{mean} ± {_number(name, score['spread'])}"


def _interval(name: str, score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    mean = _number(name, score["difference"], signed=True)
    if score["low"] is None:
        return mean
    return f"{mean} [{_number(name, score['low'], signed=True)}, {_number(name, score['high'], signed=True)}]"
