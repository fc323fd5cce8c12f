"""Which pictures and which stored network a command takes, and the line on stderr that says so.

What belongs to lineages and classifiers is imported where it is needed: a search of an index does without.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ke_metric.benchmarks.listings import Columns
from ke_metric.cli.display import say, say_skipped
from ke_metric.cli.options import ModelChoice, PictureChoice
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.bundle_config import read_description
from ke_metric.retrieval.embedder import Embedder, PictureNetwork
from ke_metric.retrieval.index import Index
from ke_metric.retrieval.picture_list import LeftOut, PictureList, list_pictures

if TYPE_CHECKING:
    from ke_metric.retrieval.predictor import Predictor

Loaded = TypeVar("Loaded", bound=PictureNetwork)


def list_chosen(pictures: PictureChoice, *, unique: bool = True) -> PictureList:
    """List the pictures that were named, and tell of those that cannot be used already by their names.

    Args:
        pictures: Which ones.
        unique: Whether two may not have the same id.

    Raises:
        KeMetricError: None was named (USAGE), see `list_pictures`, or one cannot be used and all must (DATA).
    """
    if not pictures.sources:
        raise KeMetricError("no pictures are named: files, folders or CSV files with path,label", ExitCode.USAGE)
    columns = Columns(pictures.path_column, pictures.label_column)
    listed = list_pictures(pictures.sources, labels=pictures.labels, unique=unique, columns=columns)
    if pictures.strict and listed.left_out:
        raise KeMetricError(listed.left_out[0].reason, ExitCode.DATA)
    warn_of(listed.left_out)
    say_skipped("files", listed.skipped)
    return listed


def warn_of(left_out: Iterable[LeftOut]) -> None:
    """Say which pictures cannot be used, a line for each."""
    for picture in left_out:
        say(f"warning: {picture.reason}", style="yellow")


def require_some(used: int, listed: int) -> None:
    """Refuse a result of nothing.

    Raises:
        KeMetricError: DATA: not one picture could be used.
    """
    if not used:
        raise KeMetricError(f"none of the {listed:,} pictures can be used", ExitCode.DATA)


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
    from ke_metric.retrieval.predictor import Predictor

    return _load(model, Predictor, task="classification")


def load_either(model: ModelChoice) -> Embedder | Predictor:
    """Load what a network was trained for: an embedder, or of a classification a predictor; and say what was taken.

    Raises:
        KeMetricError: See `Embedder.load`.
    """
    if model.bundle is not None:
        classifies = read_description(model.bundle).embedding_size is None
    else:
        from ke_metric.cli.lineages import open_lineage

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
        from ke_metric.cli.lineages import open_lineage

        # Opened: a folder that holds no lineage would else be looked at as a bundle.
        lineage = open_lineage(model.lineage, task=task).folder
        loaded = kind.load(lineage, generation_of(model.which), model.network, device=model.device)
    say_network(loaded.description, loaded.reason)
    return loaded
