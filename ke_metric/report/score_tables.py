"""Tables of scores: a row for every network of every generation, with mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ke_metric.generation import Scores
from ke_metric.lineage.comparison import Strategy, mean_and_spread
from ke_metric.lineage.report import header
from ke_metric.report.page_parts import Cell, DataTable, Number, score_text
from ke_metric.report.subject import Subject

NOT_THERE = "–"


def scores_table(
    strategies: Sequence[Strategy], baseline: Strategy | None, names: Sequence[str], decisive: str
) -> DataTable:
    """Return every score of every generation.

    Args:
        strategies: Those that are shown, the one that the report is about first: its numbers have a key.
        baseline: One more, beneath the others.
        names: Scores that have a column.
        decisive: The score that slim networks are told with as they were cut, where they were repaired.
    """
    shown = [*strategies, *([baseline] if baseline else [])]
    lines = [(strategy, *line) for strategy in shown for line in _lines(strategy)]
    cut = [_as_cut(strategy, generation, network, decisive) for strategy, generation, network in lines]
    with_recipe, with_cut = len(shown) > 1, any(cut)
    rows: list[list[Cell]] = []
    for (strategy, generation, network), before in zip(lines, cut, strict=True):
        found = list(strategy.scores(generation, network).values())
        size = strategy.parameters(network, max(generation, 1))
        key = f"{generation}/{network}" if strategy is strategies[0] else ""
        scores = [_cell([each[name] for each in found if name in each], name, key) for name in names]
        facts: list[Cell] = [str(generation), network, Number(size, f"{size:,}")]
        rows.append(
            [*[strategy.name] * with_recipe, *facts, *scores, *[_cell(before, decisive)] * with_cut],
        )
    repaired = [f"{header(decisive)} as cut"] * with_cut
    columns = [*["recipe"] * with_recipe, "generation", "network", "parameters", *map(header, names), *repaired]
    return DataTable(_caption(shown, names), columns, rows, row_headings=2 + with_recipe)


def _caption(strategies: Sequence[Strategy], names: Sequence[str]) -> str:
    unit = "all but NMI and AMI in percent" if "nmi" in names else "in percent"
    zero = "; generation 0 is the untrained network" if any(each.untrained for each in strategies) else ""
    return f"Scores, {unit}{zero}"


def _lines(strategy: Strategy) -> Iterator[tuple[int, str]]:
    """Yield generation and name of every network that has scores, the untrained one first."""
    for generation in range(0 if strategy.untrained else 1, strategy.generations + 1):
        for network in strategy.networks:
            if strategy.scores(generation, network):
                yield generation, network


def _as_cut(strategy: Strategy, generation: int, network: str, name: str) -> list[float]:
    """Return what the slim networks of the seeds scored before they were repaired; none for all others."""
    cards = [cards[generation - 1] for cards in strategy.scorecards.values() if len(cards) >= generation > 0]
    found = [card.slims[network].as_cut for card in cards if network in card.slims]
    return [scores[name] for scores in found if scores and name in scores]


def _cell(values: Sequence[float], name: str, key: str = "") -> Cell:
    if not values:
        return NOT_THERE
    mean, spread = mean_and_spread(values)
    text = score_text(name, mean) if spread is None else f"{score_text(name, mean)} ± {score_text(name, spread)}"
    return Number(mean, text, f"{key}/{name}" if key else "")


def sizes_tables(subject: Subject, names: Sequence[str]) -> list[DataTable]:
    """Return the scores of embeddings that are cut to fewer numbers, where there are any (`network.nested_sizes`)."""
    rows: list[list[Cell]] = []
    shown = [name for name in names if name not in ("nmi", "ami")]
    recipe = subject.lineage.recipe
    for number, card in subject.cards.items():
        for network, sizes in (card.sizes or {}).items():
            if recipe.trains_slim(number) and network != "dense":
                continue
            shown_network = "slim" if recipe.trains_slim(number) else network
            largest_first = sorted(sizes, key=int, reverse=True)
            rows += [[str(number), shown_network, size, *_cells(sizes[size], shown)] for size in largest_first]
    columns = ["generation", "network", "numbers", *map(header, shown)]
    caption = "Scores of embeddings cut to their first numbers, in percent"
    return [DataTable(caption, columns, rows, row_headings=3, folded=True)] if rows else []


def _cells(scores: Scores, names: Sequence[str]) -> list[Cell]:
    return [_cell([scores[name]] if name in scores else [], name) for name in names]
