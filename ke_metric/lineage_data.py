"""Whether the data that lie there are those of a lineage: by its fingerprint, or by what else it has kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.fingerprint import DataFingerprint, class_name_changes
from ke_metric.generation import Scorecard

UNCHECKED = "whether they are still the same could not be checked"


def known_since(folder: Path, before: DataFingerprint) -> str:
    """Return from when on the data of a lineage are known, to be put after "since"."""
    return f"{folder} was begun" if before.since == 1 else f"generation {before.since} of {folder} was trained"


def require_same_data(folder: Path, before: DataFingerprint, now: DataFingerprint) -> None:
    """Check data against the fingerprint that a lineage keeps.

    Args:
        folder: The lineage's, for the message.
        before: Its fingerprint.
        now: What lies there; contents are compared where they have been read.

    Raises:
        KeMetricError: They have changed (exit code 4); what changed is named.
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


def require_class_names(folder: Path, names: Sequence[str], now: DataFingerprint) -> None:
    """Check that a classifier's classes are still called what they were, in the order of its logits.

    Args:
        folder: The lineage's, for the message.
        names: Those that it was trained on; empty where it is no classifier or nobody knows.
        now: What lies there.

    Raises:
        KeMetricError: They are not (exit code 4).
    """
    changed = class_name_changes(names, now.class_names) if names else ""
    if changed:
        raise KeMetricError(
            f"{folder}: the classes of its data are not those that it was trained on: {changed}. A classifier's "
            "numbers mean the classes that it was trained on: put their names back",
            ExitCode.DATA,
        )


def scorecard_contradictions(number: int, scorecard: Scorecard, now: DataFingerprint) -> list[str]:
    """Return what data cannot have been scored as a scorecard says, a sentence each.

    Args:
        number: Of the generation.
        scorecard: Its scores.
        now: What lies there.
    """
    counts = [scorecard.dense.get(name) for name in ("queries", "queries_without_match")]
    found = len(now.parts["query"].keys) if "query" in now.parts else 0
    if None in counts or sum(int(count or 0) for count in counts) == found:
        return []
    then = sum(int(count or 0) for count in counts)
    return [f"test part: {found:,} query picture(s), generation {number} was scored on {then:,}"]


def require_possible_data(folder: Path, contradictions: Sequence[str]) -> None:
    """Refuse data that cannot be those of a lineage that keeps no fingerprint of them.

    Raises:
        KeMetricError: There are contradictions (exit code 4).
    """
    if contradictions:
        raise KeMetricError(
            f"{folder}: these are not the data that it was trained on: {'; '.join(contradictions)}. A lineage goes "
            "on with the data that it was begun on: put them back, or say where they are with --set data.root=..., "
            "or begin another one with --lineage",
            ExitCode.DATA,
        )
