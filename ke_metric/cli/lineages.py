"""Which lineage or stored network a command means, and whether the data are those of its training; all is said."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ke_metric.cli.display import say, say_network
from ke_metric.cli.options import ModelChoice
from ke_metric.errors import KeMetricError
from ke_metric.generation import TRAIN, DataFingerprint
from ke_metric.images.image_set import FolderSource
from ke_metric.lineage.folder import UNCHECKED, known_since
from ke_metric.lineage.store import Lineage
from ke_metric.networks.bundle_config import read_description
from ke_metric.retrieval.embedder import Embedder, PictureNetwork
from ke_metric.retrieval.predictor import Predictor

Loaded = TypeVar("Loaded", bound=PictureNetwork)


def open_lineage(folder: Path | None, *, task: str | None = None) -> Lineage:
    """Open the lineage that was named; else the newest one, of a task where the command needs one, and say which.

    Args:
        folder: The lineage's folder; None: the newest one under lineages/.
        task: `retrieval` or `classification`: newer ones of the other task are passed over. None: whatever it is.

    Raises:
        KeMetricError: There is none.
    """
    if folder is not None:
        return Lineage(folder)
    newest = Lineage.newest()
    chosen = newest if task is None else Lineage.newest(task=task)
    passed = "" if chosen.folder == newest.folder else f" of task {task} ({newest.folder} is of another task)"
    say(f"newest lineage{passed}: {chosen.folder}")
    return chosen


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


def _load(model: ModelChoice, kind: type[Loaded], *, task: str) -> Loaded:
    if model.bundle is not None:
        loaded = kind.load(model.bundle, size=model.size, device=model.device, views=model.views)
    else:
        # Opened: a folder that holds no lineage would else be looked at as a bundle.
        lineage = open_lineage(model.lineage, task=task).folder
        loaded = kind.load(
            lineage,
            generation_of(model.which),
            model.network,
            rate=model.rate,
            size=model.size,
            device=model.device,
            views=model.views,
        )
    say_network(loaded.description, loaded.reason)
    return loaded


def generation_of(which: str | None) -> int | str | None:
    """Return what `--gen` says, as `Lineage.number_of` takes it; None where it is left out."""
    return int(which) if which is not None and which.isdecimal() else which


def tell_data_changes(lineage: Lineage, now: DataFingerprint) -> list[str]:
    """Warn of what has changed in a lineage's data since it was begun, or say that nobody can tell.

    Args:
        lineage: Whose data they are.
        now: What lies there; contents are compared where they have been read.

    Returns:
        What has changed, a sentence each.

    Raises:
        KeMetricError: A classifier's classes are not those that it was trained on.
    """
    lineage.require_classes(now)
    before = lineage.data
    if before is None:
        contradictions = lineage.data_contradictions(now)
        for contradiction in contradictions:
            say(f"warning: these are not the data of {lineage.folder}: {contradiction}", style="yellow")
        if not contradictions:
            say(f"{lineage.folder} keeps no fingerprint of its data: {UNCHECKED}")
        return contradictions
    changes = before.changes(now)
    for change in changes:
        say(f"warning: the data have changed since {known_since(lineage.folder, before)}: {change}", style="yellow")
    return changes


def count_trained_pictures(lineage: Lineage, paths: Sequence[Path]) -> int | None:
    """Return how many of these pictures a lineage was trained on, and warn of them; None where nobody can tell.

    Args:
        lineage: Whose fingerprint is asked.
        paths: Files; one that cannot be read counts as another picture.
    """
    known = lineage.data
    trained = set(known.parts[TRAIN].contents) if known is not None and TRAIN in known.parts else set()
    if not trained:
        return None
    count = 0
    for path in paths:
        with suppress(KeMetricError):
            count += FolderSource(path.parent).content(path.name) in trained
    if count:
        say(
            f"warning: {count:,} of these {len(paths):,} pictures are ones that {lineage.folder} was trained on: "
            "how it scores them says little of pictures that it has never seen",
            style="yellow",
        )
    return count
