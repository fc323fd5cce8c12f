"""Averaged views: scoring, embedder, predictor, bundle, index and service give the same numbers by themselves."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.nn.functional import normalize

sys.path.append(str(Path(__file__).parents[1]))  # scored_lineages

from scored_lineages import CLASSES, grow_scored

from ke_metric import Embedder, Predictor
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli import main
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.classification import score_classification
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.images.preparation import MOVES, views_of
from ke_metric.networks.bundle import load_network
from ke_metric.networks.bundle_config import read_description
from ke_metric.retrieval.index import Index
from ke_metric.serving.service import IndexSearcher
from ke_metric.stores.contract import Item


@pytest.fixture(scope="module")
def lineage(tmp_path_factory):
    """Scored with five views."""
    return grow_scored(tmp_path_factory.mktemp("views") / "lineage", generations=1, embedding={"views": 5})


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(32):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3)).repeat(7, 0).repeat(7, 1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
    return sorted(folder.iterdir())


def pictures_of_test(recipe):
    """The pictures of the test part, their labels and their keys."""
    images = load_benchmark(recipe.data, recipe.task).query
    return [images.source.read(key) for key in images.keys], images.labels


def run(*words):
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def slow_twin(stored, how, pixels, views):
    """The mean of as many forward passes of the stored network, in double precision."""
    batch = how.tensor(pixels, device=torch.device("cpu"), channels_last=False)
    with torch.no_grad():
        return sum(stored.eval()(view).double() for view in views_of(batch, views)) / views


@pytest.mark.parametrize("network", ["dense", "slim"])
def test_the_embedder_gives_the_scorecard(network, lineage):
    pictures, labels = pictures_of_test(lineage.recipe)
    vectors = Embedder.load(lineage.folder, 1, network, device="cpu")(pictures)
    scores = score_retrieval(vectors, labels, (1, 2, 4), scoring=Scoring(backend="torch", kmeans_seeds=(0,)))
    card = lineage.scorecard(1)
    assert scores == pytest.approx(getattr(card, network), abs=1e-6)
    plain = Embedder.load(lineage.folder, 1, network, device="cpu", views=1)(pictures)
    assert not np.allclose(plain, vectors, atol=1e-3), "or the comparison could not fail"


def test_the_predictor_gives_the_scorecard(tmp_path):
    lineage = grow_scored(tmp_path / "l", **CLASSES, generations=1, embedding={"views": 2})
    pictures, labels = pictures_of_test(lineage.recipe)
    predictor = Predictor.load(lineage.folder, 1, "dense", device="cpu")
    logits = np.concatenate([batch.logits for batch in predictor.stream(pictures)])
    assert score_classification(logits, labels) == pytest.approx(lineage.scorecard(1).dense)
    pixels = np.stack([predictor.prepare(picture) for picture in pictures[:7]])
    predictor.save(tmp_path / "b")
    wanted = slow_twin(load_network(tmp_path / "b"), predictor.normalization, pixels, 2)
    np.testing.assert_allclose(predictor.compute(pixels), wanted, atol=1e-5)
    np.testing.assert_allclose(Predictor.load(tmp_path / "b", device="cpu").compute(pixels), wanted, atol=1e-5)


@pytest.mark.parametrize("views", list(MOVES))
def test_a_bundle_carries_its_views(views, lineage, paths, tmp_path):
    embedder = Embedder.load(lineage.folder, 1, "dense", device="cpu", views=views)
    embedder.save(tmp_path / "b")
    again = Embedder.load(tmp_path / "b", device="cpu")
    assert (again.digest, again.normalization.views) == (embedder.digest, views)
    vectors = again(paths)
    assert np.array_equal(vectors, embedder(paths))
    pixels = np.stack([embedder.prepare(path) for path in paths])
    wanted = normalize(slow_twin(load_network(tmp_path / "b"), embedder.normalization, pixels, views), dim=1)
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    module = embedder.as_module()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(module.detach(), wanted, atol=1e-5)


def test_another_number_of_views_is_another_digest(lineage, tmp_path):
    loaded = {views: Embedder.load(lineage.folder, 1, "dense", device="cpu", views=views) for views in MOVES}
    assert len({embedder.digest for embedder in loaded.values()}) == 3
    assert loaded[5].digest == Embedder.load(lineage.folder, 1, "dense", device="cpu").digest
    loaded[1].save(tmp_path / "b")
    config = (tmp_path / "b" / "config.json").read_text(encoding="utf-8")
    assert read_description(tmp_path / "b").normalization.views == 1
    assert '"views": 1' in config


@pytest.mark.parametrize("views", [0, 3, True, 2.0, "2"])
def test_other_numbers_are_refused(views, lineage):
    with pytest.raises(KeMetricError, match="must be 1, 2 or 5") as caught:
        Embedder.load(lineage.folder, 1, "dense", views=views)
    assert caught.value.exit_code == ExitCode.USAGE


def test_index_and_service_have_the_views_of_the_network(lineage, paths, tmp_path):
    embedder = Embedder.load(lineage.folder, 1, "dense", device="cpu")
    items = [Item(path.name, str(path), "") for path in paths]
    vectors = embedder(paths)
    with Index.create(tmp_path / "i", embedder=embedder) as index:
        index.add(items, vectors, digest=embedder.digest)
    searcher = IndexSearcher(tmp_path / "i", device="cpu")
    try:
        assert searcher.network.digest == embedder.digest
        pixels = np.stack([searcher.network.prepare(path) for path in paths])
        np.testing.assert_allclose(searcher.network.compute(pixels), vectors, atol=1e-5)
    finally:
        searcher.close()


def test_the_commands_take_more_views(lineage, paths, tmp_path):
    pictures, chosen = paths[0].parent, ("--lineage", lineage.folder, "--network", "dense", "--device", "cpu")
    embedded = run("embed", pictures, "-o", tmp_path / "e", "--views", 2, *chosen, "--json")
    built = run("index", "build", pictures, "-o", tmp_path / "i", "--views", 2, *chosen, "--json")
    exported = run(
        "export", "--format", "torch-export", "-o", tmp_path / "x", "--views", 2, "--lineage", lineage.folder,
        "--network", "dense", "--pictures", pictures, "--json",
    )  # fmt: skip
    digest = Embedder.load(lineage.folder, 1, "dense", views=2).digest
    assert embedded["model"]["digest"] == built["model"]["digest"] == exported["digest"] == digest
    assert exported["preparation"]["views"] == 2
    refused = CliRunner().invoke(main, ["embed", str(pictures), "-o", str(tmp_path / "f"), "--views", "3"])
    assert refused.exit_code == ExitCode.USAGE
