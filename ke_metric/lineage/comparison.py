"""Lineages side by side: mean and spread of every score over seeds, and differences paired by seed.

A *strategy* is all lineages of one recipe that differ in the seed alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import (
    CLUSTERS_DRAWN_IN_BLOCKS,
    CLUSTERS_DRAWN_SINGLY,
    TESTED,
    TIES_BY_MEAN,
    TIES_BY_ROW,
    DataFingerprint,
    Scorecard,
    Scores,
    rate_text,
    slim_name,
)
from ke_metric.lineage.files import read_provenance
from ke_metric.lineage.folder import FREE_FIELDS
from ke_metric.lineage.store import Lineage
from ke_metric.recipe.schema import Recipe

RESAMPLES = 10_000
CONFIDENCE = 0.95
# What two strategies must agree in: otherwise they were scored on other images, or asked something else.
SAME_TEST = (
    "task", "data.benchmark", "data.test_fraction", "data.test_classes", "data.crop_banner",
)  # fmt: skip
# What they may differ in where the test pictures are the same ones: how the networks see them. It is said.
SEEN = (
    "data.image_size", "data.store_size", "data.store_shape", "data.background", "data.exif_orientation",
    "evaluation.resize",
)  # fmt: skip
# Fields that change no score of a generation that is there.
_NO_MATTER = {
    *FREE_FIELDS, "seed", "keep", "evaluation.backend", "evaluation.batch_size", "evaluation.keep_vectors",
}  # fmt: skip


@dataclass(frozen=True)
class Strategy:
    """All lineages of one recipe.

    Attributes:
        name: The recipe's name, followed by what tells it from another strategy of the same name.
        recipe: The recipe; its seed is that of one of them.
        scorecards: Seed -> scorecards of generation 1, 2, ...; an interrupted lineage has fewer than the others.
        untrained: Seed -> scorecard of the network before any training, generation 0; without the seeds of lineages
            of before it was kept.
    """

    name: str
    recipe: Recipe
    scorecards: Mapping[int, Sequence[Scorecard]]
    untrained: Mapping[int, Scorecard] = field(default_factory=dict)

    @property
    def generations(self) -> int:
        """Number of generations of the longest lineage."""
        return max(len(cards) for cards in self.scorecards.values())

    def epochs(self, generation: int) -> int:
        """Return how many epochs were trained until a generation was complete.

        Where generations end by themselves (`training.patience`), this is the mean over the seeds that have it.
        """
        planned = self.recipe.training.epochs
        trained = [
            sum(planned if card.best_epoch is None else card.best_epoch.trained for card in cards[:generation])
            for cards in self.scorecards.values()
            if len(cards) >= generation
        ]
        return round(math.fsum(trained) / len(trained)) if trained else generation * planned

    @property
    def last_networks(self) -> tuple[str, ...]:
        """The networks of the last generation, which may be the slim one alone (`method.slim_last`)."""
        return self.networks_at(self.generations)

    def networks_at(self, generation: int) -> tuple[str, ...]:
        """Return the networks of a generation: the slim one alone where it trains the slim architecture itself."""
        return ("slim",) if self.recipe.trains_slim(generation) else self.networks

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that have scores: dense, slim, and slim ones of other rates (`split.rates`).

        The network of `slim_alone`, the slim architecture on its own, is a slim one.
        """
        if self.recipe.method.rules.is_slim:
            return ("slim",)
        if not self.recipe.has_slim:
            return ("dense", "slim") if self.recipe.method.slim_last else ("dense",)
        own = rate_text(self.recipe.split.rate)
        others = [rate for rate in map(rate_text, self.recipe.split.rates) if rate != own]
        return ("dense", "slim", *map(slim_name, others))

    def parameters(self, network: str, generation: int) -> int:
        """Return the number of parameters of one of a generation's networks."""
        card = next(iter(self._cards(generation).values()))
        if self._is_stored_as_dense(network, generation, card):
            return card.dense_parameters
        return card.slims[network].parameters

    def scores(self, generation: int, network: str) -> dict[int, Scores]:
        """Return seed -> scores of one network of a generation, for the seeds that have it."""
        cards = self._cards(generation)
        if network not in self.networks_at(generation):
            return {}
        return {
            seed: card.dense if self._is_stored_as_dense(network, generation, card) else card.networks[network]
            for seed, card in cards.items()
            if network in card.networks or self._is_stored_as_dense(network, generation, card)
        }

    def paired(self, name: str, before: tuple[int, str], after: tuple[int, str]) -> dict[int, tuple[float, float]]:
        """Return seed -> a score of two networks (generation and name), for the seeds that have both.

        Means over other seeds than these differ by the seeds as well as by what is compared.
        """
        one, other = self.scores(*before), self.scores(*after)
        return {
            seed: (one[seed][name], other[seed][name])
            for seed in sorted(one.keys() & other.keys())
            if name in one[seed] and name in other[seed]
        }

    def worse_than_untrained(self, name: str) -> dict[int, tuple[float, float]]:
        """Return the generations that training made worse than they began, by a score of the network that is trained.

        Each has the mean score of the untrained networks, and its own, over the seeds that tell.
        """
        found: dict[int, tuple[float, float]] = {}
        for generation in range(1, self.generations + 1):
            pairs = [
                (self.untrained[seed].dense[name], card.dense[name])
                for seed, card in self._cards(generation).items()
                if seed in self.untrained and name in self.untrained[seed].dense and name in card.dense
            ]
            means = [math.fsum(side) / len(pairs) for side in zip(*pairs, strict=True)]
            if means and means[1] < means[0]:
                found[generation] = means[0], means[1]
        return found

    def _cards(self, generation: int) -> dict[int, Scorecard]:
        """Return seed -> scorecard of a generation, for the seeds that have it."""
        if generation == 0:
            return dict(self.untrained)
        return {seed: cards[generation - 1] for seed, cards in self.scorecards.items() if len(cards) >= generation}

    def _is_stored_as_dense(self, network: str, generation: int, card: Scorecard) -> bool:
        """Whether a scorecard has it only as `dense`, which is the network that was trained, be it the slim one."""
        return network == "dense" or (network not in card.slims and self.recipe.trains_slim(generation))


@dataclass(frozen=True)
class Difference:
    """How far a strategy is ahead of the reference in one score, on the mean over so many pairs of one seed.

    `low` and `high` are the ends of the interval; None where a single seed says nothing about spread.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int


def gather(lineages: Iterable[Lineage]) -> list[Strategy]:
    """Group lineages into strategies, in the order in which they are given.

    Raises:
        KeMetricError: One has no generation yet, two are of one recipe and seed, or they were not tested alike.
    """
    groups: list[list[tuple[Lineage, Recipe]]] = []
    for lineage in lineages:
        recipe = lineage.recipe
        if not lineage.numbers:
            raise KeMetricError(f"{lineage.folder}: there is no complete generation yet", ExitCode.LINEAGE)
        member = lineage, recipe
        group = next((each for each in groups if _of_one_strategy(each[0], member)), None)
        if group is None:
            group = []
            groups.append(group)
        group.append(member)
    if not groups:
        raise KeMetricError("no lineage to compare", ExitCode.USAGE)
    _require_one_test([member for members in groups for member in members])
    names = _names([members[0][1] for members in groups])
    return [_strategy(name, members) for name, members in zip(names, groups, strict=True)]


def _of_one_strategy(one: tuple[Lineage, Recipe], other: tuple[Lineage, Recipe]) -> bool:
    """Whether two lineages are trainings of one recipe on the same pictures, wherever these lie."""
    fields = [_flat(recipe) for _, recipe in (one, other)]
    if any(fields[0].get(name) != fields[1].get(name) for name in {*fields[0], *fields[1]} - _NO_MATTER):
        return False
    before, now = one[0].data, other[0].data
    if before is not None and now is not None:
        if before.changes(now):
            return False
        if before.since == now.since == 1:
            return True
    return all(fields[0][name] == fields[1][name] for name in _test_of(one[1]))


def _test_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the fields that say what a recipe is tested on."""
    root = ("data.root",) if recipe.data.benchmark == "folder" else ()
    # In classification the test part has the classes that were trained on.
    classes = ("data.train_classes",) if recipe.task == "classification" else ()
    return (*SAME_TEST, *root, *classes)


def _flat(recipe: Recipe) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in recipe.model_dump(mode="json").items():
        flat |= (
            {f"{name}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat


def _strategy(name: str, members: Sequence[tuple[Lineage, Recipe]]) -> Strategy:
    scorecards: dict[int, Sequence[Scorecard]] = {}
    folders: dict[int, Lineage] = {}
    for lineage, recipe in members:
        if recipe.seed in folders:
            raise KeMetricError(
                f"{folders[recipe.seed].folder} and {lineage.folder} are of one recipe and one seed ({recipe.seed}): "
                "counted twice, they would look like two trainings",
                ExitCode.LINEAGE,
            )
        folders[recipe.seed] = lineage
        scorecards[recipe.seed] = [lineage.scorecard(number) for number in lineage.numbers]
    untrained = {seed: card for seed, lineage in sorted(folders.items()) if (card := lineage.untrained) is not None}
    return Strategy(name, members[0][1], dict(sorted(scorecards.items())), untrained)


def _require_one_test(members: Sequence[tuple[Lineage, Recipe]]) -> None:
    (first, reference), *others = members
    expected = _flat(reference)
    for lineage, recipe in others:
        found = _flat(recipe)
        names = dict.fromkeys((*_test_of(reference), *_test_of(recipe)))
        before, now = first.data, lineage.data
        if before is not None and now is not None and recipe.task == reference.task:
            _refuse_changes((first, before.only(*TESTED)), (lineage, now.only(*TESTED)))
            if before.since == now.since == 1:
                # The pictures are known to be the same ones, wherever they lie and however they were divided.
                names = dict.fromkeys(("data.crop_banner",))
        for name in names:
            if found[name] != expected[name]:
                raise KeMetricError(
                    f"{lineage.folder}: {name} = {found[name]!r}, {first.folder} has {expected[name]!r}: their "
                    "scores do not belong into one table",
                    ExitCode.LINEAGE,
                )
    _require_one_validation([lineage for lineage, _ in members])


def _require_one_validation(lineages: Sequence[Lineage]) -> None:
    """Refuse lineages with different validation parts; one that has none has no score on it, and goes with all."""
    known = [(lineage, lineage.data) for lineage in lineages]
    parts = [(lineage, data.only("validation")) for lineage, data in known if data and "validation" in data.parts]
    for lineage, part in parts[1:]:
        _refuse_changes(parts[0], (lineage, part))


def _refuse_changes(first: tuple[Lineage, DataFingerprint], other: tuple[Lineage, DataFingerprint]) -> None:
    """Refuse two lineages whose scores are of different pictures."""
    if changes := first[1].changes(other[1]):
        raise KeMetricError(
            f"{other[0].folder} was not tested on the pictures of {first[0].folder}: {'; '.join(changes)}: their "
            "scores do not belong into one table",
            ExitCode.LINEAGE,
        )


def seen_differently(strategies: Sequence[Strategy]) -> dict[str, dict[str, Any]]:
    """Return how the networks of each strategy see the test pictures, in the fields in which they differ."""
    flat = {strategy.name: _flat(strategy.recipe) for strategy in strategies}
    fields = [name for name in SEEN if len({json.dumps(each.get(name)) for each in flat.values()}) > 1]
    return {name: {field: each.get(field) for field in fields} for name, each in flat.items()} if fields else {}


def told_rules(lineages: Iterable[Lineage]) -> dict[str, str]:
    """Return the sentences on scores that were computed by another rule than others, by what the rule is for.

    Nothing is told of `ties` or `clusters` where all scores are of one rule.
    """
    found = [
        (f"generation {number} of {lineage.folder}", read_provenance(lineage.generation_folder(number)))
        for lineage in lineages
        if lineage.recipe.task == "retrieval"
        for number in lineage.numbers
    ]
    ties = [name for name, provenance in found if provenance.ties == TIES_BY_ROW]
    clusters = [name for name, provenance in found if provenance.clusters == CLUSTERS_DRAWN_SINGLY]
    sentences = {
        "ties": f"ties are settled by the {TIES_BY_ROW} in {', '.join(ties)}, elsewhere by the {TIES_BY_MEAN}: "
        "scores of pictures with equal embeddings may differ for that alone; ke-metric eval scores them again",
        "clusters": f"clusters are those of a {CLUSTERS_DRAWN_SINGLY} in {', '.join(clusters)}, elsewhere of a "
        f"{CLUSTERS_DRAWN_IN_BLOCKS}: NMI and AMI may differ for that alone, by as much as with another seed of "
        "k-means; ke-metric eval scores them again",
    }
    some = {"ties": ties, "clusters": clusters}
    return {rule: sentence for rule, sentence in sentences.items() if 0 < len(some[rule]) < len(found)}


def _names(recipes: Sequence[Recipe]) -> list[str]:
    """Return the recipes' names, all different.

    Where several are equal they have the fields in which they differ, then where the data lie, then a number.
    """
    names = _told_apart(recipes, leaving_out=_NO_MATTER)
    if len(set(names)) < len(names):
        names = _told_apart(recipes, leaving_out=_NO_MATTER - {"data.root"})
    numbered: list[str] = []
    for name in names:
        candidates = (name, *(f"{name} #{number}" for number in range(2, len(names) + 1)))
        numbered.append(next(each for each in candidates if each not in numbered))
    return numbered


def _told_apart(recipes: Sequence[Recipe], *, leaving_out: Set[str]) -> list[str]:
    """Return each name followed by the fields in which recipes of that name differ."""
    named = [(recipe.name, _flat(recipe)) for recipe in recipes]
    told_apart = []
    for own, fields in named:
        same = [other for name, other in named if name == own]
        differing = [
            name
            for name in sorted({name for other in same for name in other} - leaving_out)
            if any(other.get(name) != fields.get(name) for other in same)
        ]
        values = {name: fields.get(name) for name in differing}
        told = ", ".join(
            f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
        )
        told_apart.append(f"{own} ({told})" if told else own)
    return told_apart


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation (n - 1 in the denominator); of a single value there is no deviation."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Compare two strategies by the seeds they share; None where they share none.

    The interval is the percentile bootstrap's (Efron, 1979): the pairs are drawn anew, with replacement, 10,000 times
    from a fixed seed, and it holds the middle 95 % of the means. Of few seeds it is too narrow: of three, it ends at
    the smallest and largest difference that was seen.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds], dtype=np.float64)
    mean = float(differences.mean())
    if len(seeds) == 1:
        return Difference(mean, None, None, 1)
    drawn = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences[drawn].mean(axis=1), [tail, 1 - tail])
    return Difference(mean, float(low), float(high), len(seeds))
