"""`ke-metric eval`: score stored generations again with the function that scored them first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from ke_metric.arrays import FloatArray
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli.display import Outcome, counting, say
from ke_metric.cli.evaluate_store import StoreScoring, store_table
from ke_metric.cli.lineages import open_lineage, tell_data_changes
from ke_metric.environment import package_versions
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.evaluation.backend import choose_backend
from ke_metric.generation import (
    CLUSTERS_DRAWN_IN_BLOCKS,
    TIES_BY_MEAN,
    Generation,
    Scorecard,
    Scores,
    rate_text,
    slim_name,
)
from ke_metric.images.image_set import without_training
from ke_metric.images.kept_stores import KeptStores
from ke_metric.images.pixel_store import Pictures, fingerprint
from ke_metric.lineage.report import mistakes_table, scorecard_document, scorecards_table, untrained_document
from ke_metric.lineage.store import Lineage
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.retrieval.network_choice import choose_network, further_rates
from ke_metric.scoring import Scorer
from ke_metric.split.plan import SplitPlan
from ke_metric.training.engine import Engine


def evaluate_lineage(
    *,
    which: str,
    lineage: Path | None,
    network: str,
    rate: float | None,
    device: str | None,
    through: StoreScoring | None = None,
    asked: Sequence[str] = (),
) -> Outcome:
    """Score generations of a lineage.

    Args:
        which: A number, `last`, `best`, or `all` (every generation whose weights were kept).
        lineage: The lineage's folder; the newest one when None.
        network: `dense`, `slim` (those of all rates) or `both`.
        rate: Split rate of the one slim network that is meant.
        device: A torch device.
        through: Score the same embeddings through a store as well.
        asked: Names of scores that there must be.

    Raises:
        KeMetricError: No such lineage or generation, weights not kept, no slim network or none of this rate, the
            data are missing, or a classification is to be scored through a store.
    """
    store = open_lineage(lineage, task="retrieval" if through else None)
    numbers = generations_of(store, which)
    _require_scored(store, network, through)
    names = {number: network_names(store, number, network, rate) for number in numbers}
    meant = {name for each in names.values() for name in each}
    evaluation = store.recipe.evaluation
    require_names(asked, score_names(store.recipe.task, evaluation.recall_at, evaluation.kmeans_seeds))
    generations = {number: store.load(number) for number in numbers}
    scorer, changes = _scorer(store, device, through)
    cards: dict[int, Scorecard] = {}
    documents: list[dict[str, Any]] = []
    tables: list[RenderableType] = []
    for number, generation in generations.items():
        embeddings: dict[str, tuple[FloatArray, FloatArray]] = {}
        card = _score(generation, scorer, embeddings if through else None)
        cards[number] = replace(card, best_epoch=generation.scorecard.best_epoch)
        say(
            _compare(
                cards[number],
                generation,
                backend="no search" if store.recipe.task == "classification" else scorer.backend,
                data_changed=bool(changes),
            )
        )
        documents.append(_only(scorecard_document(number, cards[number]), names[number]))
        if through and scorer.engine.is_main:
            chosen = {name: embeddings[name] for name in names[number] if name in embeddings}
            exact = cards[number].networks
            documents[-1]["store"] = found = through.document(scorer, chosen, exact=exact)
            tables.append(store_table({"generation": number, **exact}, found))
    document: dict[str, Any] = {"lineage": str(store.folder)}
    document |= {"data_changes": changes} if changes else {}
    # Scores of other data say nothing of what training did.
    untrained = None if changes or "dense" not in meant else store.untrained
    document |= untrained_document(untrained, cards)
    document |= {"generations": documents} if which == "all" else documents[0]
    table = scorecards_table(str(store.folder), cards, networks=meant, untrained=untrained)
    last = max(cards)
    mistakes = mistakes_table(last, cards[last], networks=meant)
    return Outcome(document, Group(table, mistakes, *tables))


def _require_scored(store: Lineage, network: str, through: StoreScoring | None) -> None:
    require_slim(store, network)
    if through is not None and store.recipe.task == "classification":
        raise KeMetricError(
            f"{store.folder}: --store: a classifier has logits, no embeddings that a store could hold; it needs a "
            "lineage of task = 'retrieval'",
            ExitCode.LINEAGE,
        )
    if through is not None:
        through.require_makeable(store.recipe.network.embedding_size)


def require_slim(store: Lineage, network: str) -> None:
    """Refuse a slim network that a lineage does not score.

    Raises:
        KeMetricError: There is none.
    """
    recipe = store.recipe
    if network == "slim" and not recipe.has_slim:
        raise KeMetricError(
            f"{store.folder}: no slim network is scored: split.kind = {recipe.split.kind!r}, evaluation.slim = "
            f"{recipe.evaluation.slim}, method.name = {recipe.method.name!r}",
            ExitCode.LINEAGE,
        )


def network_names(store: Lineage, number: int, network: str, rate: float | None) -> list[str]:
    """Return the names of the networks of a generation that `--network` and `--rate` mean, as scorecards have them.

    Raises:
        KeMetricError: USAGE: a rate for the dense network, or one that its slim networks do not have.
    """
    recipe = store.recipe
    if rate is None:
        further = further_rates(recipe, number) if recipe.has_slim else []
        slims = ["slim", *(slim_name(rate_text(each)) for each in further)] if recipe.has_slim else []
        return {"dense": ["dense"], "slim": slims, "both": ["dense", *slims]}[network]
    choice = choose_network(store, number, "slim" if network == "both" else network, rate)
    require_slim(store, "slim")
    return [choice.name]


def _scorer(store: Lineage, device: str | None, through: StoreScoring | None = None) -> tuple[Scorer, list[str]]:
    """Return what scores the lineage's networks, and how its data have changed since it was begun."""
    recipe = store.recipe
    complete = load_benchmark(recipe.data, recipe.task)
    # A class that is called otherwise is found before everything is decoded.
    store.require_classes(fingerprint(complete))
    if through is not None:
        through.require_depth(complete, recipe.evaluation.recall_at)
    benchmark, engine = without_training(complete), Engine("fp32", device)
    if recipe.task == "retrieval":
        choose_backend(recipe.evaluation.backend, engine.device)
    with counting(f"decoding {benchmark.name}") as progress:
        pictures = Pictures.decode(
            benchmark,
            recipe.data.store_size,
            store_shape=recipe.data.store_shape,
            progress=progress,
            build=KeptStores.of_environment(say).store,
        )
    return Scorer(pictures, recipe, engine, say), tell_data_changes(store, fingerprint(complete, pictures.contents))


def generations_of(store: Lineage, which: str) -> list[int]:
    """Return the generations that `--gen` names: a number, `last`, `best`, or `all` whose weights were kept.

    Raises:
        KeMetricError: There is none, or it is no such word.
    """
    if which == "all":
        numbers = store.numbers
        kept = [number for number in numbers if store.has_weights(number)]
        if not kept:
            raise KeMetricError(f"{store.folder}: there is no complete generation yet", ExitCode.LINEAGE)
        if kept != numbers:
            say(
                f"weights were kept of {len(kept)} of {len(numbers)} generations (recipe: keep = {store.recipe.keep})"
            )
        return kept
    if not which.isdecimal() and which not in ("last", "best"):
        raise KeMetricError(
            f"--gen {which}: must be a number, all, last or best{closest(which, ('all', 'last', 'best'))}",
            ExitCode.USAGE,
        )
    return [store.number_of(which)]


def _score(
    generation: Generation, scorer: Scorer, embeddings: dict[str, tuple[FloatArray, FloatArray]] | None
) -> Scorecard:
    """Score a generation; keep the embeddings of each network where somebody asks for them."""

    def keep(network: str, query: FloatArray, gallery: FloatArray) -> None:
        assert embeddings is not None
        embeddings[network] = query, gallery

    classes = len(scorer.pictures.benchmark.train.class_names)
    network, plan = LineageNetworks(scorer.recipe, classes).restore(generation, device=scorer.engine.device)
    return scorer.scorecard(
        network,
        plan,
        narrow={rate: SplitPlan.from_json(text) for rate, text in generation.narrow_splits.items()},
        repairs=generation.repairs,
        seen=None if embeddings is None else keep,
    )


def _compare(card: Scorecard, generation: Generation, *, backend: str, data_changed: bool) -> str:
    """Say whether the scores are those that were stored, and the largest difference if not."""
    pairs = list(_scored_twice(card, generation.scorecard))
    for network, found in (card.sizes or {}).items():
        then = (generation.scorecard.sizes or {}).get(network, {})
        pairs += [(scores, then[size]) for size, scores in found.items() if size in then]
    # What one of them does not have was not computed by the version that made it.
    if all(new[name] == old[name] for new, old in pairs for name in new.keys() & old.keys()):
        return f"generation {generation.number}: equal to the stored scorecard"
    largest, name = max((abs(new[name] - old[name]), name) for new, old in pairs for name in new.keys() & old.keys())
    before = generation.provenance
    told = f"generation {generation.number}: differs from the stored scorecard, most in {name}: {largest:.2g}"
    if data_changed:
        return f"{told}; the data have changed since, see above"
    versions = {
        "search": (before.training.get("search_backend", "unknown"), backend),
        "torch": (before.environment["versions"]["torch"], package_versions(["torch"])["torch"]),
    }
    if "map@r" in card.dense:
        versions["ties by"] = before.ties, TIES_BY_MEAN
    if "nmi" in card.dense:
        versions["clusters by"] = before.clusters, CLUSTERS_DRAWN_IN_BLOCKS
    # What follows a plus sign is how it was built: torch calls itself 2.14.1+cu130 where its files say 2.14.1.
    other = [f"{name} {old} then, {new} now" for name, (old, new) in versions.items() if _public(old) != _public(new)]
    return (
        f"{told}. Scored on {before.training['device']} then; {'; '.join(other) or 'search and torch are the same'}"
    )


def _scored_twice(now: Scorecard, before: Scorecard) -> Iterator[tuple[Scores, Scores]]:
    """Yield the scores of every network, and those of slim ones as they were cut out, that both scorecards have."""
    for name in now.networks.keys() & before.networks.keys():
        yield now.networks[name], before.networks[name]
    for name in now.slims.keys() & before.slims.keys():
        yield now.slims[name].as_cut or {}, before.slims[name].as_cut or {}


def _public(version: str) -> str:
    return version.partition("+")[0]


def _only(document: dict[str, Any], networks: Collection[str]) -> dict[str, Any]:
    """Return what a generation's document says of some networks, which are named as in `Scorecard.networks`."""
    chosen = {name: value for name, value in document.items() if name in ("generation", "best_epoch", *networks)}
    if "slim" in networks:
        chosen |= {name: document[name] for name in ("slim_repair", "slim_as_cut") if name in document}
    for name in ("narrow", "narrow_repair", "narrow_as_cut"):
        found = {rate: value for rate, value in document.get(name, {}).items() if slim_name(rate) in networks}
        chosen |= {name: found} if found else {}
    for part in ("classes", "sizes"):
        if part in document:
            chosen[part] = {name: found for name, found in document[part].items() if name in networks}
    return chosen


def require_minimums(result: Outcome, gates: Sequence[tuple[str, float]]) -> None:
    """Check that every network scored reaches every minimum.

    Raises:
        KeMetricError: One does not (exit code 7), or a score of that name was not computed (exit code 2).
    """
    for document in result.document.get("generations", [result.document]):
        scored = {network: document[network] for network in ("dense", "slim", "network") if network in document}
        scored |= {slim_name(rate): scores for rate, scores in document.get("narrow", {}).items()}
        assert scored, "a gate without scores would always be met"
        for network, scores in scored.items():
            what = document["bundle"] if network == "network" else f"generation {document['generation']} {network}"
            for name, minimum in gates:
                _require(scores, name, minimum, what)


def score_names(task: str, recall_at: Sequence[int], kmeans_seeds: int, *, of_others: bool = False) -> list[str]:
    """Return all scores that a network can get; some of them only where the pictures allow it.

    Args:
        task: `retrieval` or `classification`.
        recall_at: The Ks of Recall@K.
        kmeans_seeds: Number of k-means.
        of_others: Whether pictures are scored that are not the lineage's own: a classifier's features as well.
    """
    names: list[str] = []
    if task == "retrieval" or of_others:
        names += [*(f"recall@{k}" for k in recall_at), "map@r", "r_precision", "queries", "queries_without_match"]
        names += [] if of_others else [f"validation_recall@{min(recall_at)}"]
        names += [f"{name}{spread}" for spread in ("", "_std")[:kmeans_seeds] for name in ("nmi", "ami")]
    if task == "classification":
        accuracies = ["top1", "top5", "balanced_accuracy", "majority_baseline"]
        names += accuracies if of_others else [*accuracies, *(f"validation_{name}" for name in accuracies)]
    return names


def require_names(asked: Sequence[str], there: Collection[str]) -> None:
    """Refuse names of scores that are not there.

    Raises:
        KeMetricError: USAGE, naming the closest one.
    """
    for name in asked:
        if name not in there:
            raise KeMetricError(
                f"--min {name}: there is no such score{closest(name, there)}; there are {', '.join(there)}",
                ExitCode.USAGE,
            )


def _require(scores: dict[str, float], name: str, minimum: float, what: str) -> None:
    require_names([name], scores)
    if scores[name] < minimum:
        raise KeMetricError(
            f"{what}: {name} = {_told(name, scores[name])} is below the minimum {_told(name, minimum)}", ExitCode.GATE
        )


def _told(name: str, value: float) -> str:
    """Return a score as JSON has it and as tables have it; how many queries there were is no share."""
    return f"{value:g}" if name.startswith("queries") else f"{value:.4g} ({100 * value:.4g} %)"
