"""A report of a lineage: every section from what is stored, and one that cannot be made says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ke_metric.lineage.store import Lineage
from ke_metric.recipe.training_section import Training
from ke_metric.report.confused_section import confused_section
from ke_metric.report.cost_section import cost_section
from ke_metric.report.failures import FAILURES, told_failure
from ke_metric.report.map_section import map_section
from ke_metric.report.page_parts import PageSection, Report, counted
from ke_metric.report.recipe_section import provenance_section, recipe_section
from ke_metric.report.retrieved_sections import CHANGES, WORST_ANSWERS, Retrieved, changes_section, worst_section
from ke_metric.report.score_sections import SCORES, headline, scores_section
from ke_metric.report.split_section import split_section
from ke_metric.report.subject import Subject
from ke_metric.report.training_sections import magnitudes_section, training_section
from ke_metric.report.vectors import LineageVectors

Progress = Callable[[str], None]


@dataclass(frozen=True)
class GatheredReport:
    """A report, and what a program wants to know of it.

    Attributes:
        report: What the page shows.
        changes: From which network to which, with the keys of the queries that were mended and broken.
    """

    report: Report
    changes: Sequence[dict[str, Any]]


def gather_report(
    lineages: Sequence[Lineage],
    *,
    baselines: Sequence[Lineage] = (),
    device: str | None = None,
    progress: Progress = lambda text: None,
) -> GatheredReport:
    """Gather the report of a lineage.

    What needs weights or pictures that are not there says so in its section; everything else is shown.

    Args:
        lineages: The lineage, then others of its recipe (more seeds) and of other recipes, shown in the scores.
        baselines: Lineages of one recipe that it is held against: one long training of as many epochs.
        device: A torch device, found by itself when None.
        progress: Called with what is done next, in a few words.

    Raises:
        KeMetricError: A lineage has no generation, or they were not tested alike.
    """
    subject = Subject.of(lineages, baselines)
    lineage = subject.lineage
    retrieved, why_not = _retrieved(lineage, device, progress)
    sections = [
        _told(lineage, "scores", SCORES, lambda: scores_section(subject)),
        *_pictured(lineage, retrieved, why_not, progress),
        _told(lineage, "training", "Training curves", lambda: training_section(lineage)),
        _told(lineage, "weights", "Size of the weights", lambda: magnitudes_section(lineage)),
        _told(lineage, "split", "The split", lambda: split_section(lineage)),
        _measured(lineage, device, progress),
        _told(lineage, "recipe", "Recipe", lambda: recipe_section(lineage)),
        _told(lineage, "versions", "Versions and hardware", lambda: provenance_section(lineage)),
    ]
    report = Report(lineage.folder.resolve().name, _facts(lineage), headline(subject), sections)
    return GatheredReport(report, _changes(retrieved))


def _facts(lineage: Lineage) -> list[str]:
    recipe = lineage.recipe
    count = len(lineage.numbers)
    facts = [
        f"{recipe.task} on {recipe.data.benchmark}",
        f"{recipe.network.backbone}, {recipe.data.image_size} × {recipe.data.image_size} pixels",
        f"{recipe.method.name.replace('_', ' ')}, split rate {recipe.split.rate:g}",
        f"{counted(count, 'generation')} of {_planned(recipe.training)}",
        f"seed {recipe.seed}",
    ]
    if recipe.name != lineage.folder.resolve().name:
        facts.insert(0, f"recipe {recipe.name}")
    return facts


def _planned(training: Training) -> str:
    """Return how many epochs a generation has, in words."""
    at_most = "" if training.patience is None else "at most "
    return f"{at_most}{counted(training.epochs, 'epoch')}"


def _retrieved(lineage: Lineage, device: str | None, progress: Progress) -> tuple[Retrieved | None, str]:
    """Return what the networks retrieve; where nobody can tell, None and why."""
    progress("vectors of the kept networks")
    try:
        vectors = LineageVectors.open(lineage, device=device)
        if not vectors.networks:
            return None, "The weights of no generation were kept, and no vectors of them."
        return Retrieved(vectors), ""
    except FAILURES as error:
        return None, told_failure(error, lineage)


def _pictured(
    lineage: Lineage, retrieved: Retrieved | None, why_not: str, progress: Progress
) -> Iterator[PageSection]:
    """Make the sections that need vectors."""

    def needing(name: str, title: str, make: Callable[[Retrieved], PageSection]) -> PageSection:
        progress(title.lower())
        if retrieved is None:
            return PageSection(name, title, missing=[why_not])
        return _told(lineage, name, title, lambda: make(retrieved))

    yield needing("mended-and-broken", CHANGES, changes_section)
    yield needing("worst-answers", WORST_ANSWERS, worst_section)
    yield _told(
        lineage, "confused-classes", "Most confused classes", lambda: confused_section(lineage, retrieved, why_not)
    )
    yield needing("map", "Map of the embeddings", map_section)
    if retrieved is not None and retrieved.vectors.unwritten:
        progress(f"vectors could not be kept for another time: {retrieved.vectors.unwritten}")


def _measured(lineage: Lineage, device: str | None, progress: Progress) -> PageSection:
    progress("cost of the networks")
    return _told(lineage, "cost", "Cost", lambda: cost_section(lineage, device))


def _told(lineage: Lineage, name: str, title: str, make: Callable[[], PageSection]) -> PageSection:
    """Return a section, or where it cannot be made one that says why."""
    try:
        return make()
    except FAILURES as error:
        return PageSection(name, title, missing=[told_failure(error, lineage)])


def _changes(retrieved: Retrieved | None) -> list[dict[str, Any]]:
    if retrieved is None:
        return []
    try:
        return [
            {
                "before": {"generation": change.before[0], "network": change.before[1]},
                "after": {"generation": change.after[0], "network": change.after[1]},
                "mended": retrieved.keys(change.mended),
                "broken": retrieved.keys(change.broken),
            }
            for change in retrieved.changes
        ]
    except FAILURES:
        # The section says why.
        return []
