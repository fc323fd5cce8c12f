"""The invariant: in eval mode the slim network computes what the dense one does with its reset hypothesis zeroed.

A wrong offset in a concatenation, a shortcut that keeps other channels, a flatten that is cut across channels or a
norm that keeps other statistics breaks it.
"""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models import DenseNet, VisionTransformer, list_models

ARCHITECTURES = list_models(module=torchvision.models)
TRANSFORMERS = [name for name in ARCHITECTURES if name.startswith(("vit_", "swin_", "maxvit"))]


def number_of_weights(network):
    return sum(parameter.numel() for parameter in network.parameters())


def network_is_small(network):
    return number_of_weights(network) < 30e6


def pictures(size, dtype=torch.float32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(
    ("name", "rate"),
    [("resnet18", 0.5), ("resnet18", 0.8), ("googlenet", 0.7), ("mobilenet_v2", 0.7), ("mobilenet_v3_small", 0.7)],
)
def test_torchvision_network(name, rate, torchvision_network, slim_is_dense_with_zeros):
    slim_is_dense_with_zeros(torchvision_network(name), pictures(64), rate=rate)


@pytest.mark.parametrize("rate", [0.5, 0.7, 0.8])
def test_small_densenet(rate, randomise, slim_is_dense_with_zeros):
    network = DenseNet(growth_rate=7, block_config=(2, 3), num_init_features=10, bn_size=2, num_classes=5)
    slim_is_dense_with_zeros(randomise(network), pictures(32), rate=rate)


@pytest.mark.parametrize("rate", [0.5, 0.7, 0.8])
def test_small_vgg(rate, randomise, slim_is_dense_with_zeros):
    """Hidden linear layers after a flatten with positions."""
    network = nn.Sequential(
        nn.Conv2d(3, 11, 3), nn.BatchNorm2d(11), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(11, 13, 3),
        nn.BatchNorm2d(13), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(13 * 9, 17),
        nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(17, 5),
    )  # fmt: skip
    plan, _ = slim_is_dense_with_zeros(randomise(network), pictures(16), rate=rate)
    kept = plan.weights["4.weight"].outputs.count
    assert plan.weights["9.weight"].inputs.ranges == ((0, 9 * kept),)


@pytest.mark.parametrize("rate", [0.5, 0.7])
def test_transformer(rate, randomise, slim_is_dense_with_zeros):
    """Heads are kept as a whole, and torch's attention keeps as many channels outside as its heads have."""
    network = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=5)
    nn.init.normal_(network.heads.head.weight)
    plan, slim = slim_is_dense_with_zeros(randomise(network), pictures(32), rate=rate)
    assert plan.weights["conv_proj.weight"].outputs.count == {0.5: 8, 0.7: 16}[rate]
    assert slim.encoder.layers[0].self_attention.num_heads == {0.5: 1, 0.7: 2}[rate]
    assert slim.encoder.layers[0].mlp[0].out_features == {0.5: 12, 0.7: 17}[rate]


class Embedding(nn.Module):
    """Backbone -> linear layer F -> D -> embedding on the unit sphere."""

    def __init__(self, backbone, features, dimension):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(features, dimension)

    def forward(self, images):
        return functional.normalize(self.head(self.backbone(images).flatten(1)), dim=1)


@pytest.mark.parametrize("rate", [0.5, 0.7, 0.8])
def test_embedding_network(rate, torchvision_network, slim_is_dense_with_zeros):
    backbone = torchvision_network("resnet18")
    backbone.fc = nn.Identity()
    plan, slim = slim_is_dense_with_zeros(Embedding(backbone, 512, 12), pictures(64), rate=rate)
    assert plan.weights["head.weight"].outputs.count == 12
    assert slim.head.in_features == plan.weights["backbone.layer4.1.conv2.weight"].outputs.count


@pytest.mark.parametrize("rate", [0.5, 0.7])
def test_double_precision_agrees_to_rounding(rate, torchvision_network, slim_is_dense_with_zeros):
    slim_is_dense_with_zeros(torchvision_network("resnet18").double(), pictures(64, torch.float64), rate=rate)


def has_norms_over_channels(name):
    return name in TRANSFORMERS or name.startswith("convnext")


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.5, 0.8])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_classifier_of_torchvision(name, rate, torchvision_network, slim_is_dense_with_zeros):
    """All 80, in double precision: with random weights and statistics, deep networks amplify rounding."""
    sizes = {"vit": 224, "max": 224, "swi": 64, "inc": 96}
    network = torchvision_network(name).double()
    images = pictures(sizes.get(name[:3], 64), torch.float64)[: 2 if network_is_small(network) else 1]
    plan, slim = slim_is_dense_with_zeros(network, images, rate=rate)
    assert bool(plan.norms) == has_norms_over_channels(name)
    # Only a channel shuffle leaves no choice but to keep the channels it shuffles whole.
    assert bool(plan.kept_whole) == name.startswith("shufflenet")
    assert plan.reset_count > 0.15 * (plan.reset_count + plan.fit_count)
    assert number_of_weights(slim) < 0.9 * number_of_weights(network)


def test_a_shufflenet_keeps_no_more_whole_than_the_shuffles_that_fit_no_narrower_width(
    torchvision_network, slim_is_dense_with_zeros
):
    """Its units are not attention: tying what goes into them to what they make inside would keep them all whole."""
    plan, _ = slim_is_dense_with_zeros(torchvision_network("shufflenet_v2_x0_5"), pictures(64), rate=0.5)
    assert list(plan.kept_whole) == ["stage2.1", "stage3.1"]
    assert plan.weights["stage4.3.branch2.0.weight"].outputs.count == 48


def test_torchvision_has_80_classifiers():
    assert (len(ARCHITECTURES), len(TRANSFORMERS)) == (80, 12)


@pytest.mark.slow
def test_grouped_convolutions_whose_groups_are_kept_or_dropped_as_a_whole(
    torchvision_network, slim_is_dense_with_zeros
):
    _, slim = slim_is_dense_with_zeros(torchvision_network("resnext50_32x4d"), pictures(64), rate=0.5)
    assert slim.layer1[0].conv2.groups == 16
