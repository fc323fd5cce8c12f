"""Figures as Vega-Lite specifications, and how they are coloured and drawn.

A specification names its colours (`@dense`). In the page such a name becomes a CSS variable, so that a figure follows
the reader's light or dark scheme without being drawn again; in a file it becomes the colour of the light scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ke_metric.disk import disk_error
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.report.page_parts import Chart

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
FILE_WIDTH = 640
PNG_SCALE = 2.0
HEIGHT = 240
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
MOST_CLASSES = 8
MANY_LAYERS = 60
LONGEST_LABEL = 21

PALETTE: Mapping[str, tuple[str, str]] = {
    "ink": ("#1b2027", "#e8ebef"),
    "muted": ("#545d68", "#a7b1bd"),
    "line": ("#d8dde3", "#333b46"),
    "page": ("#f6f7f9", "#0f1216"),
    "panel": ("#ffffff", "#171b21"),
    "dense": ("#1d5fc4", "#7fb4ff"),
    "slim": ("#b35309", "#ffb45e"),
    "third": ("#6d3fc0", "#bd9bff"),
    "fourth": ("#0f766e", "#4fd1c5"),
    "fit": ("#0f766e", "#4fd1c5"),
    "reset": ("#8a6d1f", "#d9bd6a"),
    "right": ("#176f33", "#63d685"),
    "wrong": ("#b3261e", "#ff9189"),
    "other": ("#c0c8d2", "#465060"),
    # A ramp for generations: from the first, pale, to the last, strong.
    "ramp-0": ("#a3b8d6", "#3d5170"),
    "ramp-1": ("#86a6d4", "#46648f"),
    "ramp-2": ("#6a93d0", "#5079ae"),
    "ramp-3": ("#4b7fca", "#5c8fcd"),
    "ramp-4": ("#2f6cc2", "#6ea5e8"),
    "ramp-5": ("#1f57aa", "#8abcf9"),
    "ramp-6": ("#17448a", "#abd2ff"),
    "ramp-7": ("#10316a", "#d3e7ff"),
    # Eight classes that are told apart without regard to red and green (after Okabe and Ito, 2008).
    "class-0": ("#0072b2", "#56a8e0"),
    "class-1": ("#d55e00", "#ff8a3d"),
    "class-2": ("#00875f", "#2fd0a0"),
    "class-3": ("#b0528a", "#e79ac6"),
    "class-4": ("#a67c00", "#f0c000"),
    "class-5": ("#3a3f98", "#9ea4ff"),
    "class-6": ("#2a9bb8", "#7fdcf2"),
    "class-7": ("#6b4c2a", "#c9a67e"),
}
"""Name of a colour to what it is in a light and in a dark scheme."""
_RAMP = 8
DASHES = ([1, 0], [7, 3], [2, 3], [8, 3, 2, 3])
SERIES = ("dense", "slim", "third", "fourth", "class-3", "class-6", "class-7", "class-4")


def generation_color(position: int, count: int) -> str:
    """Return the name of the colour of one of `count` generations, the last one strongest."""
    step = round(position * (_RAMP - 1) / (count - 1)) if count > 1 else _RAMP - 1
    return f"@ramp-{step}"


def network_color(position: int) -> str:
    """Return the name of the colour of one of a lineage's networks: dense, slim, and those of other rates."""
    return f"@{SERIES[position % len(SERIES)]}"


@dataclass(frozen=True)
class Axes:
    """The axes of a figure.

    Attributes:
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        y_format: How numbers along the vertical axis are written, as d3 has it.
    """

    x: str
    y: str
    y_format: str = ""


def line_chart(
    rows: Sequence[Mapping[str, Any]],
    colors: Mapping[str, str],
    axes: Axes,
    *,
    with_band: bool = False,
    with_points: bool = True,
    with_dashes: bool = False,
    legend_title: str = "",
) -> dict[str, Any]:
    """Return the specification of lines over whole numbers.

    Args:
        rows: Points with `x`, `y` and `series`; with a band also `low` and `high`.
        colors: Series to the name of its colour, in the order of the legend.
        axes: Their titles.
        with_band: Whether a band from low to high lies behind every line.
        with_points: Whether points are marked.
        with_dashes: Whether the lines are told apart by dashes too.
        legend_title: What stands before the legend.
    """
    many = max((row["x"] for row in rows), default=0) > 14
    horizontal = {
        "field": "x",
        "type": "quantitative",
        "title": axes.x,
        "scale": {"nice": False, "padding": 12},
        "axis": {"tickMinStep": 1, "format": "d", "grid": False} | ({} if many else {"values": _ticks(rows)}),
    }
    axis = {"format": axes.y_format} if axes.y_format else {}
    vertical = {"field": "y", "type": "quantitative", "title": axes.y, "scale": {"zero": False}, "axis": axis}
    shared = {"x": horizontal, "color": _color("series", colors, title=legend_title)}
    tooltip = [
        {"field": "series", "title": " "},
        {"field": "x", "title": axes.x},
        # A tooltip has room for another digit.
        {"field": "y", "title": axes.y, "format": ".1%" if axes.y_format.endswith("%") else ".4~g"},
    ]
    mark = {"type": "line", "strokeWidth": 2, "point": {"size": 46, "filled": True} if with_points else False}
    dashes = {"strokeDash": _dashes(colors)} if with_dashes else {}
    line = {"mark": mark, "encoding": {**shared, **dashes, "y": vertical, "tooltip": tooltip}}
    band = {
        "mark": {"type": "area", "opacity": 0.2 if len(colors) <= 3 else 0.1},
        "encoding": {**shared, "y": {**vertical, "field": "low"}, "y2": {"field": "high"}},
    }
    return _based({"data": {"values": list(rows)}, "height": HEIGHT, "layer": [band, line] if with_band else [line]})


def layer_chart(
    rows: Sequence[Mapping[str, Any]], layers: Sequence[str], colors: Mapping[str, str], *, x: str
) -> dict[str, Any]:
    """Return the specification of values of every layer, a row of the figure for each, joined by a rule.

    Args:
        rows: `layer`, `x` and `series`.
        layers: In their order, from top to bottom.
        colors: Series to the name of its colour.
        x: Title of the horizontal axis.
    """
    vertical = _layer_axis(layers)
    horizontal = {"field": "x", "type": "quantitative", "title": x, "scale": {"zero": True}, "axis": {"format": "~g"}}
    tooltip = [
        {"field": "layer", "title": "layer"},
        {"field": "series", "title": " "},
        {"field": "x", "title": x, "format": ".3g"},
    ]
    rule = {
        "mark": {"type": "rule", "color": "@line", "strokeWidth": 2},
        "encoding": {
            "y": vertical,
            "x": {**horizontal, "aggregate": "min"},
            "x2": {"field": "x", "aggregate": "max"},
        },
    }
    shape = {"field": "series", "type": "nominal", "scale": {"domain": list(colors), "range": ["circle", "diamond"]}}
    points = {
        "mark": {"type": "point", "filled": True, "size": 64 if len(layers) <= MANY_LAYERS else 28, "opacity": 1},
        "encoding": {
            "y": vertical,
            "x": horizontal,
            "color": _color("series", colors),
            "shape": {**shape, "legend": _legend(len(colors))},
            "tooltip": tooltip,
        },
    }
    return _based({"data": {"values": list(rows)}, "height": _step(layers) * len(layers), "layer": [rule, points]})


def share_chart(
    rows: Sequence[Mapping[str, Any]], layers: Sequence[str], colors: Mapping[str, str], *, x: str
) -> dict[str, Any]:
    """Return the specification of one stacked bar for every layer; arguments as those of `layer_chart`."""
    encoding = {
        "y": _layer_axis(layers),
        "x": {
            "field": "x",
            "type": "quantitative",
            "title": x,
            "axis": {"format": ".0%", "values": [0, 0.25, 0.5, 0.75, 1]},
            "scale": {"domain": [0, 1]},
        },
        "color": _color("series", colors),
        "order": {"field": "order", "type": "quantitative"},
        "tooltip": [
            {"field": "layer", "title": "layer"},
            {"field": "series", "title": " "},
            {"field": "x", "title": x, "format": ".1%"},
            {"field": "count", "title": "weights", "format": ","},
        ],
    }
    return _based(
        {
            "data": {"values": list(rows)},
            "height": _step(layers) * len(layers),
            "mark": {"type": "bar", "height": {"band": 0.72}},
            "encoding": encoding,
        }
    )


def balance_chart(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str], axes: Axes) -> dict[str, Any]:
    """Return the specification of bars that go up and down from zero.

    Args:
        rows: `x` (a text), `y` (negative: down) and `series`.
        colors: Series to the name of its colour.
        axes: Titles of the axes.
    """
    steps = list(dict.fromkeys(row["x"] for row in rows))
    encoding = {
        "x": {"field": "x", "type": "nominal", "sort": steps, "title": axes.x, "axis": {"labelOverlap": True}},
        # What is lost is told by a number as well as what is won.
        "y": {
            "field": "y",
            "type": "quantitative",
            "title": axes.y,
            "axis": {"labelExpr": "format(abs(datum.value), '~s')"},
        },
        "color": _color("series", colors),
        "tooltip": [
            {"field": "series", "title": " "},
            {"field": "x", "title": axes.x},
            {"field": "count", "title": axes.y, "format": ","},
        ],
    }
    zero = {"mark": {"type": "rule", "color": "@muted"}, "encoding": {"y": {"datum": 0}}}
    bars = {"mark": {"type": "bar", "width": {"band": 0.7}, "opacity": 0.85}, "encoding": encoding}
    return _based({"data": {"values": list(rows)}, "height": HEIGHT, "layer": [bars, zero]})


def scatter_chart(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str], *, axes: str) -> dict[str, Any]:
    """Return the specification of a map of points.

    Args:
        rows: `x`, `y`, `series` (what is in the legend), `label` and `name` (what is told of a point).
        colors: Series to the name of its colour; the first one lies under all others.
        axes: What the two axes are, in a word.
    """
    bare = {"ticks": False, "labels": False, "grid": False, "domain": False}
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": f"{axes} 1", "axis": bare, "scale": {"zero": False}},
        "y": {"field": "y", "type": "quantitative", "title": f"{axes} 2", "axis": bare, "scale": {"zero": False}},
        "color": _color("series", colors, columns=3),
        "tooltip": [{"field": "label", "title": "class"}, {"field": "name", "title": "picture"}],
    }
    return _based(
        {
            "data": {"values": list(rows)},
            "height": 380,
            "mark": {"type": "point", "filled": True, "size": 26, "opacity": 0.8},
            "encoding": encoding,
        }
    )


def _based(specification: dict[str, Any]) -> dict[str, Any]:
    fit = {"type": "fit-x", "contains": "padding"}
    return {"$schema": SCHEMA, "width": "container", "autosize": fit, **specification}


def _ticks(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({int(row["x"]) for row in rows})


def _color(field: str, colors: Mapping[str, str], *, columns: int = 5, title: str = "") -> dict[str, Any]:
    scale = {"domain": list(colors), "range": list(colors.values())}
    return {"field": field, "type": "nominal", "scale": scale, "legend": _legend(len(colors), columns, title)}


def _dashes(colors: Mapping[str, str]) -> dict[str, Any]:
    domain = list(colors)
    # Colours come again after as many: each time with other dashes, so that no two lines are alike.
    patterns = [DASHES[(position + position // len(SERIES)) % len(DASHES)] for position in range(len(domain))]
    return {"field": "series", "type": "nominal", "scale": {"domain": domain, "range": patterns}, "legend": None}


def _legend(count: int, columns: int = 5, title: str = "") -> dict[str, Any] | None:
    """Return the legend above a figure in a file; none where there is one thing to see."""
    shown = {"title": title or None, "orient": "top", "columns": min(count, columns), "symbolOpacity": 1}
    return shown if count > 1 else None


def _layer_axis(layers: Sequence[str]) -> dict[str, Any]:
    # The end of a layer's name tells it from its neighbours: a long one loses its beginning.
    ending = f"length(datum.label) > {LONGEST_LABEL} ? '…' + slice(datum.label, {1 - LONGEST_LABEL}) : datum.label"
    axis = {
        "labelLimit": 160,
        "labelExpr": ending,
        "labelOverlap": True,
        "ticks": False,
        "domain": False,
        "grid": False,
    }
    return {"field": "layer", "type": "nominal", "sort": list(layers), "title": None, "axis": axis}


def _step(layers: Sequence[str]) -> int:
    """Return the height of a layer's row; rows of many layers become thin."""
    return 18 if len(layers) <= MANY_LAYERS else max(4, 60 * 18 // len(layers))


def _config() -> dict[str, Any]:
    words = {"labelColor": "@muted", "titleColor": "@muted", "labelFontSize": 12, "titleFontSize": 12}
    axis = {"gridColor": "@line", "domainColor": "@line", "tickColor": "@line", "titleFontWeight": "normal"}
    return {
        "background": None,
        "font": FONT,
        "aria": False,
        "view": {"stroke": None},
        "axis": {**words, **axis, "titlePadding": 8, "labelPadding": 5},
        "axisX": {"labelAngle": 0},
        "legend": {**words, "labelColor": "@ink", "labelLimit": 160, "symbolSize": 90},
        "title": {"color": "@ink", "anchor": "start", "fontSize": 15, "fontWeight": 600, "offset": 12},
    }


def for_page(chart: Chart) -> dict[str, Any]:
    """Return the specification of a figure as the page draws it, coloured by CSS variables.

    It has no legend: the page writes it, in lines that break as its width asks for.
    """
    whole = {**_without_legends(chart.specification), "config": _config()}
    drawn: dict[str, Any] = _painted(whole, lambda name: f"var(--{name})")
    return drawn


def _without_legends(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: each if key == "data" else _without_legends(each) for key, each in value.items()} | (
            {"legend": None} if "legend" in value else {}
        )
    return [_without_legends(each) for each in value] if isinstance(value, list) else value


def for_file(chart: Chart) -> dict[str, Any]:
    """Return the specification of a figure that stands for itself: titled, of fixed width, in light colours."""
    whole = {**chart.specification, "width": FILE_WIDTH, "title": chart.title, "config": _config()}
    whole["config"]["background"] = "@panel"
    drawn: dict[str, Any] = _painted(whole, lambda name: PALETTE[name][0])
    return drawn


def _painted(value: Any, paint: Any) -> Any:
    """Return a specification with the names of colours replaced; data are left alone, whatever they begin with."""
    if isinstance(value, Mapping):
        return {
            key: each if key in ("data", "domain", "sort") else _painted(each, paint) for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_painted(each, paint) for each in value]
    if isinstance(value, str) and value.startswith("@"):
        return paint(value[1:])
    return value


def write_figures(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Draw every figure into a folder as `NAME.png` and `NAME.svg`.

    Raises:
        KeMetricError: They cannot be drawn or written.
    """
    import vl_convert

    written = []
    for chart in charts:
        specification = for_file(chart)
        try:
            svg = vl_convert.vegalite_to_svg(specification)
            png = vl_convert.vegalite_to_png(specification, scale=PNG_SCALE)
        except ValueError as error:
            raise KeMetricError(f"figure {chart.name}: cannot be drawn: {error}", ExitCode.UNEXPECTED) from error
        for ending, content in ((".png", png), (".svg", svg.encode())):
            path = folder / f"{chart.name}{ending}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except OSError as error:
                raise disk_error(path, error) from error
            written.append(path)
    return written
