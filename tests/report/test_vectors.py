"""The vectors of a lineage's networks: those that were scored, computed once, never out of date."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))  # scored_lineages

from scored_lineages import CLASSES, FIELDS, grow_scored

from ke_metric import Lineage, evolve
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli.train import kept_vectors
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.lineage.files import read_vectors, vectors_content
from ke_metric.recipe.schema import Recipe
from ke_metric.report.vectors import LineageVectors
from ke_metric.scoring import Scorer

RATES = {"split": {"rates": [0.25, 0.5]}, "evaluation": FIELDS["evaluation"] | {"slim_repair": "auto"}}


@pytest.fixture(scope="module", params=["retrieval", "rates", "classes"])
def lineage(request, tmp_path_factory):
    fields = {"retrieval": {}, "rates": RATES, "classes": CLASSES}[request.param]
    return grow_scored(tmp_path_factory.mktemp("lineage") / request.param, **fields)


@pytest.fixture
def own_copy(tmp_path):
    """A lineage that a test may change."""
    return grow_scored(tmp_path / "own")


def test_every_network_has_outcomes_with_the_scores_of_its_scorecard(lineage):
    vectors = LineageVectors.open(lineage)
    assert vectors.changes == []
    expected = [(number, name) for number in (1, 2) for name in lineage.scorecard(number).networks]
    assert vectors.networks == expected
    for number, name in expected:
        scores = lineage.scorecard(number).networks[name]
        outcomes = vectors.outcomes(number, name)
        assert outcomes.decisive == lineage.decisive_score
        for score, values in outcomes.scores.items():
            assert np.nanmean(values) == pytest.approx(scores[score], abs=1e-12), (number, name, score)


def test_they_are_computed_once(own_copy, monkeypatch):
    first = LineageVectors.open(own_copy).vectors(2, "slim")
    monkeypatch.setattr(Scorer, "vectors", lambda *_: pytest.fail("computed again"))
    again = LineageVectors.open(own_copy).vectors(2, "slim")
    assert np.array_equal(first[0], again[0])
    assert again[1] is again[0]


def test_a_file_tells_whether_the_gallery_is_another_set(tmp_path):
    query, gallery = np.eye(3, dtype=np.float32), np.ones((2, 3), np.float32)
    path = tmp_path / "vectors.safetensors"
    path.write_bytes(vectors_content({"dense": (query, gallery), "slim": (query, query)}))
    for name, expected in (("dense", (query, gallery)), ("slim", (query, query))):
        found = read_vectors(path, name)
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
        assert (found[0] is found[1]) == (name == "slim")
    assert read_vectors(path, "slim 0.25") is None


def test_other_weights_have_another_digest(own_copy):
    vectors = LineageVectors.open(own_copy)
    digests = {vectors.digest(number, name) for number, name in vectors.networks}
    assert len(digests) == len(vectors.networks) == 4
    assert digests == {LineageVectors.open(own_copy).digest(*network) for network in vectors.networks}


def test_a_generation_without_weights_has_none_and_says_what_keeps_them(own_copy):
    (own_copy.generation_folder(1) / "weights.safetensors").unlink()
    vectors = LineageVectors.open(own_copy)
    assert vectors.networks == [(2, "dense"), (2, "slim")]
    with pytest.raises(KeMetricError, match=r"generation 1 dense.*keep: all.*evaluation.keep_vectors") as caught:
        vectors.vectors(1, "dense")
    assert caught.value.exit_code == ExitCode.LINEAGE


def test_a_damaged_file_is_named(own_copy):
    vectors = LineageVectors.open(own_copy)
    vectors.vectors(1, "dense")
    [path] = (own_copy.folder / "vectors").iterdir()
    path.write_bytes(b"no vectors")
    with pytest.raises(KeMetricError, match=r"vectors.*damaged.*delete it"):
        LineageVectors.open(own_copy).vectors(1, "dense")


def test_a_lineage_that_cannot_be_written_still_shows_them(own_copy):
    (own_copy.folder / "vectors").write_text("a file where the folder should be")
    vectors = LineageVectors.open(own_copy)
    assert len(vectors.vectors(1, "dense")[0]) == len(vectors.benchmark.query)
    assert "vectors" in vectors.unwritten


def test_pictures_are_those_that_are_scored(own_copy):
    vectors = LineageVectors.open(own_copy)
    picture = vectors.picture("query", 3)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), vectors.pictures.query.picture(3))


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_a_training_keeps_them_where_it_is_asked_to(tmp_path, task, monkeypatch):
    """Those of a generation whose weights are gone too; they are what is computed from weights that are there."""
    classes = CLASSES | {"loss": {"name": "CrossEntropyLoss"}}
    fields = FIELDS | (classes if task == "classification" else {"data": FIELDS["data"] | {"train_classes": 8}})
    recipe = Recipe.model_validate(
        fields
        | {"keep": "last", "training": {"epochs": 1, "warmup_epochs": 0}}
        | {"evaluation": FIELDS["evaluation"] | {"keep_vectors": True}}
        | {"batches": {"size": 16, "images_per_class": 4}}
    )
    lineage = Lineage.create(tmp_path / "kept", recipe, text="x", command="x")
    for generation in evolve(recipe, load_benchmark(recipe.data, task)):
        lineage.append(generation)
    kept = LineageVectors.open(lineage)
    arrays = {id(array): array for name in ("dense", "slim") for array in kept.vectors(1, name)}
    assert kept_vectors(recipe, load_benchmark(recipe.data, task)) == sum(array.nbytes for array in arrays.values())
    assert kept.networks == [(1, "dense"), (1, "slim"), (2, "dense"), (2, "slim")]
    copy = Lineage(shutil.copytree(lineage.folder, tmp_path / "copy"))
    (copy.generation_folder(2) / "vectors.safetensors").unlink()
    computed = LineageVectors.open(copy)
    assert computed.networks == kept.networks
    for name in ("dense", "slim"):
        assert np.array_equal(kept.vectors(2, name)[0], computed.vectors(2, name)[0])
    monkeypatch.setattr(Scorer, "vectors", lambda *_: pytest.fail("computed"))
    for number, name in kept.networks:
        outcomes, scores = kept.outcomes(number, name), lineage.scorecard(number).networks[name]
        assert np.nanmean(outcomes.decisive_scores) == pytest.approx(scores[outcomes.decisive], abs=1e-12)
    assert not (lineage.folder / "vectors").exists()
