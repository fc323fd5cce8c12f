"""A generation is the one that was opened, or what became of it is said."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # scored_lineages

from scored_lineages import grow_scored

from ke_metric import Lineage
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.lineage.files import SPLIT, VECTORS, WEIGHTS, drop_weights
from ke_metric.lineage.folder import VECTORS as FOLDER
from ke_metric.lineage.identity import GenerationIdentities
from ke_metric.report.vectors import LineageVectors


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    return grow_scored(tmp_path_factory.mktemp("identity") / "lineage")


@pytest.fixture
def lineage(grown, tmp_path):
    return Lineage(shutil.copytree(grown.folder, tmp_path / "lineage"))


def replace_by_generation_1(lineage, name=WEIGHTS):
    """Replace a file of generation 2 as a training does: a new one takes its place, here even at the same time."""
    old, new = lineage.generation_folder(2) / name, lineage.folder / "new"
    facts = old.stat()
    shutil.copy(lineage.generation_folder(1) / name, new)
    os.utime(new, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    new.replace(old)


@pytest.mark.parametrize("name", [WEIGHTS, SPLIT])
def test_another_file_is_found_out(lineage, name):
    identities = GenerationIdentities(lineage)
    replace_by_generation_1(lineage, name)
    identities.require_same(1)
    with pytest.raises(KeMetricError, match=f"has changed since it was opened.*generation 2: {name}") as caught:
        identities.require_same(2)
    assert caught.value.exit_code == ExitCode.LINEAGE


def test_weights_that_are_dropped_are_no_change_and_vectors_that_come_are(lineage):
    identities = GenerationIdentities(lineage)
    drop_weights(lineage.generation_folder(1))
    identities.require_same(1)
    (lineage.generation_folder(1) / VECTORS).touch()
    with pytest.raises(KeMetricError, match="has changed"):
        identities.require_same(1)


def test_a_generation_that_comes_later_is_known_from_then_on(lineage):
    later = lineage.generation_folder(2).rename(lineage.folder / "later")
    identities = GenerationIdentities(lineage)
    later.rename(lineage.generation_folder(2))
    identities.require_same(2)
    replace_by_generation_1(lineage)
    with pytest.raises(KeMetricError, match="has changed"):
        identities.require_same(2)


def test_vectors_of_another_training_are_neither_given_nor_stored(lineage):
    vectors = LineageVectors.open(lineage)
    kept = vectors.vectors(2, "dense")
    replace_by_generation_1(lineage)
    stored = sorted((lineage.folder / FOLDER).iterdir())
    with pytest.raises(KeMetricError, match="has changed since it was opened"):
        vectors.vectors(2, "slim")
    assert sorted((lineage.folder / FOLDER).iterdir()) == stored
    assert vectors.vectors(2, "dense") is kept
    vectors.vectors(1, "slim")
