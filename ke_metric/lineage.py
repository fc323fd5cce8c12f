"""The lineage: the store of generations grown from one recipe and seed, and the only channel between them.

A generation's folder that exists is complete; a missing parent is an error, never a fresh start; there is one writer
at a time.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml
from filelock import FileLock, Timeout

from ke_metric.environment import describe_environment
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import Generation, Scorecard, TrainingState
from ke_metric.lineage_files import (
    TEMPORARY,
    WEIGHTS,
    disk_error,
    drop_weights,
    read_generation,
    read_json,
    read_scorecard,
    read_state,
    whole_folder,
    write_generation,
    write_json,
    write_state,
    write_text,
)
from ke_metric.recipe import Recipe

FORMAT_VERSION = 1
LINEAGES = Path("lineages")
RECIPE = "recipe.yaml"
RESOLVED = "recipe.resolved.yaml"
FACTS = "lineage.json"
LOG = "log.jsonl"
LOCK = ".lock"
IN_PROGRESS = "in-progress"
# Fields that say where things lie or how fast they go, not what the weights become.
FREE_FIELDS = {("data", "root"), ("data", "workers")}


def default_folder(recipe: Recipe) -> Path:
    """Return `lineages/<recipe name>-s<seed>`."""
    return LINEAGES / f"{recipe.name}-s{recipe.seed}"


class Lineage:
    """A lineage on disk.

    Open an existing one with `Lineage(folder)`, begin one with `Lineage.create`. Reading needs nothing more; writing
    happens inside `with lineage.writing():`, which one process at a time can enter.

    Args:
        folder: The lineage's folder.

    Raises:
        KeMetricError: There is no lineage in the folder, or one of another format.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / FACTS).exists():
            raise KeMetricError(f"{self.folder}: no lineage here (no {FACTS})", ExitCode.LINEAGE)
        version = self.facts["format_version"]
        if version != FORMAT_VERSION:
            raise KeMetricError(
                f"{self.folder}: format version {version}, this version of ke_metric reads {FORMAT_VERSION}",
                ExitCode.LINEAGE,
            )

    @classmethod
    def newest(cls, parent: Path = LINEAGES) -> Self:
        """Open the lineage under `parent` that was written to last.

        Raises:
            KeMetricError: There is none.
        """
        found = [path.parent for path in parent.glob(f"*/{FACTS}") if not path.parent.name.startswith(TEMPORARY)]
        if not found:
            raise KeMetricError(
                f"no lineage under {parent}/; name one with --lineage, or train one with ke-metric train",
                ExitCode.LINEAGE,
            )
        return cls(max(found, key=lambda folder: (folder / FACTS).stat().st_mtime))

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, *, text: str, command: str, overwrite: bool = False) -> Self:
        """Begin a lineage.

        Args:
            folder: Its folder; must not exist, or hold a lineage that `overwrite` allows to delete.
            recipe: What to grow.
            text: The recipe file as given.
            command: The command line, for the record.
            overwrite: Delete the lineage that is there.

        Raises:
            KeMetricError: The folder is taken, or a lineage in it is being written.
        """
        if folder.exists():
            cls._clear(folder, overwrite)
        with whole_folder(folder) as temporary:
            write_text(temporary / RECIPE, text)
            write_text(temporary / RESOLVED, recipe.to_yaml())
            facts = {
                "format_version": FORMAT_VERSION,
                "recipe_digest": recipe.digest,
                "command": command,
                "created": _now(),
                "status": "created",
                **describe_environment(),
            }
            write_json(temporary / FACTS, facts)
        return cls(folder)

    @classmethod
    def _clear(cls, folder: Path, overwrite: bool) -> None:
        if not overwrite:
            raise KeMetricError(
                f"{folder}: exists. Go on with --resume, replace it with --overwrite, or choose another folder with "
                "--lineage or another seed",
                ExitCode.LINEAGE,
            )
        with cls(folder).writing():
            removed = folder.with_name(f"{TEMPORARY}removed-{folder.name}")
            shutil.rmtree(removed, ignore_errors=True)
            folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    @property
    def facts(self) -> dict[str, Any]:
        """What lineage.json says."""
        facts = read_json(self.folder / FACTS)
        assert isinstance(facts, dict), "lineage.json holds an object"
        return facts

    @property
    def recipe(self) -> Recipe:
        """The complete recipe."""
        return Recipe.model_validate(yaml.safe_load((self.folder / RESOLVED).read_text(encoding="utf-8")))

    @property
    def numbers(self) -> list[int]:
        """Numbers of the complete generations, from 1 without a gap.

        Raises:
            KeMetricError: One is missing in between.
        """
        found = sorted(int(path.name.removeprefix("generation-")) for path in self.folder.glob("generation-*"))
        if found != list(range(1, len(found) + 1)):
            missing = sorted(set(range(1, found[-1])) - set(found))
            raise KeMetricError(f"{self.folder}: generation {missing[0]} is missing", ExitCode.LINEAGE)
        return found

    def generation_folder(self, number: int) -> Path:
        """Return the folder of a generation."""
        return self.folder / f"generation-{number:03d}"

    def load(self, number: int) -> Generation:
        """Read a generation with its weights.

        Raises:
            KeMetricError: It is not there, or its weights were not kept.
        """
        self._require(number)
        return read_generation(self.generation_folder(number))

    def scorecard(self, number: int) -> Scorecard:
        """Read a generation's scores.

        Raises:
            KeMetricError: It is not there.
        """
        self._require(number)
        return read_scorecard(self.generation_folder(number))

    def _require(self, number: int) -> None:
        numbers = self.numbers
        if number not in numbers:
            there = f"there are generations 1 to {numbers[-1]}" if numbers else "there is no complete generation yet"
            raise KeMetricError(f"{self.folder}: no generation {number}; {there}", ExitCode.LINEAGE)

    def has_weights(self, number: int) -> bool:
        """Whether the weights of a generation were kept."""
        return (self.generation_folder(number) / WEIGHTS).exists()

    @property
    def best(self) -> int:
        """The generation with the highest dense Recall@K of the recipe's smallest K; the first of equals.

        On a benchmark without a validation part this is a choice made on the test set: report the last generation.

        Raises:
            KeMetricError: There is no generation yet.
        """
        if not self.numbers:
            raise KeMetricError(f"{self.folder}: there is no complete generation yet", ExitCode.LINEAGE)
        score = f"recall@{min(self.recipe.evaluation.recall_at)}"
        return max(self.numbers, key=lambda number: (self.scorecard(number).dense[score], -number))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lineage's lock; it is freed when the process ends, however it ends.

        Raises:
            KeMetricError: Another process is writing.
        """
        try:
            with FileLock(self.folder / LOCK, timeout=0):
                yield
        except Timeout:
            raise KeMetricError(f"{self.folder}: another process is writing this lineage", ExitCode.LINEAGE) from None

    def append(self, generation: Generation) -> None:
        """Store the next generation, drop the weights the recipe does not keep, and end the progress in it.

        Raises:
            KeMetricError: The disk is full; what was there before is complete.
        """
        expected = len(self.numbers) + 1
        assert generation.number == expected, (generation.number, expected)
        write_generation(self.generation_folder(generation.number), generation)
        kept = self._kept()
        for number in self.numbers:
            if number not in kept:
                drop_weights(self.generation_folder(number))
        shutil.rmtree(self.folder / IN_PROGRESS, ignore_errors=True)
        self.log(
            "generation",
            number=generation.number,
            dense=dict(generation.scorecard.dense),
            slim=dict(generation.scorecard.slim or {}),
            magnitudes={name: list(pair) for name, pair in generation.magnitudes.items()},
        )

    def _kept(self) -> set[int]:
        numbers = self.numbers
        keep = self.recipe.keep
        if keep == "all":
            return set(numbers)
        return {numbers[-1], self.best} if keep == "best" else {numbers[-1]}

    def save_state(self, state: TrainingState) -> None:
        """Store the state of the generation under way; older states go when it is complete."""
        folder = self._state_folder(state.number, state.epoch)
        shutil.rmtree(folder, ignore_errors=True)
        write_state(folder, state)
        for older in self._states():
            if older != folder:
                shutil.rmtree(older, ignore_errors=True)

    def load_state(self) -> TrainingState | None:
        """Return the state to resume from; None when the next generation has not finished an epoch."""
        number = len(self.numbers) + 1
        states = [folder for folder in self._states() if folder.name.startswith(f"generation-{number:03d}-")]
        return read_state(states[-1]) if states else None

    def _state_folder(self, number: int, epoch: int) -> Path:
        return self.folder / IN_PROGRESS / f"generation-{number:03d}-epoch-{epoch:05d}"

    def _states(self) -> list[Path]:
        return sorted((self.folder / IN_PROGRESS).glob("generation-*"))

    def set_status(self, status: str) -> None:
        """Record `running`, `interrupted`, `diverged`, `failed` or `finished`."""
        write_json(self.folder / FACTS, self.facts | {"status": status})

    def log(self, event: str, **facts: Any) -> None:
        """Append one event to log.jsonl."""
        line = json.dumps({"time": _now(), "event": event, **facts}, allow_nan=False) + "\n"
        path = self.folder / LOG
        try:
            torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
            with path.open("a", encoding="utf-8") as log:
                log.write("\n" + line if torn else line)
        except OSError as error:
            raise disk_error(path, error) from error

    def require_recipe(self, recipe: Recipe) -> None:
        """Check that `recipe` continues this lineage: the same but for more generations and where the data lie.

        Raises:
            KeMetricError: It differs; the fields are named with both values.
        """
        stored, given = _flatten(self.recipe.model_dump(mode="json")), _flatten(recipe.model_dump(mode="json"))
        differing = [
            name for name in stored | given if stored.get(name) != given.get(name) and name not in FREE_FIELDS
        ]
        if ("generations",) in differing and given[("generations",)] > stored[("generations",)]:
            differing.remove(("generations",))
        if differing:
            told = "; ".join(
                f"{'.'.join(name)} = {given.get(name)!r}, the lineage has {stored.get(name)!r}" for name in differing
            )
            raise KeMetricError(f"{self.folder}: a lineage of another recipe: {told}", ExitCode.LINEAGE)

    def continue_with(self, recipe: Recipe) -> None:
        """Record the recipe of a resume that `require_recipe` accepts."""
        self.require_recipe(recipe)
        write_text(self.folder / RESOLVED, recipe.to_yaml())


def _flatten(value: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for name, part in value.items():
        if isinstance(part, Mapping) and part:
            flat |= _flatten(part, (*prefix, name))
        else:
            flat[*prefix, name] = part
    return flat


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
