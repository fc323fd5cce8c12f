"""The lineages of an experiment: trained where they are missing, and what is left of one that is gone.

What is left is a line in a file of results, which tables are made of as well.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.shared.collect import collect
from ke_metric import Lineage
from ke_metric.cli.train import train_lineage
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import DataFingerprint, Scorecard, SlimScores
from ke_metric.lineage.folder import as_continued, forbidden_changes
from ke_metric.recipe.schema import Recipe
from ke_metric.schema import RECIPE_FIELDS, with_values_before


def train(recipe: Recipe, path: Path, lineages: Path) -> None:
    """Train a lineage, or the rest of it; a finished one stays as it is, and one that diverges is told and left.

    Raises:
        KeMetricError: A lineage of another recipe is there, or what else `ke-metric train` raises.
    """
    folder = folder_of(recipe, lineages)
    is_there = (folder / "lineage.json").exists()
    if is_there:
        lineage = Lineage(folder)
        lineage.require_recipe(recipe)
        # One that was killed between its last generation and this word goes on, which writes it.
        if lineage.facts["status"] == "finished":
            return
    text = path.read_text(encoding="utf-8")
    try:
        train_lineage(recipe, text=text, folder=folder, device=None, resume=is_there, overwrite=False)
    except KeMetricError as error:
        if error.exit_code != ExitCode.DIVERGED:
            raise
        print(f"{folder}: {error}", file=sys.stderr)


def folder_of(recipe: Recipe, lineages: Path) -> Path:
    """Return where the lineage of a recipe is."""
    return lineages / f"{recipe.name}-s{recipe.seed}"


class StoredResult:
    """A lineage without its folder: as far as tables ask.

    Args:
        document: What `collect` returned, and maybe `averages`: kind -> scorecard.
        path: The file it is from, for error messages.
    """

    def __init__(self, document: Mapping[str, Any], path: Path) -> None:
        self._generations = document["generations"]
        self.recipe = Recipe.model_validate(with_values_before(document["recipe"], RECIPE_FIELDS))
        self.folder = path.with_name(f"{path.name}: {key_of(self.recipe)}")
        # A line does not say how the network scored before any training, nor which pictures it was scored on.
        self.untrained: Scorecard | None = None
        self.data: DataFingerprint | None = None
        self.averages = {kind: Scorecard(**card) for kind, card in document.get("averages", {}).items()}

    @property
    def numbers(self) -> list[int]:
        """Numbers of its generations."""
        return [generation["generation"] for generation in self._generations]

    def scorecard(self, number: int) -> Scorecard:
        """Return a generation's scores."""
        found = self._generations[number - 1]
        narrow = {
            rate: SlimScores(
                scores,
                found["narrow_parameters"][rate],
                found.get("narrow_as_cut", {}).get(rate),
                found.get("narrow_repair", {}).get(rate),
            )
            for rate, scores in found.get("narrow", {}).items()
        }
        counts = found["dense_parameters"], found["slim_parameters"]
        added = {name: found.get(name) for name in ("sizes", "slim_as_cut", "slim_repair")}
        return Scorecard(found["dense"], found.get("slim"), *counts, narrow=narrow or None, **added)

    def training_seconds(self, number: int) -> float:
        """Return how long a generation was trained."""
        return float(self._generations[number - 1]["seconds"]["training"])


class Results:
    """A file of results, a line for each lineage.

    Args:
        path: The .jsonl file; empty where it is not there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._documents: dict[str, dict[str, Any]] = {}
        for document in map(json.loads, lines):
            self._documents[f"{document['recipe']['name']}-s{document['recipe']['seed']}"] = document

    def get(self, recipe: Recipe) -> StoredResult | None:
        """Return the result of a recipe.

        Raises:
            KeMetricError: There is one of its name and seed, but of another recipe.
        """
        document = self._documents.get(key_of(recipe))
        if document is None:
            return None
        found = StoredResult(document, self._path)
        changes = forbidden_changes(found.recipe, as_continued(found.recipe, recipe))
        if changes:
            raise KeMetricError(f"{found.folder}: of another recipe: {'; '.join(changes.values())}", ExitCode.LINEAGE)
        return found

    def add(self, lineage: Lineage, averages: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Write down what a finished lineage shows, in the place of what was written of it before.

        Args:
            lineage: The lineage.
            averages: Kind -> scorecard, as plain values.
        """
        recipe = lineage.recipe
        document = collect(recipe.name, lineage) | ({"averages": dict(averages)} if averages else {})
        if self._documents.get(key_of(recipe)) == document:
            return
        self._documents[key_of(recipe)] = document
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".writing-{os.getpid()}-{self._path.name}")
        lines = [json.dumps(each, allow_nan=False) for _, each in sorted(self._documents.items())]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(self._path)


def key_of(recipe: Recipe) -> str:
    """Return the name of a recipe's lineage."""
    return f"{recipe.name}-s{recipe.seed}"


def training_seconds(lineage: Lineage | StoredResult, number: int) -> float:
    """Return how long a generation was trained."""
    if isinstance(lineage, StoredResult):
        return lineage.training_seconds(number)
    provenance = json.loads((lineage.generation_folder(number) / "provenance.json").read_text(encoding="utf-8"))
    return float(provenance["seconds"]["training"])
