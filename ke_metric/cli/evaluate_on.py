"""`ke-metric eval --on`: score stored networks on labelled pictures that their lineage has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ke_metric.benchmarks.listings import Columns
from ke_metric.cli.display import Outcome, counting, say, warn_of
from ke_metric.cli.evaluate import generations_of, network_names, require_names, require_slim, score_names
from ke_metric.cli.lineages import count_trained_pictures, open_lineage
from ke_metric.cli.options import ModelChoice, PictureChoice
from ke_metric.errors import KeMetricError
from ke_metric.evaluation.retrieval import Scoring
from ke_metric.generation import Scorecard
from ke_metric.lineage.report import (
    FittingTable,
    mistakes_table,
    number_columns,
    score_cells,
    shown_names,
    told_baseline,
    unit,
)
from ke_metric.networks.bundle_config import read_description
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.picture_list import LeftOut, PictureList, list_pictures
from ke_metric.retrieval.predictor import Predictor
from ke_metric.retrieval.scores import LabelledScores, require_labels, score_pictures
from ke_metric.scoring import count_parameters

RECALL_AT = (1, 2, 4, 8)
"""The Ks of Recall@K of a bundle, which has no recipe that says."""

Row = tuple[str, str, int, LabelledScores]
"""Generation or bundle, network, parameters, and what it scores."""


def evaluate_on(*, pictures: PictureChoice, model: ModelChoice, asked: Sequence[str] = ()) -> Outcome:
    """Score networks of a lineage, or a bundle, on labelled pictures.

    Args:
        pictures: A folder with a folder for each class, or a CSV with path,label, and what its columns are called.
        model: Whose networks: of the generations that `which` names, which may be `all`, the one that is named, or
            all where none is.
        asked: Names of scores that there must be.
    """
    [on] = pictures.sources
    columns = Columns(pictures.path_column, pictures.label_column)
    if model.bundle is not None:
        return _evaluate_bundle(on, columns, model.bundle, model.device, asked)
    store, which, device = open_lineage(model.lineage), model.which or "last", model.device
    recipe, numbers = store.recipe, generations_of(store, which)
    network = model.network or "both"
    require_slim(store, network)
    names = {number: network_names(store, number, network, model.rate) for number in numbers}
    classifies = recipe.task == "classification"
    evaluation = recipe.evaluation
    require_names(asked, score_names(recipe.task, evaluation.recall_at, evaluation.kmeans_seeds, of_others=True))
    listed = _listed(on, columns, pairs=not classifies)
    trained = count_trained_pictures(store, [Path(item.path) for item in listed.items])
    scoring = Scoring(evaluation.backend, device, tuple(range(evaluation.kmeans_seeds)), say)
    documents: list[dict[str, Any]] = []
    rows: list[Row] = []
    for number in numbers:
        documents.append({"generation": number})
        for name in names[number]:
            kind, _, text = name.partition(" ")
            rate = float(text) if text else None
            embedder = Embedder.load(store.folder, number, kind, rate=rate, device=device)
            predictor = Predictor.load(store.folder, number, kind, rate=rate, device=device) if classifies else None
            found = _scores(listed, embedder, predictor, f"generation {number} {name}", scoring, evaluation.recall_at)
            if text:
                documents[-1].setdefault("narrow", {})[text] = found.scores
            else:
                documents[-1][name] = found.scores
            if found.classes is not None:
                documents[-1].setdefault("classes", {})[name] = asdict(found.classes)
            rows.append((str(number), name, count_parameters(embedder.network), found))
    document = _facts(on, listed, rows) | {"lineage": str(store.folder)}
    document |= {} if trained is None else {"trained_on": trained}
    document |= {"generations": documents} if which == "all" else documents[0]
    return _result(document, f"{on}: {store.folder}", rows)


def _evaluate_bundle(on: Path, columns: Columns, bundle: Path, device: str | None, asked: Sequence[str]) -> Outcome:
    classifies = read_description(bundle).embedding_size is None
    scoring = Scoring(device=device, tell=say)
    task = "classification" if classifies else "retrieval"
    require_names(asked, score_names(task, RECALL_AT, len(scoring.kmeans_seeds), of_others=True))
    predictor = Predictor.load(bundle, device=device) if classifies else None
    embedder = _embedder_of(bundle, device, may_have_none=classifies)
    pictures = _listed(on, columns, pairs=not classifies)
    found = _scores(pictures, embedder, predictor, str(bundle), scoring, RECALL_AT)
    loaded = embedder or predictor
    assert loaded is not None, bundle
    rows = [(bundle.name, "bundle", count_parameters(loaded.network), found)]
    document = _facts(on, pictures, rows) | {"bundle": loaded.description, "network": found.scores}
    if found.classes is not None:
        document["classes"] = {"network": asdict(found.classes)}
    return _result(document, f"{on}: {bundle}", rows)


def _embedder_of(bundle: Path, device: str | None, *, may_have_none: bool) -> Embedder | None:
    try:
        return Embedder.load(bundle, device=device)
    except KeMetricError as error:
        if not may_have_none:
            raise
        say(f"no Recall@K: {error}")
        return None


def _listed(on: Path, columns: Columns, *, pairs: bool) -> PictureList:
    """List the pictures, before any network is loaded, and refuse what cannot be scored."""
    pictures = list_pictures([on], columns=columns)
    require_labels(pictures, pairs=pairs)
    warn_of(pictures.left_out)
    return pictures


def _scores(
    pictures: PictureList,
    embedder: Embedder | None,
    predictor: Predictor | None,
    what: str,
    scoring: Scoring,
    recall_at: Sequence[int],
) -> LabelledScores:
    with counting(f"scoring {what}") as progress:
        found = score_pictures(
            pictures.items,
            embedder=embedder,
            predictor=predictor,
            recall_at=recall_at,
            scoring=scoring,
            progress=progress,
        )
    if predictor is not None and found.unknown:
        missing, known = ", ".join(list(found.unknown)[:5]), ", ".join(predictor.class_names[:5])
        which = "top-1 is of the others" if found.classes else "no top-1: not one class is known"
        say(
            f"warning: the network has no class named {missing}{', ...' * (len(found.unknown) > 5)}; it knows {known}"
            f"{', ...' * (len(predictor.class_names) > 5)}: {which}",
            style="yellow",
        )
    return found


def _facts(on: Path, pictures: PictureList, rows: Sequence[Row]) -> dict[str, Any]:
    """Return what is the same for all networks, and warn of pictures that were left out."""
    first = rows[0][3]
    warn_of(first.left_out)
    left_out: tuple[LeftOut, ...] = (*pictures.left_out, *first.left_out)
    facts: dict[str, Any] = {
        "on": str(on),
        "pictures": first.pictures,
        "left_out": [{"path": each.name, "reason": each.reason} for each in left_out],
    }
    return facts | ({"unknown_classes": first.unknown} if first.unknown else {})


def _result(document: dict[str, Any], title: str, rows: Sequence[Row]) -> Outcome:
    baseline = told_baseline(found.scores for _, _, _, found in rows)

    def build(names: Sequence[str], facts: Sequence[str]) -> Table:
        table = Table(
            *number_columns(("generation", "network", *facts), names),
            title=Text(f"{title}, {unit(names)} in percent", no_wrap=True, overflow="ignore"),
            title_justify="left",
            caption=Text(baseline) if baseline else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for position, (generation, network, parameters, found) in enumerate(rows):
            again = position > 0 and rows[position - 1][0] == generation
            counts = [f"{parameters:,}"] * len(facts)
            table.add_row("" if again else generation, network, *counts, *score_cells(found.scores, names))
        return table

    table = FittingTable(build, shown_names(found.scores for _, _, _, found in rows))
    last = rows[-1][0]
    classes = {name: found.classes for generation, name, _, found in rows if found.classes and generation == last}
    mistakes = mistakes_table(last, Scorecard({}, None, 0, None, classes), networks=list(classes))
    return Outcome(document, Group(table, mistakes))
