"""Be `ke-metric train RECIPE` up to its first step, and end there: what `eval.speed.loader` takes the time of.

    python -m eval.speed.first_step RECIPE

A module of its own, so that nothing is imported here that the command would not import, or in another way.
"""

import os
import shutil
import sys
from pathlib import Path

from ke_metric.cli import importing, main


def stop_at_first_step(recipe: Path) -> None:
    """Train into a folder beside the recipe, which is gone afterwards."""
    with importing():
        from ke_metric.training.one_generation import GenerationTraining

    lineage = recipe.parent / "lineage"

    def first_step(*_: object, **__: object) -> None:
        shutil.rmtree(lineage, ignore_errors=True)
        os._exit(0)

    GenerationTraining.take_step = first_step  # type: ignore[assignment,method-assign]
    sys.argv = ["ke-metric", "train", str(recipe), "--lineage", str(lineage), "--device", "cpu"]
    main()


if __name__ == "__main__":
    stop_at_first_step(Path(sys.argv[1]))
