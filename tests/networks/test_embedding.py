"""The embedding network: unit length in every precision, and all D outputs kept by a split."""

import pytest
import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.heads import EmbeddingNetwork, build_network
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Network
from ke_metric.split.planning import plan_split
from ke_metric.split.slim import extract_slim

NETWORK = Network(backbone="timm/test_resnet", embedding_size=24)


@pytest.fixture
def network():
    with default_streams(0, 1, "network"):
        return build_network(NETWORK, 32)


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("half", [False, True])
def test_embeddings_have_unit_length(network, images, half):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        embeddings = network.eval()(images)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (4, 24)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


def test_embedding_is_the_head_of_the_feature(images):
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(3, 5)
    raw = images.mean(dim=(2, 3)) @ head.weight.T + head.bias
    expected = raw / raw.square().sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(EmbeddingNetwork(backbone, head)(images), expected)


def test_the_head_fits_the_backbone(network):
    assert (network.head.in_features, network.head.out_features) == (96, 24)


def test_a_split_keeps_every_output(network, images):
    plan = plan_split(network, images[:1], rate=0.5)
    assert plan.weights["head.weight"].outputs.count == 24
    assert plan.weights["head.weight"].inputs.count == 48
    embeddings = extract_slim(network, plan).eval()(images)
    assert embeddings.shape == (4, 24)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


def test_the_same_stream_gives_the_same_network(network):
    with default_streams(0, 1, "network"):
        again = build_network(NETWORK, 32)
    with default_streams(0, 2, "network"):
        other = build_network(NETWORK, 32)
    assert torch.equal(network.head.weight, again.head.weight)
    assert not torch.equal(network.head.weight, other.head.weight)


def test_pretrained_weights_can_be_left_out(monkeypatch):
    def refuse(*_, **__):
        raise OSError("asked for weights")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    section = Network(backbone="squeezenet1_1", pretrained=True)
    assert build_network(section, 64, load_pretrained=False).head.in_features == 512
    with pytest.raises(KeMetricError, match="asked for weights") as raised:
        build_network(section, 64)
    assert raised.value.exit_code == ExitCode.ENVIRONMENT
