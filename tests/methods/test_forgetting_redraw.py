"""Any set of weights can be redrawn, and nothing else moves."""

import pytest
import torch

from ke_metric.methods.forgetting import all_of, redraw_where

RULES = ("official", "same_as_init", "orthogonal", "zero")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_of(network, share=0.3):
    return {
        name: torch.rand(network.get_parameter(name).shape, generator=generator(3)) < share
        for name in ("layer1.conv1.weight", "head.weight")
    }


@pytest.mark.parametrize("rule", RULES)
def test_exactly_the_named_entries_change(rule, small):
    network = small(1).to(memory_format=torch.channels_last)
    before, redrawn = {name: value.clone() for name, value in network.state_dict().items()}, some_of(network)
    redraw_where(network, redrawn, rule=rule, generator=generator(), fresh=small(2))
    for name, value in network.state_dict().items():
        flags = redrawn.get(name, torch.zeros(value.shape, dtype=torch.bool))
        assert torch.equal(value[~flags], before[name][~flags]), name
        assert (value[flags] != before[name][flags]).all(), name


def test_the_values_are_those_of_the_rule(small):
    redrawn = some_of(small(1))
    for rule in RULES:
        network = small(1)
        redraw_where(network, redrawn, rule=rule, generator=generator(), fresh=small(2))
        for name, flags in redrawn.items():
            new = network.get_parameter(name).detach()[flags]
            if rule == "same_as_init":
                assert torch.equal(new, small(2).get_parameter(name).detach()[flags])
            if rule == "zero":
                assert not new.any()
            if rule == "official":
                assert new.abs().max() <= {"layer1.conv1.weight": 54, "head.weight": 10}[name] ** -0.5


def test_the_generator_decides(small):
    networks = [small(1) for _ in range(3)]
    redrawn = all_of({"head.weight": networks[0].head.weight})
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        redraw_where(network, redrawn, rule="official", generator=generator(seed))
    weights = [network.head.weight for network in networks]
    assert torch.equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).all()


def test_all_of_a_weight():
    flags = all_of({"a": torch.zeros(2, 3)})["a"]
    assert flags.shape == (2, 3)
    assert flags.dtype == torch.bool
    assert flags.all()
