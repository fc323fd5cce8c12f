"""Later-Layer Forgetting: exactly the named layer and what comes after it is new."""

import pytest
import torch

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.methods.forgetting import LaterLayerForgetting, unit_starts
from ke_metric.methods.method import Guided
from ke_metric.training.hooks import TrainingHooks

NAME = "later_layer_forgetting"
FAN_IN = {
    "conv1.weight": 27, "layer1.conv1.weight": 54, "layer1.conv2.weight": 72, "layer1.shortcut.weight": 6,
    "layer2.0.weight": 72, "layer2.3.weight": 8, "head.weight": 10,
}  # fmt: skip


def forgotten_by_the_authors(network, layer):
    """Their rule, written out: from the first parameter whose name has the layer in it, every convolution's and
    linear layer's weight, shortcuts and classifier included; neither norms nor biases."""
    found, names = False, []
    for name, parameter in network.named_parameters():
        found = found or layer in name
        if found and name.endswith("weight") and parameter.ndim > 1:
            names.append(name)
    return names


def grow(small, inheritance_of, parent, **facts):
    child = small(facts.get("number", 2))
    LaterLayerForgetting().inherit(child, inheritance_of(NAME, parent=parent, **facts))
    return child.state_dict()


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer2.3", "head", "conv1"])
@pytest.mark.parametrize("reset", ["official", "same_as_init", "orthogonal", "zero"])
def test_exactly_the_layer_and_later_ones_change(layer, reset, small, inheritance_of, parent):
    child = grow(small, inheritance_of, parent, layers=(layer,), reset=reset)
    expected = forgotten_by_the_authors(small(1), layer)
    assert "head.weight" in expected
    for name, value in child.items():
        if name in expected:
            assert (value != parent[name]).all(), name
        else:
            assert torch.equal(value, parent[name]), name


def test_new_values_are_uniform_within_their_bound(small, inheritance_of, parent):
    child = grow(small, inheritance_of, parent, layers=("conv1",))
    for name, fan_in in FAN_IN.items():
        assert 0.8 * fan_in**-0.5 < child[name].abs().max() <= fan_in**-0.5


def test_same_as_init_takes_the_new_networks_values(small, inheritance_of, parent):
    child = grow(small, inheritance_of, parent, layers=("layer2",), reset="same_as_init", number=3)
    assert torch.equal(child["head.weight"], small(3).head.weight)
    assert torch.equal(child["layer1.conv1.weight"], parent["layer1.conv1.weight"])


@pytest.mark.parametrize("reset", ["official", "same_as_init"])
def test_new_values_in_every_generation_and_the_same_for_one_seed(reset, small, inheritance_of, parent):
    one, again, other = (
        grow(small, inheritance_of, parent, layers=("layer2",), reset=reset, number=number)["head.weight"]
        for number in (2, 2, 3)
    )
    assert torch.equal(one, again)
    assert (one != other).all()


def test_the_parent_may_teach(small, inheritance_of):
    method = LaterLayerForgetting()
    assert type(method.hooks(small(2), inheritance_of(NAME, layers=("head",)))) is TrainingHooks
    taught = inheritance_of(NAME, layers=("head",), teacher_weight=1.0)
    assert isinstance(method.hooks(small(2), taught), Guided)


WEIGHTS = ["backbone.layer1.0.weight", "backbone.layer1.1.weight", "backbone.layer2.0.weight", "head.weight"]


@pytest.mark.parametrize(
    ("layers", "starts"),
    [
        (("layer1", "layer2", "head"), [0, 2, 3]),
        (("backbone.layer2",), [2]),
        (("layer1.1", "layer2.0"), [1, 2]),
        (("backbone", "head"), [0, 3]),
    ],
)
def test_a_layer_goes_by_its_name_with_or_without_what_leads_to_it(layers, starts):
    assert unit_starts(WEIGHTS, layers) == starts


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (("layer4",), r"no weights in a layer 'layer4'; did you mean 'layer\d'"),
        (("backbone.layer3",), r"'backbone.layer3'; did you mean 'backbone.layer"),
        (("ayer1",), "did you mean 'layer1'"),
        (("layer1.0.weight",), "no weights in a layer"),
        (("layer2", "layer1"), "must be in the order of the network, each once"),
        (("layer1", "layer1"), "each once"),
    ],
)
def test_layers_that_are_not_there(layers, words):
    with pytest.raises(KeMetricError, match=words) as raised:
        unit_starts(WEIGHTS, layers)
    assert str(raised.value).startswith("method.layers")
    assert raised.value.exit_code == ExitCode.RECIPE


def test_a_misspelt_layer_shows_before_anything_is_trained(small, inheritance_of):
    LaterLayerForgetting().check(small(1), inheritance_of(NAME, layers=("layer2",)).method)
    with pytest.raises(KeMetricError, match="did you mean 'layer2'"):
        LaterLayerForgetting().check(small(1), inheritance_of(NAME, layers=("layre2",)).method)
