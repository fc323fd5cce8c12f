"""`ke-metric index`: build, add, remove, info."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ke_metric.cli.choices import ModelChoice, PictureChoice, StoreChoice
from ke_metric.cli.display import say
from ke_metric.cli.embed import list_chosen, load_embedder, require_some, told
from ke_metric.cli.result import Result
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.index import Index
from ke_metric.retrieval.item_embeddings import ItemBatch, embed_items
from ke_metric.retrieval.origin import Origin
from ke_metric.retrieval.store_settings import StoreSettings
from ke_metric.retrieval.vector_store import Item
from ke_metric.retrieval.where import Where

IDS_AT_A_TIME = 10_000


@dataclass
class Counts:
    """What became of the items that an index was to get."""

    added: int = 0
    there_already: int = 0
    left_out: int = 0


def build_index(
    *, pictures: PictureChoice, origin: Path | None, folder: Path, store: StoreChoice, model: ModelChoice
) -> Result:
    """Make an index of pictures, or of embeddings that exist.

    Args:
        pictures: Which ones; none with an origin.
        origin: A folder of embeddings, or an index.
        folder: Folder to make.
        store: How it is stored.
        model: What embeds the pictures.

    Raises:
        KeMetricError: The folder is taken, there are no such pictures, network or embeddings, or the store cannot be
            made. What was added until then stays.
    """
    settings = read_settings(store)
    _require_one_source(pictures, origin)
    if origin is not None:
        return _build_from(origin, folder=folder, settings=settings, model=model)
    listed = list_chosen(pictures)
    embedder = load_embedder(model)
    batches = embed_items(embedder, listed.items, strict=pictures.strict, batch_size=model.batch_size)
    counts = Counts(left_out=len(listed.left_out))
    with (
        Index.create(folder, embedder=embedder, settings=settings) as index,
        _interrupted(index, f"{_words(pictures)}"),
    ):
        _fill(index, told(batches, "embedding", len(listed.items)), counts, digest=embedder.digest)
        require_some(counts.added, len(listed.items))
        return _report(index, counts)


def _build_from(origin: Path, *, folder: Path, settings: StoreSettings, model: ModelChoice) -> Result:
    with Origin.open(origin) as source:
        embedder = _embedder_of(source, model)
        facts: dict[str, Any] = {
            "digest": source.digest, "dimension": source.dimension, "description": source.description
        }  # fmt: skip
        made = Index.create(folder, settings=settings, **({"embedder": embedder} if embedder else facts))
        counts = Counts()
        with made as index, _interrupted(index, f"--from {origin}"):
            _fill(index, told(source.batches(), "adding", source.count), counts, digest=source.digest)
            return _report(index, counts)


def _embedder_of(source: Origin, model: ModelChoice) -> Embedder | None:
    """Return the network that made the vectors, where it is known."""
    if model.is_named:
        embedder = load_embedder(model)
        source.require_digest(embedder.digest, embedder.description)
        return embedder
    return source.embedder()


def add_to_index(
    *, pictures: PictureChoice, origin: Path | None, folder: Path, replace: bool, model: ModelChoice
) -> Result:
    """Add pictures, or embeddings that exist, to an index.

    Args:
        pictures: Which ones; none with an origin.
        origin: A folder of embeddings, or an index.
        folder: The index.
        replace: Embed pictures anew whose ids are there; False: they are left as they are.
        model: What embeds the pictures; the index's own network where none is named.

    Raises:
        KeMetricError: There is no such index, another process writes it, the vectors are those of another network,
            or there are no such pictures. What was added until then stays.
    """
    _require_one_source(pictures, origin)
    with Index.open(folder, writing=True, device=model.device) as index:
        if origin is not None:
            return _add_from(origin, index, replace=replace)
        listed = list_chosen(pictures)
        items = listed.items if replace else _unknown(index, listed.items)
        counts = Counts(there_already=len(listed.items) - len(items), left_out=len(listed.left_out))
        if items:
            embedder = load_embedder(model) if model.is_named else index.embedder
            index.require_digest(embedder.digest, embedder.description)
            batches = embed_items(embedder, items, strict=pictures.strict, batch_size=model.batch_size)
            with _interrupted(index, _words(pictures)):
                _fill(index, told(batches, "embedding", len(items)), counts, digest=embedder.digest, replace=replace)
        return _report(index, counts)


def _add_from(origin: Path, index: Index, *, replace: bool) -> Result:
    counts = Counts()
    with Origin.open(origin) as source, _interrupted(index, f"--from {origin}"):
        index.require_digest(source.digest, str(origin))
        batches = told(source.batches(), "adding", source.count)
        if not replace:
            batches = _unknown_of(index, batches, counts)
        _fill(index, batches, counts, digest=source.digest, replace=replace)
        return _report(index, counts)


def _unknown(index: Index, items: Sequence[Item]) -> list[Item]:
    """Return the items whose ids the index has not."""
    kept: list[Item] = []
    for start in range(0, len(items), IDS_AT_A_TIME):
        part = items[start : start + IDS_AT_A_TIME]
        known = index.store.known([item.id for item in part])
        kept += [item for item in part if item.id not in known]
    return kept


def _unknown_of(index: Index, batches: Iterable[ItemBatch], counts: Counts) -> Iterator[ItemBatch]:
    """Pass on what the index has not, and count the rest."""
    for batch in batches:
        known = index.store.known([item.id for item in batch.items])
        kept = [number for number, item in enumerate(batch.items) if item.id not in known]
        counts.there_already += len(batch.items) - len(kept)
        yield ItemBatch([batch.items[number] for number in kept], batch.vectors[kept], batch.left_out)


def _fill(index: Index, batches: Iterable[ItemBatch], counts: Counts, *, digest: str, replace: bool = False) -> None:
    """Add batches, each acknowledged before the next one is made."""
    for batch in batches:
        if batch.items:
            index.add(batch.items, batch.vectors, digest=digest, replace=replace)
        counts.added += len(batch.items)
        counts.left_out += len(batch.left_out)
    index.store.flush()


@contextmanager
def _interrupted(index: Index, source: str) -> Iterator[None]:
    """Say, when something stops the adding, what there is and how it goes on."""
    try:
        yield
    except BaseException:
        say(
            f"{index.folder} holds the {len(index):,} items that were added until now; this adds the others: "
            f"ke-metric index add {source} --index {index.folder}"
        )
        raise


def _words(pictures: PictureChoice) -> str:
    return " ".join([*map(str, pictures.sources), *(() if pictures.labels else ("--no-labels",))])


def _require_one_source(pictures: PictureChoice, origin: Path | None) -> None:
    if origin is not None and pictures.sources:
        raise KeMetricError("name pictures, or --from, not both", ExitCode.USAGE)
    if origin is not None and not (pictures.labels and not pictures.strict):
        raise KeMetricError("--no-labels and --strict are for pictures, not for --from", ExitCode.USAGE)


def read_settings(store: StoreChoice) -> StoreSettings:
    """Read what the command line says of a store.

    Raises:
        KeMetricError: USAGE: a value is not allowed, or the kind of store would not read it.
    """
    return StoreSettings.of(
        kind=store.kind,
        factory=store.factory,
        search=dict(map(_key_and_number, store.search)) or None,
        uri=store.uri,
        collection=store.collection,
        index=store.index,
    )


def _key_and_number(text: str) -> tuple[str, int]:
    key, _, value = text.partition("=")
    if not key or not value.isdecimal():
        raise KeMetricError(f"--search {text}: must be KEY=N, for example nprobe=32", ExitCode.USAGE)
    return key, int(value)


def remove_from_index(ids: Sequence[str], *, folder: Path, where: str | None) -> Result:
    """Remove items, all that are meant or none.

    Args:
        ids: Which ones; none with a condition.
        folder: The index.
        where: A condition: all items for which it holds.

    Raises:
        KeMetricError: There is no such index, another process writes it, it has no item of an id, or the condition
            is none.
    """
    condition = None if where is None else Where.parse(where)
    with Index.open(folder, writing=True) as index:
        chosen = dict.fromkeys(ids) if condition is None else _meant(index, condition)
        index.remove(chosen)
        index.store.flush()
        document = {"index": str(folder), "removed": len(chosen), "items": len(index)}
    return Result(document, f"{folder}: {document['removed']:,} items removed, {document['items']:,} left")


def _meant(index: Index, where: Where) -> list[str]:
    return [item.id for items, _ in index.store.read() for item in items if where.holds(item)]


def describe_index(folder: Path) -> Result:
    """Say what an index holds.

    Raises:
        KeMetricError: There is none, or it is damaged.
    """
    with Index.open(folder) as index:
        document = index.describe()
    return Result(document, _table(document))


def _report(index: Index, counts: Counts) -> Result:
    document = {
        "index": str(index.folder),
        "added": counts.added,
        "there_already": counts.there_already,
        "left_out": counts.left_out,
        **{name: value for name, value in index.describe().items() if name != "index"},
    }
    return Result(document, _table(document))


def _table(document: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, title=document["index"], title_justify="left")
    for name in ("added", "there_already", "left_out", "items"):
        if name in document:
            table.add_row(name.replace("_", " "), f"{document[name]:,}")
    model = document["model"]
    table.add_row("network", f"{model['description']} ({model['digest'][:12]}), {document['dimension']} numbers")
    if not model["stored_here"]:
        table.add_row("", "not stored here: name it to search with pictures")
    for name, value in document["store"].items():
        if name not in document and value not in ({}, None):
            table.add_row(name.replace("_", " "), _in_words(value))
    return table


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
