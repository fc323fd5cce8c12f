"""Draws the flowchart of docs/architecture.md as SVG inside the page.

A code host draws a fenced `mermaid` block by a script; the site loads no script from elsewhere, and this flowchart
needs few of its words: arrows between rooms, and one box of rooms without any. Rooms lie in layers, every arrow
goes down, and rooms of a layer stand in the order that crosses the fewest arrows.
"""

import re
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from statistics import fmean

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

LETTER, HEIGHT, GAP, LAYER = 7.7, 30, 26, 74
BEND = 10
"""Width in pixels that an arrow takes where it passes a layer in which it has no room."""


@dataclass
class Flowchart:
    """What the text of a block says.

    Attributes:
        arrows: From room to room, in their order.
        boxed: Rooms of the box without arrows.
        title: What is written over the box.
    """

    arrows: list[tuple[str, str]] = field(default_factory=list)
    boxed: list[str] = field(default_factory=list)
    title: str = ""


def read_flowchart(text: str) -> Flowchart:
    """Read the block; raises ValueError at a line that says more than this picture can show."""
    chart = Flowchart()
    for line in (line.strip() for line in text.splitlines()):
        if line in ("", "end", "flowchart TD"):
            continue
        if title := re.fullmatch(r"subgraph \w+ \[(.*)\]", line):
            chart.title = title[1]
        elif re.fullmatch(r"\w+(?: ~~~ \w+)*", line):
            chart.boxed += line.split(" ~~~ ")
        elif arrow := re.fullmatch(r"(\w+(?: & \w+)*) --> (\w+(?: & \w+)*)", line):
            chart.arrows += [(tail, head) for tail in arrow[1].split(" & ") for head in arrow[2].split(" & ")]
        else:
            raise ValueError(f"the picture of the rooms has no way to draw {line!r}")
    return chart


def layers_of(arrows: list[tuple[str, str]]) -> dict[str, int]:
    """Return the layer of each room: one below the lowest room with an arrow to it.

    Raises:
        ValueError: The arrows lead in a circle.
    """
    layer = dict.fromkeys([room for arrow in arrows for room in arrow], 0)
    for _ in range(len(layer) + 1):
        lowered = [(tail, head) for tail, head in arrows if layer[head] <= layer[tail]]
        if not lowered:
            return layer
        for tail, head in lowered:
            layer[head] = max(layer[head], layer[tail] + 1)
    raise ValueError("the arrows between the rooms lead in a circle")


@dataclass
class Drawing:
    """Rooms and bends of arrows in their rows, and the way of every arrow through them."""

    rows: list[list[str]]
    ways: list[list[str]]

    @classmethod
    def of(cls, arrows: list[tuple[str, str]]) -> "Drawing":
        """Put rooms into rows, and a bend into every row that an arrow passes."""
        layer = layers_of(arrows)
        rows: list[list[str]] = [[] for _ in range(max(layer.values()) + 1)]
        for room, number in layer.items():
            rows[number].append(room)
        ways = []
        for tail, head in arrows:
            bends = [f"{tail}>{head}>{number}" for number in range(layer[tail] + 1, layer[head])]
            for number, bend in enumerate(bends, start=layer[tail] + 1):
                rows[number].append(bend)
            ways.append([tail, *bends, head])
        drawing = cls(rows, ways)
        drawing.sort_rows()
        return drawing

    def neighbors(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Return what lies above and what lies below each room and bend, along the arrows."""
        above: dict[str, list[str]] = {}
        below: dict[str, list[str]] = {}
        for way in self.ways:
            for upper, lower in pairwise(way):
                above.setdefault(lower, []).append(upper)
                below.setdefault(upper, []).append(lower)
        return above, below

    def crossings(self) -> int:
        """Return how many pairs of arrows cross."""
        place = {name: number for row in self.rows for number, name in enumerate(row)}
        _, below = self.neighbors()
        count = 0
        for row in self.rows:
            ends = [(place[upper], place[lower]) for upper in row for lower in below.get(upper, [])]
            count += sum(a < c and b > d for a, b in ends for c, d in ends)
        return count

    def sort_rows(self, rounds: int = 24) -> None:
        """Move every room between its neighbours, downwards and upwards in turn; keep the best order seen."""
        best, fewest = [list(row) for row in self.rows], self.crossings()
        sides = self.neighbors()
        for number in range(rounds):
            near = sides[number % 2]
            order = range(len(self.rows)) if number % 2 == 0 else reversed(range(len(self.rows)))
            for layer in order:
                share = {name: (n + 0.5) / len(row) for row in self.rows for n, name in enumerate(row)}
                self.rows[layer].sort(
                    key=lambda name, share=share, near=near: fmean([share[other] for other in near.get(name, [name])])
                )
            if self.crossings() < fewest:
                best, fewest = [list(row) for row in self.rows], self.crossings()
        self.rows = best

    def centers(self) -> tuple[dict[str, tuple[float, float]], float]:
        """Return where the middle of each room and bend is, and the width of all, in pixels."""
        widths = [sum(map(width, row)) + GAP * (len(row) - 1) for row in self.rows]
        whole = max(widths)
        places = {}
        for number, row in enumerate(self.rows):
            spare = (whole - sum(map(width, row))) / (len(row) + 1)
            x = spare
            for name in row:
                places[name] = (x + width(name) / 2, number * LAYER + HEIGHT / 2 + 2)
                x += width(name) + spare
        return places, whole


def width(name: str) -> float:
    """Return how wide a room is drawn, in pixels; a bend has nothing but its arrow."""
    return BEND if ">" in name else len(name) * LETTER + 24


def svg(chart: Flowchart) -> str:
    """Return the picture as an SVG element for an HTML page, which colours it (`_static/site.css`)."""
    drawing = Drawing.of(chart.arrows)
    places, wide = drawing.centers()
    parts = [_arrow([places[name] for name in way]) for way in drawing.ways]
    parts += [_room(name, *places[name]) for row in drawing.rows for name in row if ">" not in name]
    top = len(drawing.rows) * LAYER - 20
    boxes, bottom = _box(chart, top, wide)
    said = "; ".join(f"{tail} to {head}" for tail, head in chart.arrows)
    return (
        f'<svg class="rooms" viewBox="-2 0 {wide + 4:.0f} {bottom + 4:.0f}" role="img" '
        f'aria-label="The rooms and the arrows between them">'
        f"<desc>Arrows: {escape(said)}. {escape(chart.title)}: {escape(', '.join(chart.boxed))}.</desc>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>{"".join(parts)}{boxes}</svg>'
    )


def _room(name: str, x: float, y: float) -> str:
    wide = width(name)
    return (
        f'<rect x="{x - wide / 2:.1f}" y="{y - HEIGHT / 2:.1f}" width="{wide:.1f}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{x:.1f}" y="{y + 4.5:.1f}">{escape(name)}</text>'
    )


def _arrow(points: list[tuple[float, float]]) -> str:
    """Return a smooth line from the lower edge of its first room to the upper edge of its last one."""
    (x, y), (last_x, last_y) = points[0], points[-1]
    points = [(x, y + HEIGHT / 2), *points[1:-1], (last_x, last_y - HEIGHT / 2)]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x, y), (next_x, next_y) in pairwise(points):
        middle = (y + next_y) / 2
        path += f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {next_y:.1f}"
    return f'<path class="arrow" d="{path}" marker-end="url(#tip)"/>'


def _box(chart: Flowchart, top: float, wide: float) -> tuple[str, float]:
    """Return the box of rooms without arrows, in as many rows as they need, and its lower edge."""
    if not chart.boxed:
        return "", top
    parts, x, y = [], 14.0, top + 46.0
    for name in chart.boxed:
        if x + width(name) > wide - 14:
            x, y = 14.0, y + HEIGHT + 10
        parts.append(_room(name, x + width(name) / 2, y))
        x += width(name) + 12
    bottom = y + HEIGHT / 2 + 14
    frame = f'<rect class="frame" x="0" y="{top:.1f}" width="{wide:.1f}" height="{bottom - top:.1f}" rx="8"/>'
    return f'{frame}<text class="said" x="14" y="{top + 20:.1f}">{escape(chart.title)}</text>{"".join(parts)}', bottom


class FlowchartDirective(Directive):
    """A fenced `mermaid` block."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the picture, or an error at its place in the page."""
        try:
            drawn = svg(read_flowchart("\n".join(self.content)))
        except ValueError as error:
            raise self.error(str(error)) from error
        return [nodes.raw("", f'<figure class="rooms">{drawn}</figure>', format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("mermaid", FlowchartDirective)
    return {"parallel_read_safe": True}
