"""Embeddings cut to their first numbers: the network of a size, and that vectors of two sizes do not mix."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ke_metric import Embedder, Predictor, load_network
from ke_metric.cli import main
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.bundle_config import read_description
from ke_metric.retrieval.index import Index, results_of
from ke_metric.stores.contract import Item

NESTED = {"network": {"backbone": "timm/test_resnet", "embedding_size": 8, "nested_sizes": [2, 4]}}
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def nested(grow_lineage, tmp_path_factory):
    """A lineage whose recipe has nested sizes."""
    return grow_lineage(tmp_path_factory.mktemp("nested") / "lineage", **NESTED)


def prefix(vectors, size):
    cut = vectors[:, :size].astype(np.float64)
    return cut / np.linalg.norm(cut, axis=1, keepdims=True)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(2, 8), number=st.sampled_from([1, 2]), network=st.sampled_from(["dense", "slim"]))
def test_a_size_gives_the_first_numbers_of_the_whole_embedding(grown, size, number, network):
    whole = Embedder.load(grown.folder, number, network)
    cut = Embedder.load(grown.folder, number, network, size=size)
    assert cut.dimension == size
    np.testing.assert_allclose(cut.embed_pixels(PIXELS), prefix(whole.embed_pixels(PIXELS), size), atol=1e-6)
    assert (cut.digest == whole.digest) == (size == 8)


@pytest.mark.parametrize("network", ["dense", "slim"])
def test_a_bundle_keeps_the_size_and_its_digest(nested, network, tmp_path):
    cut = Embedder.load(nested.folder, 2, network, size=4)
    cut.save(tmp_path / "cut")
    loaded = Embedder.load(tmp_path / "cut")
    assert (loaded.digest, loaded.dimension) == (cut.digest, 4)
    assert np.array_equal(loaded.embed_pixels(PIXELS), cut.embed_pixels(PIXELS))
    # Cut from the bundle of the whole one, it is the same network.
    Embedder.load(nested.folder, 2, network).save(tmp_path / "whole")
    assert Embedder.load(tmp_path / "whole", size=4).digest == cut.digest
    description = read_description(tmp_path / "cut")
    assert description.embedding_size == 4
    assert "its first 4 of 8 numbers" in description.origin
    again = load_network(tmp_path / "cut")
    assert again.head.out_features == 4
    assert again(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_the_loss_of_a_recipe_is_no_part_of_its_network(nested, grown, tmp_path):
    ours, theirs = Embedder.load(nested.folder, 1, "dense"), Embedder.load(grown.folder, 1, "dense")
    assert ours.digest == theirs.digest
    ours.save(tmp_path / "bundle")
    assert "nested_sizes" not in (tmp_path / "bundle" / "config.json").read_text(encoding="utf-8")


def test_it_is_said_which_sizes_were_trained(nested):
    assert Embedder.load(nested.folder, size=4).description.endswith(", its first 4 of 8 numbers")
    told = Embedder.load(nested.folder, size=3).description
    assert told.endswith("a size that was not trained (network.nested_sizes and embedding_size: 2, 4, 8)")
    assert Embedder.load(nested.folder, size=8).description == Embedder.load(nested.folder).description


def test_an_index_refuses_vectors_of_another_size(nested, tmp_path):
    small, whole = Embedder.load(nested.folder, size=4), Embedder.load(nested.folder)
    items = [Item(str(number), f"{number}.png", "") for number in range(len(PIXELS))]
    with Index.create(tmp_path / "i", embedder=small) as index:
        index.add(items, small.embed_pixels(PIXELS), digest=small.digest)
        with pytest.raises(KeMetricError, match="made by another network"):
            index.add(items, whole.embed_pixels(PIXELS), digest=whole.digest)
        with pytest.raises(KeMetricError, match="made by another network"):
            index.search(whole.embed_pixels(PIXELS), k=1, digest=whole.digest)
    with Index.open(tmp_path / "i") as index:
        assert index.embedder.dimension == 4
        hits = index.search(index.embedder.embed_pixels(PIXELS), k=1, digest=small.digest)
        assert [found[0].id for found in results_of(hits)] == [item.id for item in items]


@pytest.mark.parametrize("size", [-1, 0, 1, 9])
def test_sizes_that_there_are_not_are_refused(nested, size):
    with pytest.raises(KeMetricError, match=r"must be from 2 to 8") as caught:
        Embedder.load(nested.folder, size=size)
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("kind", [Embedder, Predictor])
def test_a_classifier_is_refused(kind, grow_lineage, tmp_path):
    lineage = grow_lineage(
        tmp_path / "lineage", task="classification", network={"backbone": "timm/test_resnet"}, generations=1
    )
    with pytest.raises(KeMetricError, match="is a classifier") as caught:
        kind.load(lineage.folder, size=4)
    assert caught.value.exit_code is ExitCode.USAGE


def test_commands_take_a_size(nested, tmp_path):
    for number, pixels in enumerate(PIXELS):
        (tmp_path / "p").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "p" / f"{number}.png")

    def run(*words):
        result = CliRunner().invoke(main, [*map(str, words), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    digest = Embedder.load(nested.folder, 2, "slim", size=4).digest
    named = ("--lineage", nested.folder, "--gen", 2, "--network", "slim", "--size", 4)
    embedded = run("embed", tmp_path / "p", "-o", tmp_path / "e", *named)
    assert (embedded["dimension"], embedded["model"]["digest"]) == (4, digest)
    built = run("index", "build", "--from", tmp_path / "e", "-o", tmp_path / "i", *named)
    assert built["dimension"] == 4
    assert run("slim", "-o", tmp_path / "s", *named)["size"] == 4
    assert Embedder.load(tmp_path / "s").digest == digest
    anew = run("index", "build", tmp_path / "p", "-o", tmp_path / "j", "--bundle", tmp_path / "s", "--size", 2)
    assert anew["dimension"] == 2
