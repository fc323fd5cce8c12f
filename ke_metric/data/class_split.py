"""The class-disjoint split of benchmarks that bring none of their own, and the draw that all our splits rely on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.randomness import derive_seed

Id = TypeVar("Id", int, str)

# Belongs to the benchmark: recipes with different seeds must be scored on the same test classes.
SPLIT_SEED = 0


def split_classes(class_ids: Iterable[Id], test_fraction: float, name: str) -> tuple[tuple[Id, ...], tuple[Id, ...]]:
    """Divide classes into training and test classes, the same way on every machine and for every recipe seed.

    Args:
        class_ids: Ids of at least 2 classes, in any order; repetitions count once.
        test_fraction: Share of the classes that is for testing, in (0, 1); rounded to whole classes, at least one
            on either side.
        name: Name of the benchmark; two benchmarks with the same ids are split differently.

    Returns:
        Training ids and test ids, each in ascending order.

    Raises:
        KeMetricError: There are fewer than 2 classes (DATA).
    """
    ordered = sorted(set(class_ids))
    if len(ordered) < 2:
        raise KeMetricError(
            f"benchmark {name}: {len(ordered)} class(es) found; splitting by class needs at least 2", ExitCode.DATA
        )
    return draw_share(ordered, test_fraction, f"class split/{name}")


def draw_share(ids: Iterable[Id], share: float, purpose: str) -> tuple[tuple[Id, ...], tuple[Id, ...]]:
    """Draw a share of some ids, the same ones on every machine and for every recipe seed.

    Every id gets a number hashed from the purpose and the id itself, and those with the smallest numbers are drawn.
    So an id that is added or left out moves no more than one other, and a larger share has all ids of a smaller one.

    Args:
        ids: In any order; repetitions count once.
        share: In (0, 1); rounded to whole ids, at least one drawn and one left where there are 2 ids or more. A
            single id is never drawn.
        purpose: What the draw is for; every purpose draws differently.

    Returns:
        The ids left and the ids drawn, each in ascending order.
    """
    ordered = sorted(set(ids))
    hashed = sorted(ordered, key=lambda drawn_id: derive_seed(SPLIT_SEED, 0, f"{purpose}/{drawn_id}"))
    count = min(max(round(share * len(ordered)), 1), max(len(ordered) - 1, 0))
    return tuple(sorted(hashed[count:])), tuple(sorted(hashed[:count]))
