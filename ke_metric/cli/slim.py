"""`ke-metric slim`: store a network of a generation, cut out or dense, as one that travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from ke_metric.cli.chosen import generation_of, say_network
from ke_metric.cli.display import Outcome
from ke_metric.cli.lineages import open_lineage
from ke_metric.disk import require_free
from ke_metric.generation import Scores
from ke_metric.lineage.report import is_share
from ke_metric.networks.architecture import Architecture
from ke_metric.networks.bundle import STORED_NETWORK, save_network
from ke_metric.networks.bundle_config import WEIGHTS
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.retrieval.network_choice import card_of, choose_network
from ke_metric.scoring import count_parameters
from ke_metric.split.slim import extract_slim


def store_network(*, which: str | None, network: str, lineage: Path | None, folder: Path, overwrite: bool) -> Outcome:
    """Store a network of a generation, its slim or its dense one, as config.json and model.safetensors.

    Args:
        which: A number, `last` or `best`; None: the best one whose weights were kept.
        network: `slim` or `dense`.
        lineage: The lineage's folder; the newest one when None.
        folder: The folder to make.
        overwrite: Replace the stored network that is there.

    Raises:
        KeMetricError: No such lineage or generation, weights not kept, no slim network, or the folder is taken.
    """
    require_free(folder, overwrite=overwrite, kind=STORED_NETWORK)
    store = open_lineage(lineage)
    choice = choose_network(store, generation_of(which), network)
    say_network(f"{store.folder}, {choice.words}", choice.reason)
    generation = store.load(choice.number)
    class_names = generation.provenance.class_names
    # Laid out in memory as they were when they were scored.
    dense, plan = LineageNetworks(store.recipe, len(class_names)).restore(generation)
    slim = extract_slim(dense, plan) if choice.has_slim else None
    stored = dense if slim is None or network == "dense" else slim
    save_network(
        stored,
        folder,
        architecture=Architecture.of_recipe(store.recipe, classes=len(class_names) if class_names else None),
        card=card_of(choice, generation, slim=stored is slim),
        overwrite=overwrite,
    )
    document: dict[str, Any] = {
        "lineage": str(store.folder),
        "generation": generation.number,
        "network": network,
        "folder": str(folder),
        "dense_parameters": count_parameters(dense),
        "dense_bytes": sum(tensor.nbytes for tensor in generation.weights.values()),
        "dense": dict(generation.scorecard.dense),
    }
    if slim is not None:
        document["slim_parameters"] = count_parameters(slim)
        document["slim_bytes"] = sum(tensor.nbytes for tensor in slim.state_dict().values())
    document[f"{network}_bytes"] = (folder / WEIGHTS).stat().st_size
    if generation.scorecard.slim is not None:
        document["slim"] = dict(generation.scorecard.slim)
    return Outcome(document, _table(document))


def _table(document: dict[str, Any]) -> Table:
    table = Table(title=f"{document['folder']}: {document['lineage']}", title_justify="left")
    networks = [name for name in ("dense", "slim") if f"{name}_parameters" in document]
    table.add_column(f"generation {document['generation']}")
    for name in networks:
        table.add_column(f"{name}, stored" if name == document["network"] else name, justify="right")
    table.add_row("parameters", *(f"{document[f'{name}_parameters']:,}" for name in networks))
    table.add_row("size", *(f"{document[f'{name}_bytes'] / 1e6:,.1f} MB" for name in networks))
    scores: dict[str, Scores] = {name: document.get(name, {}) for name in networks}
    for score in dict.fromkeys(score for found in scores.values() for score in found):
        table.add_row(score, *(_shown(score, found.get(score)) for found in scores.values()))
    return table


def _shown(name: str, value: float | None) -> str:
    """Return a share in percent, a count of pictures as a whole number, other scores as they are."""
    if value is None:
        return "-"
    if is_share(name):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if name.startswith("queries") else f"{value:.3f}"
