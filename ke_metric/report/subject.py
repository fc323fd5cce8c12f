"""What a report is about: a lineage, the other seeds and recipes beside it, and what they are called on its page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import Scorecard, Scores
from ke_metric.lineage.comparison import Strategy, gather
from ke_metric.lineage.report import decisive_score
from ke_metric.lineage.store import Lineage
from ke_metric.report.places import without_places

LONGEST_NAME = 28
"""In letters: recipes are called A, B, ... where a name is longer, and a table says what these are."""


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    Attributes:
        lineage: The lineage that is shown in everything.
        strategies: Its recipe with all seeds that are given, then other recipes.
        baseline: The long training that it is held against; None where none is given.
        recipes: What a recipe is called on the page to its name; empty where the names are short enough.
        not_finite: Sentences on scores that are no numbers and were left out.
    """

    lineage: Lineage
    strategies: Sequence[Strategy]
    baseline: Strategy | None = None
    recipes: Mapping[str, str] = field(default_factory=dict)
    not_finite: Sequence[str] = ()

    @classmethod
    def of(cls, lineages: Sequence[Lineage], baselines: Sequence[Lineage] = ()) -> Subject:
        """Gather lineages, the first of which the report is about.

        Raises:
            KeMetricError: One has no generation, they were not tested alike, or a baseline is no other recipe.
        """
        found = gather(lineages)
        if baselines:
            found.append(_baseline(lineages, baselines))
        # A recipe's name tells of a folder where recipes differ in nothing else.
        names = [without_places(each.name, each.recipe.data.root or "") for each in found]
        is_short = len(names) == 1 or max(map(len, names)) <= LONGEST_NAME
        labels = names if is_short else [_letter(position) for position in range(len(names))]
        cleaned = [_finite(replace(each, name=label)) for label, each in zip(labels, found, strict=True)]
        strategies = [strategy for strategy, _ in cleaned]
        return cls(
            lineages[0],
            strategies[: len(strategies) - bool(baselines)],
            strategies[-1] if baselines else None,
            {} if is_short else dict(zip(labels, names, strict=True)),
            [sentence for _, sentences in cleaned for sentence in sentences],
        )

    @property
    def strategy(self) -> Strategy:
        """The recipe of the lineage, with all its seeds."""
        return self.strategies[0]

    @property
    def shown(self) -> list[Strategy]:
        """All recipes, the baseline last."""
        return [*self.strategies, *([self.baseline] if self.baseline else [])]

    @property
    def decisive(self) -> str:
        """The score that the training is for, of those that were computed."""
        first = self.strategy.networks_at(1)[0]
        found: dict[str, float] = {}
        for scores in self.strategy.scores(1, first).values():
            found |= scores
        if not found:
            raise KeMetricError(f"{self.lineage.folder}: generation 1 has no score", ExitCode.LINEAGE)
        return decisive_score(found) or next(iter(found))

    @property
    def last(self) -> int:
        """Number of the lineage's last generation; other seeds may have more of them, or fewer."""
        return self.lineage.numbers[-1]

    @property
    def cards(self) -> dict[int, Scorecard]:
        """Generation to scorecard of the lineage itself."""
        return dict(enumerate(self.strategy.scorecards[self.lineage.recipe.seed], start=1))


def _baseline(lineages: Sequence[Lineage], baselines: Sequence[Lineage]) -> Strategy:
    # All together, so that what was not tested alike is refused.
    gather([*lineages, *baselines])
    found = gather(baselines)
    if len(found) > 1:
        raise KeMetricError("--baseline: these are of several recipes; one is meant", ExitCode.USAGE)
    if len(gather([lineages[0], *baselines])) == 1:
        raise KeMetricError(
            f"--baseline: {baselines[0].folder} is of the recipe of {lineages[0].folder}: a baseline is another "
            "one, of one generation and as many epochs",
            ExitCode.USAGE,
        )
    return found[0]


def _letter(position: int) -> str:
    """Return A, B, ..., Z, AA, BB, ..."""
    return chr(ord("A") + position % 26) * (position // 26 + 1)


# --- scores that are no numbers -----------------------------------------------------------------------------------


def _finite(strategy: Strategy) -> tuple[Strategy, list[str]]:
    """Return a strategy without scores that are not finite, of which no mean can be taken, and what these were."""
    told: list[str] = []
    scorecards = {
        seed: [
            _finite_card(card, f"{strategy.name}, seed {seed}, generation {number}", told)
            for number, card in enumerate(cards, start=1)
        ]
        for seed, cards in strategy.scorecards.items()
    }
    untrained = {
        seed: _finite_card(card, f"{strategy.name}, seed {seed}, generation 0", told)
        for seed, card in strategy.untrained.items()
    }
    return replace(strategy, scorecards=scorecards, untrained=untrained), told


def _finite_card(card: Scorecard, whose: str, told: list[str]) -> Scorecard:
    def cleaned(network: str, scores: Scores) -> Scores:
        lost = [name for name, value in scores.items() if not math.isfinite(value)]
        if lost:
            told.append(f"Not finite and left out: {', '.join(lost)} of {whose}, {network}.")
        return {name: value for name, value in scores.items() if name not in lost}

    def optional(network: str, scores: Scores | None) -> Scores | None:
        return None if scores is None else cleaned(network, scores)

    narrow = {
        rate: replace(
            each,
            scores=cleaned(f"slim {rate}", each.scores),
            as_cut=optional(f"slim {rate} as cut", each.as_cut),
        )
        for rate, each in (card.narrow or {}).items()
    }
    sizes = {
        network: {size: cleaned(f"{network} at size {size}", scores) for size, scores in found.items()}
        for network, found in (card.sizes or {}).items()
    }
    return replace(
        card,
        dense=cleaned("dense", card.dense),
        slim=optional("slim", card.slim),
        slim_as_cut=optional("slim as cut", card.slim_as_cut),
        narrow=narrow or card.narrow,
        sizes=sizes or card.sizes,
    )
