"""What a command gives back: a document for programs, a table or text for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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

    def show(self) -> None:
        """Print it on stdout; as wide as it needs where stdout is no terminal."""
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, WIDEST)
        console.print(self.shown, soft_wrap=not console.is_terminal, highlight=False, markup=False)
