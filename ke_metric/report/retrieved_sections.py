"""What networks retrieve: the worst queries, and what one generation mended and broke of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from ke_metric.arrays import IntArray
from ke_metric.lineage.report import is_share
from ke_metric.report.charts import Axes, balance_chart
from ke_metric.report.embedded_pictures import EmbeddedPictures
from ke_metric.report.outcomes import Outcomes, broken, mended, worst
from ke_metric.report.page_parts import (
    Cell,
    Chart,
    DataTable,
    Example,
    Number,
    PageSection,
    Part,
    ShownQueries,
    counted,
    score_text,
)
from ke_metric.report.score_sections import score_title
from ke_metric.report.vectors import LineageVectors

CHANGES, WORST_ANSWERS = "Mended and broken", "Worst answers"
WORST = 8
MOST_ROWS = 8
BALANCE = {"mended": "@right", "broken": "@wrong"}
CHANGED = 6


@dataclass(frozen=True)
class Change:
    """What one network answers otherwise than another one.

    Attributes:
        title: From which network to which.
        before: Generation and name of the one.
        after: Generation and name of the other.
        mended: Positions of the queries whose decisive score rises.
        broken: Positions of those whose score falls.
        is_whole: Whether it goes from the first generation to the last one, over others.
    """

    title: str
    before: tuple[int, str]
    after: tuple[int, str]
    mended: IntArray
    broken: IntArray
    is_whole: bool = False


class Retrieved:
    """What the networks of a lineage answer to its queries.

    Attributes:
        vectors: Of the lineage.
        pictures: Its pictures, as the page shows them.
    """

    def __init__(self, vectors: LineageVectors) -> None:
        self.vectors = vectors
        self.pictures = EmbeddedPictures(vectors)

    @cached_property
    def networks(self) -> list[tuple[int, str]]:
        """Generation and name of every network whose vectors can be had, as the scores name them."""
        trains_slim = self.vectors.lineage.recipe.trains_slim
        # Of such a generation `dense` is the slim network, and so is a `slim` beside it: the same one.
        named = [(number, "slim" if trains_slim(number) else name) for number, name in self.vectors.networks]
        return list(dict.fromkeys(named))

    def stored(self, number: int, name: str) -> tuple[int, str]:
        """Return as what vectors and scorecards have one of `networks`."""
        return number, "dense" if self.vectors.lineage.recipe.trains_slim(number) else name

    def outcomes(self, number: int, name: str) -> Outcomes:
        """Return what a network answers, computed once."""
        return self.vectors.outcomes(*self.stored(number, name))

    @property
    def kind(self) -> str:
        """What a picture that is asked with is called."""
        return "picture" if self.vectors.benchmark.task == "classification" else "query"

    @property
    def main(self) -> tuple[int, str]:
        """The last generation's network that was trained, of those that can be had."""
        number = max(number for number, _ in self.networks)
        return next(each for each in self.networks if each[0] == number)

    def keys(self, positions: Sequence[int] | IntArray) -> list[str]:
        """Return the keys of queries."""
        return [self.vectors.benchmark.query.keys[int(position)] for position in positions]

    @cached_property
    def changes(self) -> list[Change]:
        """From the first to the last generation, from each to the next one, and from dense to slim."""
        found = []
        number, network = self.main
        for name in dict.fromkeys((network, *(name for _, name in self.networks))):
            numbers = sorted(number for number, each in self.networks if each == name)
            pairs = [(numbers[0], numbers[-1])] if len(numbers) > 2 else []
            found += [replace(self._change((one, name), (other, name)), is_whole=True) for one, other in pairs]
            found += [self._change((one, name), (other, name)) for one, other in pairwise(numbers)]
        others = [name for each, name in self.networks if each == number and name != network]
        return found + [self._change((number, network), (number, name)) for name in others]

    def _change(self, before: tuple[int, str], after: tuple[int, str]) -> Change:
        one, other = self.outcomes(*before), self.outcomes(*after)
        if before[1] == after[1]:
            title = f"{before[1]}, generation {before[0]} to {after[0]}"
        else:
            title = f"generation {before[0]}, {before[1]} to {after[1]}"
        return Change(title, before, after, mended(one, other), broken(one, other))


def called(network: tuple[int, str]) -> str:
    """Return what the page calls a network."""
    return f"generation {network[0]}, {network[1]}"


def warnings_of(vectors: LineageVectors) -> list[str]:
    """Return how the data have changed since the training, sentences for every section that shows pictures."""
    return [f"The data have changed since training: {change}." for change in vectors.changes]


# --- worst queries ------------------------------------------------------------------------------------------------


def worst_section(retrieved: Retrieved) -> PageSection:
    """Return the queries that the last generation answers worst, with what it finds."""
    outcomes = retrieved.outcomes(*retrieved.main)
    if outcomes.decisive == "top1":
        note = "Pictures that are taken for another class, some of all of them."
        positions = _spread_out(worst(outcomes, len(outcomes)), WORST)
    else:
        note = "Queries with the lowest MAP@R, and their first neighbours; their own picture is left out."
        positions = worst(outcomes, WORST)
    examples = [example(retrieved, int(position), [retrieved.main]) for position in positions]
    gallery = ShownQueries(called(retrieved.main).capitalize(), note, examples)
    return PageSection("worst-answers", WORST_ANSWERS, [], [gallery], warnings_of(retrieved.vectors))


def example(retrieved: Retrieved, position: int, networks: Sequence[tuple[int, str]]) -> Example:
    """Return a query with what some networks answer to it."""
    answers = [
        retrieved.pictures.answer(retrieved.outcomes(*network), position, called(network)) for network in networks
    ]
    return Example(retrieved.kind, retrieved.pictures.query(position), answers)


# --- mended and broken --------------------------------------------------------------------------------------------


def changes_section(retrieved: Retrieved) -> PageSection:
    """Return how many queries every generation mended and broke, and those of the whole lineage as pictures."""
    title = CHANGES
    if not retrieved.changes:
        one = f"The vectors of one network alone can be had ({called(retrieved.main)}): there is nothing to compare."
        return PageSection("mended-and-broken", title, missing=[one, *warnings_of(retrieved.vectors)])
    decisive = retrieved.outcomes(*retrieved.main).decisive
    lead = [
        f"A {retrieved.kind} is mended where its {score_title(decisive)} rises from one network to another, broken "
        "where it falls. A gain of the mean hides both."
    ]
    table = _changes_table(retrieved, decisive)
    charts = _balances(retrieved)
    galleries = _galleries(retrieved, retrieved.changes[0])
    return PageSection("mended-and-broken", title, lead, [*charts, table, *galleries], warnings_of(retrieved.vectors))


def _balances(retrieved: Retrieved) -> list[Chart]:
    """Return for every kind of network how many queries each generation mended and broke; nothing of one step."""
    charts, changes = [], retrieved.changes
    what = counted(2, retrieved.kind).partition(" ")[2]
    for name in dict.fromkeys(change.before[1] for change in changes):
        steps = [change for change in changes if _is_step(change) and change.before[1] == name]
        if len(steps) < 2:
            continue
        rows = [
            {
                "x": f"{step.before[0]} → {step.after[0]}",
                "y": sign * len(found),
                "count": len(found),
                "series": series,
            }
            for step in steps
            for series, sign, found in (("mended", 1, step.mended), ("broken", -1, step.broken))
        ]
        told = [
            f"{len(step.mended):,} mended, {len(step.broken):,} broken in generation {step.after[0]}"
            for step in steps
        ]
        title = f"Mended and broken by each generation, {name}"
        specification = balance_chart(rows, BALANCE, Axes("generation", what))
        described = f"{title}: {'; '.join(told)}."
        charts.append(Chart(f"changes-{name.replace(' ', '-')}", title, described, specification, BALANCE))
    return charts


def _is_step(change: Change) -> bool:
    """Whether it is a change from a generation to the next one whose vectors can be had, of one kind of network."""
    return change.before[1] == change.after[1] and not change.is_whole


def _changes_table(retrieved: Retrieved, name: str) -> DataTable:
    rows: list[list[Cell]] = []
    for change in retrieved.changes:
        gained, lost = len(change.mended), len(change.broken)
        values = [retrieved.outcomes(*each).scores[name] for each in (change.before, change.after)]
        means = [float(np.nanmean(each)) for each in values]
        shown = [
            Number(mean, score_text(name, mean), f"{number}/{network}/{name}")
            for mean, (number, network) in zip(means, (change.before, change.after), strict=True)
        ]
        rows.append([change.title, Number(gained, f"{gained:,}"), Number(lost, f"{lost:,}"), *shown])
    percent = ", %" if is_share(name) else ""
    columns = ["from and to", "mended", "broken", f"{score_title(name)} before{percent}", f"after{percent}"]
    return DataTable("What was mended and broken", columns, rows, folded=len(rows) > MOST_ROWS)


def _galleries(retrieved: Retrieved, change: Change) -> Iterator[Part]:
    for kind, positions in (("Mended", change.mended), ("Broken", change.broken)):
        count = len(positions)
        shown = [int(position) for position in _spread_out(positions, CHANGED)]
        examples = [example(retrieved, position, [change.before, change.after]) for position in shown]
        more = f", {len(shown)} of them shown" if count > len(shown) else ""
        note = f"{counted(count, retrieved.kind)}{more}."
        yield ShownQueries(f"{kind}: {change.title}", note, examples, retrieved.keys(positions))


def _spread_out(positions: IntArray, count: int) -> IntArray:
    """Return some positions, evenly taken: the first ones would all be of the first class."""
    return positions[:: max(1, -(-len(positions) // count))][:count]
