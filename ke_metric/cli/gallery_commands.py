"""The commands that take a trained network into a pipeline, as click sees them: `commands` puts them under `main`."""

from __future__ import annotations

import click

GALLERY_COMMANDS: list[click.Command] = []
"""What `commands` adds to `main`."""
