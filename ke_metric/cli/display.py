"""What a command says on stderr while it runs, and what it gives back: JSON for programs, a table for people."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ke_metric.errors import some_of

# Under torchrun one process speaks for all.
IS_FIRST_PROCESS = os.environ.get("RANK", "0") == "0"
CONSOLE = Console(stderr=True, highlight=False, quiet=not IS_FIRST_PROCESS)
WIDEST = 240
"""Columns that a table may take in a file or pipe."""


def say(text: str, *, style: str | None = None) -> None:
    """Print one line on stderr, unwrapped."""
    CONSOLE.print(text, style=style, soft_wrap=True, markup=False)


def say_skipped(kind: str, paths: Sequence[str]) -> None:
    """Name the first few of the files or folders that lie beside the pictures and are none, if there are any."""
    if paths:
        say(f"{kind} skipped: {len(paths):,} ({some_of(paths)})")


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
