"""`ke-metric serve`: an index or a classifier behind HTTP, until it is stopped."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ke_metric.cli.options import ModelChoice
from ke_metric.errors import ExitCode, KeMetricError

LIBRARIES = ("httptools", "prometheus_client", "starlette", "uvicorn")


def serve_network(
    *,
    folder: Path | None,
    model: ModelChoice,
    address: tuple[str, int],
    token_file: Path | None,
    device: str | None,
    threads: int | None,
    **given: Any,
) -> None:
    """Serve an index, or a classifier, until SIGTERM or Ctrl-C.

    Args:
        folder: Of the index; None: the classifier that `model` names is served.
        model: The classifier; none is named with an index.
        address: Host and port.
        token_file: Holds the token; that of the environment when None.
        device: Where the network runs.
        threads: Of the processor, for the network; chosen by its speed when None.
        given: Fields of `Limits`.

    Raises:
        KeMetricError: Both or neither are named, a library is missing, another host without a token, the address is
            taken, or what is served cannot be opened.
    """
    if (folder is None) != model.is_named:
        raise KeMetricError(
            "name either --index, to be searched, or a classifier: --lineage (with --gen, --network) or --bundle",
            ExitCode.USAGE,
        )
    share_the_cores()
    require_libraries("serving")
    from ke_metric.serving.exchange import Limits, ServiceSettings, read_token
    from ke_metric.serving.server import serve
    from ke_metric.serving.service import IndexSearcher, ServedNetwork

    token, served = read_token(token_file), str(folder)

    def open_index() -> ServedNetwork:
        return IndexSearcher(Path(served), device=device, threads=threads)

    def open_classifier() -> ServedNetwork:
        nonlocal served
        from ke_metric.cli.lineages import load_predictor

        predictor = load_predictor(replace(model, device=device))
        served = predictor.description
        return ServedNetwork(predictor, threads=threads)

    def ready(url: str) -> None:
        click.echo(f"serving {served} on {url}; Ctrl-C or SIGTERM stops it", err=True)

    if folder is None:
        serve(open_classifier, ServiceSettings(*address, token, Limits(**given), "classifier"), ready=ready)
    else:
        serve(open_index, ServiceSettings(*address, token, Limits(**given)), ready=ready)


def share_the_cores() -> None:
    """Let threads of OpenMP sleep while they wait for each other, before torch is imported.

    By default they spin. Here other threads decode and speak HTTP on the same cores, and would not get them: forward
    passes of small batches then take many times longer (docs/serving.md).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def require_libraries(what: str) -> None:
    """Check that what HTTP needs can be imported; `what` needs it.

    Raises:
        KeMetricError: ENVIRONMENT, with the command that installs it: something is missing.
    """
    for name in LIBRARIES:
        try:
            import_module(name)
        except ImportError as error:
            raise KeMetricError(
                f"{what} needs {name}, which cannot be imported ({error}); install it with: "
                "pip install 'ke_metric[serve]'",
                ExitCode.ENVIRONMENT,
            ) from error
