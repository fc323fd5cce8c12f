"""What a command gives back: a document for programs, a table or text for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console, RenderableType

WIDEST = 240
"""Columns that a table may take in a file or pipe."""


@dataclass(frozen=True)
class Result:
    """The outcome of a command.

    Attributes:
        document: Plain JSON values.
        shown: What a person reads.
    """

    document: Mapping[str, Any]
    shown: RenderableType

    def print(self, as_json: bool) -> None:
        """Print it on stdout, as one JSON document or for people; of several processes the first one does."""
        from ke_metric.cli.display import IS_FIRST_PROCESS

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
