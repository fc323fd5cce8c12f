"""The folder of a lineage: what lies in it, who may write in it, and what it may go on with.

It goes on with a recipe that changes no weight of it, and with the data that it was begun on.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ke_metric.disk import lock_for_writing
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import DataFingerprint, Scorecard, class_name_changes
from ke_metric.lineage.files import not_written, read_object
from ke_metric.recipe.file import RESOLVED
from ke_metric.recipe.schema import Recipe
from ke_metric.schema import RECIPE_FIELDS, unchanged_fields

FORMAT_VERSION = 1
RECIPE = "recipe.yaml"
FACTS = "lineage.json"
LOG = "log.jsonl"
DATA = "data.json"
UNTRAINED = "untrained.json"
LOCK = ".lock"
IN_PROGRESS = "in-progress"
TENSORBOARD = "tensorboard"
# What is made of a lineage afterwards, and can be made again: vectors that its networks give, and its page.
VECTORS = "vectors"
REPORT = "report.html"
GENERATION = re.compile(r"generation-(\d{3,})")
# What a training that has not finished an epoch leaves: a new one writes all of it again.
WORTHLESS = frozenset({RECIPE, RESOLVED, FACTS, LOG, LOCK, DATA, UNTRAINED, IN_PROGRESS, TENSORBOARD})


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


# Fields that say where things lie or how fast they go.
FREE_FIELDS = frozenset({"data.root", "data.workers"})
UNCHECKED = "whether they are still the same could not be checked"
_NOT_SET = object()


def as_continued(stored: Recipe, given: Recipe) -> Recipe:
    """Return the `given` recipe as it continues a lineage that was begun before some fields existed.

    Such a field keeps the value that was in effect then, unless the recipe sets it: a default that came later is not
    what its author asked for.
    """
    document = stored.model_dump(mode="json")
    for field in unchanged_fields(document, RECIPE_FIELDS):
        section, name = field.split(".")
        part = getattr(given, section)
        if part is not None and name not in part.model_fields_set:
            # Of the stored recipe, whose values are of the types that a recipe has; JSON has lists for tuples.
            part = part.model_copy(update={name: getattr(getattr(stored, section), name)})
            given = given.model_copy(update={section: part})
    return given


def changed_fields(stored: Recipe, given: Recipe) -> dict[str, str]:
    """Return what differs between two recipes: dotted field name to a sentence with both values."""
    pairs = _differing(stored.model_dump(mode="json"), given.model_dump(mode="json"), ())
    return {name: f"{name} {_given(new)}, the lineage {_stored(old)}" for name, old, new in pairs}


def forbidden_changes(stored: Recipe, given: Recipe) -> dict[str, str]:
    """Return the changes that make it another lineage: all but of where things lie, and more generations.

    What some recipes do in a generation depends on how many there are in all: those may not become more.
    """
    # Where the file of starting weights lies is free; that it is the same one is checked by its content.
    starts = {"network.weights"} if stored.network.weights and given.network.weights else frozenset()
    free = FREE_FIELDS | starts
    changed = {name: text for name, text in changed_fields(stored, given).items() if name not in free}
    if "generations" in changed and stored.method.why_not_longer:
        changed["generations"] += f" ({stored.method.why_not_longer})"
    elif given.generations > stored.generations:
        del changed["generations"]
    elif "generations" in changed:
        changed["generations"] += " (it may grow, not shrink)"
    return changed


def _differing(stored: Any, given: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        for name in {**stored, **given}:
            yield from _differing(stored.get(name, _NOT_SET), given.get(name, _NOT_SET), (*path, name))
    elif _NOT_SET in (stored, given) or json.dumps(stored) != json.dumps(given):
        # As text, as in the recipe's digest: to Python, true equals 1.
        yield ".".join(path), stored, given


def _given(value: Any) -> str:
    return "is not set" if value is _NOT_SET else f"= {value!r}"


def _stored(value: Any) -> str:
    return "does not set it" if value is _NOT_SET else f"has {value!r}"


def known_since(folder: Path, before: DataFingerprint) -> str:
    """Return from when on the data of a lineage are known, to be put after "since"."""
    return f"{folder} was begun" if before.since == 1 else f"generation {before.since} of {folder} was trained"


def require_same_data(folder: Path, before: DataFingerprint, now: DataFingerprint) -> None:
    """Check the data that lie there `now` against the fingerprint that the lineage in a folder keeps.

    Raises:
        KeMetricError: They have changed (DATA); what changed is named.
    """
    changes = before.changes(now)
    if not changes:
        return
    if before.since == 1:
        when, rule = "it was begun", "A lineage goes on with the data that it was begun on"
    else:
        when = f"generation {before.since} was trained"
        rule = (
            f"Of the data of earlier generations there is no record; it goes on with those of generation "
            f"{before.since}"
        )
    raise KeMetricError(
        f"{folder}: its data have changed since {when}: {'; '.join(changes)}. {rule}: put them back, or begin "
        "another one with --lineage",
        ExitCode.DATA,
    )


def require_possible_data(folder: Path, number: int, scorecard: Scorecard, now: DataFingerprint) -> None:
    """Refuse data that cannot be those of a lineage that keeps no fingerprint of them.

    Raises:
        KeMetricError: Generation `number` cannot have been scored on them as its scorecard says (DATA).
    """
    contradictions = scorecard_contradictions(number, scorecard, now)
    if contradictions:
        raise KeMetricError(
            f"{folder}: these are not the data that it was trained on: {'; '.join(contradictions)}. A lineage goes "
            "on with the data that it was begun on: put them back, or say where they are with --set data.root=..., "
            "or begin another one with --lineage",
            ExitCode.DATA,
        )


def scorecard_contradictions(number: int, scorecard: Scorecard, now: DataFingerprint) -> list[str]:
    """Return what data cannot have been scored as the scorecard of a generation says, a sentence each."""
    counts = [scorecard.dense.get(name) for name in ("queries", "queries_without_match")]
    found = len(now.parts["query"].keys) if "query" in now.parts else 0
    then = sum(int(count or 0) for count in counts)
    if None in counts or then == found:
        return []
    return [f"test part: {found:,} query picture(s), generation {number} was scored on {then:,}"]


def require_class_names(folder: Path, names: Sequence[str], now: DataFingerprint) -> None:
    """Check that a classifier's classes are still called what they were, in the order of its logits.

    Raises:
        KeMetricError: `names`, if any, are not those of `now` (DATA).
    """
    changed = class_name_changes(names, now.class_names) if names else ""
    if changed:
        raise KeMetricError(
            f"{folder}: the classes of its data are not those that it was trained on: {changed}. A classifier's "
            "numbers mean the classes that it was trained on: put their names back",
            ExitCode.DATA,
        )
