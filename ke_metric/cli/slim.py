"""`ke-metric slim`: cut the slim network of a stored generation out and store it as a network that travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from ke_metric.blueprint import Blueprint
from ke_metric.cli.lineages import open_lineage
from ke_metric.cli.result import Result
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import Generation
from ke_metric.networks.architecture import Architecture
from ke_metric.networks.description import WEIGHTS, NetworkCard
from ke_metric.networks.folders import require_free
from ke_metric.networks.storage import save_network
from ke_metric.recipe import Recipe
from ke_metric.scoring import count_parameters
from ke_metric.split.slim import extract_slim


def store_slim(*, which: str, lineage: Path | None, folder: Path, overwrite: bool) -> Result:
    """Store the slim network of a generation.

    Args:
        which: A number, `last` or `best`.
        lineage: The lineage's folder; the newest one when None.
        folder: Where config.json and model.safetensors are put.
        overwrite: Replace the stored network that is there.

    Raises:
        KeMetricError: No such lineage or generation, weights not kept, no slim network (wels), or the
            folder is taken.
    """
    require_free(folder, overwrite=overwrite)
    store = open_lineage(lineage)
    recipe = store.recipe
    _require_slim(store.folder, recipe)
    generation = store.load(store.number_of(which))
    dense, slim = _dense_and_slim(generation, recipe)
    class_names = generation.provenance.class_names or None
    save_network(
        slim,
        folder,
        architecture=Architecture.of_recipe(recipe, classes=len(class_names) if class_names else None),
        card=NetworkCard.of_recipe(recipe, class_names=class_names),
        overwrite=overwrite,
    )
    document: dict[str, Any] = {
        "lineage": str(store.folder),
        "generation": generation.number,
        "folder": str(folder),
        "dense_parameters": count_parameters(dense),
        "slim_parameters": count_parameters(slim),
        "dense_bytes": sum(tensor.nbytes for tensor in generation.weights.values()),
        "slim_bytes": (folder / WEIGHTS).stat().st_size,
    }
    if generation.scorecard.slim is not None:
        document["slim"] = dict(generation.scorecard.slim)
    return Result(document, _table(document))


def _require_slim(folder: Path, recipe: Recipe) -> None:
    if recipe.split.kind != "kels":
        reason = (
            f"split.kind = {recipe.split.kind!r} keeps single weights of every channel ('kels' keeps whole channels, "
            "which can be cut out)"
        )
    elif recipe.method.name == "slim_alone":
        reason = "method.name = 'slim_alone' trains the slim architecture itself, and nothing is left to be cut out"
    else:
        return
    raise KeMetricError(f"{folder}: its generations have no slim network: {reason}", ExitCode.LINEAGE)


def _dense_and_slim(generation: Generation, recipe: Recipe) -> tuple[nn.Module, nn.Module]:
    """Return the networks of a generation, laid out in memory as they were when they were scored."""
    dense, plan = Blueprint(recipe, len(generation.provenance.class_names)).restore(generation)
    return dense, extract_slim(dense, plan)


def _table(document: dict[str, Any]) -> Table:
    table = Table(show_header=False, title=f"{document['folder']}: {document['lineage']}", title_justify="left")
    table.add_row("generation", str(document["generation"]))
    for network in ("dense", "slim"):
        table.add_row(f"{network} parameters", f"{document[f'{network}_parameters']:,}")
        table.add_row(f"{network} size", f"{document[f'{network}_bytes'] / 1e6:,.1f} MB")
    for name, value in document.get("slim", {}).items():
        table.add_row(f"slim {name}", f"{value:.4f}")
    return table
