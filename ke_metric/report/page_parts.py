"""What a report consists of: plain records, from which the page and the files of its figures are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ke_metric.lineage.report import is_share

MOST_LAYERS_OPEN = 60
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Number:
    """A number in a table.

    Attributes:
        value: The number itself.
        text: How it is shown.
        key: Which number of the lineage it is, `generation/network/score`; empty where it is none of a scorecard.
    """

    value: float
    text: str
    key: str = ""


Cell = str | Number


@dataclass(frozen=True)
class DataTable:
    """A table.

    Attributes:
        caption: What it is of.
        columns: Headings of the columns.
        rows: Cells, as many in a row as there are columns.
        row_headings: How many of the first columns name their row.
        folded: Whether it is shown when it is asked for.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    row_headings: int = 1
    folded: bool = False

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), "rows and columns of a table differ"

    @property
    def numeric(self) -> list[bool]:
        """Whether a column has numbers."""
        return [any(isinstance(row[place], Number) for row in self.rows) for place in range(len(self.columns))]


@dataclass(frozen=True)
class Chart:
    """A figure that Vega-Lite draws.

    Attributes:
        name: Of its files, unique in a report: small letters and hyphens.
        title: Its heading.
        description: What is to be seen, in words: the text alternative.
        specification: Vega-Lite's; colours are names of `charts.PALETTE` behind an @.
        legend: What is drawn in a colour, to the name of the colour.
        legend_title: What stands before the legend.
        table: Its numbers; None where `description` stands for them.
    """

    kind: ClassVar[str] = "chart"
    name: str
    title: str
    description: str
    specification: Mapping[str, Any] = field(repr=False)
    legend: Mapping[str, str] = field(default_factory=dict)
    legend_title: str = ""
    table: DataTable | None = None


@dataclass(frozen=True)
class ShownPicture:
    """A picture inside the page.

    Attributes:
        source: A data URI.
        name: Its key in the benchmark.
        label: Name of its class.
        right: Whether it was rightly found; None for a query.
        similarity: To the query; None for a query.
    """

    source: str = field(repr=False)
    name: str
    label: str
    right: bool | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class ShownAnswer:
    """What one network answered to a query.

    Attributes:
        network: Which network, in words.
        verdict: What it answered, in words.
        right: Whether the answer is right.
        neighbors: What it found, most similar first; none for a classification.
    """

    network: str
    verdict: str
    right: bool
    neighbors: Sequence[ShownPicture] = ()


@dataclass(frozen=True)
class Example:
    """A picture and what networks answered to it.

    Attributes:
        kind: What the picture is: `query`, or `picture` where it was classified.
        query: The picture.
        answers: Of every network.
    """

    kind: str
    query: ShownPicture
    answers: Sequence[ShownAnswer]


@dataclass(frozen=True)
class ShownQueries:
    """Queries with what was found.

    Attributes:
        title: Its heading.
        note: A sentence on what it shows.
        examples: Those that are shown as pictures.
        names: Keys of all queries that belong to it, of which the first are shown as pictures.
    """

    kind: ClassVar[str] = "gallery"
    title: str
    note: str
    examples: Sequence[Example]
    names: Sequence[str] = ()


@dataclass(frozen=True)
class KeptChannels:
    """The part of one layer that is fit, as a drawing of outputs by inputs.

    Attributes:
        layer: Name of the weight.
        short: What a drawing calls it.
        rectangles: Fit parts as (left, top, width, height) in percent; inputs go right, outputs down.
        note: Kept outputs and inputs, in words.
    """

    layer: str
    short: str
    rectangles: Sequence[tuple[float, float, float, float]]
    note: str


@dataclass(frozen=True)
class SplitDrawing:
    """The fit part of every layer."""

    kind: ClassVar[str] = "split"
    title: str
    layers: Sequence[KeptChannels]

    @property
    def folded(self) -> bool:
        """Whether there are so many that they are shown when they are asked for."""
        return len(self.layers) > MOST_LAYERS_OPEN


@dataclass(frozen=True)
class SourceText:
    """A text that is shown letter by letter, when it is asked for."""

    kind: ClassVar[str] = "source"
    title: str
    text: str


Part = DataTable | Chart | ShownQueries | SplitDrawing | SourceText


@dataclass(frozen=True)
class PageSection:
    """A section of the page.

    Attributes:
        name: Its anchor.
        title: Its heading.
        lead: Sentences that stand above everything.
        parts: What it shows.
        missing: Why something, or all of it, is not there, a sentence each.
    """

    name: str
    title: str
    lead: Sequence[str] = ()
    parts: Sequence[Part] = ()
    missing: Sequence[str] = ()

    @property
    def short(self) -> str:
        """What the list of sections calls it."""
        return self.name.replace("-", " ").capitalize()


@dataclass(frozen=True)
class HeadlineNumber:
    """One of the few numbers at the top of the page.

    Attributes:
        title: What it is.
        number: The number.
        note: What it is held against, in words.
        is_loss: Whether it tells of something that became worse.
    """

    title: str
    number: Number
    note: str
    is_loss: bool = False


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        title: Name of the lineage.
        facts: What it is, in a few words each.
        headline: The few numbers at the top.
        sections: In their order.
    """

    title: str
    facts: Sequence[str]
    headline: Sequence[HeadlineNumber]
    sections: Sequence[PageSection]

    @property
    def charts(self) -> list[Chart]:
        """All figures, in their order."""
        return [part for section in self.sections for part in section.parts if isinstance(part, Chart)]


def score_text(name: str, value: float, *, signed: bool = False) -> str:
    """Return a score, or with `signed` a difference of two, as it is shown."""
    sign = "+" if signed else ""
    text = f"{100 * value:{sign}.1f}" if is_share(name) else f"{value:{sign}.3f}"
    return text.replace("-", MINUS)


def counted(number: int, what: str) -> str:
    """Return a number of things, in words that fit one and many."""
    several = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{number:,} {what if number == 1 else several}"


def short_layers(names: Iterable[str]) -> dict[str, str]:
    """Return the names of weights to what a figure calls them: without what nearly all of them begin and end with."""
    shown = {name: name.removeprefix("backbone.").removeprefix("features.").removesuffix(".weight") for name in names}
    # Two layers of one name would be drawn as one.
    return shown if len(set(shown.values())) == len(shown) else {name: name for name in shown}
