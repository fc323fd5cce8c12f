"""What networks retrieve: confused classes, worst queries, and what one generation mended and broke of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from ke_metric.arrays import IntArray
from ke_metric.lineage.report import is_share
from ke_metric.report.embedded_pictures import EmbeddedPictures
from ke_metric.report.outcomes import Outcomes, broken, confused, mended, worst
from ke_metric.report.page_parts import Cell, DataTable, Example, Number, PageSection, Part, ShownQueries, score_text
from ke_metric.report.score_sections import score_title
from ke_metric.report.vectors import LineageVectors

PAIRS = 12
WORST = 8
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
    """

    title: str
    before: tuple[int, str]
    after: tuple[int, str]
    mended: IntArray
    broken: IntArray


class Retrieved:
    """What the networks of a lineage answer to its queries.

    Attributes:
        vectors: Of the lineage.
        pictures: Its pictures, as the page shows them.
    """

    def __init__(self, vectors: LineageVectors) -> None:
        self.vectors = vectors
        self.pictures = EmbeddedPictures(vectors)
        self._outcomes: dict[tuple[int, str], Outcomes] = {}

    def outcomes(self, number: int, name: str) -> Outcomes:
        """Return what a network answers, computed once."""
        if (number, name) not in self._outcomes:
            self._outcomes[number, name] = self.vectors.outcomes(number, name)
        return self._outcomes[number, name]

    @property
    def main(self) -> tuple[int, str]:
        """The last generation's network that was trained, of those that can be had."""
        number = max(number for number, _ in self.vectors.networks)
        return next(each for each in self.vectors.networks if each[0] == number)

    def keys(self, positions: Sequence[int] | IntArray) -> list[str]:
        """Return the keys of queries."""
        return [self.vectors.benchmark.query.keys[int(position)] for position in positions]

    @cached_property
    def changes(self) -> list[Change]:
        """From the first to the last generation, from each to the next one, and from dense to slim."""
        found = []
        for name in dict.fromkeys(name for _, name in self.vectors.networks):
            numbers = sorted(number for number, each in self.vectors.networks if each == name)
            pairs = [(numbers[0], numbers[-1])] if len(numbers) > 2 else []
            found += [self._change((one, name), (other, name)) for one, other in [*pairs, *pairwise(numbers)]]
        number, network = self.main
        others = [name for each, name in self.vectors.networks if each == number and name != network]
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


# --- confused classes ---------------------------------------------------------------------------------------------


def confused_section(retrieved: Retrieved) -> PageSection:
    """Return the pairs of classes that are most often taken for each other."""
    number, name = retrieved.main
    query = retrieved.vectors.benchmark.query
    outcomes = retrieved.outcomes(number, name)
    pairs = confused(outcomes, query.labels, query.class_names, PAIRS)
    how = "by its first neighbour" if outcomes.decisive != "top1" else "by the network"
    lead = [f"Which class a picture of another one is taken for {how}: {called(retrieved.main)}."]
    if not pairs:
        lead.append("No picture is taken for another class.")
        return PageSection("confused-classes", "Most confused classes", lead)
    rows: list[list[Cell]] = [
        [own, other, Number(count, f"{count:,}"), Number(total, f"{total:,}"), _percent(count, total)]
        for own, other, count, total in pairs
    ]
    columns = ["class", "taken for", "pictures", "of", "%"]
    table = DataTable(f"Of the test part, {called(retrieved.main)}", columns, rows, row_headings=2)
    return PageSection("confused-classes", "Most confused classes", lead, [table], warnings_of(retrieved.vectors))


def _percent(count: int, total: int) -> Number:
    share = count / total
    return Number(share, f"{100 * share:.1f}")


# --- worst queries ------------------------------------------------------------------------------------------------


def worst_section(retrieved: Retrieved) -> PageSection:
    """Return the queries that the last generation answers worst, with what it finds."""
    outcomes = retrieved.outcomes(*retrieved.main)
    positions = worst(outcomes, WORST)
    if outcomes.decisive == "top1":
        note = "Pictures that are taken for another class."
    else:
        note = "Queries with the lowest MAP@R, and their first neighbours; their own picture is left out."
    examples = [_example(retrieved, int(position), [retrieved.main]) for position in positions]
    gallery = ShownQueries(called(retrieved.main).capitalize(), note, examples)
    return PageSection("worst-queries", "Worst queries", [], [gallery], warnings_of(retrieved.vectors))


def _example(retrieved: Retrieved, position: int, networks: Sequence[tuple[int, str]]) -> Example:
    answers = [
        retrieved.pictures.answer(retrieved.outcomes(*network), position, called(network)) for network in networks
    ]
    return Example(retrieved.pictures.query(position), answers)


# --- mended and broken --------------------------------------------------------------------------------------------


def changes_section(retrieved: Retrieved) -> PageSection:
    """Return how many queries every generation mended and broke, and those of the whole lineage as pictures."""
    title = "Mended and broken queries"
    if not retrieved.changes:
        one = f"The vectors of one network alone can be had ({called(retrieved.main)}): there is nothing to compare."
        return PageSection("mended-and-broken", title, missing=[one, *warnings_of(retrieved.vectors)])
    decisive = retrieved.outcomes(*retrieved.main).decisive
    lead = [
        f"A query is mended where its {score_title(decisive)} rises from one network to another, and broken where it "
        "falls. A gain of the mean hides both."
    ]
    table = _changes_table(retrieved, decisive)
    galleries = _galleries(retrieved, retrieved.changes[0])
    return PageSection("mended-and-broken", title, lead, [table, *galleries], warnings_of(retrieved.vectors))


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
    return DataTable("Queries mended and broken", columns, rows)


def _galleries(retrieved: Retrieved, change: Change) -> Iterator[Part]:
    for kind, positions in (("Mended", change.mended), ("Broken", change.broken)):
        count = len(positions)
        shown = [int(position) for position in _spread_out(positions, CHANGED)]
        examples = [_example(retrieved, position, [change.before, change.after]) for position in shown]
        note = f"{count:,} quer{'ies' if count != 1 else 'y'}" + (
            f", {len(shown)} of them as pictures." if count > len(shown) else "."
        )
        yield ShownQueries(f"{kind}: {change.title}", note, examples, retrieved.keys(positions))


def _spread_out(positions: IntArray, count: int) -> IntArray:
    """Return some positions, evenly taken: the first ones would all be of the first class."""
    return positions[:: max(1, -(-len(positions) // count))][:count]
