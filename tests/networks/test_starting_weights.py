"""Weights that a backbone starts from: every layout that files have, and what is refused in which words."""

import argparse
import hashlib
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from ke_metric.arrays import weights_digest
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.bundle import save_network
from ke_metric.networks.bundle_config import EmbeddingArchitecture
from ke_metric.networks.dense import build_backbone, build_network, match_starting_weights
from ke_metric.networks.starting_weights import file_digest, is_there
from ke_metric.randomness import default_streams
from ke_metric.schema import Network

NAME = "timm/test_resnet"


def backbone_of(file=None, seed=0, load_pretrained=True, **section):
    section = {"backbone": NAME} | section
    with default_streams(seed, 1, "network"):
        return build_backbone(Network(weights=file and str(file), **section), load_pretrained=load_pretrained)


@pytest.fixture(scope="module")
def trained():
    """The state dict of a classifier of 7 classes that was trained somewhere: no value of it is at its default."""
    network = timm.create_model("test_resnet", num_classes=7)
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value + 5
        for name, value in network.state_dict().items()
    }


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def others(state):
    return {name: value * 2 for name, value in state.items()}


def moments(state):
    return {"state": {0: {"exp_avg": next(iter(state.values()))}}, "param_groups": [{"lr": 0.1}]}


LAYOUTS = {
    "plain": lambda state: state,
    "DataParallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "module._orig_mod."),
    "embedding network": lambda state: prefixed(state, "backbone.") | {"head.weight": torch.ones(4, 96)},
    "encoder": lambda state: prefixed(state, "encoder.") | {"projector.0.weight": torch.ones(4, 96)},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "arch": "resnet"},
    "model and optimizer": lambda state: {
        "model": prefixed(state, "module."),
        "optimizer": moments(state),
        "args": argparse.Namespace(lr=0.1),
    },
    "averaged": lambda state: {"model": others(state), "model_ema": prefixed(state, "module."), "n_averaged": 4},
    "averaged by timm": lambda state: {"state_dict": others(state), "state_dict_ema": state, "version": 2},
    "teacher and student": lambda state: {
        "student": prefixed(others(state), "module.backbone."),
        "teacher": prefixed(state, "backbone."),
    },
    "momentum encoder": lambda state: (
        prefixed(state, "module.encoder_q.") | prefixed(others(state), "module.encoder_k.")
    ),
    "deep": lambda state: {"checkpoint": {"model": {"state_dict": state}}},
    "half precision": lambda state: {
        name: value.half() if value.is_floating_point() else value for name, value in state.items()
    },
    "without counters": lambda state: {n: value for n, value in state.items() if not n.endswith("tracked")},
}


def assert_starts_from(backbone, state, tolerance=0.0):
    for name, value in backbone.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, state[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_understood(layout, trained, tmp_path):
    torch.save(LAYOUTS[layout](trained), tmp_path / "weights.pt")
    found = backbone_of(tmp_path / "weights.pt")
    assert_starts_from(found, trained, tolerance=1e-3 if layout == "half precision" else 0)
    counter = "bn1.num_batches_tracked"
    assert found.state_dict()[counter] == (0 if layout == "without counters" else 5)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_safetensors_by_content_and_not_by_name(prefix, trained, tmp_path):
    save_file(prefixed(trained, prefix), tmp_path / "weights.bin")
    assert_starts_from(backbone_of(tmp_path / "weights.bin"), trained)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "squeezenet1_1", "mobilenet_v3_small", "googlenet"])
def test_torchvision_leaves_its_classifier_out(name, tmp_path):
    with default_streams(5, 1, "other"):
        arguments = {"init_weights": False} if name == "googlenet" else {}
        network = torchvision.models.get_model(name, weights=None, **arguments)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    section = Network(backbone=name, weights=str(tmp_path / "weights.pth"))
    found = match_starting_weights(section)
    assert not found.missing
    assert found.left_over
    own = network.state_dict()
    assert all(own[key].shape[0] == 1000 for key in found.left_over if not key.startswith("aux"))
    with default_streams(0, 1, "network"):
        assert_starts_from(build_backbone(section), own)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet", "test_nfnet"])
def test_timm_leaves_its_classifier_out(name, tmp_path):
    network = timm.create_model(name)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    found = backbone_of(tmp_path / "weights.pth", backbone=f"timm/{name}")
    assert_starts_from(found, network.state_dict())


def test_a_bundle_of_ours(tmp_path):
    section = Network(backbone=NAME, embedding_size=8)
    with default_streams(7, 1, "network"):
        network = build_network(section, 32)
    save_network(network, tmp_path / "bundle", architecture=EmbeddingArchitecture(network=section, image_size=32))
    file = tmp_path / "bundle" / "model.safetensors"
    assert_starts_from(backbone_of(file), network.backbone.state_dict())
    assert match_starting_weights(Network(backbone=NAME, weights=str(file))).left_over == ("head.bias", "head.weight")


@pytest.mark.parametrize(
    ("earlier", "blur"), [("none", "none"), ("none", "stem"), ("none", "strides"), ("strides", "strides")]
)
def test_blurred_strides_change_names_and_nothing_else(earlier, blur, tmp_path):
    """Of a network that was not blurred, as those of libraries are, and of one of ours that was."""
    source = backbone_of(seed=4, backbone="resnet18", blur=earlier)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    found = backbone_of(tmp_path / "weights.pt", backbone="resnet18", blur=blur)
    for one, other in zip(found.parameters(), source.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_random_beside_them_is_drawn_as_ever(trained, tmp_path):
    """The head of a network is the one that it has with a random backbone: the stream is that of its generation."""
    torch.save(trained, tmp_path / "weights.pt")
    heads = []
    for weights in (None, str(tmp_path / "weights.pt")):
        with default_streams(0, 1, "network"):
            heads.append(build_network(Network(backbone=NAME, weights=weights), 32).head)
    assert torch.equal(heads[0].weight, heads[1].weight)


def test_without_loading_the_file_is_not_looked_for():
    assert weights_digest(backbone_of("absent.pt", load_pretrained=False).state_dict()) == weights_digest(
        backbone_of().state_dict()
    )


def test_what_is_told(trained, tmp_path):
    state = {name: value for name, value in trained.items() if name != "bn1.num_batches_tracked"}
    file = tmp_path / "weights.pt"
    torch.save({"model": prefixed(state, "module.")}, file)
    found = match_starting_weights(Network(backbone=NAME, weights=str(file)))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    count = len(backbone_of().state_dict()) - 1
    assert found.describe() == {
        "file": str(file),
        "sha256": sha256,
        "place": "model: module.",
        "matched": count,
        "missing": 1,
        "left_over": 2,
    }
    assert found.told.splitlines() == [
        f"starting weights: {file}, at 'model: module.' (SHA-256 {sha256[:12]})",
        f"  matched     {count:>3}  conv1.0.weight, conv1.1.weight, conv1.1.bias and {count - 3} more",
        "  missing       1  bn1.num_batches_tracked",
        "  left over     2  module.fc.weight, module.fc.bias",
    ]
    assert match_starting_weights(Network(backbone=NAME)) is None


def refused(file, code=ExitCode.RECIPE, **section):
    with pytest.raises(KeMetricError) as raised:
        backbone_of(file, **section)
    assert raised.value.exit_code == code
    message = str(raised.value)
    assert message.startswith(f"network.weights = {str(file)!r}: ")
    return message


def test_nothing_matched(tmp_path):
    torch.save({"state_dict": {"convol1.0.weight": torch.ones(3), "b": torch.ones(3)}}, tmp_path / "weights.pt")
    message = refused(tmp_path / "weights.pt")
    assert (
        "nothing in it matches network.backbone = 'timm/test_resnet': it has convol1.0.weight, b; the backbone"
        in message
    )
    assert message.endswith("did you mean 'convol1.0.weight'?")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    assert "it has no tensors by name; the backbone has conv1.0.weight" in refused(tmp_path / "none.pt")
    torch.save(torch.ones(3), tmp_path / "one.pt")
    assert "it has no tensors by name" in refused(tmp_path / "one.pt")


def test_what_is_missing_is_named(trained, tmp_path):
    state = {name: value for name, value in trained.items() if not name.startswith("layer4.0.conv1")}
    torch.save(state, tmp_path / "weights.pt")
    assert "1 tensors missing: layer4.0.conv1.weight" in refused(tmp_path / "weights.pt")


def test_a_blurred_network_is_not_the_unblurred_one(tmp_path):
    torch.save(backbone_of(backbone="resnet18", blur="strides").state_dict(), tmp_path / "weights.pt")
    message = refused(tmp_path / "weights.pt", backbone="resnet18")
    assert "missing: conv1.weight, layer2.0.conv1.weight, layer2.0.downsample.0.weight" in message


def test_another_shape_is_named(trained, tmp_path):
    torch.save(trained | {"bn1.weight": torch.ones(3)}, tmp_path / "weights.pt")
    message = refused(tmp_path / "weights.pt")
    width = len(trained["bn1.weight"])
    assert f"1 tensors of another shape: bn1.weight [3] in the file, [{width}] in the backbone" in message


def test_a_larger_network_of_its_kind_is_not_the_backbone(tmp_path):
    """All that ResNet18 has is in ResNet34, and of the same shape."""
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "weights.pt")
    message = refused(tmp_path / "weights.pt", backbone="resnet18")
    assert "tensors of layers that the backbone does not have: layer1.2.conv1.weight" in message
    assert "missing" not in message


def test_tables_that_a_network_works_out_are_left_over(trained, tmp_path):
    torch.save(trained | {"layer1.0.position_index": torch.arange(3)}, tmp_path / "weights.pt")
    found = match_starting_weights(Network(backbone=NAME, weights=str(tmp_path / "weights.pt")))
    assert "layer1.0.position_index" in found.left_over


def test_values_that_are_not_finite(trained, tmp_path):
    torch.save(trained | {"bn1.weight": trained["bn1.weight"] * torch.nan}, tmp_path / "weights.pt")
    assert "1 tensors not finite: bn1.weight" in refused(tmp_path / "weights.pt")


def test_two_networks_alike_are_not_chosen_from(trained, tmp_path):
    torch.save({"left": trained, "right": prefixed(trained, "module.")}, tmp_path / "weights.pt")
    message = refused(tmp_path / "weights.pt")
    assert "2 networks in it match" in message
    assert "(at 'left', 'right: module.'); save the one that is meant alone" in message


def test_the_small_stem_wants_weights_of_its_own(tmp_path):
    for stem in ("standard", "small"):
        torch.save(backbone_of(seed=4, backbone="resnet18", stem=stem).state_dict(), tmp_path / f"{stem}.pt")
    message = refused(tmp_path / "standard.pt", backbone="resnet18", stem="small")
    assert "conv1.weight [64, 3, 7, 7] in the file, [64, 3, 3, 3] in the backbone" in message
    assert "set network.stem = 'standard', with a data.image_size near the one that they were trained at" in message
    small = Network(backbone="resnet18", stem="small", weights=str(tmp_path / "small.pt"))
    assert "should be those of a network that was trained with it" in match_starting_weights(small).told
    assert "network.stem" not in refused(tmp_path / "small.pt", backbone="resnet18")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError()])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_no_code_is_suspected_where_the_system_refuses(kind, error, trained, tmp_path, monkeypatch):
    file = tmp_path / f"weights.{kind}"
    save_file(trained, file) if kind == "safetensors" else torch.save(trained, file)

    def refuses(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", refuses)
    monkeypatch.setattr(safetensors.torch, "load_file", refuses)
    message = refused(file, ExitCode.DATA)
    assert message.startswith(f"network.weights = '{file}': cannot be read ({type(error).__name__}: ")
    assert "running" not in message


@pytest.mark.parametrize("look", [file_digest, is_there])
def test_what_the_system_keeps_closed_is_an_error_of_the_data(look, tmp_path, monkeypatch):
    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "w.pt").touch()
    monkeypatch.setattr(Path, "open", closed)
    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(KeMetricError, match=r"w\.pt': cannot be read \(PermissionError: .*denied\)") as caught:
        look(str(tmp_path / "w.pt"))
    assert caught.value.exit_code == ExitCode.DATA


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "weights.pth").touch()
    message = refused(tmp_path / "weights.pt", ExitCode.DATA)
    assert message.endswith("there is no such file; did you mean 'weights.pth'?")
    assert refused(tmp_path / "none" / "w.pt", ExitCode.DATA).endswith("there is no such file")
    assert refused(tmp_path, ExitCode.DATA).endswith("is a folder; name a file in it: weights.pth")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty", ExitCode.DATA).endswith(
        "is a folder; name a file in it, which holds no weights"
    )


class Harmful:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_executed(trained, tmp_path):
    torch.save(trained | {"extra": Harmful(tmp_path / "harm")}, tmp_path / "weights.pt")
    message = refused(tmp_path / "weights.pt", ExitCode.DATA)
    assert "cannot be read without running code that it may hold (UnpicklingError" in message
    assert "torch.save(network.state_dict(), ...)" in message
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    refused(tmp_path / "plain.pkl", ExitCode.DATA)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    assert "torch.nn.modules.linear.Linear" in refused(tmp_path / "module.pt", ExitCode.DATA)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_what_is_cut_off_is_said_to_be(kind, trained, tmp_path):
    file = tmp_path / f"weights.{kind}"
    save_file(trained, file) if kind == "safetensors" else torch.save(trained, file)
    whole = file.read_bytes()
    for length in (0, 5, 9, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        message = refused(file, ExitCode.DATA)
        assert "cannot be read" in message or "is no whole safetensors" in message


def test_bytes_of_anything(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for head in (b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x10\0\0\0\0\0\0\0{", b"\xff" * 8 + b"{"):
        content = bytes(torch.randint(256, (200,), generator=generator).tolist())
        (tmp_path / "weights.pt").write_bytes(head + content)
        refused(tmp_path / "weights.pt", ExitCode.DATA)
