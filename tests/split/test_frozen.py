"""Frozen weights (requires_grad=False) are never redrawn, and the plan and `redraw_reset` say so."""

import copy

import pytest
import torch

from ke_metric.errors import KeMetricError
from ke_metric.split.plan import SplitPlan
from ke_metric.split.planning import plan_split
from ke_metric.split.reset import redraw_reset


def generator():
    return torch.Generator().manual_seed(17)


@pytest.fixture(params=["kels", "wels"])
def plan(request, small_network, images):
    return plan_split(small_network, images, rate=0.5, kind=request.param, seed=0)


def freeze(network, *names):
    for name in names:
        network.get_parameter(name).requires_grad_(False)
    return network


def test_frozen_weights_stay_and_are_told(small_network, images, plan):
    """The others get the values that they get where nothing is frozen."""
    twin = copy.deepcopy(small_network)
    freeze(small_network, "inner.weight", "hidden.weight", "norm.weight")
    before = copy.deepcopy(small_network.state_dict())
    assert redraw_reset(small_network, plan, generator=generator()) == ["inner.weight", "hidden.weight"]
    assert redraw_reset(twin, plan, generator=generator()) == []
    for name, tensor in small_network.state_dict().items():
        expected = before[name] if name in ("inner.weight", "hidden.weight") else twin.state_dict()[name]
        assert torch.equal(tensor, expected), name
    told = plan_split(small_network, images, rate=0.5, kind=plan.kind, seed=0)
    assert told.frozen == ("inner.weight", "hidden.weight")
    assert told.masks.keys() == plan.masks.keys()
    assert "frozen (requires_grad=False), and so never redrawn: inner.weight, hidden.weight" in str(told)
    assert SplitPlan.from_json(told.to_json(), told.to_tensors()) == told


@pytest.mark.parametrize("init", ["official", "same_as_init", "orthogonal", "zero"])
def test_frozen_weights_stay_by_every_rule(small_network, plan, init):
    before = freeze(small_network, "inner.weight").inner.weight.clone()
    redraw_reset(small_network, plan, generator=generator(), init=init)
    assert torch.equal(small_network.inner.weight, before)


def test_a_weight_that_is_kept_whole_need_not_be_trained(small_network, images):
    """The first layer of a network of which only others are reset."""
    plan = plan_split(freeze(small_network, "head.weight"), images, rate=0.5, keep_whole=["hidden"])
    assert plan.frozen == ()
    assert redraw_reset(small_network, plan, generator=generator()) == []


def test_nothing_that_could_train_is_left(small_network, plan):
    small_network.requires_grad_(False)
    with pytest.raises(KeMetricError, match=r"every weight of this _Small with a reset part is frozen.*stem\.weight"):
        redraw_reset(small_network, plan, generator=generator())


def test_a_frozen_layer_at_zero_is_what_the_slim_network_has(small_network, images, slim_is_dense_with_zeros):
    freeze(small_network, "inner.weight", "widen.weight")
    _, slim = slim_is_dense_with_zeros(small_network, images, rate=0.5)
    assert not slim.inner.weight.requires_grad
