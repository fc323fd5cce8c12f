"""Options that several commands share: which pictures, which network, which store. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(path_type=Path)
Function = Callable[..., Any]
RATE = click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True),
    help="The slim network of this split rate, one of the recipe's split.rates; split.rate when left out.",
)


@dataclass(frozen=True)
class PictureChoice:
    """Which pictures a command means.

    Attributes:
        sources: Files, folders and CSV files.
        labels: Whether the labels that folders and CSV files tell are kept.
        strict: Whether the first picture that cannot be used is an error.
        path_column: What the column of a CSV file is called that has the path.
        label_column: And the one that has the class.
    """

    sources: tuple[Path, ...]
    labels: bool = True
    strict: bool = False
    path_column: str = "path"
    label_column: str = "label"


@dataclass(frozen=True)
class ModelChoice:
    """Which network is used.

    Attributes:
        lineage: Folder of a lineage; None: the newest one, unless there is a bundle.
        which: A generation's number, `last` or `best`; None: the best one whose weights were kept.
        network: `dense` or `slim`; None: the one with the better score.
        rate: Split rate of the slim network; None: that of the recipe's `split.rate`.
        bundle: Folder of a stored network, in place of all that.
        device: A torch device.
        batch_size: Pictures per forward pass; None: the network's own.
        views: How many views of a picture its outputs are averaged over; None: as many as its recipe or bundle says.
        size: How many of the first numbers of an embedding are used; None: all.
    """

    lineage: Path | None = None
    which: str | None = None
    network: str | None = None
    rate: float | None = None
    bundle: Path | None = None
    device: str | None = None
    batch_size: int | None = None
    views: int | None = None
    size: int | None = None

    @property
    def is_named(self) -> bool:
        """Whether a network was named at all."""
        named = self.lineage, self.which, self.network, self.rate, self.bundle, self.views, self.size
        return any(value is not None for value in named)


@dataclass(frozen=True)
class StoreChoice:
    """Which kind of store an index gets; None is what `StoreSettings` says."""

    kind: str | None = None
    factory: str | None = None
    search: tuple[str, ...] = ()
    uri: str | None = None
    collection: str | None = None
    index: str | None = None


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


COLUMN_OPTIONS = (
    click.option(
        "--label-column", default="label", show_default=True, metavar="NAME", help="Of a CSV file: the class."
    ),
    click.option(
        "--path-column",
        default="path",
        show_default=True,
        metavar="NAME",
        help="Of a CSV file: the path, relative to the CSV file's folder.",
    ),
)


def column_options(function: Function) -> Function:
    """Add the options that name the columns of a CSV file."""
    for option in COLUMN_OPTIONS:
        function = option(function)
    return function


def picture_options(function: Function) -> Function:
    """Add PICTURES and the options that go with them, given to the command as `pictures`."""

    @wraps(function)
    def packed(sources: tuple[Path, ...], no_labels: bool, strict: bool, **rest: Any) -> Any:
        columns = {name: rest.pop(name) for name in ("path_column", "label_column")}
        return function(pictures=PictureChoice(sources, not no_labels, strict, **columns), **rest)

    for option in (
        *COLUMN_OPTIONS,
        click.argument("sources", nargs=-1, type=FOLDER, metavar="[PICTURES]..."),
        click.option("--no-labels", is_flag=True, help="Forget what folders and CSV files say of classes."),
        click.option("--strict", is_flag=True, help="Stop at the first picture that cannot be used."),
    ):
        packed = option(packed)
    return packed


def network_options(function: Function) -> Function:
    """Add the options that name a network, given to the command as `model`."""

    @wraps(function)
    def packed(**options: Any) -> Any:
        fields = ("lineage", "which", "network", "rate", "bundle")
        model = ModelChoice(**{name: options.pop(name) for name in fields})
        if model.bundle is not None and replace(model, bundle=None).is_named:
            raise click.UsageError("--bundle is one network: it excludes --lineage, --gen and --network, --rate too")
        return function(model=model, **options)

    for option in (
        click.option("--bundle", type=FOLDER, help="A stored network (ke-metric slim) in place of a lineage."),
        RATE,
        click.option("--network", type=click.Choice(["dense", "slim"]), help="The better one when left out."),
        click.option(
            "--gen", "which", metavar="N|last|best", help="The generation; the best one kept when left out."
        ),
        click.option("--lineage", type=FOLDER, help="Folder of the lineage; the newest one when left out."),
    ):
        packed = option(packed)
    return packed


def views_option(function: Function) -> Function:
    """Add the option that has more views of a picture averaged, to the network that a command is given as `model`."""

    @wraps(function)
    def packed(*, model: ModelChoice, views: str | None, **options: Any) -> Any:
        return function(model=replace(model, views=None if views is None else int(views)), **options)

    return click.option(
        "--views", type=click.Choice(["1", "2", "5"]), help="Average over so many views; the recipe's when left out."
    )(packed)


def model_options(function: Function) -> Function:
    """Add the options that name a network and say how it runs, given to the command as `model`."""

    @wraps(function)
    def packed(*, model: ModelChoice, device: str | None, batch_size: int | None, **options: Any) -> Any:
        return function(model=replace(model, device=device, batch_size=batch_size), **options)

    for option in (
        click.option("--batch-size", type=click.IntRange(1), help="Pictures per forward pass."),
        click.option("--device", help="A torch device: cpu, cuda, cuda:1; found by itself when left out."),
    ):
        packed = option(packed)
    return network_options(packed)


SIZE = click.option(
    "--size",
    type=click.IntRange(2),
    metavar="N",
    help="Use the first N numbers of an embedding (network.nested_sizes: trained for it).",
)


def size_option(function: Function) -> Function:
    """Add --size to a command that has `model` from the options of a network, above this one."""

    @wraps(function)
    def packed(*, model: ModelChoice, size: int | None, **options: Any) -> Any:
        return function(model=replace(model, size=size), **options)

    return SIZE(packed)


STORES = ("faiss", "memmap", "milvus", "postgres")
KIND = click.option(
    "--kind",
    "index",
    metavar="KIND",
    help="milvus: FLAT (exact), HNSW, IVF_FLAT, AUTOINDEX; postgres: FLAT, HNSW, HNSW_HALFVEC.",
)


def store_options(function: Function) -> Function:
    """Add the options that say how an index is stored, given to the command as `store`."""

    @wraps(function)
    def packed(**options: Any) -> Any:
        fields = ("kind", "factory", "search", "uri", "collection", "index")
        return function(store=StoreChoice(**{name: options.pop(name) for name in fields}), **options)

    for option in (
        KIND,
        click.option("--collection", help="milvus: name of the collection; postgres: of the table, or SCHEMA.TABLE."),
        click.option(
            "--uri",
            help="milvus: a cluster, http://host:19530; a file in the index when left out. postgres: "
            "postgresql://user@host/database, the password in PGPASSWORD.",
        ),
        click.option("--search", multiple=True, metavar="KEY=N", help="faiss: how thoroughly: --search nprobe=32"),
        click.option("--factory", help="faiss: Flat (exact), HNSW32, IVF1024,Flat, ...; auto: chosen by size."),
        click.option("--store", "kind", type=click.Choice(STORES), help="faiss if left out."),
    ):
        packed = option(packed)
    return packed
