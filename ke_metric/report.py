"""A lineage as a table: a dense row and a slim row per generation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Column, Table
from rich.text import Text

from ke_metric.generation import Scorecard, Scores

RECALL = "recall@"
ACCURACIES = ("top1", "top5", "validation_top1", "validation_top5")
MISSING = "-"


def scorecard_document(number: int, scorecard: Scorecard) -> dict[str, Any]:
    """Return a generation's scores as plain JSON values; what was not computed is absent."""
    document: dict[str, Any] = {"generation": number, "dense": dict(scorecard.dense)}
    if scorecard.slim is not None:
        document["slim"] = dict(scorecard.slim)
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


def shown_names(cards: Iterable[Scores]) -> list[str]:
    """Return the scores that have a column: every Recall@K, by K, and NMI; accuracies."""
    names = {name for scores in cards for name in scores}
    recalls = [name for name in names if name.startswith(RECALL)]
    recalls.sort(key=lambda name: int(name.removeprefix(RECALL)))
    return [*recalls, *({"nmi"} & names), *(name for name in ACCURACIES if name in names)]


def _unit(names: list[str]) -> str:
    return "top-1 and top-5" if set(names) & set(ACCURACIES) else "R@K"


def header(name: str) -> str:
    """Return the name of a score as a column has it."""
    if name in ACCURACIES:
        return name.replace("validation_", "val ").replace("top", "top-")
    return name.upper().replace("RECALL", "R")


def is_share(name: str) -> bool:
    """Whether a score is a share of the queries or images, shown in percent."""
    return name.startswith(RECALL) or name in ACCURACIES


def _cells(scores: Scores, names: list[str]) -> list[str]:
    return [_cell(name, scores[name]) if name in scores else MISSING for name in names]


def _cell(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if is_share(name) else f"{value:.3f}"
