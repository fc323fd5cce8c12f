"""Which networks there are, what weights and images they get, and which of them are convolutional."""

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from eval.shared.networks import (
    build_for_test,
    build_network,
    class_of,
    give_weights,
    make_images,
    split_name,
    timm_names,
    torchvision_names,
)
from ke_metric.errors import KeMetricError


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "timm/test_efficientnet", "timm/test_convnext"])
def test_convolutional(name):
    assert class_of(build_network(name), torch.randn(1, 3, 64, 64)) == "convolutional"


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_vit4"])
def test_attention(name):
    network, pixels = build_for_test(name)
    assert class_of(network, make_images(pixels)[:1]) == "attention"


def test_torch_attention():
    network = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(64, 2, 8, batch_first=True)).eval()
    assert class_of(network, torch.randn(1, 3, 8, 8)) == "attention"


def test_token_mixing():
    mixer = MlpMixer(num_classes=4, img_size=32, patch_size=8, num_blocks=1, embed_dim=24).eval()
    assert class_of(mixer, torch.randn(1, 3, 32, 32)) == "token mixing"


def test_a_linear_layer_over_channels_is_no_token_mixing():
    class ChannelsLast(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)

        def forward(self, images):
            return self.linear(self.stem(images).permute(0, 2, 3, 1)).flatten(1)

    assert class_of(ChannelsLast().eval(), torch.randn(1, 3, 8, 8)) == "convolutional"


def test_all_of_torchvision():
    names = torchvision_names()
    assert len(names) == 80
    assert {"torchvision/resnet50", "torchvision/vit_h_14"} <= set(names)


def test_the_sample_is_fixed_and_small_enough(monkeypatch):
    monkeypatch.setattr("timm.list_models", lambda: ["test_vit", "test_resnet", "vit_huge_patch14_224"])
    assert set(timm_names()) == {"timm/test_vit", "timm/test_resnet"}
    assert timm_names(1) == timm_names()[:1]


@pytest.mark.parametrize(
    ("name", "said"), [("resnt18", "resnet18"), ("timm/resnt18", "resnet18"), ("keras/resnet50", "torchvision")]
)
def test_unknown_names(name, said):
    with pytest.raises(KeMetricError, match=said):
        split_name(name)


@pytest.mark.parametrize(("name", "pixels"), [("resnet18", 128), ("timm/test_vit", 160), ("timm/test_resnet", 128)])
def test_image_sizes(name, pixels):
    assert build_for_test(name)[1] == pixels


def test_a_large_fixed_size_is_built_smaller():
    network, pixels = build_for_test("timm/vit_pe_core_tiny_patch16_384")
    assert pixels == 224
    with torch.no_grad():
        network(torch.zeros(1, 3, 224, 224))


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = build_network("timm/test_resnet")
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.conv1[0].weight, build_network("timm/test_resnet").conv1[0].weight)


def test_images_differ_in_more_than_noise():
    images = make_images(32)
    assert images.shape == (4, 3, 32, 32)
    assert torch.equal(images, make_images(32))
    means = images.mean((2, 3))
    assert (means[0] - means[1]).abs().max() > 0.3


def test_no_parameter_is_as_initialised():
    network = timm.create_model("test_resnet", zero_init_last=True).eval()
    give_weights(network, make_images(64))
    for name, parameter in network.named_parameters():
        assert parameter.std() > 0, name
    for name, buffer in network.named_buffers():
        if "running" in name:
            assert buffer.std() > 0, name
            assert (buffer > 0).all() or "var" not in name


def test_weights_are_given_alike():
    one, two = (build_network("timm/test_resnet") for _ in range(2))
    give_weights(one, make_images(64))
    give_weights(two, make_images(64))
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
