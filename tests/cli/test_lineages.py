"""Which lineage a command means when none is named, and what it says of its choice."""

import os

import pytest

from ke_metric.cli.lineages import open_lineage
from ke_metric.lineage.store import Lineage
from ke_metric.recipe.schema import Recipe


@pytest.fixture
def two_tasks(tmp_path, monkeypatch):
    """An older lineage of retrieval and a newer one of classification."""
    monkeypatch.chdir(tmp_path)
    for name, task, loss in (("old", "retrieval", "MultiSimilarityLoss"), ("new", "classification", "CSKDLoss")):
        recipe = Recipe(name=name, task=task, loss={"name": loss})
        lineage = Lineage.create(tmp_path / "lineages" / name, recipe, text="x", command="x")
        os.utime(lineage.folder / "lineage.json", ns=(len(task), len(task)))


@pytest.mark.usefixtures("two_tasks")
@pytest.mark.parametrize(
    ("task", "told"),
    [
        (None, "newest lineage: lineages/new"),
        ("classification", "newest lineage: lineages/new"),
        ("retrieval", "newest lineage of task retrieval (lineages/new is of another task): lineages/old"),
    ],
)
def test_the_newest_that_the_command_can_use_is_taken_and_named(task, told, monkeypatch):
    said = []
    monkeypatch.setattr("ke_metric.cli.lineages.say", said.append)
    chosen = open_lineage(None, task=task)
    assert said == [told]
    assert told.endswith(str(chosen.folder))
