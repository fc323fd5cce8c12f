"""What a command is given, what it says on stderr while it runs, and what it gives back: JSON, or a table."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ke_metric.benchmarks.listings import Columns
from ke_metric.cli.options import PictureChoice
from ke_metric.errors import ExitCode, KeMetricError, readable, some_of

if TYPE_CHECKING:
    from ke_metric.retrieval.picture_list import LeftOut, PictureList

# Under torchrun one process speaks for all.
IS_FIRST_PROCESS = os.environ.get("RANK", "0") == "0"
CONSOLE = Console(stderr=True, highlight=False, quiet=not IS_FIRST_PROCESS)
WIDEST = 240
"""Columns that a table may take in a file or pipe."""


def say(text: str, *, style: str | None = None) -> None:
    """Print one line on stderr, unwrapped, and without the control characters that a name of a file may have."""
    CONSOLE.print(readable(text), style=style, soft_wrap=True, markup=False)


def say_skipped(kind: str, paths: Sequence[str]) -> None:
    """Name the first few of the files or folders that lie beside the pictures and are none, if there are any."""
    if paths:
        say(f"{kind} skipped: {len(paths):,} ({some_of(paths)})")


def say_network(description: str, reason: str = "") -> None:
    """Say on stderr which network is at work."""
    say(f"network: {description}{f': {reason}' if reason else ''}")


def list_chosen(pictures: PictureChoice, *, unique: bool = True) -> PictureList:
    """List the pictures that were named, and tell of those that cannot be used already by their names.

    Args:
        pictures: Which ones.
        unique: Whether two may not have the same id.

    Raises:
        KeMetricError: None was named (USAGE), see `list_pictures`, or one cannot be used and all must (DATA).
    """
    if not pictures.sources:
        raise KeMetricError("no pictures are named: files, folders or CSV files with path,label", ExitCode.USAGE)
    # Brings torch, without which some commands must be able to say so.
    from ke_metric.retrieval.picture_list import list_pictures

    columns = Columns(pictures.path_column, pictures.label_column)
    listed = list_pictures(pictures.sources, labels=pictures.labels, unique=unique, columns=columns)
    if pictures.strict and listed.left_out:
        raise KeMetricError(listed.left_out[0].reason, ExitCode.DATA)
    warn_of(listed.left_out)
    say_skipped("files", listed.skipped)
    return listed


def warn_of(left_out: Iterable[LeftOut]) -> None:
    """Say which pictures cannot be used, a line for each."""
    for picture in left_out:
        say(f"warning: {picture.reason}", style="yellow")


def require_some(used: int, listed: int) -> None:
    """Refuse a result of nothing.

    Raises:
        KeMetricError: DATA: not one picture could be used.
    """
    if not used:
        raise KeMetricError(f"none of the {listed:,} pictures can be used", ExitCode.DATA)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far something has come; gives the function to call with the number done and the total."""
    if not CONSOLE.is_terminal:
        say(f"{what} ...")
        yield lambda done, total: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
    with Progress(*columns, TimeRemainingColumn(), console=CONSOLE, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command.

    Attributes:
        document: Plain JSON values.
        shown: What a person reads.
    """

    document: Mapping[str, Any]
    shown: RenderableType

    def print(self, as_json: bool) -> None:
        """Print it on stdout, as one JSON document or for people; of several processes the first one does."""
        if not IS_FIRST_PROCESS:
            return
        if as_json:
            click.echo(json.dumps(self.document, indent=2, allow_nan=False))
        else:
            self.show()

    def show(self) -> None:
        """Print it on stdout; as wide as it needs where stdout is no terminal."""
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, WIDEST)
        # A table that cannot be narrower goes on beyond the edge, rather than lose numbers.
        console.print(self.shown, soft_wrap=not console.is_terminal, crop=False, highlight=False, markup=False)


def resume_command(folder: Path, device: str | None, *, processes: int | None = None) -> str:
    """Return the whole command that goes on with a training, with what starts its processes.

    Args:
        folder: The lineage's.
        device: The torch device that was asked for.
        processes: How many processes; as many as there are now when None.
    """
    from ke_metric.recipe.file import RESOLVED  # a search shows results and reads no recipe

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
