"""How every layer is split: which part of it is the fit hypothesis."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ke_metric.lineage.files import read_split
from ke_metric.lineage.store import Lineage
from ke_metric.recipe.method_rules import Method
from ke_metric.report.charts import share_chart
from ke_metric.report.page_parts import (
    Cell,
    Chart,
    DataTable,
    KeptChannels,
    Number,
    PageSection,
    SplitDrawing,
    short_layers,
)
from ke_metric.split.plan import ChannelMask, ChannelSet, SplitPlan, WeightMask

SQUARES_AT_MOST = 120
RECTANGLES_AT_MOST = 200
COLORS = {"fit": "@fit", "reset": "@other"}


def split_section(lineage: Lineage) -> PageSection:
    """Return the split plan of the last generation that has one, drawn layer by layer.

    It is that of every generation; one that trains the slim network keeps all of it.
    """
    split = [number for number in lineage.numbers if not lineage.recipe.trains_slim(number)]
    number = (split or lineage.numbers)[-1]
    plan = SplitPlan.from_json(*read_split(lineage.generation_folder(number)))
    title = "The split"
    total = plan.fit_count + plan.reset_count
    if not plan.reset_count:
        whole = f": all of its {total:,} weights are kept" if total else ""
        return PageSection("split", title, [f"Nothing of this network is split{whole}."])
    kind = {"kels": "Whole channels (KELS)", "wels": "Single weights (WELS)"}[plan.kind]
    lead = [
        f"{kind} at split rate {plan.rate:g}: "
        f"{plan.fit_count:,} of {total:,} weights ({plan.fit_count / total:.1%}) are fit.",
        inherited_text(lineage.recipe.method),
    ]
    if plan.kept_whole:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in plan.kept_whole.items())
        lead.append(f"Kept whole: {reasons}.")
    return PageSection("split", title, lead, [_shares(plan), *_drawing(plan)])


def inherited_text(method: Method) -> str:
    """Return in a sentence or two what a method makes of both hypotheses from one generation to the next."""
    if method.name == "knowledge_evolution":
        return (
            "The fit hypothesis is kept, the reset hypothesis redrawn before every generation; biases and norms are "
            "never redrawn."
        )
    return (
        f"What a generation takes from the one before is the method's ({method.name}): the split says what the slim "
        "network is cut from."
    )


def _shares(plan: SplitPlan) -> Chart:
    rows, short = [], short_layers(plan.weights)
    for name, mask in plan.weights.items():
        size = prod(mask.shape)
        for order, (series, count) in enumerate((("fit", mask.fit_count), ("reset", size - mask.fit_count))):
            rows.append(
                {
                    "layer": short[name],
                    "series": series,
                    "order": order,
                    "x": round(count / size, 4),
                    "count": count,
                }
            )
    specification = share_chart(rows, list(short.values()), COLORS, x="share of the weights")
    shares = [mask.fit_count / prod(mask.shape) for mask in plan.weights.values()]
    title = "Share of every layer that is fit"
    described = f"{title}: from {min(shares):.1%} to {max(shares):.1%} over {len(shares)} layers."
    return Chart("split-shares", title, described, specification, COLORS, table=_table(plan))


def _table(plan: SplitPlan) -> DataTable:
    rows: list[list[Cell]] = []
    for name, mask in plan.weights.items():
        size = prod(mask.shape)
        rows.append(
            [
                name,
                " × ".join(map(str, mask.shape)),
                *_channels(mask),
                Number(mask.fit_count, f"{mask.fit_count:,}"),
                Number(mask.fit_count / size, f"{mask.fit_count / size:.1%}"),
            ]
        )
    columns = ["layer", "shape", "outputs kept", "inputs kept", "fit weights", "share"]
    return DataTable("The split of every layer", columns, rows, folded=True)


def _channels(mask: ChannelMask | WeightMask) -> tuple[str, str]:
    if isinstance(mask, WeightMask):
        return "–", "–"
    return (_kept(mask.outputs), _kept(mask.inputs))


def _kept(channels: ChannelSet) -> str:
    return f"{channels.count:,} / {channels.size:,}"


def _drawing(plan: SplitPlan) -> list[SplitDrawing]:
    """Return the squares of the layers; of single weights there is no part that could be drawn."""
    masks: Mapping[str, ChannelMask] = {
        name: mask for name, mask in plan.weights.items() if isinstance(mask, ChannelMask)
    }
    short = short_layers(masks)
    layers = [
        KeptChannels(
            name, short[name], _rectangles(mask), f"{_kept(mask.outputs)} outputs, {_kept(mask.inputs)} inputs"
        )
        for name, mask in list(masks.items())[:SQUARES_AT_MOST]
    ]
    more = f", the first {SQUARES_AT_MOST} layers" if len(masks) > SQUARES_AT_MOST else ""
    title = f"Kept channels: inputs from left to right, outputs from top to bottom{more}"
    return [SplitDrawing(title, layers)] if layers else []


def _rectangles(mask: ChannelMask) -> list[tuple[float, float, float, float]]:
    down, across = _percent(mask.outputs), _percent(mask.inputs)
    found = [(left, top, width, height) for top, height in down for left, width in across]
    return found[:RECTANGLES_AT_MOST]


def _percent(channels: ChannelSet) -> list[tuple[float, float]]:
    """Return start and length of every kept range in percent of all channels."""
    size = channels.size
    return [(round(100 * start / size, 2), round(100 * (end - start) / size, 2)) for start, end in channels.ranges]
