"""Draw generations: scores of the whole network and of its fit hypothesis, and how large the two hypotheses are.

    python -m eval.figures.run curves KELS=lineages/kels-s0 WELS=lineages/wels-s0 -o docs/results/figures/splits
    python -m eval.figures.run magnitudes lineages/vgg-s0 lineages/vgg-s1 -o docs/results/figures/vgg11

Lineages of one label are seeds: the line is their mean, the band their standard deviation. Written are PNG, SVG and
the numbers as JSON. KELS's fit hypothesis is the slim network, whose scores the lineage has. WELS has none: its fit
hypothesis is the dense network with its reset hypothesis set to zero, scored here, from weights that the lineage
must have kept (`keep: all`).
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ke_metric import Lineage
from ke_metric.arrays import load_whole
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.images.image_set import without_training
from ke_metric.images.pixel_store import Pictures
from ke_metric.lineage.comparison import gather
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.scoring import Scorer
from ke_metric.split.hypotheses import zero_reset
from ke_metric.split.plan import SplitPlan
from ke_metric.training.engine import Engine

# Colours that are told apart by people who do not see red or green (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
NAMES = {"recall@1": "Recall@1 (%)", "top1": "top-1 accuracy (%)"}


@dataclass(frozen=True)
class Curve:
    """One line of a figure.

    Attributes:
        label: What it is called.
        values: A list per seed: value of generation 1, 2, ...
        dashed: Whether it is drawn dashed: the fit hypothesis.
    """

    label: str
    values: list[list[float]]
    dashed: bool = False

    def spread(self) -> list[tuple[float, float]]:
        """Return mean and standard deviation of every generation that all seeds have; 0 of a single seed."""
        generations = zip(*self.values, strict=False)
        return [(statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else 0.0) for each in generations]


def score_name(lineage: Lineage) -> str:
    """Return the score that is drawn: top-1, or Recall@K of the smallest K."""
    recipe = lineage.recipe
    return "top1" if recipe.task == "classification" else f"recall@{min(recipe.evaluation.recall_at)}"


def dense_values(lineage: Lineage) -> list[float]:
    """Return the dense network's score of every generation, in percent."""
    return [100 * lineage.scorecard(number).dense[score_name(lineage)] for number in lineage.numbers]


def fit_values(lineage: Lineage) -> list[float]:
    """Return the fit hypothesis's score of every generation, in percent.

    Raises:
        KeMetricError: The lineage is one of single weights, and has not kept the weights of a generation.
    """
    if lineage.recipe.has_slim:
        cards = [lineage.scorecard(number).slim for number in lineage.numbers]
        return [100 * card[score_name(lineage)] for card in cards if card is not None]
    return _scored_without_reset_part(lineage)


def _scored_without_reset_part(lineage: Lineage) -> list[float]:
    recipe = lineage.recipe
    benchmark = without_training(load_benchmark(recipe.data, recipe.task))
    pictures = Pictures.decode(benchmark, recipe.data.store_size, store_shape=recipe.data.store_shape)
    scorer = Scorer(pictures, recipe, Engine("fp32"))
    values = []
    for number in lineage.numbers:
        generation = lineage.load(number)
        network = LineageNetworks(recipe, len(generation.provenance.class_names)).build(number)
        load_whole(network, generation.weights, "the stored weights")
        zero_reset(network, SplitPlan.from_json(generation.split, generation.split_bits))
        placed = scorer.engine.place(network, channels_last=recipe.training.channels_last)
        values.append(100 * scorer.score(placed)[score_name(lineage)])
    return values


def magnitudes(lineage: Lineage) -> tuple[list[float], list[float]]:
    """Return mean |w| of the fit and of the reset part of every generation: the mean over layers that have both.

    Without a last generation that is the slim network, which has one part.

    Raises:
        SystemExit: No layer of a generation has both.
    """
    fits, resets = [], []
    recipe = lineage.recipe
    slim_number = recipe.generations if recipe.method.slim_last else None
    for number in (number for number in lineage.numbers if number != slim_number):
        card = json.loads((lineage.generation_folder(number) / "scorecard.json").read_text(encoding="utf-8"))
        both = [pair for pair in card["magnitudes"].values() if None not in pair]
        if not both:
            raise SystemExit(f"{lineage.folder}: no layer has a fit and a reset part")
        fits.append(statistics.fmean(fit for fit, _ in both))
        resets.append(statistics.fmean(reset for _, reset in both))
    return fits, resets


def score_curves(groups: dict[str, list[Lineage]]) -> list[Curve]:
    """Return a dense and a fit curve for every label."""
    curves = []
    for label, lineages in groups.items():
        name = "slim" if lineages[0].recipe.has_slim else "fit hypothesis (rest zero)"
        start = f"{label}, " if label else ""
        curves.append(Curve(f"{start}dense", [dense_values(each) for each in lineages]))
        curves.append(Curve(f"{start}{name}", [fit_values(each) for each in lineages], dashed=True))
    return curves


def magnitude_curves(lineages: Sequence[Lineage]) -> list[Curve]:
    """Return the curves of the mean weight magnitudes."""
    found = [magnitudes(lineage) for lineage in lineages]
    return [
        Curve("fit hypothesis", [fit for fit, _ in found], dashed=True),
        Curve("reset hypothesis", [reset for _, reset in found]),
    ]


def draw(axes: Axes, curves: Sequence[Curve], *, ylabel: str, pairs: bool) -> None:
    """Draw curves over generations.

    Args:
        axes: Where.
        curves: What.
        ylabel: Quantity and unit.
        pairs: Whether two curves that follow each other share a colour.
    """
    for index, curve in enumerate(curves):
        colour = COLOURS[(index // 2 if pairs else index) % len(COLOURS)]
        spread = curve.spread()
        generations = range(1, len(spread) + 1)
        means = [mean for mean, _ in spread]
        marker = "o" if len(spread) <= 20 else None
        style = "--" if curve.dashed else "-"
        axes.plot(generations, means, style, color=colour, label=curve.label, marker=marker, markersize=3)
        if len(curve.values) > 1:
            # Nothing that is drawn can be negative.
            low, high = [max(0.0, mean - each) for mean, each in spread], [mean + each for mean, each in spread]
            axes.fill_between(generations, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel("generation")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3, linewidth=0.5)
    # Below the axes: curves go anywhere inside.
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.get_major_locator().set_params(integer=True)


def with_ending(path: Path, ending: str) -> Path:
    """Return a path with an ending; `rate_0.5` keeps its own."""
    return path.with_name(f"{path.name}.{ending}")


def save(figure: Figure, curves: dict[str, Sequence[Curve]], path: Path) -> None:
    """Write PNG, SVG and the numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(with_ending(path, "png"), dpi=200)
    figure.savefig(with_ending(path, "svg"), metadata={"Date": None})
    numbers = {
        panel: [{"label": curve.label, "seeds": curve.values} for curve in drawn] for panel, drawn in curves.items()
    }
    with_ending(path, "json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def grouped(arguments: Iterable[str]) -> dict[str, list[Lineage]]:
    """Return label -> lineages of `LABEL=FOLDER` arguments."""
    groups: dict[str, list[Lineage]] = {}
    for argument in arguments:
        label, separator, folder = argument.partition("=")
        if not separator:
            raise SystemExit(f"{argument!r} is not LABEL=LINEAGE")
        groups.setdefault(label, []).append(Lineage(folder))
    require_seeds(groups)
    return groups


def require_seeds(groups: dict[str, list[Lineage]]) -> None:
    """Make sure that the lineages of a label are seeds of one recipe, and that all were tested alike.

    Raises:
        SystemExit: They are of several recipes.
        KeMetricError: One has no generation, is there twice, or was tested on something else.
    """
    for label, lineages in groups.items():
        if len(gather(lineages)) > 1:
            raise SystemExit(f"{label}: its lineages differ in more than the seed")
    gather(lineages[0] for lineages in groups.values())


def main() -> None:
    """Draw one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=["curves", "magnitudes"])
    parser.add_argument("lineages", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True, help="path without suffix")
    options = parser.parse_args()
    groups = grouped(options.lineages if options.figure == "curves" else [f"={each}" for each in options.lineages])
    mpl.rcParams["svg.hashsalt"] = "ke_metric"
    scores = score_curves(groups)
    panels: dict[str, Sequence[Curve]] = {"score": scores}
    first = next(iter(groups.values()))[0]
    ylabel = NAMES.get(score_name(first), f"{score_name(first)} (%)")
    two = options.figure == "magnitudes"
    figure = Figure(figsize=(7.2 if two else 4.2, 3.0), layout="constrained")
    axes: Any = figure.subplots(1, 2 if two else 1, squeeze=False)[0]
    draw(axes[0], scores, ylabel=ylabel, pairs=True)
    if two:
        panels["magnitude"] = magnitude_curves(groups[""])
        draw(axes[1], panels["magnitude"], ylabel="mean |w| over layers", pairs=False)
    save(figure, panels, options.output)
    print(with_ending(options.output, "png"))


if __name__ == "__main__":
    main()
