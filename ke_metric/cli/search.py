"""`ke-metric search`: the most similar items of an index for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from ke_metric.cli.display import Outcome, counting, list_chosen, require_some, say, say_network, warn_of
from ke_metric.cli.options import ModelChoice, PictureChoice
from ke_metric.images.decoding import Decoding
from ke_metric.retrieval.embedder import BadPicture, Embedder
from ke_metric.retrieval.index import Index
from ke_metric.retrieval.picture_list import LeftOut
from ke_metric.retrieval.query import Answer, SearchOptions, search_pictures

TABLES = 20
"""The most that are printed for people."""


def search_index(
    *,
    pictures: PictureChoice,
    folder: Path,
    options: SearchOptions,
    where: str | None,
    montage: Path | None,
    model: ModelChoice,
) -> Outcome:
    """Search an index with pictures.

    Args:
        pictures: Which ones.
        folder: The index.
        options: How is searched.
        where: Its condition as it was typed.
        montage: File to draw the results into.
        model: What embeds the pictures; the index's own network where none is named.
    """
    if montage is not None:
        from ke_metric.retrieval.montage import require_picture_name

        require_picture_name(montage)
    with Index.open(folder, device=model.device) as index:
        listed = list_chosen(pictures, unique=False)
        embedder = embedder_of(index, model)
        index.require_digest(embedder.digest, embedder.description)
        if options.where is not None and not index.store.count(options.where):
            say(f"--where '{where}' holds for none of the {len(index):,} items of {folder}")
        left_out = list(listed.left_out)

        def leave_out(bad: BadPicture) -> None:
            left_out.append(LeftOut(bad.name, bad.reason))
            warn_of(left_out[-1:])

        found = search_pictures(
            index,
            listed.items,
            options,
            embedder=embedder,
            labels=pictures.labels,
            on_bad=None if pictures.strict else leave_out,
            batch_size=model.batch_size,
        )
        answers: list[Answer] = []
        with counting("searching") as progress:
            for answer in found:
                answers.append(answer)
                progress(len(answers) + len(left_out) - len(listed.left_out), len(listed.items))
    require_some(len(answers), len(listed.items))
    if montage is not None:
        _draw(answers, montage, embedder.normalization.decoding)
    return Outcome(_document(folder, answers, left_out, montage), _tables(answers))


def embedder_of(index: Index, model: ModelChoice) -> Embedder:
    """Load the network that was named, or else the index's own, and say what was taken.

    Raises:
        KeMetricError: See `Embedder.load` and `Index.embedder`.
    """
    if model.is_named:
        # Imported where it is needed: a search with the index's own network does without a lineage's code.
        from ke_metric.cli.lineages import load_embedder

        return load_embedder(model)
    embedder = index.embedder
    say_network(index.manifest.description, "that of the index")
    return embedder


def _draw(answers: Sequence[Answer], path: Path, decoding: Decoding) -> None:
    from ke_metric.retrieval.montage import MOST_QUERIES, MOST_RESULTS, MontageRow, write_montage

    rows = [MontageRow(answer.query.id, answer.query.path, answer.query.label, answer.results) for answer in answers]
    write_montage(rows, path, decoding)
    if len(rows) > MOST_QUERIES or any(len(row.results) > MOST_RESULTS for row in rows):
        say(f"{path}: shows at most {MOST_QUERIES} of the {len(rows):,} queries and {MOST_RESULTS} results of each")


def _document(
    folder: Path, answers: Sequence[Answer], left_out: Sequence[LeftOut], montage: Path | None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "index": str(folder),
        "queries": [answer.document for answer in answers],
        "left_out": [{"name": picture.name, "reason": picture.reason} for picture in left_out],
    }
    return document if montage is None else document | {"montage": str(montage)}


def _tables(answers: Sequence[Answer]) -> Group:
    more = len(answers) - TABLES
    rest = [f"and {more:,} more queries; --json prints all"] if more > 0 else []
    return Group(*map(_table, answers[:TABLES]), *rest)


def _table(answer: Answer) -> Table:
    label = f" ({answer.query.label})" if answer.query.label else ""
    be = "is" if len(answer.own_ids) == 1 else "are"
    own = f"; is in the index as {', '.join(answer.own_ids)}, which {be} left out" if answer.own_ids else ""
    compared = f"for comparison: the first one's own nearest item has similarity {answer.nearest or 0:.4f}"
    table = Table(
        title=f"{answer.query.path}{label}{own}",
        title_justify="left",
        caption=None if answer.nearest is None else compared,
        caption_justify="left",
    )
    for name in ("rank", "similarity"):
        table.add_column(name, justify="right")
    for name in ("label", "id"):
        table.add_column(name, overflow="fold")
    for result in answer.results:
        table.add_row(str(result.rank), f"{result.similarity:.4f}", result.label, result.id)
    return table
