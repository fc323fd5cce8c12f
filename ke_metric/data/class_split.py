"""The class-disjoint split of benchmarks that bring none of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.randomness import derive_seed

ClassId = TypeVar("ClassId", int, str)

# Belongs to the benchmark: recipes with different seeds must be scored on the same test classes.
SPLIT_SEED = 0


def split_classes(
    class_ids: Iterable[ClassId], test_fraction: float, name: str
) -> tuple[tuple[ClassId, ...], tuple[ClassId, ...]]:
    """Divide classes into training and test classes, the same way on every machine and for every recipe seed.

    Every class gets a number hashed from the benchmark's name and its own id, and the classes with the smallest
    numbers are the test classes. So a class that is added or left out moves no more than one other class, and a
    larger test fraction keeps all test classes of a smaller one.

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
    drawn = sorted(ordered, key=lambda class_id: derive_seed(SPLIT_SEED, 0, f"class split/{name}/{class_id}"))
    test_count = min(max(round(test_fraction * len(ordered)), 1), len(ordered) - 1)
    return tuple(sorted(drawn[test_count:])), tuple(sorted(drawn[:test_count]))
