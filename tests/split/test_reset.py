import copy

import pytest
import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.plan import plan_split
from ke_metric.split.reset import redraw_reset, zero_reset
from ke_metric.split.slim import extract_slim


def generator(seed=17):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["kels", "wels"])
def plan(request, small_network, images):
    return plan_split(small_network, images, rate=0.5, kind=request.param, seed=0)


def test_official(small_network, plan):
    """Kept entries, norms, biases and buffers are bit-identical; every reset entry is new, within 1/sqrt(fan_in)."""
    before = copy.deepcopy(small_network.state_dict())
    redraw_reset(small_network, plan, generator=generator())
    masks = plan.masks
    for name, tensor in small_network.state_dict().items():
        fit = masks.get(name, torch.ones(tensor.shape, dtype=torch.bool))
        assert torch.equal(tensor[fit], before[name][fit])
        assert bool((tensor[~fit] != before[name][~fit]).all())
        if name in masks:
            fan_in = tensor[0].numel()
            assert float(tensor[~fit].abs().max()) <= fan_in**-0.5


def test_official_is_uniform():
    """Mean 0, standard deviation 1/sqrt(3 fan_in), and values close to both bounds."""
    network = nn.Sequential(nn.Conv2d(3, 100, 1), nn.Conv2d(100, 500, 3))
    plan = plan_split(network, torch.zeros(1, 3, 3, 3), rate=0.5, kind="wels", seed=0)
    redraw_reset(network, plan, generator=generator())
    drawn = network[1].weight.detach()[~plan.masks["1.weight"]] * 900**0.5
    assert abs(float(drawn.mean())) < 0.01
    assert float(drawn.std()) == pytest.approx(3**-0.5, abs=0.01)
    assert float(drawn.min()) < -0.999
    assert float(drawn.max()) > 0.999


def test_same_seed_same_values(small_network, plan):
    first, second, third = (copy.deepcopy(small_network) for _ in range(3))
    redraw_reset(first, plan, generator=generator(1))
    redraw_reset(second, plan, generator=generator(1))
    redraw_reset(third, plan, generator=generator(2))
    assert torch.equal(first.widen.weight, second.widen.weight)
    assert not torch.equal(first.widen.weight, third.widen.weight)


def test_values_do_not_depend_on_precision(small_network, plan):
    double = copy.deepcopy(small_network).double()
    redraw_reset(small_network, plan, generator=generator())
    redraw_reset(double, plan, generator=generator())
    assert torch.equal(small_network.widen.weight, double.widen.weight.float())
    assert double.widen.weight.dtype == torch.float64


def test_same_as_init(small_network, plan):
    fresh = type(small_network)()
    before = copy.deepcopy(small_network.state_dict())
    redraw_reset(small_network, plan, init="same_as_init", fresh=fresh)
    for name, mask in plan.masks.items():
        weight = small_network.get_parameter(name)
        assert torch.equal(weight, torch.where(mask, before[name], fresh.get_parameter(name)))
    assert torch.equal(small_network.norm.weight, before["norm.weight"])
    assert torch.equal(small_network.stem.bias, before["stem.bias"])


def test_zero(small_network, plan):
    before = copy.deepcopy(small_network.state_dict())
    twin = copy.deepcopy(small_network)
    redraw_reset(small_network, plan, init="zero")
    zero_reset(twin, plan)
    for name, mask in plan.masks.items():
        assert torch.equal(small_network.get_parameter(name), before[name] * mask)
        assert torch.equal(twin.get_parameter(name), small_network.get_parameter(name))


def test_in_place(small_network, plan):
    """Parameters keep their storage, gradients and flags: an optimiser that holds them goes on with them."""
    small_network.stem.weight.requires_grad_(False)
    small_network(torch.rand(2, 3, 8, 8)).sum().backward()
    before = [
        (id(p), p.data_ptr(), p.requires_grad, None if p.grad is None else p.grad.clone())
        for p in small_network.parameters()
    ]
    redraw_reset(small_network, plan, generator=generator())
    for parameter, (identity, pointer, requires_grad, gradient) in zip(
        small_network.parameters(), before, strict=True
    ):
        assert (id(parameter), parameter.data_ptr(), parameter.requires_grad) == (identity, pointer, requires_grad)
        assert gradient is None or torch.equal(parameter.grad, gradient)


def test_channels_last_stays(small_network, plan):
    small_network.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(small_network).to(memory_format=torch.contiguous_format)
    redraw_reset(small_network, plan, generator=generator())
    redraw_reset(plain, plan, generator=generator())
    assert small_network.widen.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(small_network.widen.weight, plain.widen.weight)


@pytest.mark.parametrize("init", ["official", "same_as_init", "zero"])
def test_rate_one_changes_nothing(small_network, images, init):
    plan = plan_split(small_network, images, rate=1.0)
    before = copy.deepcopy(small_network.state_dict())
    redraw_reset(small_network, plan, generator=generator(), init=init, fresh=type(small_network)())
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_network.state_dict().items())


def test_default_random_stream_is_untouched(small_network, plan):
    state = torch.get_rng_state()
    redraw_reset(small_network, plan, generator=generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_slim_network_does_not_see_the_reset(small_network, images):
    plan = plan_split(small_network, images, rate=0.5)
    before = extract_slim(small_network, plan).state_dict()
    redraw_reset(small_network, plan, generator=generator())
    after = extract_slim(small_network, plan).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "needs generator="),
        ({"init": "offical"}, "reset 'offical' is none of official, same_as_init, zero; did you mean 'official'?"),
        ({"init": "same_as_init"}, "fresh="),
    ],
)
def test_bad_arguments(small_network, plan, arguments, words):
    with pytest.raises(KeMetricError) as caught:
        redraw_reset(small_network, plan, **arguments)
    assert words in str(caught.value)
    assert caught.value.exit_code == ExitCode.RECIPE


def test_fresh_must_be_another_network_of_this_architecture(small_network, plan):
    with pytest.raises(KeMetricError, match="newly built network"):
        redraw_reset(small_network, plan, init="same_as_init", fresh=small_network)
    with pytest.raises(KeMetricError, match="another network than this Linear"):
        redraw_reset(small_network, plan, init="same_as_init", fresh=nn.Linear(2, 2))


def test_plan_of_another_network(plan):
    with pytest.raises(KeMetricError, match="another network than this Linear"):
        redraw_reset(nn.Linear(2, 2), plan, generator=generator())
