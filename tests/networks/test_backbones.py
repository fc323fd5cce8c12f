"""Backbones: the classifier off and the pooling kept, small stems, names that are wrong, weights out of reach."""

import sys
from http.client import IncompleteRead
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.dense import build_backbone, feature_size
from ke_metric.randomness import default_streams
from ke_metric.schema import Network

FEATURES = {
    "resnet18": 512,
    "resnet50": 2048,
    "googlenet": 1024,
    "inception_v3": 2048,
    "densenet121": 1024,
    "vgg11_bn": 4096,
    "mobilenet_v2": 1280,
    "squeezenet1_1": 512,
    "vit_b_16": 768,
    "timm/resnet18": 512,
    "timm/test_resnet": 96,
    "timm/test_vit": 64,
    "timm/test_convnext": 64,
}


def build(name, seed=0, **section):
    with default_streams(seed, 1, "network"):
        return build_backbone(Network(backbone=name, **section))


def build_shapes(name, **arguments):
    """Build without memory for weights: only shapes are worked out."""
    load_pretrained = arguments.pop("load_pretrained", True)
    with torch.device("meta"):
        return build_backbone(Network(backbone=name, **arguments), load_pretrained=load_pretrained)


def pictures(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FEATURES)
def test_feature_is_a_vector(name):
    size = 299 if name == "inception_v3" else 224
    backbone = build_shapes(name)
    with torch.device("meta"):
        assert feature_size(backbone, size, name) == FEATURES[name]
        # In training mode too: an auxiliary head would make it a tuple.
        assert backbone.train()(torch.empty(2, 3, size, size)).shape == (2, FEATURES[name])
    assert not any(layer.out_features == 1000 for layer in backbone.modules() if isinstance(layer, nn.Linear))


@pytest.mark.parametrize(("name", "classifier"), [("resnet18", "fc"), ("squeezenet1_1", "classifier.1")])
def test_feature_is_what_the_classifier_was_given(name, classifier):
    with default_streams(0, 1, "network"):
        whole = torchvision.models.get_model(name, weights=None).eval()
    given = []
    whole.get_submodule(classifier).register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    images = pictures(64)
    with torch.no_grad():
        whole(images)
        features = build(name).eval()(images)
    # The classifier of SqueezeNet is a convolution, and the mean over positions comes after it.
    expected = given[0].mean(dim=(2, 3)) if given[0].ndim == 4 else given[0]
    torch.testing.assert_close(features, expected)
    assert features.std() > 0


def test_timm_keeps_the_pooling():
    backbone = build("timm/test_resnet").eval()
    with torch.no_grad():
        features, maps = backbone(pictures(64)), backbone.forward_features(pictures(64))
    assert maps.shape[2:] == (2, 2)
    torch.testing.assert_close(features, maps.mean(dim=(2, 3)))


def test_probing_leaves_the_backbone_as_it_was():
    backbone = build("timm/test_resnet")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    random = torch.get_rng_state()
    assert feature_size(backbone, 32, "timm/test_resnet") == 96
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("name", ["vit_b_16", "inception_v3"])
def test_wrong_image_size_is_refused(name):
    backbone = build_shapes(name)
    with torch.device("meta"), pytest.raises(KeMetricError, match=rf"{name}.*data\.image_size = 32") as raised:
        feature_size(backbone, 32, name)
    assert raised.value.exit_code == ExitCode.RECIPE


def test_a_map_is_no_feature():
    with pytest.raises(KeMetricError, match=r"shape \(1, 4, 14, 14\), \[B, F\] is needed") as raised:
        feature_size(nn.Conv2d(3, 4, 3), 16, "mine")
    assert raised.value.exit_code == ExitCode.RECIPE


@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/test_resnet"])
def test_weights_depend_on_the_stream_alone(name):
    random = torch.get_rng_state()
    one, again, other = build(name), build(name), build(name, seed=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    first, second = (next(network.parameters()) for network in (one, other))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("name", "convolution", "pooling", "second"),
    [
        ("resnet18", "conv1", "maxpool", "layer1"),
        ("googlenet", "conv1.conv", "maxpool1", "conv2"),
        ("densenet121", "features.conv0", "features.pool0", "features.denseblock1"),
        ("squeezenet1_1", "features.0", "features.2", "features.3"),
    ],
)
def test_small_stem(name, convolution, pooling, second, stride):
    standard, small = build_shapes(name), build_shapes(name, stem="small", stem_stride=stride)
    before, after = standard.get_submodule(convolution), small.get_submodule(convolution)
    assert (after.kernel_size, after.stride, after.padding) == ((3, 3), (stride, stride), (1, 1))
    assert (after.in_channels, after.out_channels) == (3, before.out_channels)
    assert (after.bias is None) == (before.bias is None)
    assert {path for path, module in standard.named_modules() if isinstance(module, nn.MaxPool2d)} == {
        path for path, module in small.named_modules() if isinstance(module, nn.MaxPool2d)
    } | {pooling}
    given = []
    small.get_submodule(second).register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.device("meta"):
        assert feature_size(small, 64, name) == FEATURES[name]
    # The convolutions of a dense block take a list.
    first = given[0][0] if isinstance(given[0], list) else given[0]
    assert first.shape[2:] == (64 // stride, 64 // stride)


def test_small_stem_without_a_pooling_to_lose():
    small = build_shapes("mobilenet_v2", stem="small", stem_stride=1)
    assert small.get_submodule("features.0.0").stride == (1, 1)


def test_small_stem_is_drawn_like_the_rest_of_a_resnet():
    weight = build("timm/resnet18", stem="small").conv1.weight
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", ["vit_b_16", "convnext_tiny", "timm/test_vit"])
def test_small_stem_needs_overlapping_windows(name):
    with pytest.raises(KeMetricError, match=rf"network\.stem = 'small'.*{name}") as raised:
        build_shapes(name, stem="small")
    assert raised.value.exit_code == ExitCode.RECIPE


def test_small_stem_and_pretrained_weights_exclude_each_other():
    with pytest.raises(KeMetricError, match=r"network\.stem.*network\.pretrained") as raised:
        build_shapes("resnet18", stem="small", pretrained=True)
    assert raised.value.exit_code == ExitCode.RECIPE


@pytest.mark.parametrize(
    ("name", "pretrained", "hint"),
    [
        ("resnet81", False, "did you mean 'resnet18'"),
        ("deeplabv3_resnet50", False, "no classifier of torchvision"),
        ("timm/test_resent", False, "did you mean 'test_resnet'"),
        ("timm/resnet18.a1_in1", False, "did you mean 'resnet18.a1_in1k'"),
        ("timm/efficientnet_b8", True, "timm has no such pretrained weights"),
    ],
)
def test_unknown_name(name, pretrained, hint):
    with pytest.raises(KeMetricError, match=name) as raised:
        build_shapes(name, pretrained=pretrained)
    assert hint in str(raised.value)
    assert raised.value.exit_code == ExitCode.RECIPE


def test_the_tag_of_a_timm_name_is_known():
    assert build_shapes("timm/test_resnet.r160_in1k").num_features == 96


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(KeMetricError, match=r"timm/test_resnet.*pip install 'ke_metric\[timm\]'") as raised:
        build_shapes("timm/test_resnet")
    assert raised.value.exit_code == ExitCode.ENVIRONMENT


def out_of_reach(error):
    def load(*_, **__):
        raise error

    return load


@pytest.mark.parametrize(
    "error",
    [URLError("no route"), TimeoutError("no answer"), IncompleteRead(b""), RuntimeError("invalid hash value")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/resnet18"])
def test_weights_out_of_reach(name, error, monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", out_of_reach(error))
    monkeypatch.setattr(timm, "create_model", out_of_reach(error))
    with pytest.raises(KeMetricError, match=rf"network\.pretrained = true.*{name}.*network access") as raised:
        build_shapes(name, pretrained=True)
    assert raised.value.exit_code == ExitCode.ENVIRONMENT
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_tag_of_timm_names_its_weights(kind, tmp_path, monkeypatch):
    """What the hub would give for the tag lies in a file; timm itself loads it and leaves the classifier out."""
    with default_streams(5, 1, "other"):
        state = timm.create_model("resnet18").state_dict()
    file = tmp_path / f"weights.{kind}"
    save_file(state, file) if kind == "safetensors" else torch.save(state, file)
    create, asked = timm.create_model, []

    def from_file(name, **arguments):
        asked.append((name, arguments["pretrained"]))
        return create(name, pretrained_cfg_overlay={"file": str(file)}, **arguments)

    monkeypatch.setattr(timm, "create_model", from_file)
    loaded = build("timm/resnet18.a1_in1k", pretrained=True)
    assert asked == [("resnet18.a1_in1k", True)]
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_other_faults_are_not_blamed_on_the_network(monkeypatch):
    monkeypatch.setattr(timm, "create_model", out_of_reach(RuntimeError("our own mistake")))
    with pytest.raises(RuntimeError, match="our own mistake"):
        build_shapes("timm/resnet18")


@pytest.mark.parametrize(("name", "kind"), [("googlenet", "GoogLeNet"), ("inception_v3", "Inception3")])
def test_pretrained_network_with_auxiliary_heads(name, kind, monkeypatch):
    """torchvision's weights come with these heads and a change of range; without them it is the same network."""
    with torch.device("meta"):
        stored = getattr(torchvision.models, kind)(init_weights=False).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: stored)
    loaded = build_shapes(name, pretrained=True)
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", out_of_reach(URLError("asked for weights"))
    )
    bare = build_shapes(name, pretrained=True, load_pretrained=False)
    assert loaded.state_dict().keys() == bare.state_dict().keys()
    assert loaded.transform_input
    assert bare.transform_input
    assert not build_shapes(name).transform_input
    with torch.device("meta"):
        assert loaded.train()(torch.empty(2, 3, 299, 299)).shape == (2, FEATURES[name])
