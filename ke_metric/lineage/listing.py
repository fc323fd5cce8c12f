"""Which lineages lie in a folder, and how they are removed: every one of those that were named, or none.

A lineage that cannot be read is in the list with the reason: it takes room on the disk like any other.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ke_metric.disk import TEMPORARY, disk_error, is_locked, temporary_name
from ke_metric.errors import ExitCode, KeMetricError, closest, some_of
from ke_metric.generation import Scores
from ke_metric.lineage import files
from ke_metric.lineage.folder import FACTS, LOCK, LOG, one_writer
from ke_metric.lineage.ownership import foreign_names, is_ours, looks_like_lineage, names_inside
from ke_metric.lineage.store import LINEAGES, Lineage, holds_lineage

DAMAGED = "damaged"
BUSY = "busy"
# What a killed training could not write down: its record still says that it runs, and nobody holds its lock.
KILLED = {"running": "interrupted", "created": "interrupted"}


@dataclass(frozen=True)
class LineageSummary:
    """A lineage in a line.

    Attributes:
        folder: Its folder.
        status: `busy` (a process writes it), `interrupted`, `failed`, `diverged`, `finished` or `damaged`.
        size: Bytes of its files.
        changed: When something in it was last written, in seconds since 1970.
        recipe: Name of the recipe.
        task: `retrieval` or `classification`.
        seed: Of everything random.
        done: Complete generations.
        planned: Generations of the recipe.
        score: Name of the decisive score.
        scores: Network, "dense" or "slim", to that score of the `last` and of the `best` generation.
        damage: Why it cannot be read; None where it can.
    """

    folder: Path
    status: str
    size: int
    changed: float
    recipe: str = ""
    task: str = ""
    seed: int = 0
    done: int = 0
    planned: int = 0
    score: str = ""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    damage: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; of a damaged lineage only what is known."""
        document = asdict(self) | {"folder": str(self.folder)}
        if self.damage is not None:
            return {name: document[name] for name in ("folder", "status", "size", "changed", "damage")}
        del document["damage"]
        return document


def list_lineages(parent: Path = LINEAGES) -> list[LineageSummary]:
    """Return what lies in a folder of lineages, the one that was written last first; none where there is no folder.

    Raises:
        KeMetricError: LINEAGE: it is no folder, or may not be read.
    """
    try:
        folders = [
            path for path in parent.iterdir() if not path.name.startswith(TEMPORARY) and looks_like_lineage(path)
        ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeMetricError(f"{parent}: cannot be listed: {error.strerror}", ExitCode.LINEAGE) from error
    found = [summary_of(folder) for folder in folders]
    return sorted(found, key=lambda summary: (-summary.changed, str(summary.folder)))


def summary_of(folder: Path) -> LineageSummary:
    """Return a lineage in a line, or why it cannot be read."""
    size, changed = _size_of(folder), _last_change(folder)
    try:
        return _readable(Lineage(folder), size, changed)
    except (KeMetricError, OSError) as error:
        return LineageSummary(folder, DAMAGED, size, changed, damage=str(error))


def _readable(lineage: Lineage, size: int, changed: float) -> LineageSummary:
    recipe, numbers = lineage.recipe, lineage.numbers
    return LineageSummary(
        folder=lineage.folder,
        status=status_of(lineage),
        size=size,
        changed=changed,
        recipe=recipe.name,
        task=recipe.task,
        seed=recipe.seed,
        done=len(numbers),
        planned=recipe.generations,
        score=lineage.decisive_score,
        scores=_decisive(lineage, numbers),
    )


def status_of(lineage: Lineage) -> str:
    """Return what a lineage's training does or how it ended."""
    if is_busy(lineage.folder):
        return BUSY
    status = str(lineage.facts.get("status", "unknown"))
    return KILLED.get(status, status)


def is_busy(folder: Path) -> bool:
    """Return whether a process holds a lineage's lock."""
    return is_locked(folder / LOCK)


def _decisive(lineage: Lineage, numbers: Sequence[int]) -> dict[str, dict[str, float]]:
    if not numbers:
        return {}
    name, best = lineage.decisive_score, _best_of(lineage)
    chosen = {"last": numbers[-1]} | ({"best": best} if best else {})
    scores: dict[str, dict[str, float]] = {}
    for which, number in chosen.items():
        card = lineage.scorecard(number)
        networks: dict[str, Scores | None] = {"dense": card.dense, "slim": card.slim}
        for network, values in networks.items():
            if values and name in values:
                scores.setdefault(network, {})[which] = values[name]
    return scores


def _best_of(lineage: Lineage) -> int | None:
    """Return the best generation; None where none has the decisive score."""
    try:
        return lineage.best
    except KeMetricError:
        return None


def _size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder; what a link leads to is not counted."""
    paths = (Path(parent) / name for parent, _, names in os.walk(folder.resolve()) for name in names)
    return sum(facts.st_size for path in paths if (facts := _facts_of(path)))


def _last_change(folder: Path) -> float:
    written = [folder, *(folder / name for name in (FACTS, LOG)), *names_inside(folder)]
    return max((facts.st_mtime for path in written if (facts := _facts_of(path))), default=0.0)


def _facts_of(path: Path) -> os.stat_result | None:
    """Return what the system says of a file; None where a training has just removed it."""
    try:
        return path.lstat()
    except OSError:
        return None


def weights_kept(lineage: Lineage) -> dict[int, int]:
    """Return the generations whose weights are on the disk, and their bytes."""
    return {number: _weight_bytes(lineage, number) for number in lineage.numbers if lineage.has_weights(number)}


def superfluous_weights(lineage: Lineage) -> dict[int, int]:
    """Return the generations with weights that are neither the last nor the best, and their bytes."""
    numbers = lineage.numbers
    needed = {numbers[-1], lineage.best_kept, _best_of(lineage)} if numbers else set()
    return {number: size for number, size in weights_kept(lineage).items() if number not in needed}


def _weight_bytes(lineage: Lineage, number: int) -> int:
    paths = [lineage.generation_folder(number) / name for name in files.OF_WEIGHTS]
    return sum(path.lstat().st_size for path in paths if path.exists())


def drop_superfluous_weights(folders: Sequence[Path]) -> dict[Path, dict[int, int]]:
    """Delete the weights of all generations but the last and the best; scores and records stay.

    Returns:
        Lineage to the generations whose weights are gone, and their bytes.

    Raises:
        KeMetricError: One is no lineage, is damaged or is being written; then nothing was deleted.
    """
    require_removable(folders)
    with _all_held(folders):
        found = {folder: superfluous_weights(Lineage(folder)) for folder in folders}
        _refuse_linked_generations(found)
        for folder, numbers in found.items():
            for number in numbers:
                files.drop_weights(Lineage(folder).generation_folder(number))
    return found


def _refuse_linked_generations(found: Mapping[Path, Iterable[int]]) -> None:
    for folder, numbers in found.items():
        for generation in map(Lineage(folder).generation_folder, numbers):
            if generation.is_symlink():
                raise _kept(generation, f"is a link to {generation.resolve()}, and links are not followed")


def remove_lineages(folders: Sequence[Path]) -> None:
    """Delete lineages, all of them or none: each is renamed first, and put back when another one cannot be.

    Raises:
        KeMetricError: See `require_removable` and `require_own`; one is being written, or cannot be renamed. Or it
            was renamed and something in it cannot be deleted: that is named.
    """
    require_removable(folders)
    renamed: dict[Path, Path] = {}
    with _all_held(folders):
        require_own(folders)
        for folder in folders:
            place = folder.resolve()
            try:
                renamed[place] = place.rename(temporary_name(place))
            except OSError as error:
                for before, after in renamed.items():
                    after.rename(before)
                raise disk_error(folder, error, "cannot be removed", "; nothing was removed") from error
    _delete(renamed)


def _delete(renamed: Mapping[Path, Path]) -> None:
    """Delete what was renamed as far as that goes, then say what is left."""
    left: list[str] = []
    for path in renamed.values():
        shutil.rmtree(path, ignore_errors=True)
        try:
            if path.exists():
                shutil.rmtree(path)
        except OSError as error:
            left.append(f"{path}: {error.strerror or error}")
    if left:
        raise KeMetricError(
            f"{', '.join(map(str, renamed))}: not all could be deleted; what is left, to be deleted by yourself: "
            f"{'; '.join(left)}",
            ExitCode.ENVIRONMENT,
        )


def _all_held(folders: Iterable[Path]) -> ExitStack:
    """Hold the locks of several lineages."""
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(one_writer(folder))
        return stack.pop_all()


def require_removable(folders: Sequence[Path]) -> None:
    """Check that folders are lineages that may go.

    Raises:
        KeMetricError: LINEAGE: one is no lineage, is being written, is a link, or is where this process works.
    """
    for position, folder in enumerate(folders):
        if folder.is_symlink():
            raise _kept(folder, f"is a link to {folder.resolve()}, and links are not followed: name that folder")
        if not folder.is_dir():
            known = [str(path) for path in names_inside(folder.parent) if holds_lineage(path)]
            raise _kept(folder, f"there is no such folder{closest(str(folder), known)}")
        if not is_ours(folder):
            why = f"no {FACTS} of ours" if (folder / FACTS).exists() else f"no {FACTS}"
            raise _kept(folder, f"is no lineage ({why}); delete it yourself")
        if Path.cwd().is_relative_to(folder.resolve()):
            raise _kept(folder, "is where you are; change to another folder first")
        if folder.resolve() in {other.resolve() for other in folders[:position]}:
            raise _kept(folder, "is named twice")
        if is_busy(folder):
            raise _kept(folder, "a process is writing it; stop that one first")


def require_own(folders: Sequence[Path]) -> None:
    """Check that nothing lies in lineages that no command of ours put there: it would be deleted with them.

    Raises:
        KeMetricError: LINEAGE: something does; what it is, is named.
    """
    for folder in folders:
        if foreign := foreign_names(folder):
            told = some_of(foreign)
            raise _kept(folder, f"holds what is not the lineage's own: {told}; move it elsewhere or delete it first")


def _kept(folder: Path, reason: str) -> KeMetricError:
    return KeMetricError(f"{folder}: {reason}; nothing was removed", ExitCode.LINEAGE)
