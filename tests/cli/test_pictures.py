"""`ke-metric data pictures`: the files give the vectors and the scorecard of the lineage, dense and slim."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from ke_metric import Embedder, score_retrieval
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli import main
from ke_metric.errors import ExitCode
from ke_metric.evaluation.embeddings import embed
from ke_metric.evaluation.retrieval import Scoring
from ke_metric.images.batches import evaluation_batches
from ke_metric.images.image_set import without_training
from ke_metric.images.pixel_store import Pictures


def run(*arguments):
    return CliRunner().invoke(main, ["data", "pictures", *map(str, arguments)])


@pytest.fixture(scope="module")
def written(scored, tmp_path_factory):
    """What the command wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("written") / "pictures"
    result = run("--lineage", scored.folder, "--to", folder, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return folder, json.loads(result.stdout)


def listed(folder):
    with (folder / "pictures.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_written_is_told(written, scored):
    folder, document = written
    images = load_benchmark(scored.recipe.data).query
    assert document == {
        "lineage": str(scored.folder),
        "benchmark": "glyphs",
        "folder": str(folder),
        "classes": 5,
        "pictures": {"query": 5, "gallery": len(images) - 5},
    }
    assert sorted(path.name for path in folder.iterdir()) == ["gallery", "pictures.csv", "query"]
    assert len(list(folder.rglob("*.png"))) == len(images)


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("network", ["dense", "slim"])
def test_the_files_give_the_stored_scorecard(generation, network, written, scored):
    folder, _ = written
    rows = listed(folder)
    vectors = Embedder.load(scored.folder, generation, network)(folder / row["path"] for row in rows)
    names = sorted({row["label"] for row in rows})
    labels = np.array([names.index(row["label"]) for row in rows])
    evaluation = scored.recipe.evaluation
    scoring = Scoring(backend=evaluation.backend, kmeans_seeds=tuple(range(evaluation.kmeans_seeds)))
    scores = score_retrieval(vectors, labels, evaluation.recall_at, scoring=scoring)
    assert scores == getattr(scored.load(generation).scorecard, network)


def test_the_files_give_the_very_vectors_that_were_scored(written, scored):
    folder, _ = written
    recipe = scored.recipe
    benchmark = without_training(load_benchmark(recipe.data))
    pictures = Pictures.decode(benchmark, recipe.data.store_size)
    embedder = Embedder.load(scored.folder)
    batches = evaluation_batches(pictures.query, range(len(benchmark.query)), recipe=recipe, device=embedder.device)
    rows = listed(folder)
    assert [row["key"] for row in rows] == list(benchmark.query.keys)
    assert np.array_equal(embedder(folder / row["path"] for row in rows), embed(embedder.network, batches))


def test_the_training_part(scored, tmp_path, monkeypatch):
    monkeypatch.setattr("ke_metric.cli.data.load_benchmark", small_training)
    result = run("--lineage", scored.folder, "--to", tmp_path / "p", "--part", "train")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["pictures.csv", "train"]
    assert "p/train: 30 pictures" in result.stdout


def small_training(data, task):
    benchmark = load_benchmark(data, task)
    return type(benchmark)(
        benchmark.name, benchmark.train.at(np.arange(30)), benchmark.query, benchmark.gallery, benchmark.notes
    )


def test_a_folder_that_is_there_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine").write_text("x")
    result = run("--lineage", tmp_path / "none", "--to", tmp_path / "p")
    assert result.exit_code == ExitCode.DATA
    assert "not an empty folder" in result.stderr
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["mine"]


def test_the_newest_lineage_is_taken_and_named(scored, tmp_path, monkeypatch):
    (tmp_path / "lineages").mkdir()
    (tmp_path / "lineages" / "x").symlink_to(scored.folder)
    monkeypatch.chdir(tmp_path)
    result = run("--to", "p")
    assert result.exit_code == 0, result.output
    assert "newest lineage: lineages/x" in result.stderr
