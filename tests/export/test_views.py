"""An exported file averages over the views of a picture itself: it takes the picture once, and needs no option."""

import numpy as np
import pytest
import torch
from made import SIZE, make_embedder, make_pictures, make_predictor
from torch.nn.functional import normalize

from ke_metric.export.export import Evidence, ExportSettings, export
from ke_metric.export.onnx_file import OnnxNetwork, run_program
from ke_metric.export.record import read_record
from ke_metric.images.preparation import views_of
from ke_metric.networks.bundle_config import Architecture, NetworkCard
from ke_metric.networks.dense import build_network
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.embedder import Embedder


def in_views(made, views):
    """The same network, its outputs averaged over views."""
    how = made.normalization.model_copy(update={"views": views})
    card = made._card.model_copy(update={"normalization": how})
    return type(made)(made._stored, architecture=made._architecture, card=card)


def slow_twin(made, pixels, views):
    batch = made.normalization.tensor(pixels, device=torch.device("cpu"), channels_last=False)
    with torch.no_grad():
        mean = sum(made._stored(view).double() for view in views_of(batch, views)) / views
    return mean.numpy()


@pytest.mark.parametrize("views", [1, 2, 5])
@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_embeddings_of_a_file(kind, views, tmp_path):
    made, pictures = make_embedder(), make_pictures()
    embedder = in_views(made, views)
    record = export(embedder, tmp_path / "e", settings=ExportSettings(kind), evidence=Evidence(pictures, source="x"))
    assert record.preparation.views == read_record(tmp_path / "e").preparation.views == views
    assert record.digest == embedder.digest
    assert (embedder.digest == made.digest) == (views == 1)
    assert record.steps == made.normalization.steps, "how a picture becomes the input is the same"
    run = OnnxNetwork(tmp_path / "e") if kind == "onnx" else run_program(tmp_path / "e" / "model.pt2")
    wanted = normalize(torch.from_numpy(slow_twin(made, pictures, views)), dim=1)
    np.testing.assert_allclose(run(pictures[:7]), wanted[:7], atol=1e-5)
    if views == 1:
        assert np.array_equal(embedder.embed_pixels(pictures), made.embed_pixels(pictures))


@pytest.mark.parametrize("views", [2, 5])
def test_logits_of_a_file_are_means(views, tmp_path):
    made, pictures = make_predictor(), make_pictures()
    predictor = in_views(made, views)
    export(predictor, tmp_path / "e", settings=ExportSettings("onnx"), evidence=Evidence(pictures, source="x"))
    wanted = slow_twin(made, pictures, views)
    np.testing.assert_allclose(OnnxNetwork(tmp_path / "e")(pictures), wanted, atol=1e-4)
    np.testing.assert_allclose(predictor.compute(pictures), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_a_blurred_network_is_exported(kind, tmp_path):
    fields = {"backbone": "timm/test_resnet", "embedding_size": 8, "blur": "strides"}
    recipe = Recipe.model_validate({"name": "x", "data": {"image_size": SIZE}, "network": fields})
    network = build_network(recipe.network, SIZE).eval()
    card = NetworkCard(normalization=make_embedder().normalization)
    embedder = Embedder(network, architecture=Architecture.of_recipe(recipe), card=card)
    embedder.save(tmp_path / "b")
    assert Embedder.load(tmp_path / "b", device="cpu").digest == embedder.digest
    assert '"blur": "strides"' in (tmp_path / "b" / "config.json").read_text(encoding="utf-8")
    pictures = make_pictures()
    export(embedder, tmp_path / "e", settings=ExportSettings(kind), evidence=Evidence(pictures, source="x"))
    run = OnnxNetwork(tmp_path / "e") if kind == "onnx" else run_program(tmp_path / "e" / "model.pt2")
    np.testing.assert_allclose(run(pictures[:7]), embedder.embed_pixels(pictures[:7]), atol=1e-5)


def test_eight_bit_integers_of_views(tmp_path):
    pictures = make_pictures()
    embedder = in_views(make_embedder("timm/test_resnet"), 2)
    evidence = Evidence(pictures, source="x", calibration=pictures)
    export(embedder, tmp_path / "e", settings=ExportSettings("onnx", "static"), evidence=evidence)
    found = OnnxNetwork(tmp_path / "e")(pictures)
    assert (found * embedder.embed_pixels(pictures)).sum(axis=1).min() > 0.9
