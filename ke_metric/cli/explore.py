"""`ke-metric explore`: a lineage or an index on a page in the browser, until it is stopped."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ke_metric.cli.serve import require_libraries, share_the_cores
from ke_metric.errors import ExitCode, KeMetricError

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")
"""What names the screen on other systems than Windows and macOS."""

if TYPE_CHECKING:
    from ke_metric.explorer.collection import PictureCollection


def explore_collection(
    *,
    lineage: Path | None,
    index: Path | None,
    address: tuple[str, int],
    token_file: Path | None,
    device: str | None,
    browser: bool,
) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Args:
        lineage: Folder of the lineage; None without an index: the newest one of a retrieval.
        index: Folder of the index.
        address: Host and port.
        token_file: Holds the token; that of the environment when None.
        device: Where networks run.
        browser: Whether the page is opened in the browser.

    Raises:
        KeMetricError: Both are named, a library is missing, another host without a token, the address is taken, or
            what is named cannot be explored.
    """
    if lineage is not None and index is not None:
        raise KeMetricError("name either --lineage or --index, not both", ExitCode.USAGE)
    share_the_cores()
    require_libraries("the explorer")
    from ke_metric.explorer.application import LIMITS, explore
    from ke_metric.explorer.exploration import Exploration
    from ke_metric.serving.exchange import ServiceSettings, read_token

    settings = ServiceSettings(*address, read_token(token_file), LIMITS)

    opened: list[Exploration] = []

    def open_exploration() -> Exploration:
        opened.append(Exploration(_open_collection(lineage, index, device)))
        return opened[-1]

    def ready(url: str) -> None:
        click.echo(f"exploring on {url}; Ctrl-C stops it", err=True)
        if browser:
            open_page(url)

    explore(open_exploration, settings, ready=ready)
    if opened[-1].networks.is_computing:
        # A network is in the middle of its pictures, in a thread that Python would tear torch away from: that aborts.
        # What is written of vectors is whole or not there.
        sys.stderr.flush()
        os._exit(ExitCode.OK)


def open_page(url: str) -> None:
    """Open a page where there is a screen: without one a browser of the terminal could take the terminal."""
    if sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in SCREENS):
        webbrowser.open(url)


def _open_collection(lineage: Path | None, index: Path | None, device: str | None) -> PictureCollection:
    from ke_metric.cli.display import counting
    from ke_metric.cli.lineages import open_lineage
    from ke_metric.explorer.index_collection import IndexCollection
    from ke_metric.explorer.lineage_collection import LineageCollection

    if index is not None:
        return IndexCollection(index, device=device)
    try:
        found = open_lineage(lineage, task="retrieval")
    except KeMetricError as error:
        if lineage is not None:
            raise
        told = f"{error}. A lineage of classifications has no neighbours: ke-metric report shows it"
        raise KeMetricError(told, error.exit_code) from error
    with counting(f"decoding the pictures of {found.folder}") as progress:
        return LineageCollection.open(found, device=device, progress=progress)
