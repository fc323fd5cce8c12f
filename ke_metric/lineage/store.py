"""The lineage: the store of generations grown from one recipe and seed, and the only channel between them.

A generation's folder that exists is complete; a missing parent is an error, never a fresh start; there is one writer
at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Self

from ke_metric.arrays import FloatArray
from ke_metric.disk import TEMPORARY, append_line, to_json, write_text
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.generation import DataFingerprint, Generation, Scorecard, TrainingState
from ke_metric.lineage import files
from ke_metric.lineage import folder as continuation
from ke_metric.lineage.beginning import begin
from ke_metric.lineage.folder import (
    DATA,
    FACTS,
    IN_PROGRESS,
    LOG,
    UNTRAINED,
    complete_generations,
    now,
    one_writer,
    read_facts,
)
from ke_metric.lineage.stored_scores import score_facts
from ke_metric.recipe.file import RESOLVED, load_recipe
from ke_metric.recipe.schema import Recipe

__all__ = ["LINEAGES", "RESOLVED", "Lineage", "default_folder", "holds_lineage"]

LINEAGES = Path("lineages")
STARTING_WEIGHTS = "starting_weights"
NONE_YET = "there is no complete generation yet"


def holds_lineage(folder: Path | str) -> bool:
    """Return whether there is a lineage in a folder."""
    return (Path(folder) / FACTS).is_file()


def default_folder(recipe: Recipe) -> Path:
    """Return `lineages/<recipe name>-s<seed>`."""
    return LINEAGES / f"{recipe.name}-s{recipe.seed}"


class Lineage:
    """A lineage on disk; what is missing or damaged in it is a KeMetricError (LINEAGE).

    Open an existing one with `Lineage(folder)`, begin one with `Lineage.create`. Reading needs nothing more; writing
    happens inside `with lineage.writing():`, which one process at a time can enter.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not holds_lineage(self.folder):
            raise KeMetricError(
                f"{self.folder}: no lineage here (no {FACTS}); begin one with ke-metric train, without --resume",
                ExitCode.LINEAGE,
            )
        read_facts(self.folder)

    @classmethod
    def newest(cls, parent: Path = LINEAGES, *, task: str | None = None) -> Self:
        """Open the lineage under `parent`, of a task where one is given, that was trained last."""
        found = [path for path in parent.glob(f"*/{FACTS}") if not path.parent.name.startswith(TEMPORARY)]
        # One that failed before its first generation has nothing to show while another has.
        found = [path for path in found if any(path.parent.glob("generation-*"))] or found
        for path in sorted(found, key=lambda facts: facts.stat().st_mtime_ns, reverse=True):
            lineage = cls(path.parent)
            if task is None or lineage.recipe.task == task:
                return lineage
        kind = f" of task = {task!r}" if task else ""
        others = f" ({len(found)} of another task)" if found else ""
        raise KeMetricError(
            f"no lineage{kind} under {parent}/{others}; name one with --lineage, or train one with ke-metric train",
            ExitCode.LINEAGE,
        )

    @classmethod
    def create(cls, folder: Path | str, recipe: Recipe, *, text: str, command: str, overwrite: bool = False) -> Self:
        """Begin a lineage.

        Whatever is in the folder stays, but for a lineage that has not finished an epoch, of which nothing is lost,
        and one that `overwrite` gives up.

        Args:
            folder: Its folder.
            recipe: What to grow.
            text: The recipe file as given.
            command: The command line, for the record.
            overwrite: Delete the lineage that is there.

        Raises:
            KeMetricError: The folder is taken, or a lineage in it is being written.
        """
        begin(Path(folder), recipe, text=text, command=command, overwrite=overwrite)
        return cls(folder)

    @property
    def facts(self) -> dict[str, Any]:
        """What lineage.json says."""
        return read_facts(self.folder)

    @property
    def recipe(self) -> Recipe:
        """The complete recipe."""
        try:
            return load_recipe(self.folder / RESOLVED)
        except KeMetricError as error:
            raise KeMetricError(f"the lineage is damaged: {error}", ExitCode.LINEAGE) from error

    @property
    def numbers(self) -> list[int]:
        """Numbers of the complete generations, from 1 without a gap."""
        return complete_generations(self.folder)

    def generation_folder(self, number: int) -> Path:
        """Return the folder of a generation."""
        return self.folder / f"generation-{number:03d}"

    def load(self, number: int) -> Generation:
        """Read a generation with its weights, which must have been kept."""
        self._require(number)
        return files.read_generation(self.generation_folder(number), number)

    def scorecard(self, number: int) -> Scorecard:
        """Read a generation's scores; they stay when its weights are dropped."""
        self._require(number)
        return files.read_scorecard(self.generation_folder(number) / files.SCORECARD, number)

    @property
    def untrained(self) -> Scorecard | None:
        """Scores of generation 1's network before any training; None for a lineage of before they were kept."""
        path = self.folder / UNTRAINED
        return files.read_scorecard(path, 0) if path.exists() else None

    def record_untrained(self, scorecard: Scorecard) -> None:
        """Store the scores of generation 1's network before any training."""
        self._replace(UNTRAINED, to_json(score_facts(0, scorecard, {})))

    @property
    def data(self) -> DataFingerprint | None:
        """What it is grown and scored on; None for a lineage of before fingerprints were kept."""
        path = self.folder / DATA
        return files.read_fingerprint(path) if path.exists() else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of a classifier's classes in the order of the logits; empty for retrieval and before generation 1."""
        numbers = self.numbers
        return tuple(files.read_provenance(self.generation_folder(numbers[-1])).class_names) if numbers else ()

    def training_log(self, number: int) -> tuple[Mapping[str, Any], ...]:
        """Return one record per epoch of a generation's training."""
        self._require(number)
        return files.read_log(self.generation_folder(number) / files.TRAINING_LOG)

    def _require(self, number: int) -> None:
        numbers = self.numbers
        if number not in numbers:
            there = f"there are generations 1 to {numbers[-1]}" if numbers else NONE_YET
            raise KeMetricError(f"{self.folder}: no generation {number}; {there}", ExitCode.LINEAGE)

    def number_of(self, which: int | str) -> int:
        """Return the number that `which` means: a number, in digits or not, `last` or `best`."""
        if which == "best":
            return self.best
        if which == "last":
            numbers = self.numbers
            if not numbers:
                raise KeMetricError(f"{self.folder}: {NONE_YET}", ExitCode.LINEAGE)
            return numbers[-1]
        if isinstance(which, str) and not which.isdecimal():
            raise KeMetricError(
                f"generation {which!r}: must be a number, last or best{closest(which, ('last', 'best'))}",
                ExitCode.USAGE,
            )
        if not isinstance(which, str) and (isinstance(which, bool) or not isinstance(which, Integral)):
            raise KeMetricError(
                f"generation = {which!r}: is {type(which).__name__}, must be a whole number, 'last' or 'best'",
                ExitCode.USAGE,
            )
        return int(which)

    def has_weights(self, number: int) -> bool:
        """Whether the weights of a generation were kept."""
        return (self.generation_folder(number) / files.WEIGHTS).exists()

    def kept_vectors(self, number: int, name: str) -> tuple[FloatArray, FloatArray] | None:
        """Return the vectors of a network that its training kept (`keep_vectors`); None where it kept none.

        Args:
            number: Of its generation.
            name: As in `Scorecard.networks`.
        """
        path = self.generation_folder(number) / files.VECTORS
        return files.read_vectors(path, name) if path.exists() else None

    def has_vectors(self, number: int) -> bool:
        """Whether a generation's training kept vectors; they stay when its weights are dropped."""
        return (self.generation_folder(number) / files.VECTORS).exists()

    @property
    def best(self) -> int:
        """The generation with the highest dense Recall@K of the recipe's smallest K, or top-1; the first of equals.

        On the validation part, or on the test part where there is none. On a benchmark without a validation part this
        is a choice made on the test set: report the last generation.
        """
        best = self._best()
        if best is None:
            raise KeMetricError(
                f"{self.folder}: no best generation: there is none yet that has a {self.decisive_score}",
                ExitCode.LINEAGE,
            )
        return best

    @property
    def best_kept(self) -> int:
        """The best one of the generations whose weights were kept; where none has the decisive score, the last."""
        last = self.number_of("last")
        kept = [number for number in self.numbers if self.has_weights(number)]
        return self._best(kept) or max(kept, default=last)

    def _best(self, numbers: Sequence[int] | None = None) -> int | None:
        """Return the best of those numbers, of all when None; None where none has the decisive score."""
        chosen = self.numbers if numbers is None else numbers
        paths = {number: self.generation_folder(number) / files.SCORECARD for number in chosen}
        dense = {number: files.read_scorecard(path, number).dense for number, path in paths.items()}
        name = self.decisive_score
        if any(f"validation_{name}" in scores for scores in dense.values()):
            name = f"validation_{name}"
        scored = [number for number in dense if name in dense[number]]
        return max(scored, key=lambda number: (dense[number][name], -number), default=None)

    @property
    def decisive_score(self) -> str:
        """The score that says which generation is best: `recall@K` of the recipe's smallest K, or `top1`."""
        return self.recipe.decisive_score

    def writing(self) -> AbstractContextManager[None]:
        """Hold the lineage's lock; a KeMetricError where another process holds it."""
        return one_writer(self.folder)

    def append(self, generation: Generation) -> None:
        """Store the next generation, drop the weights the recipe does not keep, and end the progress in it.

        After an error, a full disk above all, what was there before is complete.
        """
        expected = len(self.numbers) + 1
        if generation.number != expected:
            raise KeMetricError(
                f"{self.folder}: generation {generation.number} cannot be stored, the next one is {expected}",
                ExitCode.LINEAGE,
            )
        files.write_generation(self.generation_folder(generation.number), generation)
        for number in set(self.numbers) - self._kept():
            files.drop_weights(self.generation_folder(number))
        shutil.rmtree(self.folder / IN_PROGRESS, ignore_errors=True)
        card = generation.scorecard
        self.log(
            "generation",
            number=generation.number,
            dense=dict(card.dense),
            slim=dict(card.slim or {}),
            **({"narrow": {rate: dict(found.scores) for rate, found in card.narrow.items()}} if card.narrow else {}),
            magnitudes={name: list(pair) for name, pair in generation.magnitudes.items()},
        )

    def _kept(self) -> set[int]:
        numbers, keep = self.numbers, self.recipe.keep
        if keep == "all":
            return set(numbers)
        best = self._best() if keep == "best" else None
        return {numbers[-1], best or numbers[-1]}

    def save_state(self, state: TrainingState) -> None:
        """Store the state of the generation under way; it takes the place of the one before."""
        files.replace_state(self.folder / IN_PROGRESS, state)

    def load_state(self) -> TrainingState | None:
        """Return the state to resume from; None when the next generation has not finished an epoch."""
        number = len(self.numbers) + 1
        folder = files.newest_state(self.folder / IN_PROGRESS, number)
        return files.read_state(folder, number) if folder else None

    @property
    def holds_training(self) -> bool:
        """Whether anything was trained: a generation is complete, or has finished an epoch."""
        return bool(self.numbers) or files.newest_state(self.folder / IN_PROGRESS) is not None

    def require_data(self, now: DataFingerprint) -> str | None:
        """Check that the lineage's data are what they were, so that it can go on.

        Args:
            now: What lies there; contents are compared where they have been read.

        Returns:
            What could not be checked, in words; None where everything could.

        Raises:
            KeMetricError: They have changed (DATA: the data are what must be mended). What changed is named.
        """
        if not self.holds_training:
            return None
        before = self.data
        if before is not None:
            continuation.require_same_data(self.folder, before, now)
            return None
        self.require_classes(now)
        if numbers := self.numbers:
            continuation.require_possible_data(self.folder, numbers[-1], self.scorecard(numbers[-1]), now)
        return f"{self.folder} was begun before lineages kept a fingerprint of their data: {continuation.UNCHECKED}"

    def require_classes(self, now: DataFingerprint) -> None:
        """Check that a classifier's classes are still called what they were, in the order of its logits."""
        continuation.require_class_names(self.folder, self.class_names, now)

    def data_contradictions(self, now: DataFingerprint) -> list[str]:
        """Return what the last generation cannot have been scored on, by its scorecard; a sentence each."""
        numbers = self.numbers
        return continuation.scorecard_contradictions(numbers[-1], self.scorecard(numbers[-1]), now) if numbers else []

    def record_data(self, data: DataFingerprint) -> None:
        """Store what the lineage is grown and scored on from the next generation on, unless that is known."""
        if not (self.folder / DATA).exists() or not self.holds_training:
            known = replace(data, since=len(self.numbers) + 1)
            self._replace(DATA, json.dumps(known.to_json()) + "\n")

    @property
    def starting_weights(self) -> str | None:
        """SHA-256 of the file that it starts from (`network.weights`); None where it starts from none."""
        return self.facts.get(STARTING_WEIGHTS)

    def record_starting_weights(self, sha256: str) -> None:
        """Store the SHA-256 of the file that it starts from."""
        self._replace(FACTS, to_json(self.facts | {STARTING_WEIGHTS: sha256}))

    def set_status(self, status: str) -> None:
        """Record `running`, `interrupted`, `diverged`, `failed` or `finished`."""
        self._replace(FACTS, to_json(self.facts | {"status": status}))

    def log(self, event: str, **facts: Any) -> None:
        """Append one event to log.jsonl."""
        line = json.dumps({"time": now(), "event": event, **facts}, allow_nan=False)
        append_line(self.folder / LOG, line, as_error=files.not_written)

    def require_recipe(self, recipe: Recipe) -> Recipe:
        """Check that `recipe` continues this lineage: the same but for more generations and where the data lie.

        Returns the recipe with which it goes on: one that does not set a field which did not exist when the lineage
        was begun has the lineage's value there.
        """
        recipe = continuation.as_continued(self.recipe, recipe)
        changes = continuation.forbidden_changes(self.recipe, recipe)
        if changes:
            raise KeMetricError(
                f"{self.folder}: a lineage of another recipe: {'; '.join(changes.values())}", ExitCode.LINEAGE
            )
        return recipe

    def continue_with(self, recipe: Recipe) -> None:
        """Record the recipe of a resume that `require_recipe` accepts."""
        recipe = self.require_recipe(recipe)
        self.log("resumed", changes=list(continuation.changed_fields(self.recipe, recipe).values()))
        self._replace(RESOLVED, recipe.to_yaml())
        self._replace(FACTS, to_json(self.facts | {"recipe_digest": recipe.digest}))

    def _replace(self, name: str, text: str) -> None:
        write_text(self.folder / name, text, sole_writer=True, as_error=files.not_written)
