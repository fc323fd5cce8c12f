"""8-bit integers: what they cost is measured and told, and one that costs too much is not kept."""

import numpy as np
import onnx
import pytest
from made import SIZE, make_embedder
from onnxruntime import quantization

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.retrieval import score_retrieval
from ke_metric.export import export as export_module
from ke_metric.export.export import Evidence, ExportSettings, export, portable_module
from ke_metric.export.onnx_file import OnnxNetwork, quantize, write_onnx
from ke_metric.export.record import LabelledPictures, RecallCost, ScoredPictures, recall_cost, require_cheap

LABELS = np.arange(40) % 8
KEYS = tuple(f"{n}.png" for n in range(40))


def noisy(pictures, labels, seed):
    """Return pictures that resemble others of their label."""
    noise = np.random.default_rng(seed).integers(-60, 61, pictures.shape)
    return (pictures[labels].astype(int) + noise).clip(0, 255).astype(np.uint8)


def labelled(pictures, *, keys=KEYS, size=16):
    batches = [pictures[start : start + size] for start in range(0, len(pictures), size)]
    return LabelledPictures(iter(batches), LABELS, keys)


@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_integers_are_smaller_and_near(how, pictures, tmp_path):
    embedder = make_embedder("timm/test_resnet")
    known = noisy(pictures, LABELS, 1)
    evidence = Evidence(known, source="x", calibration=known, scored=ScoredPictures(labelled(known)))
    settings = ExportSettings("onnx", how, max_loss=100)
    record = export(embedder, tmp_path / "e", settings=settings, evidence=evidence)
    network = OnnxNetwork(tmp_path / "e")
    assert record.files["model.onnx"].bytes < 0.6 * 4 * sum(p.numel() for p in embedder.network.parameters())
    assert record.digest == network.digest != embedder.digest == record.embedder_digest
    assert record.calibration_pictures == (40 if how == "static" else None)
    assert record.verification.tolerance is None
    assert 1e-4 < record.verification.worst.max_difference < 0.5
    # In the batches that were scored: dynamic ranges are those of a batch.
    vectors = np.concatenate([network(known[start : start + 16]) for start in range(0, 40, 16)])
    for cost, given in ((record.recall_at_1.pytorch, embedder.embed_pixels(known)),
                        (record.recall_at_1.exported, vectors)):  # fmt: skip
        assert cost == score_retrieval(given, LABELS, (1,))["recall@1"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_shapes_of_weights_are_not_handed_to_the_quantization(embedder, tmp_path, monkeypatch):
    """onnxruntime 1.23 to 1.31 turns a weight round and leaves the shape told beside it, which ONNX then refuses."""
    seen = []

    def quantize_dynamic(source, target, *, weight_type):
        graph = onnx.load(source).graph
        seen.append(({told.name for told in graph.value_info}, {weight.name for weight in graph.initializer}))
        assert weight_type == quantization.QuantType.QUInt8, "older ones have no convolution of signed weights"

    monkeypatch.setattr(quantization, "quantize_dynamic", quantize_dynamic)
    write_onnx(portable_module(embedder), tmp_path / "x.onnx", image_size=SIZE)
    named = onnx.load(tmp_path / "x.onnx").graph
    assert {told.name for told in named.value_info} & {weight.name for weight in named.initializer}
    quantize(tmp_path / "x.onnx", tmp_path / "y.onnx", None)
    ((told, weights),) = seen
    assert told
    assert weights
    assert not told & weights


def test_the_cost_is_that_of_query_against_gallery(embedder, pictures):
    query, gallery = noisy(pictures, LABELS, 2), noisy(pictures, LABELS, 3)
    turned = LABELS[::-1].copy()

    def other(pixels):
        return embedder.embed_pixels(255 - pixels)

    scored = ScoredPictures(labelled(query), LabelledPictures([gallery], turned, tuple(f"g{n}" for n in range(40))))
    cost = recall_cost(embedder.embed_pixels, other, scored)
    for told, embed in ((cost.pytorch, embedder.embed_pixels), (cost.exported, other)):
        nearest = (embed(query) @ embed(gallery).T).argmax(axis=1)
        assert told == pytest.approx(np.mean(turned[nearest] == LABELS))
    assert cost.queries == 40


def test_more_than_the_allowed_loss_is_refused():
    cost = RecallCost(queries=1000, pytorch=0.8, exported=0.74)
    assert cost.points == pytest.approx(6)
    require_cheap(cost, 6.01)
    require_cheap(RecallCost(queries=9, pytorch=0.5, exported=0.6), 0)
    with pytest.raises(KeMetricError, match=r"costs 6.0 points of Recall@1 .* at most 5 are allowed") as caught:
        require_cheap(cost, 5)
    assert caught.value.exit_code is ExitCode.GATE


def test_what_costs_too_much_leaves_nothing(embedder, pictures, evidence, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "write_onnx", lambda module, path, **named: path.write_bytes(b""))
    monkeypatch.setattr(export_module, "quantize", lambda source, target, calibration: target.write_bytes(b""))
    monkeypatch.setattr(export_module, "OnnxNetwork", lambda path: embedder.embed_pixels)
    cost = RecallCost(queries=9, pytorch=0.8, exported=0.7)
    monkeypatch.setattr(export_module, "recall_cost", lambda *given: cost)
    scored = Evidence(pictures, source="x", calibration=pictures, scored=ScoredPictures(labelled(pictures)))
    with pytest.raises(KeMetricError, match=r"costs 10.0 points"):
        export(embedder, tmp_path / "e", settings=ExportSettings("onnx", "static"), evidence=scored)
    # Without labels the vectors must at least look alike.
    real = embedder.embed_pixels
    answers = iter([real, lambda pixels: -real(pixels)])
    monkeypatch.setattr(export_module, "OnnxNetwork", lambda path: next(answers))
    with pytest.raises(KeMetricError, match=r"smallest cosine .* -1.0000, at least 0.9"):
        export(embedder, tmp_path / "e", settings=ExportSettings("onnx", "dynamic"), evidence=evidence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("points", [-1, 101, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(points):
    with pytest.raises(KeMetricError, match="must be points from 0 to 100") as caught:
        ExportSettings("onnx", "static", points)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_network_that_cannot_be_quantized_is_an_error(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(KeMetricError, match="cannot be exported as ONNX of 8-bit integers"):
        quantize(tmp_path / "x.onnx", tmp_path / "y.onnx", None)


def test_integers_are_for_onnx():
    with pytest.raises(KeMetricError, match="must be 'onnx'") as caught:
        ExportSettings("torch-export", "static")
    assert caught.value.exit_code is ExitCode.USAGE


def test_pictures_without_a_match_have_no_cost(embedder, pictures):
    lonely = LabelledPictures([pictures], np.arange(40), KEYS)
    with pytest.raises(KeMetricError, match="Recall@1 has no meaning"):
        recall_cost(embedder.embed_pixels, embedder.embed_pixels, ScoredPictures(lonely))
