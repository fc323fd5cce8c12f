"""How a lineage begins: where nothing lies, or in the place of one of ours that is given up.

What is in the place of a new one is deleted only where all of it is a lineage's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ke_metric.disk import TEMPORARY, is_empty_folder, remove_folder, to_json, whole_folder
from ke_metric.environment import describe_environment
from ke_metric.errors import ExitCode, KeMetricError, some_of
from ke_metric.lineage.files import newest_state, not_written
from ke_metric.lineage.folder import (
    FACTS,
    FORMAT_VERSION,
    IN_PROGRESS,
    RECIPE,
    WORTHLESS,
    now,
    one_writer,
    read_facts,
)
from ke_metric.lineage.ownership import foreign_names, is_ours
from ke_metric.recipe.file import RESOLVED
from ke_metric.recipe.schema import Recipe


def begin(folder: Path, recipe: Recipe, *, text: str, command: str, overwrite: bool) -> None:
    """Make the folder of a new lineage, in the place of what `Lineage.create` may replace."""
    place = folder.resolve()  # a link to another disk stays one
    if place.exists() and not is_empty_folder(place):
        with _replaceable(place, folder, overwrite):
            remove_folder(place, as_error=not_written)
    facts = {
        "format_version": FORMAT_VERSION,
        "recipe_digest": recipe.digest,
        "command": command,
        "created": now(),
        "status": "created",
        **describe_environment(),
    }
    with whole_folder(place, sole_writer=True, as_error=not_written) as temporary:
        (temporary / RECIPE).write_text(text, encoding="utf-8")
        (temporary / RESOLVED).write_text(recipe.to_yaml(), encoding="utf-8")
        (temporary / FACTS).write_text(to_json(facts), encoding="utf-8")


def require_room(folder: Path, *, overwrite: bool) -> None:
    """Check that a lineage could begin in a folder, so that nothing is computed in vain; nothing is changed.

    Raises:
        KeMetricError: What `Lineage.create` would say, or the folder cannot be written.
    """
    place = folder.resolve()
    if place.exists() and not is_empty_folder(place):
        with _replaceable(place, folder, overwrite):
            pass
    above = next(path for path in place.parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "cannot be written" if above.is_dir() else "is no folder"
        raise KeMetricError(
            f"{folder}: cannot be made: {above} {why}; choose another folder with --lineage", ExitCode.ENVIRONMENT
        )


@contextmanager
def _replaceable(place: Path, folder: Path, overwrite: bool) -> Iterator[None]:
    """Hold the lineage at `place`, which the user calls `folder`, where it is to be overwritten or holds nothing."""
    if not is_ours(place) or not (place / FACTS).is_file():
        why = f"no {FACTS} of ours" if (place / FACTS).exists() else f"no {FACTS}"
        raise KeMetricError(
            f"{folder}: exists and is no lineage ({why}), so it is never replaced; choose another "
            "folder with --lineage, or delete it yourself",
            ExitCode.LINEAGE,
        )
    read_facts(place)
    with one_writer(place):
        if not overwrite and _holds_work(place):
            raise KeMetricError(
                f"{folder}: exists. Go on with --resume, replace it with --overwrite, or choose another folder with "
                "--lineage or another seed",
                ExitCode.LINEAGE,
            )
        if foreign := foreign_names(place):
            raise KeMetricError(
                f"{folder}: holds what is not the lineage's own: {some_of(foreign)}; nothing was deleted: move it "
                "elsewhere first, or choose another folder with --lineage",
                ExitCode.LINEAGE,
            )
        yield


def _holds_work(folder: Path) -> bool:
    """Return whether anything is in a lineage that a new training would not write again."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY)}
    return bool(names - WORTHLESS) or newest_state(folder / IN_PROGRESS) is not None
