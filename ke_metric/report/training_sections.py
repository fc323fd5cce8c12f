"""What training did: loss of every epoch of every generation, and how large the weights of both hypotheses are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ke_metric.lineage.files import read_magnitudes
from ke_metric.lineage.store import Lineage
from ke_metric.report.charts import Axes, generation_color, layer_chart, line_chart
from ke_metric.report.failures import FAILURES, told_failure
from ke_metric.report.page_parts import Cell, Chart, DataTable, Number, PageSection, counted, short_layers
from ke_metric.report.split_section import inherited_text

CURVES = {
    "loss": ("Training loss", "mean loss of an epoch"),
    "spread": ("Spread of the embeddings", "mean cosine distance in a batch"),
    "top1": ("Top-1 accuracy in training", "share of the pictures of a batch"),
    "validation": ("Score on the validation part", "Recall@K of the smallest K, or top-1, after an epoch"),
}
"""Field of a training log to the heading of its figure and the title of its axis; what a log lacks is not drawn."""
DIGITS = 4
Magnitudes = Mapping[str, tuple[float | None, float | None]]


# --- training curves ----------------------------------------------------------------------------------------------


def training_section(lineage: Lineage) -> PageSection:
    """Return the training curves of all generations, laid over each other."""
    logs, missing = _readable_logs(lineage)
    title = "Training curves"
    fields = [name for name in CURVES if any(name in record for log in logs.values() for record in log)]
    if not fields:
        return PageSection("training", title, missing=missing)
    charts = [_curves(logs, name, with_table=position == 0) for position, name in enumerate(fields)]
    lead = ["Every generation is a full training with the same hyper-parameters; the curves lie over each other."]
    return PageSection("training", title, lead, charts, missing)


def _readable_logs(lineage: Lineage) -> tuple[dict[int, list[dict[str, float]]], list[str]]:
    """Return the epochs and what can be drawn of them by generation, and sentences on what is left out."""
    logs, told = {}, []
    for number in lineage.numbers:
        try:
            log: Sequence[Any] = lineage.training_log(number)
        except FAILURES as error:
            told.append(f"Generation {number}: {told_failure(error, lineage)}")
            continue
        records = [record for record in log if isinstance(record, Mapping) and _is_count(record.get("epoch"))]
        if lost := len(log) - len(records):
            told.append(f"Generation {number}: left out, because they name no epoch: {counted(lost, 'line')}.")
        for name in CURVES:
            bad = [str(each["epoch"]) for each in records if name in each and not _is_finite(each[name])]
            if bad:
                told.append(f"Generation {number}: left out, because {name} is no finite number: {_epochs(bad)}.")
        if not log:
            told.append(f"Generation {number}: no epoch of its training was recorded.")
        elif records:
            logs[number] = [
                {name: each[name] for name in ("epoch", *CURVES) if name in each and _is_finite(each[name])}
                for each in records
            ]
    return logs, told


def _epochs(listed: Sequence[str]) -> str:
    return f"epoch{'s' * (len(listed) > 1)} {', '.join(listed)}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _curves(logs: Mapping[int, Sequence[Mapping[str, Any]]], name: str, *, with_table: bool) -> Chart:
    title, axis = CURVES[name]
    numbers = list(logs)
    rows = [
        {"x": record["epoch"], "y": _rounded(record[name]), "series": str(number)}
        for number, log in logs.items()
        for record in log
        if name in record
    ]
    colors = {str(number): generation_color(position, len(numbers)) for position, number in enumerate(numbers)}
    ends = {number: [record[name] for record in log if name in record][-1:] for number, log in logs.items()}
    told = [f"generation {number} ends at {values[0]:.3g}" for number, values in ends.items() if values]
    legend = "generation"
    specification = line_chart(rows, colors, Axes("epoch", axis), with_points=len(rows) <= 60, legend_title=legend)
    table = _curves_table(logs) if with_table else None
    described = f"{title}: {'; '.join(told)}."
    return Chart(f"training-{name}", f"{title} by epoch", described, specification, colors, legend, table)


def _curves_table(logs: Mapping[int, Sequence[Mapping[str, Any]]]) -> DataTable:
    epochs = sorted({record["epoch"] for log in logs.values() for record in log})
    losses = {number: {record["epoch"]: record.get("loss") for record in log} for number, log in logs.items()}
    rows: list[list[Cell]] = [
        [str(epoch), *(_number(found.get(epoch)) for found in losses.values())] for epoch in epochs
    ]
    columns = ["epoch", *(f"generation {number}" for number in logs)]
    return DataTable("Mean loss of every epoch", columns, rows, folded=True)


# --- how large the weights are ------------------------------------------------------------------------------------


def magnitudes_section(lineage: Lineage) -> PageSection:
    """Return the mean absolute weight of the fit and the reset hypothesis in every layer."""
    found, missing = _readable_magnitudes(lineage)
    title = "Size of the weights"
    if not found:
        return PageSection("weights", title, missing=missing or ["The mean absolute weights were not recorded."])
    last = max(found)
    lead = [
        f"The mean absolute weight of both hypotheses. {inherited_text(lineage.recipe.method)} How large it is says "
        "more of what a generation begins with than of what training needs: the official rule, for one, redraws "
        "smaller weights than those of a new network."
    ]
    charts = [_layers(found[last], last, _layers_table(found))]
    if len(found) > 1:
        charts.insert(0, _ratios(found))
    return PageSection("weights", title, lead, charts, missing)


def _readable_magnitudes(lineage: Lineage) -> tuple[dict[int, Magnitudes], list[str]]:
    """Return the mean absolute weights by generation, and sentences on what is left out."""
    found: dict[int, Magnitudes] = {}
    told = []
    for number in lineage.numbers:
        try:
            stored = read_magnitudes(lineage.generation_folder(number), number)
        except FAILURES as error:
            told.append(f"Generation {number}: {told_failure(error, lineage)}")
            continue
        if bad := [name for name, pair in stored.items() if not all(map(_is_none_or_finite, pair))]:
            told.append(f"Generation {number}: left out, because they are no finite numbers: {', '.join(bad)}.")
        if whole := {name: pair for name, pair in stored.items() if name not in bad}:
            found[number] = whole
    return found, told


def _is_none_or_finite(value: object) -> bool:
    return value is None or _is_finite(value)


def _ratios(found: Mapping[int, Magnitudes]) -> Chart:
    rows = [
        {"x": number, "y": _rounded(value), "series": name}
        for number, each in found.items()
        for name, value in _medians(each).items()
    ]
    colors = {name: color for name, color in (("fit", "@fit"), ("reset", "@reset")) if _has(rows, name)}
    told = [
        f"{name} from {_first(rows, name):.3g} in the first to {_last(rows, name):.3g} in the last generation"
        for name in colors
    ]
    specification = line_chart(rows, colors, Axes("generation", "median over layers of mean |w|"), with_dashes=True)
    title = "Mean |w| by generation"
    return Chart(
        "weights-by-generation", title, f"{title}, median over layers: {'; '.join(told)}.", specification, colors
    )


def _medians(each: Magnitudes) -> dict[str, float]:
    sides = {
        name: [pair[side] for pair in each.values() if pair[side] is not None]
        for side, name in enumerate(("fit", "reset"))
    }
    return {name: median(value for value in values if value is not None) for name, values in sides.items() if values}


def _has(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(row["series"] == name for row in rows)


def _first(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return next(float(row["y"]) for row in rows if row["series"] == name)


def _last(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return _first(rows[::-1], name)


def _layers(each: Magnitudes, number: int, table: DataTable) -> Chart:
    short = short_layers(each)
    rows = [
        {"layer": short[layer], "x": _rounded(value), "series": name}
        for layer, pair in each.items()
        for name, value in zip(("fit", "reset"), pair, strict=True)
        if value is not None
    ]
    colors = {name: color for name, color in (("fit", "@fit"), ("reset", "@reset")) if _has(rows, name)}
    ahead = sum(fit is not None and reset is not None and fit > reset for fit, reset in each.values())
    title = f"Mean |w| of every layer, generation {number}"
    described = f"{title}: the fit hypothesis is the larger one in {ahead} of {len(each)} layers."
    specification = layer_chart(rows, list(short.values()), colors, x="mean |w|")
    return Chart("weights-by-layer", title, described, specification, colors, table=table)


def _layers_table(found: Mapping[int, Magnitudes]) -> DataTable:
    layers = list(dict.fromkeys(layer for each in found.values() for layer in each))
    columns = ["layer", *(f"{number} {name}" for number in found for name in ("fit", "reset"))]
    rows: list[list[Cell]] = [
        [layer, *(_number(value) for each in found.values() for value in each.get(layer, (None, None)))]
        for layer in layers
    ]
    return DataTable("Mean |w| of both hypotheses by layer and generation", columns, rows, folded=True)


def _number(value: float | None) -> Cell:
    return "–" if value is None else Number(value, f"{value:.4g}")


def _rounded(value: float) -> float:
    """Return a number as a figure holds it: nobody sees more digits, and every one of them has to be loaded."""
    return float(f"{value:.{DIGITS}g}")
