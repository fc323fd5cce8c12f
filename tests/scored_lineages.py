"""A small lineage whose scorecards are really those of its networks, on characters that are never seen as files."""

from pathlib import Path

import torch

from ke_metric import Lineage
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.generation import Generation, Provenance, rate_text
from ke_metric.images.image_set import without_training
from ke_metric.images.pixel_store import Pictures
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.scoring import Scorer
from ke_metric.training.engine import Engine

FIELDS = {
    "name": "scored",
    "generations": 2,
    "keep": "all",
    "data": {
        "benchmark": "glyphs", "test_classes": 5, "image_size": 32, "store_size": 40,
        "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3],
    },
    "network": {"backbone": "timm/test_resnet", "embedding_size": 8},
    "evaluation": {"resize": 36, "batch_size": 16, "recall_at": [1, 2, 4], "kmeans_seeds": 1, "backend": "torch"},
}  # fmt: skip
CLASSES = {
    "task": "classification",
    "data": {key: value for key, value in FIELDS["data"].items() if key != "test_classes"} | {"train_classes": 10},
    "network": {"backbone": "timm/test_resnet"},
}


def grow_scored(folder: Path, **fields: object) -> Lineage:
    """Store a lineage of two drawn networks, scored dense and slim as a training scores them."""
    recipe = Recipe.model_validate(FIELDS | fields)
    lineage = Lineage.create(folder, recipe, text="x", command="ke-metric train x.yaml")
    benchmark = load_benchmark(recipe.data, recipe.task)
    if recipe.evaluation.slim_repair == "none":
        benchmark = without_training(benchmark)
    scorer = Scorer(Pictures.decode(benchmark, recipe.data.store_size), recipe, Engine("fp32", "cpu"))
    class_names = benchmark.query.class_names if recipe.task == "classification" else ()
    loss_weights = {"scale": torch.tensor(12.5)} if recipe.network.head == "cosine" else {}
    networks = LineageNetworks(recipe, len(class_names))
    for number in range(1, recipe.generations + 1):
        network = networks.build(number)
        plan = networks.plan(network, number)
        narrow = {rate_text(rate): networks.plan_at(network, rate) for rate in recipe.split.rates}
        repairs = scorer.repairs(network, {**narrow, rate_text(plan.rate): plan}, number)
        lineage.append(
            Generation(
                number=number,
                weights=network.state_dict(),
                loss_weights=loss_weights,
                split=plan.to_json(),
                split_bits=plan.to_tensors(),
                scorecard=scorer.scorecard(network, plan, narrow=narrow, repairs=repairs),
                training_log=(),
                magnitudes={},
                provenance=Provenance("0", "1" if number > 1 else None, 0, {}, {}, {}, class_names),
                narrow_splits={rate: each.to_json() for rate, each in narrow.items()},
                repairs=repairs,
            )
        )
    return lineage
