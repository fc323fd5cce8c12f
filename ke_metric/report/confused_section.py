"""Which classes are taken for which: by what is retrieved, or of a classification by its scorecard alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ke_metric.generation import ClassScores
from ke_metric.lineage.store import Lineage
from ke_metric.report.outcomes import confused
from ke_metric.report.page_parts import Cell, DataTable, Number, PageSection, Part, ShownQueries
from ke_metric.report.retrieved_sections import Retrieved, called, example, warnings_of

NAME, TITLE = "confused-classes", "Most confused classes"
PAIRS = 12
SHOWN = 6
CLASSES = 10
NONE = "No picture is taken for another class."
Pairs = Sequence[tuple[str, str, int, int]]
"""Class, the class that its pictures were taken for, how many of them, and how many there are."""


def confused_section(lineage: Lineage, retrieved: Retrieved | None, why_not: str) -> PageSection:
    """Return the pairs of classes that are most often taken for each other.

    Args:
        lineage: The lineage.
        retrieved: What its networks retrieve; None where nobody can tell.
        why_not: Why not.
    """
    if retrieved is not None:
        return _by_what_is_retrieved(lineage, retrieved)
    last = lineage.numbers[-1]
    classes = (lineage.scorecard(last).classes or {}).get("dense")
    if classes is None:
        return PageSection(NAME, TITLE, missing=[why_not])
    pairs = [
        (own, other, count, sum(taken.values()))
        for own, taken in classes.confusion.items()
        for other, count in taken.items()
        if own != other
    ]
    most = sorted(pairs, key=lambda each: (-each[2], each[0], each[1]))[:PAIRS]
    network = "slim" if lineage.recipe.trains_slim(last) else "dense"
    lead = ["Which class a picture of another one is taken for by the network."]
    return PageSection(NAME, TITLE, lead, [*_pairs_table(most, called((last, network))), *_accuracies(classes)])


def _by_what_is_retrieved(lineage: Lineage, retrieved: Retrieved) -> PageSection:
    query, outcomes = retrieved.vectors.benchmark.query, retrieved.outcomes(*retrieved.main)
    pairs = confused(outcomes, query.labels, query.class_names, PAIRS)
    how = "by the network" if outcomes.decisive == "top1" else "by its first neighbour"
    lead = [f"Which class a picture of another one is taken for {how}."]
    number, stored = retrieved.stored(*retrieved.main)
    classes = (lineage.scorecard(number).classes or {}).get(stored)
    parts: list[Part] = [*_pairs_table(pairs, called(retrieved.main)), *_accuracies(classes)]
    if pairs:
        parts.append(_one_of_each(retrieved, pairs[:SHOWN]))
    return PageSection(NAME, TITLE, [*lead, *([] if pairs else [NONE])], parts, warnings_of(retrieved.vectors))


def _pairs_table(pairs: Pairs, network: str) -> list[DataTable]:
    rows: list[list[Cell]] = [
        [own, other, Number(count, f"{count:,}"), Number(total, f"{total:,}"), _percent(count / total)]
        for own, other, count, total in pairs
    ]
    columns = ["class", "taken for", "pictures", "of", "%"]
    return [DataTable(f"Pictures of the test part, {network}", columns, rows, row_headings=2)] if rows else []


def _accuracies(classes: ClassScores | None) -> list[DataTable]:
    """Return the classes of a classification that are recognised worst."""
    if classes is None:
        return []
    worst = sorted(classes.accuracy.items(), key=lambda each: (each[1], each[0]))[:CLASSES]
    rows: list[list[Cell]] = [[name, _percent(share)] for name, share in worst]
    return [DataTable("Classes recognised worst", ["class", "top-1, %"], rows, folded=True)] if rows else []


def _percent(share: float) -> Number:
    return Number(share, f"{100 * share:.1f}")


def _one_of_each(retrieved: Retrieved, pairs: Pairs) -> ShownQueries:
    """Return a picture of each pair, the first one that is taken for the other class."""
    query, predicted = retrieved.vectors.benchmark.query, retrieved.outcomes(*retrieved.main).predicted
    names = np.array(query.class_names, dtype=object)
    positions = [
        # What has no neighbour is predicted to be -1, and of no pair.
        int(np.flatnonzero((names[query.labels] == own) & (names[predicted] == other) & (predicted >= 0))[0])
        for own, other, *_ in pairs
    ]
    examples = [example(retrieved, position, [retrieved.main]) for position in positions]
    note = "Of each of the pairs that are confused most, the first picture that is taken for the other class."
    return ShownQueries("One of each", note, examples)
