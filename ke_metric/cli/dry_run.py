"""`ke-metric train --dry-run`: build everything, try one real batch, write nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from ke_metric.cli.display import say_skipped
from ke_metric.cli.result import Result
from ke_metric.data.benchmarks import load_benchmark
from ke_metric.data.images import Benchmark
from ke_metric.data.pictures import Pictures, first_pictures, repeated_pictures
from ke_metric.data.problems import require_scorable
from ke_metric.evolution import Nursery
from ke_metric.lineage import default_folder
from ke_metric.recipe import Recipe
from ke_metric.scoring import Scorer, count_parameters
from ke_metric.split.plan import SplitPlan
from ke_metric.split.slim import extract_slim
from ke_metric.training.engine import Engine
from ke_metric.training.one_generation import GenerationTraining

# Optimizer state per network weight, in weights.
MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2}
BYTES_PER_WEIGHT = 4


def rehearse(recipe: Recipe, *, device: str | None, folder: Path | None) -> Result:
    """Do everything `train` does up to the second optimizer step, and report what it would take.

    Raises:
        KeMetricError: A file, a field of the recipe or a part of the environment that the first step or the scoring
            needs is wrong. Only the pictures of the first batch are decoded: `ke-metric data check` looks at all.
    """
    benchmark = load_benchmark(recipe.data, recipe.task)
    for kind, paths in benchmark.skipped.items():
        say_skipped(kind, paths)
    require_scorable(benchmark)
    engine = Engine(recipe.training.precision, device)
    undecoded = Pictures.undecoded(benchmark)
    nursery = Nursery(recipe, undecoded, engine)
    birth = nursery.birth(1, None)
    network, plan = nursery.build_child(birth), birth.plan
    loss = nursery.build_loss(1, None)
    search = {} if recipe.task == "classification" else {"search_backend": Scorer(undecoded, recipe, engine).backend}
    pictures, batches = first_pictures(benchmark, recipe)
    training = Nursery(recipe, pictures, engine).prepare(network, loss, birth)
    repeated = repeated_pictures(benchmark, recipe)
    value, seconds = _try(training, batches)
    document: dict[str, Any] = {
        "lineage": str(folder or default_folder(recipe)),
        **_count_images(benchmark),
        "batches_per_epoch": batches,
        **({"repeated_pictures": repeated} if repeated and recipe.task == "retrieval" else {}),
        **_count_parameters(network, loss, plan, alone=recipe.method.name == "slim_alone"),
        "expected_disk_bytes": expected_disk(recipe, network, loss),
        "first_loss": value,
        "seconds_per_step": round(seconds, 4),
        "estimated_training_seconds": round(seconds * batches * recipe.training.epochs * recipe.generations),
        **engine.describe(),
        **search,
    }
    return Result(document, _table(document))


def _try(training: GenerationTraining, batches: int) -> tuple[float, float]:
    """Take two steps on the first batch; return the first one's loss and the second one's seconds."""
    batch = next(training.epochs.epoch(1))
    loss, _ = training.take_step(0, batch)
    started = time.perf_counter()
    training.take_step(min(1, batches - 1), batch)
    return loss, time.perf_counter() - started


def _count_images(benchmark: Benchmark) -> dict[str, Any]:
    parts = {"train": benchmark.train, "query": benchmark.query, "gallery": benchmark.gallery}
    if benchmark.validation is not None:
        parts["validation"] = benchmark.validation
    return {name: {"images": len(images), "classes": len(images.class_names)} for name, images in parts.items()}


def _count_parameters(network: nn.Module, loss: nn.Module, plan: SplitPlan, *, alone: bool) -> dict[str, int]:
    total = count_parameters(network)
    counts = {
        "parameters": total,
        "parameters_fit": total - plan.reset_count,
        "parameters_reset": plan.reset_count,
        "parameters_loss": count_parameters(loss),
    }
    if alone or plan.kind != "kels":
        return counts
    return counts | {"parameters_slim": count_parameters(extract_slim(network, plan))}


def expected_disk(recipe: Recipe, network: nn.Module, loss: nn.Module, *, kept: int | None = None) -> int:
    """Return the most bytes the lineage will hold: kept weights, and two resume states while one is written.

    Args:
        recipe: Of the lineage.
        network: Its network.
        loss: Its loss.
        kept: Generations that are kept; as many as the recipe keeps when left out.
    """
    weights = count_parameters(network) + count_parameters(loss)
    kept = kept or {"last": 2, "best": 3, "all": recipe.generations}[recipe.keep]
    states = 2 * (1 + MOMENTS[recipe.optimizer.name])
    return BYTES_PER_WEIGHT * weights * (kept + states)


def _table(document: dict[str, Any]) -> Table:
    title = "dry run: nothing was written; pictures beyond the first batch were not decoded (ke-metric data check)"
    table = Table(show_header=False, title=title, title_justify="left")
    for name, value in document.items():
        table.add_row(name.removesuffix("_bytes").replace("_", " "), _shown(name, value))
    return table


def _shown(name: str, value: Any) -> str:
    if name == "repeated_pictures":
        return (
            f"{value['classes']:,} classes have fewer images than batches.images_per_class: {value['self_pairs']:,} "
            f"of {value['positive_pairs']:,} positive pairs of an epoch are a picture and itself"
        )
    if isinstance(value, dict):
        return f"{value['images']:,} images, {value['classes']:,} classes"
    if name == "expected_disk_bytes":
        return f"{value / 1e6:,.0f} MB at most"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
