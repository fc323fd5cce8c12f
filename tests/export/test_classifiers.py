"""Classifiers as files: their logits and class names, what is compared, and what 8-bit integers cost of top-1."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from made import CLASS_NAMES, make_pictures, make_predictor

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.classification import score_classification
from ke_metric.export import export as export_module
from ke_metric.export.export import Evidence, ExportSettings, export, portable_module
from ke_metric.export.onnx_file import OnnxNetwork, run_program
from ke_metric.export.record import (
    LabelledPictures,
    ScoredPictures,
    TopCost,
    compare,
    read_record,
    require_agreement,
    require_cheap,
    this_machine,
)

LABELS = np.arange(40) % 8


@pytest.fixture(scope="module")
def predictor():
    return make_predictor()


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_the_file_gives_the_logits(kind, predictor, pictures, tmp_path):
    record = export(predictor, tmp_path / "e", settings=ExportSettings(kind), evidence=Evidence(pictures, source="x"))
    run = OnnxNetwork(tmp_path / "e") if kind == "onnx" else run_program(tmp_path / "e" / "model.pt2")
    pixels = make_pictures(5, seed=3)
    np.testing.assert_allclose(run(pixels), predictor.compute(pixels), rtol=1e-5, atol=1e-4)
    assert (record.output, record.class_names, record.dimension) == ("logits", CLASS_NAMES, 8)
    assert [found.same_class for found in record.verification.batches] == [1, 1, 1]
    stored = read_record(tmp_path / "e").document
    assert stored["class_names"] == list(CLASS_NAMES)
    assert not {"same_nearest"} & set(stored["verification"]["batches"][0])
    assert "top1" not in stored
    assert record.machine == this_machine()
    if kind == "onnx":
        assert (run.output, run.class_names) == ("logits", CLASS_NAMES)
        (output,) = onnx.load(tmp_path / "e" / "model.onnx").graph.output
        assert output.name == "logits"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the processor is known by it")
def test_the_record_names_processor_and_instructions():
    machine = this_machine()
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    assert machine.processor
    assert set(machine.instructions) <= set(flags)
    for name in ("avx2", "avx512_vnni", "asimd"):
        assert (name in machine.instructions) == (name in flags), name


def test_integers_are_scored_by_top1(predictor, pictures, tmp_path):
    scored = ScoredPictures(LabelledPictures([pictures], LABELS, tuple(map(str, range(40)))), classes=True)
    evidence = Evidence(pictures, source="x", calibration=pictures, scored=scored)
    record = export(predictor, tmp_path / "e", settings=ExportSettings("onnx", "static", 100), evidence=evidence)
    network = OnnxNetwork(tmp_path / "e")
    assert network.class_names == CLASS_NAMES
    assert record.recall_at_1 is None
    assert record.top1.pictures == 40
    assert record.top1.pytorch == score_classification(predictor.compute(pictures), LABELS)["top1"]
    assert record.top1.exported == score_classification(network(pictures), LABELS)["top1"]
    assert record.document["top1"] == {"pytorch": record.top1.pytorch, "exported": record.top1.exported,
                                       "pictures": 40}  # fmt: skip


def test_a_file_of_other_classes_is_not_kept(predictor, pictures, tmp_path, monkeypatch):
    def turned(of):
        module = portable_module(of)
        module.network.head.weight.copy_(module.network.head.weight.flip(0))
        return module

    monkeypatch.setattr(export_module, "portable_module", turned)
    with pytest.raises(KeMetricError, match=r"same likeliest class for .* of the pictures") as caught:
        export(
            predictor,
            tmp_path / "e",
            settings=ExportSettings("torch-export"),
            evidence=Evidence(pictures, source="x"),
        )
    assert caught.value.exit_code is ExitCode.GATE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("gap", "same"), [(5e-5, 0), (5e-6, 1)])
def test_another_likeliest_class_is_refused_however_near(gap, same, pictures):
    """Differences below the tolerance; a gap below 1e-5 is a tie."""
    ours = np.tile(np.array([[0, gap]], np.float32), (len(pictures), 1))

    def network(pixels):
        return ours[: len(pixels)]

    agreements = compare(network, lambda pixels: network(pixels)[:, ::-1], pictures, classes=True)
    assert [found.same_class for found in agreements] == [same] * 3
    assert all(found.same_nearest is None for found in agreements)
    if same:
        require_agreement(agreements)
        return
    with pytest.raises(KeMetricError, match=r"same likeliest class for 0.0% of the pictures"):
        require_agreement(agreements)


def test_more_than_the_allowed_loss_is_refused():
    with pytest.raises(KeMetricError, match=r"costs 6.0 points of top-1 .*, 1,000 pictures\)"):
        require_cheap(TopCost(pictures=1000, pytorch=0.8, exported=0.74), 5)
