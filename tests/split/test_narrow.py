"""A narrow network computes and learns what the slim network would, on the weights of the wide one."""

import copy

import pytest
import torch
from torch import nn

from ke_metric.errors import KeMetricError
from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.narrow import NarrowNetwork
from ke_metric.split.planning import plan_split

ARCHITECTURES = ["resnet18", "googlenet", "densenet121", "mobilenet_v2", "convnext_tiny"]


def pictures(size=64, count=4):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def without_noise(network):
    """Dropout and stochastic depth draw numbers, other ones in every pass."""
    for module in network.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    return network


def step(network, images):
    """Return the outputs of a training step, its gradient computed."""
    outputs = network.train()(images)
    outputs.square().sum().backward()
    return outputs


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float64) for name in ARCHITECTURES), ("resnet18", torch.float32)]
)
def test_a_step_is_that_of_the_slim_network(name, dtype, torchvision_network, demand_narrow_is_slim):
    network = without_noise(torchvision_network(name)).to(dtype, memory_format=torch.channels_last)
    plan = plan_split(network, pictures(count=1).to(dtype), rate=0.5)
    demand_narrow_is_slim(network, plan, pictures(48).to(dtype, memory_format=torch.channels_last))


def test_weights_that_the_optimizer_moves_are_seen_and_gradients_add_up(small_network):
    plan = plan_split(small_network, pictures(8, 1), rate=0.5)
    narrow = NarrowNetwork(small_network, plan)
    step(small_network, pictures(8))
    dense = {name: parameter.grad.clone() for name, parameter in small_network.named_parameters()}
    step(narrow.module, pictures(8))
    narrow.add_gradients()
    once = {name: parameter.grad.clone() for name, parameter in small_network.named_parameters()}
    assert all(torch.equal(once[name][~mask], dense[name][~mask]) for name, mask in plan.masks.items())
    assert all(not torch.equal(once[name][mask], dense[name][mask]) for name, mask in plan.masks.items())
    with torch.no_grad():
        for parameter in small_network.parameters():
            parameter.mul_(0.5)
    narrow.refresh()
    assert torch.equal(narrow.module.train()(pictures(8)), extract_slim(small_network, plan).train()(pictures(8)))
    narrow.add_gradients()
    # Gradients were forgotten where they had been added.
    assert all(torch.equal(parameter.grad, once[name]) for name, parameter in small_network.named_parameters())


def test_norm_statistics_are_its_own(small_network):
    before = copy.deepcopy(small_network.state_dict())
    narrow = NarrowNetwork(small_network, plan_split(small_network, pictures(8, 1), rate=0.5))
    step(narrow.module, pictures(8))
    assert all(torch.equal(value, before[name]) for name, value in small_network.state_dict().items())
    kept = len(narrow.module.norm.running_mean)
    assert not torch.equal(narrow.module.norm.running_mean, before["norm.running_mean"][:kept])


def test_weights_are_the_wide_network_s_own(small_network):
    """A prefix lies in the same memory: a narrow network costs activations, not weights."""
    narrow = NarrowNetwork(small_network, plan_split(small_network, pictures(8, 1), rate=0.5))
    wide = {parameter.untyped_storage().data_ptr() for parameter in small_network.parameters()}
    own = [name for name, each in narrow.module.named_parameters() if each.untyped_storage().data_ptr() not in wide]
    # Behind the flatten, channels are many ranges of columns at this rate.
    assert own in ([], ["hidden.weight"])


def test_a_network_that_was_moved_is_an_assertion(small_network):
    narrow = NarrowNetwork(small_network, plan_split(small_network, pictures(8, 1), rate=0.5))
    small_network.to(torch.float64)
    with pytest.raises(AssertionError, match="moved"):
        narrow.refresh()


def test_single_weights_have_no_narrow_network(small_network):
    plan = plan_split(small_network, pictures(8, 1), rate=0.5, kind="wels", seed=0)
    with pytest.raises(KeMetricError, match="there is no slim network in it"):
        NarrowNetwork(small_network, plan)
