"""Which stored network a command takes, and the line that says so: lineage, generation, dense or slim, and scores."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ke_metric.cli.choices import ModelChoice
from ke_metric.cli.display import say
from ke_metric.cli.lineages import open_lineage
from ke_metric.networks.description import read_description
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.index import Index
from ke_metric.retrieval.picture_network import PictureNetwork
from ke_metric.retrieval.predictor import Predictor

Loaded = TypeVar("Loaded", bound=PictureNetwork)


def load_embedder(model: ModelChoice) -> Embedder:
    """Load what embeds, of the newest lineage where none is named, and say what was taken.

    Raises:
        KeMetricError: See `Embedder.load`.
    """
    return _load(model, Embedder, task="retrieval")


def load_predictor(model: ModelChoice) -> Predictor:
    """Load a classifier, of the newest lineage of classifications where none is named, and say what was taken.

    Raises:
        KeMetricError: See `Predictor.load`.
    """
    return _load(model, Predictor, task="classification")


def load_either(model: ModelChoice) -> Embedder | Predictor:
    """Load what a network was trained for: an embedder, or of a classification a predictor; and say what was taken.

    Raises:
        KeMetricError: See `Embedder.load`.
    """
    if model.bundle is not None:
        classifies = read_description(model.bundle).embedding_size is None
    else:
        lineage = open_lineage(model.lineage)
        model, classifies = replace(model, lineage=lineage.folder), lineage.recipe.task == "classification"
    return load_predictor(model) if classifies else load_embedder(model)


def embedder_of(index: Index, model: ModelChoice) -> Embedder:
    """Load the network that was named, or else the index's own, and say what was taken.

    Raises:
        KeMetricError: See `Embedder.load` and `Index.embedder`.
    """
    if model.is_named:
        return load_embedder(model)
    embedder = index.embedder
    say_network(index.manifest.description, "that of the index")
    return embedder


def generation_of(which: str | None) -> int | str | None:
    """Return what `--gen` says, as `Lineage.number_of` takes it; None where it is left out."""
    return int(which) if which is not None and which.isdecimal() else which


def say_network(description: str, reason: str = "") -> None:
    """Say on stderr which network is at work."""
    say(f"network: {description}{f': {reason}' if reason else ''}")


def _load(model: ModelChoice, kind: type[Loaded], *, task: str) -> Loaded:
    if model.bundle is not None:
        loaded = kind.load(model.bundle, device=model.device)
    else:
        # Opened: a folder that holds no lineage would else be looked at as a bundle.
        lineage = open_lineage(model.lineage, task=task).folder
        loaded = kind.load(lineage, generation_of(model.which), model.network, device=model.device)
    say_network(loaded.description, loaded.reason)
    return loaded
