"""Small lineages of networks that were drawn, not trained, and pictures to embed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ke_metric import Lineage
from ke_metric.blueprint import Blueprint
from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.recipe import Recipe

FIELDS = {
    "name": "x",
    "generations": 2,
    "keep": "all",
    "data": {"image_size": 32, "store_size": 40, "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]},
    "network": {"backbone": "timm/test_resnet", "embedding_size": 8},
    "evaluation": {"resize": 36, "batch_size": 16},
}


def grow(folder: Path, **fields: object) -> Lineage:
    """Store a lineage of two generations with random weights below `folder`."""
    recipe = Recipe.model_validate(FIELDS | fields)
    lineage = Lineage.create(folder, recipe, text="x", command="ke-metric train x.yaml")
    classes = ("crow", "jay") if recipe.task == "classification" else ()
    blueprint = Blueprint(recipe, len(classes))
    for number in range(1, recipe.generations + 1):
        network = blueprint.build(number)
        plan = blueprint.plan(network, number)
        has_slim = plan.kind == "kels"
        lineage.append(
            Generation(
                number=number,
                weights=network.state_dict(),
                loss_weights={},
                split=plan.to_json(),
                split_bits=plan.to_tensors(),
                scorecard=Scorecard(
                    {"recall@1": 0.5}, {"recall@1": 0.4} if has_slim else None, 9, 3 if has_slim else None
                ),
                training_log=(),
                magnitudes={},
                provenance=Provenance("0", "1" if number > 1 else None, 0, {}, {}, {}, classes),
            )
        )
    return lineage


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    """A lineage of two generations, KELS 0.5, D = 8."""
    return grow(tmp_path_factory.mktemp("grown") / "lineage")


@pytest.fixture(scope="session")
def grow_lineage() -> Callable[..., Lineage]:
    """Store another one: `grow_lineage(folder, split={"kind": "wels"})`."""
    return grow
