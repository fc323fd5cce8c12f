"""Which network of a lineage is used: the one that was named, or the best one that is there; and in which words.

Both of a generation's networks, dense and slim, are an answer; which one was taken, and what the other one scores, is
said wherever it is used. A slim network of another rate (`split.rates`) is taken where it is named, and only there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import Generation, Scorecard, rate_text, slim_name
from ke_metric.images.preparation import Preparation
from ke_metric.lineage.store import Lineage
from ke_metric.networks.bundle_config import Architecture, NetworkCard, StoredSplit
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe

NETWORKS = ("dense", "slim")


@dataclass(frozen=True)
class NetworkChoice:
    """One network of a lineage.

    Attributes:
        lineage: Whose it is.
        number: Of its generation.
        network: `dense` or `slim`.
        scores: What both networks of the generation score, in words; empty where nothing was scored.
        reason: Why it was taken, in words; empty where it was named.
        rate: Split rate of the slim network, where it is another one than `split.rate`.
    """

    lineage: Lineage
    number: int
    network: str
    scores: str
    reason: str
    rate: float | None = None

    @property
    def name(self) -> str:
        """`dense`, `slim`, or with its rate `slim 0.25`."""
        return self.network if self.rate is None else slim_name(rate_text(self.rate))

    @property
    def has_slim(self) -> bool:
        """Whether its generation has a slim network, scored or not."""
        return not _why_no_slim(self.lineage.recipe)

    @property
    def words(self) -> str:
        """Which one it is, without the place of the lineage."""
        return f"generation {self.number}, {self.name}{f' ({self.scores})' if self.scores else ''}"

    def load(self, device: torch.device) -> tuple[nn.Module, Architecture, NetworkCard]:
        """Return the network, how its dense network is built, and what a bundle says of it.

        Raises:
            KeMetricError: Its weights were not kept, or do not fit the recipe.
        """
        recipe, generation = self.lineage.recipe, self.lineage.load(self.number)
        class_names = generation.provenance.class_names
        networks = LineageNetworks(recipe, len(class_names))
        dense, plan = networks.restore(generation, device=device)
        # All of it is kept, as in a last generation that is slim already: the same network.
        slim = self.network == "slim" and (self.rate is not None or plan.reset_count > 0)
        network = networks.slim(dense, generation, self.rate) if slim else dense
        architecture = Architecture.of_recipe(recipe, classes=len(class_names) if class_names else None)
        return network, architecture, card_of(self, generation, slim=slim)


def choose_network(
    lineage: Lineage,
    generation: int | str | None = None,
    network: str | None = None,
    rate: float | None = None,
) -> NetworkChoice:
    """Choose a network of a lineage.

    Args:
        lineage: Whose.
        generation: Number of a generation, `last` or `best`; None: the best one whose weights were kept.
        network: `dense` or `slim`; None: the one with the better score, the slim one of equals.
        rate: Split rate of the slim network, which is then taken: `split.rate` or one of `split.rates`; None:
            `split.rate`.

    Raises:
        KeMetricError: There is no such generation, it has no slim network or none of this rate, or `network` is
            neither.
    """
    if network not in (*NETWORKS, None):
        raise KeMetricError(f"network = {network!r}, must be 'dense' or 'slim'", ExitCode.USAGE)
    if rate is not None and network == "dense":
        raise KeMetricError(
            f"rate = {rate:g}, is the split rate of a slim network: network = 'dense' has none", ExitCode.USAGE
        )
    network = network if rate is None else "slim"
    number = lineage.best_kept if generation is None else lineage.number_of(generation)
    missing = _why_no_slim(lineage.recipe)
    if network == "slim" and missing:
        raise KeMetricError(
            f"{lineage.folder}: there is no slim network: {missing}; take the dense one", ExitCode.LINEAGE
        )
    other_rate = None if rate is None else rate_beside(lineage.recipe, number, rate)
    name, shares = _decisive_shares(lineage.scorecard(number), lineage.decisive_score)
    slim_is_better = not missing and "slim" in shares and shares["slim"] >= shares["dense"]
    taken = network or ("slim" if slim_is_better else "dense")
    reasons = []
    if generation is None and len(lineage.numbers) > 1:
        reasons.append("the best generation kept")
    if network is None and len(shares) > 1:
        reasons.append("the better one of its networks")
    choice = NetworkChoice(lineage, number, taken, "", ", ".join(reasons), other_rate)
    told = {own: share for own, share in shares.items() if own in (*NETWORKS, choice.name)}
    return replace(choice, scores=_told(name, told, choice.name))


def further_rates(recipe: Recipe, number: int) -> list[float]:
    """Return the split rates other than `split.rate` at which generation `number` has slim networks."""
    own = rate_text(recipe.split.rate)
    return [] if recipe.trains_slim(number) else [rate for rate in recipe.split.rates if rate_text(rate) != own]


def rate_beside(recipe: Recipe, number: int, rate: float) -> float | None:
    """Return the rate of a generation's slim network that was asked for; None where it is `split.rate`.

    Raises:
        KeMetricError: USAGE, naming the rates that there are: it is none of them.
    """
    there = {rate_text(each): each for each in sorted([recipe.split.rate, *further_rates(recipe, number)])}
    if rate_text(rate) not in there:
        raise KeMetricError(
            f"rate = {rate:g}: generation {number} has slim networks of split rate {', '.join(there)} (split.rate "
            "and split.rates of its recipe)",
            ExitCode.USAGE,
        )
    found = there[rate_text(rate)]
    return None if found == recipe.split.rate else found


def _why_no_slim(recipe: Recipe) -> str:
    """Return why the generations of a recipe have no slim network; empty where they have one, scored or not."""
    if recipe.split.kind != "kels":
        return (
            f"split.kind = {recipe.split.kind!r} keeps single weights of every channel ('kels' keeps whole channels, "
            "which can be cut out)"
        )
    if recipe.method.rules.is_slim:
        itself = "trains the slim architecture itself, and nothing is left to be cut out"
        return f"method.name = {recipe.method.name!r} {itself}"
    return ""


def _decisive_shares(card: Scorecard, name: str) -> tuple[str, dict[str, float]]:
    """Return the score that decides, that of the validation part where there is one, and its value by network."""
    decisive = f"validation_{name}" if f"validation_{name}" in card.dense else name
    return decisive, {network: scores[decisive] for network, scores in card.networks.items() if decisive in scores}


def _told(name: str, shares: dict[str, float], taken: str) -> str:
    """Return `Recall@1 92.3 %, slim 81.7 %`, the network that was taken first."""
    score = name.replace("recall", "Recall").replace("validation_", "validation ").replace("top", "top-")
    return ", ".join(
        f"{score if network == taken else network} {100 * share:.1f} %"
        for network, share in sorted(shares.items(), key=lambda pair: pair[0] != taken)
    )


def card_of(choice: NetworkChoice, generation: Generation, *, slim: bool) -> NetworkCard:
    """Return what a bundle says of a network of a lineage, dense or cut out, of a generation that was read."""
    recipe = choice.lineage.recipe
    return NetworkCard(
        split=StoredSplit(kind=recipe.split.kind, rate=choice.rate or recipe.split.rate) if slim else None,
        normalization=Preparation.of_recipe(recipe),
        class_names=tuple(generation.provenance.class_names) or None,
        logit_scale=_logit_scale(recipe, generation),
        origin=f"{choice.lineage.folder.absolute().name}, {choice.words}",
    )


def _logit_scale(recipe: Recipe, generation: Generation) -> float | None:
    """Return what the loss multiplied the cosines of a classifier by; None where its logits are no cosines."""
    cosines = recipe.task == "classification" and recipe.network.head == "cosine"
    return float(generation.loss_weights["scale"]) if cosines and "scale" in generation.loss_weights else None
