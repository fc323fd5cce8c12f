"""A folder that is written holds a file that was proved; nothing is left of one that was not."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from made import SIZE, make_embedder, make_pictures

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.export import export as export_module
from ke_metric.export import onnx_file
from ke_metric.export.export import Evidence, ExportSettings, export, portable_module
from ke_metric.export.onnx_file import OnnxNetwork, run_program
from ke_metric.export.record import ExportRecord, read_record
from ke_metric.images.preparation import unit_range

ONNX, PROGRAM = ExportSettings("onnx"), ExportSettings("torch-export")
SLOW = ("resnet18", "googlenet", "squeezenet1_1", "mobilenet_v3_small", "timm/test_vit", "timm/test_convnext")
FILES = {ONNX: "model.onnx", PROGRAM: "model.pt2"}


@pytest.fixture(scope="module")
def exported(embedder, pictures, tmp_path_factory):
    """Both formats, written once."""
    folder = tmp_path_factory.mktemp("exported")
    evidence = Evidence(pictures, source="random colours")
    for settings in FILES:
        export(embedder, folder / settings.format, settings=settings, evidence=evidence)
    return folder


def runner(folder, settings):
    return OnnxNetwork(folder / "onnx") if settings is ONNX else run_program(folder / "torch-export" / "model.pt2")


@pytest.mark.parametrize(
    "backbone", ["timm/test_resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_backbones_are_exported_in_both_formats(backbone, tmp_path, pictures):
    embedder = make_embedder(backbone)
    for settings in FILES:
        record = export(embedder, tmp_path / settings.format, settings=settings, evidence=Evidence(pictures, "x"))
        assert record.verification.worst.max_difference < 2e-5
    np.testing.assert_allclose(OnnxNetwork(tmp_path / "onnx")(pictures), embedder.embed_pixels(pictures), atol=2e-5)


@pytest.mark.parametrize("settings", FILES, ids=lambda settings: settings.format)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 33])
def test_any_number_of_pictures_gets_the_embedders_vectors(settings, count, embedder, exported):
    pixels = make_pictures(count, seed=count)
    vectors = runner(exported, settings)(pixels)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, embedder.embed_pixels(pixels), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("settings", FILES, ids=lambda settings: settings.format)
def test_the_record_says_what_was_written(settings, embedder, exported):
    folder = exported / settings.format
    record = read_record(folder)
    name = FILES[settings]
    assert {path.name for path in folder.iterdir()} == {"export.json", name}
    assert record.files[name].sha256 == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert record.digest == record.embedder_digest == embedder.digest
    assert (record.dimension, record.image_size) == (8, SIZE)
    assert record.preparation == embedder.normalization
    assert record.steps[1:3] == (
        "turn upright as the EXIF orientation says",
        "convert to RGB; put what is transparent on white",
    )
    assert record.steps[3] == "resize so that the shorter side has 40 pixels (bilinear, antialiased)"
    assert record.versions["torch"] == torch.__version__.partition("+")[0]
    assert record.opset == (20 if settings is ONNX else None)
    assert [found.batch for found in record.verification.batches] == [1, 3, 32]
    assert record.verification.worst.max_difference < 1e-5
    assert record.verification.tolerance == 1e-4
    assert json.loads((folder / "export.json").read_text())["verification"]["pictures"] == 40


def test_the_graph_is_plain_onnx_with_a_free_batch(exported):
    graph = onnx.load(exported / "onnx" / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    (images,), (embeddings,) = graph.graph.input, graph.graph.output
    shapes = [[side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
              for value in (images, embeddings)]  # fmt: skip
    assert shapes == [["batch", 3, SIZE, SIZE], ["batch", 8]]
    assert {entry.domain for entry in graph.opset_import} <= {"", "ai.onnx"}


def test_the_embedder_and_stdout_are_left_alone(evidence, tmp_path, capsys):
    embedder = make_embedder()
    embedder.network.to(memory_format=torch.channels_last)
    before = embedder.embed_pixels(make_pictures(4))
    for settings in FILES:
        export(embedder, tmp_path / settings.format, settings=settings, evidence=evidence)
    assert capsys.readouterr().out == ""
    weight = embedder.network.get_parameter("conv.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.requires_grad
    np.testing.assert_array_equal(embedder.embed_pixels(make_pictures(4)), before)


def without_standardisation(module):
    module.mean.zero_()
    module.std.fill_(1)


def one_weight_changed(module):
    module.network.head.weight[0, 0] += 0.5


def embedding_not_normalised(module):
    module.network.forward = lambda images: 2 * type(module.network).forward(module.network, images)


@pytest.mark.parametrize(
    ("settings", "spoil"),
    [
        (PROGRAM, without_standardisation),
        (PROGRAM, one_weight_changed),
        (PROGRAM, embedding_not_normalised),
        (ONNX, one_weight_changed),
    ],
)
def test_a_file_that_differs_is_not_kept(settings, spoil, embedder, evidence, tmp_path, monkeypatch):
    def spoilt(of):
        module = portable_module(of)
        spoil(module)
        return module

    monkeypatch.setattr(export_module, "portable_module", spoilt)
    with pytest.raises(KeMetricError, match="differs from the network and is not kept: with 1 pictures") as caught:
        export(embedder, tmp_path / "e", settings=settings, evidence=evidence)
    assert caught.value.exit_code is ExitCode.GATE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("settings", "room"), [(ONNX, torch.onnx), (PROGRAM, torch.export)])
def test_a_frozen_batch_is_not_kept(settings, room, embedder, evidence, tmp_path, monkeypatch):
    real = room.export

    def frozen(*given, **named):
        return real(*given, **{name: value for name, value in named.items() if name != "dynamic_shapes"})

    monkeypatch.setattr(room, "export", frozen)
    with pytest.raises(KeMetricError, match="cannot be run with 1 pictures at a time"):
        export(embedder, tmp_path / "e", settings=settings, evidence=evidence)
    assert list(tmp_path.iterdir()) == []


def copy_of(exported, tmp_path, settings=ONNX):
    return shutil.copytree(exported / settings.format, tmp_path / "e")


def test_a_former_export_outlives_one_that_fails(exported, embedder, evidence, tmp_path, monkeypatch):
    folder = copy_of(exported, tmp_path)
    monkeypatch.setattr(export_module, "portable_module", lambda _: portable_module(make_embedder(seed=1)))
    with pytest.raises(KeMetricError, match="not kept"):
        export(embedder, folder, settings=PROGRAM, evidence=evidence, overwrite=True)
    assert read_record(folder) == read_record(exported / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_only_an_export_is_replaced_and_only_when_asked(exported, embedder, evidence, tmp_path):
    folder = copy_of(exported, tmp_path)
    with pytest.raises(KeMetricError, match="there is an export already"):
        export(embedder, folder, settings=PROGRAM, evidence=evidence)
    export(embedder, folder, settings=PROGRAM, evidence=evidence, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"export.json", "model.pt2"}
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(KeMetricError, match="never replaced") as caught:
        export(embedder, folder, settings=PROGRAM, evidence=evidence, overwrite=True)
    assert caught.value.exit_code is ExitCode.USAGE


def test_too_few_pictures_prove_nothing():
    with pytest.raises(KeMetricError, match=r"tiny: 31 pictures, .* at least 32; .* --pictures") as caught:
        Evidence(make_pictures(31), source="tiny")
    assert caught.value.exit_code is ExitCode.DATA


def test_missing_packages_are_named(embedder, evidence, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(
        KeMetricError, match=r"onnxruntime: not installed, .* pip install 'ke_metric\[export\]'"
    ) as it:
        export(embedder, tmp_path / "e", settings=ONNX, evidence=evidence)
    assert it.value.exit_code is ExitCode.ENVIRONMENT


def test_a_network_that_cannot_be_followed_is_an_error(embedder, evidence, tmp_path, monkeypatch):
    def depends_on_values(images):
        return images if images.sum() > 0 else -images

    def spoilt(of):
        module = portable_module(of)
        module.network.forward = depends_on_values
        return module

    monkeypatch.setattr(export_module, "portable_module", spoilt)
    for settings in FILES:
        with pytest.raises(KeMetricError, match="the network cannot be exported as"):
            export(embedder, tmp_path / "e", settings=settings, evidence=evidence)


def test_large_weights_lie_beside_the_graph(embedder, evidence, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 1000)
    export(embedder, tmp_path / "e", settings=ONNX, evidence=evidence)
    record = read_record(tmp_path / "e")
    assert set(record.files) == {"model.onnx", "model.onnx.data"}
    assert record.files["model.onnx"].bytes < record.files["model.onnx.data"].bytes
    (tmp_path / "e").rename(tmp_path / "moved")
    moved = OnnxNetwork(tmp_path / "moved")
    np.testing.assert_allclose(moved(pictures), embedder.embed_pixels(pictures), atol=2e-6)


def test_files_that_were_changed_are_refused(exported, tmp_path):
    path = copy_of(exported, tmp_path) / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(KeMetricError, match="its SHA-256 differs"):
        OnnxNetwork(tmp_path / "e")
    path.unlink()
    with pytest.raises(KeMetricError, match="no such file"):
        OnnxNetwork(tmp_path / "e")


def test_what_is_no_export_is_said(exported, tmp_path):
    for place, words in (
        (tmp_path, "export.json: no such file"),
        (tmp_path / "none.onnx", "no such file"),
        (exported / "torch-export", "is of format 'torch-export', must be 'onnx'"),
        (exported / "onnx" / "export.json", "ONNX Runtime cannot load it"),
    ):
        with pytest.raises(KeMetricError, match=words) as caught:
            OnnxNetwork(place)
        assert caught.value.exit_code is ExitCode.DATA
    document = json.loads((exported / "onnx" / "export.json").read_text())
    for change in ({"format_version": 2}, {"files": {"../../x": {"bytes": 1, "sha256": "0" * 64}}}, {"more": 1}):
        (tmp_path / "export.json").write_text(json.dumps(document | change))
        with pytest.raises(KeMetricError):
            read_record(tmp_path)


def test_the_network_knows_its_digest_and_refuses_other_pictures(embedder, exported):
    network = OnnxNetwork(exported / "onnx", threads=1)
    assert (network.digest, network.dimension, network.image_size) == (embedder.digest, 8, SIZE)
    assert OnnxNetwork(exported / "onnx" / "model.onnx").digest is None
    pixels = make_pictures(3)
    np.testing.assert_array_equal(network(pixels), network(unit_range(pixels).numpy()))
    for wrong in (
        pixels[:, :16],
        unit_range(pixels).numpy().astype(np.float64),
        pixels[0],
        unit_range(pixels).numpy()[:, :1],
    ):
        with pytest.raises(KeMetricError, match="must be uint8"):
            network(wrong)


def test_numbers_that_are_no_pictures_are_refused(exported):
    network, images = OnnxNetwork(exported / "onnx"), unit_range(make_pictures(2)).numpy()
    for wrong in (images * 255, images - 0.5, np.full_like(images, np.nan)):
        with pytest.raises(KeMetricError, match=r"must lie in \[0, 1\]") as caught:
            network(wrong)
        assert caught.value.exit_code is ExitCode.DATA
    assert network(images[:0]).shape == (0, 8)


@pytest.mark.parametrize("name", ["onnx/model.onnx", "torch-export/model.pt2"])
def test_no_path_of_this_machine_is_in_the_file(name, exported):
    content = (exported / name).read_bytes()
    for path in (Path(onnx_file.__file__).parents[1], Path(torch.__file__).parent, Path(__file__).parent):
        assert str(path).encode() not in content


def test_a_record_survives_its_file(exported):
    text = (exported / "onnx" / "export.json").read_text()
    assert ExportRecord.model_validate_json(text).to_json() == text
