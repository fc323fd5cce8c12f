"""`ke-metric serve`: an index behind HTTP, until it is stopped."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ke_metric.errors import ExitCode, KeMetricError

LIBRARIES = ("httptools", "prometheus_client", "starlette", "uvicorn")


def serve_index(
    folder: Path,
    *,
    address: tuple[str, int],
    token_file: Path | None,
    device: str | None,
    threads: int | None,
    **given: Any,
) -> None:
    """Serve an index until SIGTERM or Ctrl-C.

    Args:
        folder: Of the index.
        address: Host and port to listen on; port 0: one that is free.
        token_file: Holds the token; the environment variable's when None.
        device: Where the network runs.
        threads: Of the processor, for the network; chosen by its speed when None.
        given: Fields of `Limits`.

    Raises:
        KeMetricError: A library is missing, another host without a token, the address is taken, or the index cannot
            be opened.
    """
    _share_the_cores()
    _require_libraries()
    from ke_metric.serving.searcher import IndexSearcher
    from ke_metric.serving.server import serve
    from ke_metric.serving.settings import Limits, ServiceSettings, read_token

    settings = ServiceSettings(*address, read_token(token_file), Limits(**given))

    def ready(url: str) -> None:
        click.echo(f"serving {folder} on {url}; Ctrl-C or SIGTERM stops it", err=True)

    serve(lambda: IndexSearcher(folder, device=device, threads=threads), settings, ready=ready)


def _share_the_cores() -> None:
    """Let threads of OpenMP sleep while they wait for each other, before torch is imported.

    By default they spin. Here other threads decode and speak HTTP on the same cores, and would not get them: forward
    passes of small batches then take many times longer (docs/serving.md).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _require_libraries() -> None:
    for name in LIBRARIES:
        try:
            import_module(name)
        except ImportError as error:
            raise KeMetricError(
                f"serving needs {name}, which cannot be imported ({error}); install it with: "
                "pip install 'ke_metric[serve]'",
                ExitCode.ENVIRONMENT,
            ) from error
