"""`ke-metric embed`: pictures to files of embeddings. `ke-metric index`: pictures, or such files, to an index."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ke_metric.arrays import row_chunks
from ke_metric.cli.display import Outcome, counting, list_chosen, require_some, say, say_network, warn_of
from ke_metric.cli.lineages import load_embedder
from ke_metric.cli.options import ModelChoice, PictureChoice, StoreChoice
from ke_metric.cli.search import embedder_of
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.embedding_files import (
    Facts,
    ItemBatch,
    embed_items,
    require_place,
    write_embeddings,
)
from ke_metric.retrieval.index import Index, StoreSettings
from ke_metric.retrieval.parquet_files import SUFFIX, embed_parts, parts_of, require_parquet_place, write_parquet
from ke_metric.retrieval.picture_list import LeftOut, PictureList
from ke_metric.retrieval.stored_embeddings import StoredEmbeddings
from ke_metric.stores.contract import Item, Where

BATCH_BYTES = 3 * 2**20
"""Of vectors that exist, and about their items, that are added at a time: a Milvus server has that in one message."""
MOST_WITHOUT_YES = 0.5
"""The share of an index that a condition may remove without --yes."""


def embed_pictures(
    *, pictures: PictureChoice, model: ModelChoice, folder: Path, overwrite: bool, rows_per_file: int | None = None
) -> Outcome:
    """Embed pictures into a new folder of files, or Parquet; embeddings that are there may be replaced.

    Args:
        pictures: Which ones.
        model: What embeds them.
        folder: The folder, or NAME.parquet.
        overwrite: Replace the embeddings that are there.
        rows_per_file: Make the folder one of files of Parquet, each of so many pictures; those that are there stay.
    """
    if rows_per_file is not None:
        return _embed_into_parts(pictures, model, folder, rows_per_file, overwrite=overwrite)
    is_file = folder.suffix == SUFFIX
    (require_parquet_place if is_file else require_place)(folder, overwrite=overwrite)
    listed = list_chosen(pictures)
    embedder = load_embedder(model)
    batches = embed_items(embedder, listed.items, strict=pictures.strict, batch_size=model.batch_size)
    facts = (write_parquet if is_file else write_embeddings)(
        folder,
        embedder,
        _told(_not_empty(batches, len(listed.items)), "embedding", len(listed.items)),
        left_out=listed.left_out,
        overwrite=overwrite,
    )
    return _embedded(folder, facts, listed)


def _embed_into_parts(
    pictures: PictureChoice, model: ModelChoice, folder: Path, rows: int, *, overwrite: bool
) -> Outcome:
    if overwrite:
        raise KeMetricError(
            "--overwrite is not for --rows-per-file, which goes on with the files that are there; to begin anew, "
            f"delete {folder} yourself",
            ExitCode.USAGE,
        )
    listed, done = list_chosen(pictures), 0
    # Too many files are refused by the name that was typed, and before a network is loaded.
    list(parts_of(listed.items, rows, "--rows-per-file"))
    with counting("embedding") as progress:

        def tell(pictures_done: int, left_out: Sequence[LeftOut]) -> None:
            nonlocal done
            done += pictures_done
            warn_of(left_out)
            progress(done, len(listed.items))

        facts = embed_parts(
            folder,
            load_embedder(model),
            listed.items,
            rows=rows,
            strict=pictures.strict,
            batch_size=model.batch_size,
            on_done=tell,
        )
    require_some(facts.count, len(listed.items))
    facts.left_out[:0] = [asdict(picture) for picture in listed.left_out]
    return _embedded(folder, facts, listed)


def _embedded(folder: Path, facts: Facts, listed: PictureList) -> Outcome:
    document = {
        "folder": str(folder),
        "count": facts.count,
        "dimension": facts.dimension,
        "model": {"digest": facts.digest, "description": facts.description},
        "left_out": facts.left_out,
        "skipped": list(listed.skipped),
    }
    return Outcome(document, _files_table(document))


def _not_empty(batches: Iterable[ItemBatch], listed: int) -> Iterator[ItemBatch]:
    """Pass batches on; where they were all empty, nothing is to be written."""
    used = 0
    for batch in batches:
        used += len(batch.items)
        yield batch
    require_some(used, listed)


def _files_table(document: dict[str, object]) -> Table:
    table = Table(show_header=False, title=str(document["folder"]), title_justify="left")
    model, left_out = document["model"], document["left_out"]
    assert isinstance(model, dict), model
    assert isinstance(left_out, list), left_out
    table.add_row("embeddings", f"{document['count']:,} of {document['dimension']} numbers")
    table.add_row("left out", f"{len(left_out):,}")
    table.add_row("network", f"{model['description']} ({model['digest'][:12]})")
    return table


def _told(batches: Iterable[ItemBatch], what: str, total: int) -> Iterator[ItemBatch]:
    """Pass batches on, show how far they have come, and warn of pictures left out."""
    done = 0
    with counting(what) as progress:
        for batch in batches:
            warn_of(batch.left_out)
            yield batch
            done += len(batch.items) + len(batch.left_out)
            progress(done, total)


@dataclass
class Counts:
    """What became of the items that an index was to get."""

    added: int = 0
    there_already: int = 0
    left_out: int = 0
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What an index gets its items from; USAGE for pictures together with an origin, or a bad prefix.

    Attributes:
        pictures: Which ones; none with an origin.
        origin: A folder of embeddings, or an index; None: pictures.
        prefix: What is put before each id, with a slash; empty for nothing.
    """

    pictures: PictureChoice
    origin: Path | None
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.origin is not None and self.pictures.sources:
            raise KeMetricError("name pictures, or --from, not both", ExitCode.USAGE)
        if self.origin is not None and not (self.pictures.labels and not self.pictures.strict):
            raise KeMetricError("--no-labels and --strict are for pictures, not for --from", ExitCode.USAGE)
        if self.prefix != self.prefix.strip("/") or "\0" in self.prefix:
            raise KeMetricError(
                f"--prefix {self.prefix!r}: must be a name without a slash at its begin or end: cam2 makes the id "
                "cam2/crow/0.png",
                ExitCode.USAGE,
            )

    @property
    def words(self) -> str:
        """The same on a command line."""
        options = [] if self.origin is None else ["--from", str(self.origin)]
        options += [] if self.pictures.labels else ["--no-labels"]
        for name, value, default in (
            ("--path-column", self.pictures.path_column, PictureChoice.path_column),
            ("--label-column", self.pictures.label_column, PictureChoice.label_column),
            ("--prefix", self.prefix, ""),
        ):
            options += [] if value == default else [name, value]
        return shlex.join([*map(str, self.pictures.sources), *options])

    def named(self, items: Sequence[Item]) -> list[Item]:
        """Return items with the ids that they get."""
        return [replace(item, id=f"{self.prefix}/{item.id}") if self.prefix else item for item in items]

    def batches_of(self, embeddings: StoredEmbeddings) -> Iterator[ItemBatch]:
        """Yield embeddings that exist, their items with the ids that they get."""
        rows = max(1, BATCH_BYTES // (4 * embeddings.facts.dimension + 256))
        for batch in embeddings.batches():
            for some in row_chunks(len(batch.items), rows):
                yield replace(batch, items=self.named(batch.items[some]), vectors=batch.vectors[some])


def build_index(*, source: Source, folder: Path, store: StoreChoice, model: ModelChoice) -> Outcome:
    """Make an index of pictures, or of embeddings that exist; what was added before an error stays."""
    settings = read_settings(store)
    if source.origin is not None:
        return _build_from(source, source.origin, folder=folder, settings=settings, model=model)
    listed = list_chosen(source.pictures)
    embedder = load_embedder(model)
    items = source.named(listed.items)
    batches = embed_items(embedder, items, strict=source.pictures.strict, batch_size=model.batch_size)
    counts = Counts(left_out=len(listed.left_out), skipped=listed.skipped)
    with Index.create(folder, embedder=embedder, settings=settings) as index, _interrupted(index, source):
        _fill(index, _told(batches, "embedding", len(listed.items)), counts, digest=embedder.digest)
        require_some(counts.added, len(listed.items))
        return _report(index, counts)


def _build_from(
    source: Source, origin: Path, *, folder: Path, settings: StoreSettings, model: ModelChoice
) -> Outcome:
    with StoredEmbeddings.open(origin) as there:
        embedder = _embedder_of(there, model)
        made = Index.create(
            folder,
            embedder=embedder,
            digest=there.facts.digest,
            dimension=there.facts.dimension,
            description=there.facts.description,
            settings=settings,
        )
        counts = Counts()
        with made as index, _interrupted(index, source):
            _fill(index, _told(source.batches_of(there), "adding", len(there)), counts, digest=there.facts.digest)
            return _report(index, counts)


def _embedder_of(source: StoredEmbeddings, model: ModelChoice) -> Embedder | None:
    """Return the network that made the vectors, where it is known."""
    if model.is_named:
        embedder = load_embedder(model)
        source.require_digest(embedder.digest, embedder.description)
        return embedder
    say_network(source.facts.description, f"that of {source.folder}")
    return source.embedder()


def add_to_index(*, source: Source, folder: Path, replace_there: bool, model: ModelChoice) -> Outcome:
    """Add pictures, or embeddings that exist, to an index; what was added before an error stays.

    Args:
        source: Which ones.
        folder: The index.
        replace_there: Embed pictures anew whose ids are there; False: they are left as they are.
        model: What embeds the pictures; the index's own network where none is named.
    """
    with Index.open(folder, writing=True, device=model.device) as index:
        if source.origin is not None:
            return _add_from(source, source.origin, index, replace_there=replace_there)
        listed = list_chosen(source.pictures)
        named = source.named(listed.items)
        index.require_same_pictures(named)
        known = set() if replace_there else index.store.known([item.id for item in named])
        items = [item for item in named if item.id not in known]
        counts = Counts(there_already=len(named) - len(items), left_out=len(listed.left_out), skipped=listed.skipped)
        if items:
            embedder = embedder_of(index, model)
            index.require_digest(embedder.digest, embedder.description)
            batches = embed_items(embedder, items, strict=source.pictures.strict, batch_size=model.batch_size)
            with _interrupted(index, source):
                batches = _told(batches, "embedding", len(items))
                _fill(index, batches, counts, digest=embedder.digest, replace_there=replace_there)
        return _report(index, counts)


def _add_from(source: Source, origin: Path, index: Index, *, replace_there: bool) -> Outcome:
    counts = Counts()
    with StoredEmbeddings.open(origin) as there:
        index.require_digest(there.facts.digest, str(origin))
        for batch in source.batches_of(there):  # all of them, before the first is added
            index.require_same_pictures(batch.items)
        with _interrupted(index, source):
            batches = _told(source.batches_of(there), "adding", len(there))
            if not replace_there:
                batches = _unknown_of(index, batches, counts)
            _fill(index, batches, counts, digest=there.facts.digest, replace_there=replace_there)
            return _report(index, counts)


def _unknown_of(index: Index, batches: Iterable[ItemBatch], counts: Counts) -> Iterator[ItemBatch]:
    """Pass on what the index has not, and count the rest."""
    for batch in batches:
        known = index.store.known([item.id for item in batch.items])
        kept = [number for number, item in enumerate(batch.items) if item.id not in known]
        counts.there_already += len(batch.items) - len(kept)
        yield ItemBatch([batch.items[number] for number in kept], batch.vectors[kept], batch.left_out)


def _fill(
    index: Index, batches: Iterable[ItemBatch], counts: Counts, *, digest: str, replace_there: bool = False
) -> None:
    """Add batches, each acknowledged before the next one is made."""
    for batch in batches:
        if batch.items:
            index.add(batch.items, batch.vectors, digest=digest, replace=replace_there)
        counts.added += len(batch.items)
        counts.left_out += len(batch.left_out)
    index.store.flush()


@contextmanager
def _interrupted(index: Index, source: Source) -> Iterator[None]:
    """Say, when something stops the adding, what there is and how it goes on."""
    try:
        yield
    except BaseException as error:
        try:
            there = f"{len(index):,} items"
        except KeMetricError:  # its server is gone, which is what is being told
            there = "what was added until"
        # Where another process writes it now, the same command would throw that one out.
        is_taken = isinstance(error, KeMetricError) and error.exit_code == ExitCode.LINEAGE
        again = f"ke-metric index add {source.words} --index {shlex.quote(str(index.folder))}"
        say(f"{index.folder} holds {there} now{'' if is_taken else f'; this adds the others: {again}'}")
        raise


def read_settings(store: StoreChoice) -> StoreSettings:
    """Read what the command line says of a store; USAGE for a value that is not allowed, or that nothing reads."""
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


def remove_from_index(
    ids: Sequence[str], *, folder: Path, where: str | None, yes: bool = False, dry_run: bool = False
) -> Outcome:
    """Remove items by id, or all for which a condition holds: all that are meant or none.

    Args:
        ids: Which ones; none with a condition.
        folder: The index.
        where: The condition.
        yes: Let it remove more than half of the items, which is otherwise refused (USAGE).
        dry_run: Remove nothing; say how many it would be.
    """
    condition = None if where is None else Where.parse(where)
    with Index.open(folder, writing=not dry_run) as index:
        found = index.store.get(list(dict.fromkeys(ids))) if condition is None else index.store.matching(condition)
        count, there = len(found), len(index)
        if condition is not None and count > MOST_WITHOUT_YES * there and not (yes or dry_run):
            raise KeMetricError(
                f"--where '{where}' holds for {count:,} of the {there:,} items of {folder}, more than half: nothing "
                "is removed. Add --yes to remove them; --dry-run says the number and removes nothing",
                ExitCode.USAGE,
            )
        if condition is not None and not count:
            say(f"--where '{where}' holds for none of the {there:,} items of {folder}")
        if dry_run:
            document = {"index": str(folder), "would_remove": count, "removed": 0, "items": there}
            return Outcome(document, f"{folder}: {count:,} of {there:,} items would be removed (--dry-run)")
        index.remove([item.id for item in found])
        index.store.flush()
        document = {"index": str(folder), "removed": count, "items": len(index)}
    return Outcome(document, f"{folder}: {_counted(count)} removed, {document['items']:,} left")


def describe_index(folder: Path) -> Outcome:
    """Say what an index holds."""
    with Index.open(folder) as index:
        document = index.describe()
    return Outcome(document, _table(document))


def _report(index: Index, counts: Counts) -> Outcome:
    document = {
        "index": str(index.folder),
        "added": counts.added,
        "there_already": counts.there_already,
        "left_out": counts.left_out,
        "skipped": list(counts.skipped),
        **{name: value for name, value in index.describe().items() if name != "index"},
    }
    return Outcome(document, _table(document))


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


def _counted(items: int) -> str:
    return f"{items:,} item{'' if items == 1 else 's'}"


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
