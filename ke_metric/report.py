"""A lineage as a table: a dense row and a slim row per generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ke_metric.generation import Scorecard, Scores

# Shown in percent; NMI and AMI are customarily given as they are.
SHARES = ("recall@", "map@r", "r_precision")
# Beside the scores in a scorecard, but not a column of their own.
HIDDEN = ("queries", "queries_without_match", "nmi_std", "ami_std")


def scorecard_document(number: int, scorecard: Scorecard) -> dict[str, Any]:
    """Return a generation's scores as plain JSON values; what was not computed is absent."""
    document: dict[str, Any] = {"generation": number, "dense": dict(scorecard.dense)}
    if scorecard.slim is not None:
        document["slim"] = dict(scorecard.slim)
    return document


def scorecards_table(title: str, scorecards: Mapping[int, Scorecard]) -> Table:
    """Return the table of generation number to scorecard: R@K, MAP@R and R-precision in percent."""
    table = Table(title=title, title_justify="left")
    for column in ("generation", "network", "parameters"):
        table.add_column(column, justify="right")
    names = [name for name in next(iter(scorecards.values())).dense if name not in HIDDEN] if scorecards else []
    for name in names:
        table.add_column(f"{name} %" if name.startswith(SHARES) else name, justify="right")
    for number, card in scorecards.items():
        table.add_row(str(number), "dense", f"{card.dense_parameters:,}", *_cells(card.dense, names))
        if card.slim is not None:
            table.add_row("", "slim", f"{card.slim_parameters:,}", *_cells(card.slim, names))
    return table


def _cells(scores: Scores, names: list[str]) -> list[str]:
    return [_cell(name, scores[name]) if name in scores else "-" for name in names]


def _cell(name: str, value: float) -> str:
    return f"{100 * value:.2f}" if name.startswith(SHARES) else f"{value:.3f}"
