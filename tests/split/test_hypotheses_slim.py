import copy

import pytest
import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.planning import plan_split


def test_layers_say_how_wide_they_are(small_network, images):
    slim = extract_slim(small_network, plan_split(small_network, images, rate=0.5))
    assert (slim.stem.in_channels, slim.stem.out_channels) == (3, 3)
    assert (slim.widen.in_channels, slim.widen.out_channels, slim.widen.groups) == (3, 5, 1)
    assert (slim.hidden.in_features, slim.hidden.out_features) == (45, 4)
    assert (slim.head.in_features, slim.head.out_features) == (4, 5)
    assert slim.norm.num_features == 3
    assert slim.norm.running_var.shape == slim.norm.bias.shape == (3,)


def test_the_network_is_unchanged_and_nothing_is_shared(small_network, images):
    small_network(images).sum().backward()
    before = copy.deepcopy(small_network.state_dict())
    slim = extract_slim(small_network, plan_split(small_network, images, rate=0.5))
    with torch.no_grad():
        for parameter in slim.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_network.state_dict().items())
    assert all(parameter.grad is None for parameter in slim.parameters())
    assert small_network.stem.weight.grad is not None


def test_an_ordinary_network(small_network, images, slim_is_dense_with_zeros):
    """It can be copied, trained, saved and split again."""
    slim = extract_slim(small_network, plan_split(small_network, images, rate=0.5))
    assert type(slim) is type(small_network)
    copied = copy.deepcopy(slim).train()
    copied(images).square().mean().backward()
    torch.optim.SGD(copied.parameters(), lr=0.1).step()
    assert not torch.equal(copied.stem.weight, slim.stem.weight)
    slim.load_state_dict(copied.state_dict())
    plan, slimmer = slim_is_dense_with_zeros(slim, images, rate=0.5)
    assert plan.weights["widen.weight"].outputs.count == slimmer.widen.out_channels == 3


def test_rate_one_is_a_copy(small_network, images):
    slim = extract_slim(small_network, plan_split(small_network, images, rate=1.0))
    assert all(torch.equal(tensor, small_network.state_dict()[name]) for name, tensor in slim.state_dict().items())


def test_flags_and_memory_format_stay(small_network, images):
    small_network.to(memory_format=torch.channels_last).train()
    small_network.norm.eval()
    small_network.inner.weight.requires_grad_(False)
    slim = extract_slim(small_network, plan_split(small_network, images, rate=0.5))
    assert slim.widen.weight.is_contiguous(memory_format=torch.channels_last)
    assert not slim.widen.weight.is_contiguous()
    assert not slim.inner.weight.requires_grad
    assert slim.stem.weight.requires_grad
    assert slim.training
    assert not slim.norm.training


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("last", [False, True])
def test_strides_of_kernels_of_one_element_stay(dimension, last):
    """Such a weight is contiguous in both formats; a convolution goes by its strides."""
    convolution = nn.Conv2d if dimension == 2 else nn.Conv3d
    network = nn.Sequential(convolution(4, 8, 1), convolution(8, 8, 1), convolution(8, 2, 1))
    if last:
        network.to(memory_format=torch.channels_last if dimension == 2 else torch.channels_last_3d)
    slim = extract_slim(network, plan_split(network, torch.zeros(1, 4, *[2] * dimension), rate=0.5))
    assert slim[1].weight.stride() == ((4, 1, *[4] * dimension) if last else (4, *[1] * (dimension + 1)))


class Tied(nn.Module):
    """One weight in two layers, and one norm under two names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.first = nn.Conv2d(6, 6, 1, bias=False)
        self.second = nn.Conv2d(6, 6, 1, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(6)
        self.other_norm = self.norm
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, images):
        return self.head(self.other_norm(self.second(self.norm(self.first(self.stem(images))))))


def test_tied_weights_stay_tied(images, randomise, slim_is_dense_with_zeros):
    _, slim = slim_is_dense_with_zeros(randomise(Tied()), images, rate=0.5)
    assert slim.first.weight is slim.second.weight
    assert slim.norm is slim.other_norm
    assert slim.second.out_channels == 3


def test_wels_has_no_slim_network(small_network, images):
    plan = plan_split(small_network, images, rate=0.5, kind="wels", seed=0)
    with pytest.raises(KeMetricError, match="no slim network") as caught:
        extract_slim(small_network, plan)
    assert caught.value.exit_code == ExitCode.RECIPE


def test_plan_of_another_network(small_network, images):
    with pytest.raises(KeMetricError, match="another network than this Linear"):
        extract_slim(nn.Linear(2, 2), plan_split(small_network, images, rate=0.5))
