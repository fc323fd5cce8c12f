"""Repairs of a slim network: statistics and last layers that are what their definitions say, by slow twins."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ke_metric import extract_slim, plan_split
from ke_metric.errors import KeMetricError
from ke_metric.split.repair import (
    RIDGE,
    WHITENING_DAMPING,
    estimate_norm_statistics,
    norm_statistics,
    refitted_layer,
    whitened_layer,
)


def pictures(count=6, size=8):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def slowly(network, images):
    """Measure layer after layer in the order in which they compute, a whole pass for each."""
    twin, order = copy.deepcopy(network).eval(), []
    norms = [module for module in twin.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda module, inputs: order.append((module, inputs[0])))
    for place in range(len(norms)):
        order.clear()
        with torch.no_grad():
            twin(images)
        norm, values = order[place]
        channels = values.transpose(0, 1).flatten(1).double()
        norm.running_mean = channels.mean(1).float()
        norm.running_var = channels.var(1, correction=0).float()
    return norm_statistics(twin)


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v2"])
def test_statistics_are_those_of_a_pass_for_every_layer(name, torchvision_network):
    network = torchvision_network(name)
    expected = slowly(network, pictures(4, 48))
    found = estimate_norm_statistics(network, pictures(4, 48).split(3))
    assert found.keys() == expected.keys()
    for statistic, value in expected.items():
        torch.testing.assert_close(found[statistic], value, rtol=1e-4, atol=1e-5)


def test_a_second_time_changes_nothing(small_network):
    first = {name: value.clone() for name, value in estimate_norm_statistics(small_network, pictures()).items()}
    assert not torch.equal(first["norm.running_mean"], torch.zeros(6))
    second = estimate_norm_statistics(small_network, pictures())
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)


def test_afterwards_eval_computes_what_batch_statistics_would(small_network):
    estimate_norm_statistics(small_network, pictures())
    expected = small_network.eval()(pictures())
    torch.testing.assert_close(small_network.train()(pictures()), expected, rtol=1e-4, atol=1e-5)


def test_modes_weights_and_hooks_are_as_before(small_network):
    small_network.train()
    small_network.norm.eval()
    weights = {name: value.clone() for name, value in small_network.named_parameters()}
    estimate_norm_statistics(small_network, pictures())
    assert small_network.training
    assert not small_network.norm.training
    assert not small_network.norm._forward_pre_hooks
    assert all(torch.equal(value, weights[name]) for name, value in small_network.named_parameters())


def test_a_network_without_batch_norm_has_nothing_to_measure():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False))
    before = copy.deepcopy(network.state_dict())
    assert estimate_norm_statistics(network, pictures()) == {}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_slim_network_is_cut_out_with_statistics_of_its_own(small_network):
    plan = plan_split(small_network, pictures(1), rate=0.5)
    as_cut = extract_slim(small_network, plan)
    measured = copy.deepcopy(as_cut)
    statistics = estimate_norm_statistics(measured, pictures())
    slim = extract_slim(small_network, plan, statistics=statistics).eval()
    assert torch.equal(slim(pictures()), measured.eval()(pictures()))
    assert not torch.equal(slim(pictures()), as_cut.eval()(pictures()))
    with pytest.raises(KeMetricError, match="the statistics do not fit"):
        extract_slim(small_network, plan, statistics=norm_statistics(small_network))


def features(count=50, size=6, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, size)) * np.arange(1, size + 1)).astype(np.float32)


def test_whitened_outputs_are_those_of_the_formula():
    given, generator = features(), np.random.default_rng(1)
    weight, bias = generator.normal(size=(4, 6)).astype(np.float32), generator.normal(size=4).astype(np.float32)
    new_weight, new_bias = whitened_layer(weight, bias, given)
    outputs = (given @ weight.T + bias).astype(np.float64)
    # From the direction in which outputs vary most to that in which they vary least.
    variances, directions = (found[..., ::-1] for found in np.linalg.eigh(np.cov(outputs.T, bias=True)))
    damped = variances + WHITENING_DAMPING * variances.mean()
    expected = (outputs - outputs.mean(0)) @ directions / np.sqrt(damped)
    np.testing.assert_allclose(given @ new_weight.T + new_bias, expected, rtol=1e-3, atol=1e-4)
    spread = np.var(given @ new_weight.T + new_bias, axis=0)
    np.testing.assert_allclose(spread, variances / damped, rtol=1e-3)
    assert (np.diff(spread) < 0).all()


def test_whitening_of_a_collapsed_network_is_finite():
    weight, bias = whitened_layer(np.eye(4, 6, dtype=np.float32), np.ones(4, np.float32), features(3))
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()


def test_a_refitted_layer_is_the_least_of_its_sum_of_squares():
    given, generator = features(), np.random.default_rng(1)
    targets = (given @ generator.normal(size=(6, 3)) + 5).astype(np.float32)
    weight, bias = refitted_layer(given, targets)
    centred, wanted = given - given.mean(0), targets - targets.mean(0)
    ridge = RIDGE * np.mean(np.var(given, axis=0)) * len(given)
    stacked = np.vstack([centred, np.sqrt(ridge) * np.eye(6)])
    expected, *_ = np.linalg.lstsq(stacked, np.vstack([wanted, np.zeros((6, 3))]), rcond=None)
    np.testing.assert_allclose(weight, expected.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(given.mean(0) @ weight.T + bias, targets.mean(0), rtol=1e-3)
