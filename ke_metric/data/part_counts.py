"""The parts of a benchmark by name, and how many images and classes each has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from ke_metric.data.images import Benchmark, ImageSet


@dataclass(frozen=True)
class PartCounts:
    """How large a part is.

    Attributes:
        images: Number of images, at least 1.
        classes: Number of classes that have an image here.
        smallest_class: Images of the class that has fewest.
        largest_class: Images of the class that has most.
    """

    images: int
    classes: int
    smallest_class: int
    largest_class: int

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


def parts_of(benchmark: Benchmark) -> dict[str, ImageSet]:
    """Return train and test, with validation where there is such a part, or train, query and gallery, by name."""
    if benchmark.leave_one_out:
        validation = {} if benchmark.validation is None else {"validation": benchmark.validation}
        return {"train": benchmark.train, **validation, "test": benchmark.query}
    return {"train": benchmark.train, "query": benchmark.query, "gallery": benchmark.gallery}


def count_parts(benchmark: Benchmark) -> dict[str, PartCounts]:
    """Count images and classes of every part that has an image."""
    return {name: _count(images) for name, images in parts_of(benchmark).items() if len(images)}


def counts_text(counts: Mapping[str, PartCounts]) -> str:
    """Return the counts as a plain table, one line per part."""
    return "\n".join(
        f"{name:<10} {part.images:>9,} images {part.classes:>8,} classes   {_sizes(part)} images per class"
        for name, part in counts.items()
    )


def _sizes(part: PartCounts) -> str:
    if part.smallest_class == part.largest_class:
        return f"{part.largest_class:,}"
    return f"{part.smallest_class:,} to {part.largest_class:,}"


def _count(images: ImageSet) -> PartCounts:
    _, sizes = np.unique(images.labels, return_counts=True)
    return PartCounts(len(images), len(sizes), int(sizes.min()), int(sizes.max()))
