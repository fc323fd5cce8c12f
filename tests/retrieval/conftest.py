"""Small lineages of networks that were drawn, not trained, and pictures to embed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from ke_metric import Lineage
from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.stores.contract import Hits, Item, Where

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
    networks = LineageNetworks(recipe, len(classes))
    for number in range(1, recipe.generations + 1):
        network = networks.build(number)
        plan = networks.plan(network, number)
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


class MemoryStore:
    """A vector store as anybody would write one down: two lists, all inner products, one sort per query."""

    def __init__(self, items: Sequence[Item], vectors: np.ndarray) -> None:
        self.items, self.vectors, self.dimension = list(items), vectors, vectors.shape[1]

    def __len__(self) -> int:
        return len(self.items)

    def search(self, queries: np.ndarray, k: int, *, where: Where | None = None) -> Hits:
        numbers = np.full((len(queries), k), -1, np.int64)
        similarities = np.full((len(queries), k), -np.inf, np.float32)
        allowed = [number for number, item in enumerate(self.items) if where is None or holds(where, item)]
        for row, query in enumerate(queries):
            found = sorted((-float(np.dot(query, self.vectors[number])), number) for number in allowed)[:k]
            numbers[row, : len(found)] = [number for _, number in found]
            similarities[row, : len(found)] = [-negative for negative, _ in found]
        return Hits(
            similarities, numbers, lambda asked: [self.items[n] for n in asked], lambda asked: self.vectors[asked]
        )

    def known(self, ids: Collection[str]) -> set[str]:
        return {item.id for item in self.items} & set(ids)

    def read(self, batch_size: int = 8192) -> Iterator[tuple[list[Item], np.ndarray]]:
        for start in range(0, len(self), batch_size):
            rows = slice(start, start + batch_size)
            yield self.items[rows], self.vectors[rows]


def holds(where: Where, item: Item) -> bool:
    """Whether every condition holds for an item."""
    return all((getattr(item, part.field) in part.values) == part.within for part in where.conditions)


@pytest.fixture(scope="session")
def memory_store() -> Callable[..., MemoryStore]:
    """The slow, obvious store: `memory_store(items, vectors)`."""
    return MemoryStore
