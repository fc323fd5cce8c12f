"""The options of `ke-metric eval` that have embeddings scored through a store. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from ke_metric.cli.choices import StoreChoice

STORE_FIELDS = {"factory": "--factory", "search": "--search", "uri": "--uri", "index": "--kind"}
RANKING_FIELDS = {"expand": "--expand", "rerank": "--rerank"}


@dataclass(frozen=True)
class ThroughChoice:
    """Which store embeddings are scored through, and how it is searched.

    Attributes:
        store: Which kind of store.
        expand: Query expansion, `N` or `N:ALPHA`.
        rerank: Re-ranking, `K1:K2:LAMBDA` or `K1:K2:LAMBDA:DEPTH`.
    """

    store: StoreChoice
    expand: str | None = None
    rerank: str | None = None


def through_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, given to the command as `through`; None without --store."""

    @wraps(function)
    def packed(*, kind: str | None, **rest: Any) -> Any:
        store = {name: rest.pop(name) for name in STORE_FIELDS}
        ranking = {name: rest.pop(name) for name in RANKING_FIELDS}
        if kind is None:
            _refuse(store | ranking)
            return function(through=None, **rest)
        return function(through=ThroughChoice(StoreChoice(kind=kind, **store), **ranking), **rest)

    for option in (
        click.option("--rerank", metavar="K1:K2:LAMBDA[:DEPTH]", help="k-reciprocal re-ranking: --rerank 5:3:0.3"),
        click.option("--expand", metavar="N[:ALPHA]", help="Query expansion by N neighbours: --expand 4:3"),
        click.option("--kind", "index", metavar="KIND", help="milvus: FLAT (exact), HNSW, IVF_FLAT, AUTOINDEX."),
        click.option("--uri", help="milvus: a cluster, http://host:19530; a temporary file when left out."),
        click.option("--search", multiple=True, metavar="KEY=N", help="faiss: how thoroughly: --search nprobe=32"),
        click.option("--factory", help="faiss: Flat (exact), HNSW32, IVF1024,Flat, ...; auto: chosen by size."),
        click.option(
            "--store",
            "kind",
            type=click.Choice(["faiss", "memmap", "milvus"]),
            help="Score the same embeddings through a temporary store as well, and say what it loses.",
        ),
    ):
        packed = option(packed)
    return packed


def _refuse(options: dict[str, Any]) -> None:
    """Refuse options of a store where there is none: nothing would read them."""
    names = STORE_FIELDS | RANKING_FIELDS
    given = [names[name] for name, value in options.items() if value]
    if given:
        raise click.UsageError(f"{' and '.join(given)} needs --store: faiss, memmap or milvus")
