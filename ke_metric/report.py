"""A lineage as a table: a dense row and a slim row per generation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Column, Table
from rich.text import Text

from ke_metric.generation import ClassScores, Scorecard, Scores

RECALL = "recall@"
ACCURACIES = ("top1", "balanced_accuracy", "top5", "validation_top1", "validation_top5")
BASELINE = "majority_baseline"
MISSING = "-"
WORST_PAIRS = 5


def scorecard_document(number: int, scorecard: Scorecard) -> dict[str, Any]:
    """Return a generation's scores as plain JSON values; what was not computed is absent.

    Of a classification `classes` has, by network, the accuracy of every class and what its pictures were taken for.
    """
    document: dict[str, Any] = {"generation": number, "dense": dict(scorecard.dense)}
    if scorecard.slim is not None:
        document["slim"] = dict(scorecard.slim)
    if scorecard.classes is not None:
        document["classes"] = {network: asdict(found) for network, found in scorecard.classes.items()}
    return document


def scorecards_table(
    title: str, scorecards: Mapping[int, Scorecard], *, networks: Collection[str] = ("dense", "slim")
) -> Table:
    """Return the table of generation number to scorecard: Recall@K and accuracies in percent, NMI in [0, 1].

    The other scores are in `scorecard_document`; with them the table would not fit into 80 columns.
    """
    names = shown_names(score for card in scorecards.values() for score in (card.dense, card.slim or {}))
    # Folded where it must be: a number that is cut short is a wrong number.
    table = Table(
        *(Column(header, justify="right", overflow="fold") for header in ("generation", "network", "parameters")),
        *(Column(header(name), justify="right", overflow="fold") for name in names),
        title=Text(f"{title}, {_unit(names)} in percent", no_wrap=True, overflow="ignore"),
        title_justify="left",
        caption=_baseline(scorecards),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for number, card in scorecards.items():
        if "dense" in networks:
            table.add_row(str(number), "dense", f"{card.dense_parameters:,}", *_cells(card.dense, names))
        if "slim" in networks and card.slim is not None:
            label = "" if "dense" in networks else str(number)
            table.add_row(label, "slim", f"{card.slim_parameters:,}", *_cells(card.slim, names))
    return table


def _baseline(scorecards: Mapping[int, Scorecard]) -> Text | None:
    """Return what the accuracies are to be held against; None where there is nothing."""
    found = {card.dense[BASELINE] for card in scorecards.values() if BASELINE in card.dense}
    told = ", ".join(f"{100 * share:.1f}" for share in sorted(found))
    return Text(f"always answering the largest class of the test part: top-1 {told}") if found else None


def mistakes_table(
    number: int, scorecard: Scorecard, *, networks: Collection[str] = ("dense", "slim")
) -> Table | Text:
    """Return the classes of a generation that were most often taken for another one, with numbers of pictures.

    Nothing, where nothing was mistaken or recorded.
    """
    table = Table(
        *(Column(name, overflow="fold") for name in ("network", "class", "taken for")),
        *(Column(name, justify="right") for name in ("pictures", "of", "%")),
        title=Text(f"generation {number}, most often mistaken"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for network, found in (scorecard.classes or {}).items():
        for position, (own, taken_for, count) in enumerate(_worst_pairs(found) if network in networks else ()):
            total = sum(found.confusion[own].values())
            label = "" if position else network
            table.add_row(label, own, taken_for, f"{count:,}", f"{total:,}", f"{100 * count / total:.1f}")
    return table if table.rows else Text(end="")


def _worst_pairs(classes: ClassScores) -> list[tuple[str, str, int]]:
    """Return class, what it was taken for, and how often, for the pairs with the most pictures."""
    pairs = [
        (own, taken_for, count)
        for own, others in classes.confusion.items()
        for taken_for, count in others.items()
        if taken_for != own
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:WORST_PAIRS]


def shown_names(cards: Iterable[Scores]) -> list[str]:
    """Return the scores that have a column: every Recall@K, by K, and NMI; accuracies."""
    names = {name for scores in cards for name in scores}
    recalls = [name for name in names if name.startswith(RECALL)]
    recalls.sort(key=lambda name: int(name.removeprefix(RECALL)))
    return [*recalls, *({"nmi"} & names), *(name for name in ACCURACIES if name in names)]


def _unit(names: list[str]) -> str:
    return "accuracies" if set(names) & set(ACCURACIES) else "R@K"


def header(name: str) -> str:
    """Return the name of a score as a column has it."""
    if name == "balanced_accuracy":
        return "balanced"
    if name in ACCURACIES:
        return name.replace("validation_", "val ").replace("top", "top-")
    return name.upper().replace("RECALL", "R")


def is_share(name: str) -> bool:
    """Whether a score is a share of the queries or images, shown in percent."""
    return name.startswith(RECALL) or name.removeprefix("validation_") in (*ACCURACIES, BASELINE)


def _cells(scores: Scores, names: list[str]) -> list[str]:
    return [_cell(name, scores[name]) if name in scores else MISSING for name in names]


def _cell(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if is_share(name) else f"{value:.3f}"
