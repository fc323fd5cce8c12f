"""`ke-metric data pictures`: the pictures that a lineage is scored on, as files."""

from __future__ import annotations

from pathlib import Path

from ke_metric.cli.display import counting
from ke_metric.cli.lineages import open_lineage, tell_data_changes
from ke_metric.cli.result import Result
from ke_metric.data.archives import refuse_occupied
from ke_metric.data.benchmarks import load_benchmark
from ke_metric.data.picture_files import write_pictures
from ke_metric.data.pictures import fingerprint


def write_lineage_pictures(*, lineage: Path | None, target: Path, part: str) -> Result:
    """Write the pictures of a part of the benchmark of a lineage's recipe.

    Args:
        lineage: The lineage's folder; the newest one when None.
        target: Folder to make.
        part: `test` or `train`.

    Raises:
        KeMetricError: No such lineage, its data are missing, or something lies in the target.
    """
    refuse_occupied(target)
    store = open_lineage(lineage)
    recipe = store.recipe
    benchmark = load_benchmark(recipe.data, recipe.task)
    tell_data_changes(store, fingerprint(benchmark))
    with counting(f"writing {benchmark.name}") as progress:
        written = write_pictures(benchmark, target, part=part, progress=progress)
    document = {
        "lineage": str(store.folder),
        "benchmark": benchmark.name,
        "folder": str(target),
        "classes": written.classes,
        "pictures": written.counts,
    }
    lines = [f"{target / name}: {count:,} pictures" for name, count in written.counts.items()]
    return Result(document, "\n".join([*lines, f"{written.classes:,} classes of {benchmark.name}"]))
