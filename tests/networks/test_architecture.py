"""Architectures: built for their structure alone, from a closed set of builders that fetch and read nothing."""

import sys

import pytest
import timm
import torch
import torchvision

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.bundle_config import Architecture
from ke_metric.networks.dense import build_network
from ke_metric.recipe.schema import Recipe

RECIPE = Recipe.model_validate(
    {
        "name": "x",
        "data": {"image_size": 32},
        "network": {"backbone": "timm/test_resnet", "embedding_size": 24, "stem": "small"},
        "evaluation": {"resize": 32},
    }
)


def structure(network):
    return {name: type(module) for name, module in network.named_modules()}, {
        name: (tensor.shape, tensor.dtype) for name, tensor in [*network.named_parameters(), *network.named_buffers()]
    }


@pytest.mark.parametrize(
    ("architecture", "build"),
    [
        (Architecture.of_recipe(RECIPE), lambda: build_network(RECIPE.network, 32)),
        (
            Architecture.torchvision("squeezenet1_1", num_classes=7),
            lambda: torchvision.models.squeezenet1_1(num_classes=7),
        ),
        (
            Architecture.torchvision("resnet50", replace_stride_with_dilation=(False, True, True)),
            lambda: torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]),
        ),
        (Architecture.timm("test_vit", num_classes=3), lambda: timm.create_model("test_vit", num_classes=3)),
        # Works out its widths with tensors.
        (Architecture.torchvision("regnet_y_400mf"), torchvision.models.regnet_y_400mf),
    ],
    ids=["recipe", "torchvision", "list", "timm", "regnet"],
)
def test_the_structure_is_that_of_the_dense_network(architecture, build):
    random = torch.get_rng_state()
    built = architecture.build()
    assert torch.equal(torch.get_rng_state(), random)
    assert structure(built) == structure(build())


def test_structure_takes_no_memory_whatever_the_default_device():
    with torch.device("cpu"):
        built = Architecture.torchvision("vgg19", num_classes=10**9).build()  # 16 TB
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}


def test_pretrained_recipes_fetch_nothing(monkeypatch):
    def refuse(*_, **__):
        raise OSError("asked for weights")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    network = {"backbone": "squeezenet1_1", "embedding_size": 16, "pretrained": True}
    recipe = Recipe.model_validate({"name": "x", "data": {"image_size": 64}, "network": network})
    assert Architecture.of_recipe(recipe).build().head.out_features == 16


def test_only_our_networks_have_an_embedding():
    assert Architecture.of_recipe(RECIPE).embedding_size == 24
    assert Architecture.torchvision("resnet18").embedding_size is None


def test_architectures_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Architecture.timm("test_vit").name = "other"


@pytest.mark.parametrize("make", [Architecture.torchvision, Architecture.timm])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weights": "DEFAULT"}, "'weights' would make the builder read weights"),
        ({"pretrained": True}, "'pretrained'"),
        ({"pretrained_cfg_overlay": None}, "'pretrained_cfg_overlay'"),
        ({"checkpoint_path": "evil.pth"}, "'checkpoint_path'"),
        ({"norm_layer": torch.nn.BatchNorm2d}, "norm_layer"),
        ({"drop_rate": float("nan")}, "finite"),
        ({"block_args": {"a": 1}}, "block_args"),
    ],
)
def test_arguments_are_plain_and_fetch_nothing(make, arguments, words):
    with pytest.raises(KeMetricError, match=words) as raised:
        make("resnet18", **arguments)
    assert raised.value.exit_code == ExitCode.RECIPE


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        (Architecture.torchvision("resnet81"), "no classifier of torchvision; did you mean 'resnet18'"),
        (Architecture.torchvision("fcn_resnet50"), "no classifier of torchvision"),  # fetches its backbone's weights
        (Architecture.torchvision("resnet18", num_clases=7), "cannot be built .*num_clases"),
        (Architecture.torchvision("resnet18", num_classes=-1), "cannot be built"),
        (Architecture.timm("test_vitt"), "no model of timm; did you mean 'test_vit"),
        (Architecture.timm("hf-hub:timm/resnet18.a1_in1k"), "no model of timm"),
        (Architecture.timm("local-dir:resnet18"), "no model of timm"),
    ],
    ids=lambda value: value.name if isinstance(value, Architecture) else "",
)
def test_what_cannot_be_built(architecture, words):
    with pytest.raises(KeMetricError, match=words) as raised:
        architecture.build()
    assert raised.value.exit_code == ExitCode.RECIPE


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(KeMetricError, match=r"test_vit.*pip install 'ke_metric\[timm\]'") as raised:
        Architecture.timm("test_vit").build()
    assert raised.value.exit_code == ExitCode.ENVIRONMENT
