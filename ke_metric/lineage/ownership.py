"""Whose a folder is: what makes one a lineage of ours, and what lies in it that no command of ours put there.

A folder is deleted only where both are known: a file that happens to be called lineage.json is no proof, and whatever
somebody keeps beside the generations would go with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ke_metric.disk import TEMPORARY
from ke_metric.lineage import files
from ke_metric.lineage.folder import FACTS, GENERATION, IN_PROGRESS, REPORT, VECTORS, WORTHLESS
from ke_metric.recipe.file import RESOLVED

OWN_FIELDS = frozenset({"format_version", "recipe_digest"})
"""What lineage.json has had since its first version, beside what any program's might have."""
GENERATION_FILES = frozenset(
    {
        files.WEIGHTS,
        files.LOSS_WEIGHTS,
        files.LAST_WEIGHTS,
        files.SPLIT,
        files.SPLIT_BITS,
        files.SLIM,
        files.REPAIRS,
        files.VECTORS,
        files.SCORECARD,
        files.PROVENANCE,
        files.TRAINING_LOG,
    }
)
VECTORS_FILE = re.compile(r"[0-9a-f]{64}\.safetensors")


def looks_like_lineage(folder: Path) -> bool:
    """Return whether a folder is to be listed: it has a lineage.json, or generations and their recipe."""
    names = {path.name for path in names_inside(folder)}
    return FACTS in names or (RESOLVED in names and any(map(GENERATION.fullmatch, names)))


def is_ours(folder: Path) -> bool:
    """Return whether a folder is a lineage that we made, or the rest of one, by what only we write."""
    if not looks_like_lineage(folder):
        return False
    return _own_facts(folder / FACTS) or (folder / RESOLVED).is_file() or any(_own_generations(folder))


def _own_facts(path: Path) -> bool:
    try:
        facts: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and facts.keys() >= OWN_FIELDS


def _own_generations(folder: Path) -> Iterator[Path]:
    for path in names_inside(folder):
        if GENERATION.fullmatch(path.name) and (path / files.SCORECARD).is_file():
            yield path


def foreign_names(folder: Path) -> list[str]:
    """Return what lies in a lineage's folder and is not the lineage's own, as paths in it.

    What is behind a link is not looked at: it stays when the link is deleted.
    """
    found: list[str] = []
    for path in names_inside(folder):
        if not _is_own(path.name):
            found.append(path.name)
        elif (is_own := _own_inside(path.name)) and not path.is_symlink():
            inner = (inside.name for inside in names_inside(path) if not inside.name.startswith(TEMPORARY))
            found += [f"{path.name}/{name}" for name in inner if not is_own(name)]
    return sorted(found)


def _is_own(name: str) -> bool:
    own = WORTHLESS | {VECTORS, REPORT}
    return name in own or name.startswith(TEMPORARY) or GENERATION.fullmatch(name) is not None


def _own_inside(name: str) -> Callable[[str], object] | None:
    """Return what tells whether a name in a folder of a lineage is the lineage's own; None where all are."""
    if GENERATION.fullmatch(name):
        return GENERATION_FILES.__contains__
    return {VECTORS: VECTORS_FILE.fullmatch, IN_PROGRESS: files.STATE_FOLDER.fullmatch}.get(name)


def names_inside(folder: Path) -> list[Path]:
    """Return what lies in a folder; nothing where there is none, or it may not be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
