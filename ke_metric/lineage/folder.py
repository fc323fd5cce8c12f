"""The folder of a lineage: what lies in it, how it begins, when it may be replaced, who may write in it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ke_metric.disk import TEMPORARY, is_empty_folder, lock_for_writing, remove_folder, to_json, whole_folder
from ke_metric.environment import describe_environment
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.lineage.files import newest_state, not_written, read_object
from ke_metric.recipe.file import RESOLVED
from ke_metric.recipe.schema import Recipe

FORMAT_VERSION = 1
RECIPE = "recipe.yaml"
FACTS = "lineage.json"
LOG = "log.jsonl"
DATA = "data.json"
UNTRAINED = "untrained.json"
LOCK = ".lock"
IN_PROGRESS = "in-progress"
TENSORBOARD = "tensorboard"
GENERATION = re.compile(r"generation-(\d{3,})")
# What a training that has not finished an epoch leaves: a new one writes all of it again.
WORTHLESS = frozenset({RECIPE, RESOLVED, FACTS, LOG, LOCK, DATA, UNTRAINED, IN_PROGRESS, TENSORBOARD})


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
    if not (place / FACTS).is_file():
        raise KeMetricError(
            f"{folder}: exists and is no lineage (no {FACTS}), so it is never replaced; choose another folder with "
            "--lineage, or delete it yourself",
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
        yield


def _holds_work(folder: Path) -> bool:
    """Return whether anything is in a lineage that a new training would not write again."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY)}
    return bool(names - WORTHLESS) or newest_state(folder / IN_PROGRESS) is not None


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what lineage.json says.

    Raises:
        KeMetricError: It is missing, damaged or of another format.
    """
    facts = read_object(folder / FACTS)
    version = facts.get("format_version")
    if version != FORMAT_VERSION:
        raise KeMetricError(
            f"{folder / FACTS}: format version {version}, this version of ke_metric reads {FORMAT_VERSION}",
            ExitCode.LINEAGE,
        )
    return facts


def complete_generations(folder: Path) -> list[int]:
    """Return the numbers of the generations in a lineage, from 1 without a gap.

    Raises:
        KeMetricError: One is missing in between.
    """
    found = {int(match[1]) for path in folder.iterdir() if (match := GENERATION.fullmatch(path.name))}
    missing = set(range(1, max(found, default=0))) - found
    if missing:
        raise KeMetricError(
            f"{folder}: generation {', '.join(map(str, sorted(missing)))} is missing, though there are later ones; "
            "a lineage has no gaps",
            ExitCode.LINEAGE,
        )
    return sorted(found)


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of a lineage.

    Raises:
        KeMetricError: Another process holds it, or the folder cannot be written.
    """
    busy = f"{folder}: another process is writing this lineage"
    lock = lock_for_writing(folder / LOCK, busy, as_error=not_written)
    try:
        yield
    finally:
        lock.release()


def now() -> str:
    """Return the time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
