"""How a training goes on: with which command, with what not as it was before, and when another process has gone."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ke_metric.cli.display import say
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evolution import Start
from ke_metric.lineage import RESOLVED, Lineage, holds_lineage
from ke_metric.recipe import Recipe
from ke_metric.training.engine import Engine, lost_process


def resume_command(folder: Path, device: str | None, *, processes: int | None = None) -> str:
    """Return the whole command that goes on with a training, with what starts its processes.

    Args:
        folder: The lineage's.
        device: The torch device that was asked for.
        processes: How many processes; as many as there are now when None.
    """
    words = ["train", str(folder / RESOLVED), "--lineage", str(folder), "--resume"]
    words += ["--device", device] if device else []
    launcher = _launcher(os.environ) if processes is None else _launcher({"WORLD_SIZE": str(processes)})
    return shlex.join([*launcher, *words])


def _launcher(environment: Mapping[str, str]) -> list[str]:
    """Return the words before `train`: those of torchrun where it, or something like it, has started us."""
    total = int(environment.get("WORLD_SIZE", 1))
    if total == 1:
        return ["ke-metric"]
    here = int(environment.get("LOCAL_WORLD_SIZE", total))
    words = ["torchrun", "--nproc_per_node", str(here)]
    if here == total:
        # A port of its own: another training may have the usual one.
        words.insert(1, "--standalone")
    else:
        words += ["--nnodes", str(total // here), "--node_rank", environment.get("GROUP_RANK", "0")]
        for option in ("MASTER_ADDR", "MASTER_PORT"):
            words += [f"--{option.lower()}", environment[option]] if option in environment else []
    return [*words, "-m", "ke_metric.cli"]


def warn_of_changes(start: Start, engine: Engine, *, lineage: Lineage, device: str | None) -> None:
    """Say, and log, where a training does not go on as it was trained before: processes, precision.

    Args:
        start: Where it goes on.
        engine: What it goes on with.
        lineage: The lineage, held for writing.
        device: The torch device that was asked for.
    """
    before = _last_engine(start)
    warnings = []
    if before.get("precision", engine.precision) != engine.precision:
        warnings.append(f"trained in {before['precision']} so far, goes on in {engine.precision}")
    processes = before.get("processes", engine.processes)
    if processes != engine.processes:
        again = resume_command(lineage.folder, device, processes=processes)
        warnings.append(
            f"trained by {_counted(processes)} so far, goes on with {_counted(engine.processes)}: "
            f"{_norms(lineage.recipe, processes, engine.processes)}. The numbers become others than those of a "
            f"training by {_counted(processes)} throughout, which goes on with: {again}"
        )
    for text in warnings:
        say(f"warning: {text}", style="yellow")
        lineage.log("warning", text=text)


def _last_engine(start: Start) -> Mapping[str, Any]:
    """Return what the last epoch was trained with; a record of before this was kept says nothing."""
    if start.state is not None and "processes" in start.state.training_log[-1]:
        return start.state.training_log[-1]
    if start.parent is None:
        return {}
    log = start.parent.training_log
    return log[-1] if log and "processes" in log[-1] else start.parent.provenance.training


def _counted(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _norms(recipe: Recipe, before: int, now: int) -> str:
    size = recipe.batches.size
    return (
        f"a batch of {size} pictures is shared otherwise, so that batch norm, where the network has it, goes by "
        f"{size // now} pictures instead of {size // before}, and dropout is drawn otherwise"
    )


@contextmanager
def together(engine: Engine, folder: Path, device: str | None) -> Iterator[None]:
    """Tell in words when another process of the training ends while this one waits for it.

    Args:
        engine: Knows the processes.
        folder: The lineage's, whether it is there already or not.
        device: The torch device that was asked for.

    Raises:
        KeMetricError: Another process has gone (exit code 5).
    """
    try:
        yield
    except RuntimeError as error:
        reason = lost_process(error) if engine.processes > 1 else None
        if reason is None:
            raise
        went_on = "No lineage was begun yet: start it again"
        if holds_lineage(folder):
            went_on = f"What was saved last is complete. Go on with: {resume_command(folder, device)}"
        raise KeMetricError(
            "another process of this training has gone: it was killed, ran out of memory, or stopped with an error "
            f"of its own ({reason}). {went_on}",
            ExitCode.ENVIRONMENT,
        ) from error
