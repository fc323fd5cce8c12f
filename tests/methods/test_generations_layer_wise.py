"""Layer-wise re-initialisation: what lies below goes back to its first length, what lies above is new."""

import pytest
import torch
from torch import nn

from ke_metric.errors import KeMetricError
from ke_metric.methods.generations import LayerWise, rescaled, units
from ke_metric.methods.method import Guided
from ke_metric.training.hooks import TrainingHooks

LAYERS = ("layer1", "layer2.0", "layer2.3", "head")


def grown_by_the_rule_of_the_reimplementation(network, parent, first, fresh, *, layers, number, generations):
    """The published re-implementation's rule, parameter by parameter; `number` counts from 1, theirs from 0."""
    reset_from = layers[((number - 1) * len(layers)) // generations]
    grown, reset = {}, False
    for name, _ in network.named_parameters():
        reset = reset or f".{reset_from}." in f".{name}."
        if reset:
            grown[name] = fresh[name]
        else:
            norm = first[name].norm()
            grown[name] = parent[name] * (norm / parent[name].norm()) if norm > 1e-6 else parent[name] * 0
    return grown


@pytest.mark.parametrize("generations", [3, 4, 5, 11])
def test_it_is_the_published_rule(generations, small, inheritance_of, parent):
    for number in range(2, generations + 1):
        child = small(number)
        inheritance = inheritance_of(
            "layer_wise", parent=parent, layers=LAYERS, number=number, generations=generations
        )
        LayerWise().inherit(child, inheritance)
        expected = grown_by_the_rule_of_the_reimplementation(
            child, parent, small(1).state_dict(), small(number).state_dict(),
            layers=LAYERS, number=number, generations=generations,
        )  # fmt: skip
        for name, parameter in child.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-6, atol=0, msg=name)
        for name, buffer in child.named_buffers():
            assert torch.equal(buffer, parent[name]), name


def kept(child, parent):
    """Return the weights that point where the parent's do."""
    weights = {name: value for name, value in child.named_parameters() if value.ndim > 1}
    return [
        name
        for name, value in weights.items()
        if torch.cosine_similarity(value.detach().flatten(), parent[name].flatten(), dim=0) > 1 - 1e-6
    ]


def test_one_unit_more_is_kept_from_time_to_time(small, inheritance_of, parent):
    """K = 4 units in 5 generations: k = floor(4 (g - 1) / 5) = 0, 1, 2, 3 for generations 2 to 5."""
    counts = []
    for number in (2, 3, 4, 5):
        child = small(number)
        LayerWise().inherit(
            child, inheritance_of("layer_wise", parent=parent, layers=LAYERS, number=number, generations=5)
        )
        counts.append(len(kept(child, parent)))
    # The stem; the block with its three convolutions; a convolution; another.
    assert counts == [1, 4, 5, 6]


def test_lower_units_have_their_first_norms(small, inheritance_of, parent):
    child, first = small(5), dict(small(1).named_parameters())
    LayerWise().inherit(child, inheritance_of("layer_wise", parent=parent, layers=LAYERS, number=5, generations=5))
    below = [name for name, _ in child.named_parameters() if not name.startswith("head")]
    for name in below:
        norm = child.get_parameter(name).norm()
        torch.testing.assert_close(norm, first[name].norm(), rtol=1e-6, atol=0)
        assert abs(parent[name].norm() / norm - 1) > 1e-3 or not norm, "the parent's was the same"
    assert not child.bn1.bias.any(), "it was 0 at first"
    assert torch.equal(child.head.weight, small(5).head.weight)
    assert torch.equal(child.head.bias, small(5).head.bias)


def test_without_layers_every_layer_is_a_unit(small, inheritance_of, parent):
    network = small(1)
    names = [name for name, _ in network.named_parameters()]
    weights = [names[start] for start in units(network, inheritance_of("layer_wise").method)]
    assert weights == [name for name, value in network.named_parameters() if value.ndim > 1]
    child = small(3)
    LayerWise().inherit(child, inheritance_of("layer_wise", parent=parent, number=3, generations=3))
    # k = floor(2 * 7 / 3) = 4 of 7.
    assert kept(child, parent) == weights[:4]


def test_new_values_in_every_generation_and_the_same_for_one_seed(small, inheritance_of, parent):
    heads = []
    for number in (2, 2, 3):
        child = small(number)
        LayerWise().inherit(child, inheritance_of("layer_wise", parent=parent, layers=LAYERS, number=number))
        heads.append(child.head.weight)
    assert torch.equal(heads[0], heads[1])
    assert (heads[0] != heads[2]).all()


def test_zeros_stay_zeros():
    assert not rescaled(torch.zeros(3), torch.tensor(2.0)).any()
    assert torch.equal(rescaled(torch.tensor([3.0, 4.0]), torch.tensor(10.0)), torch.tensor([6.0, 8.0]))
    assert not rescaled(torch.tensor([3.0, 4.0]), torch.tensor(0.0)).any()


def test_a_misspelt_layer_shows_before_anything_is_trained(small, inheritance_of):
    LayerWise().check(small(1), inheritance_of("layer_wise", layers=LAYERS).method)
    with pytest.raises(KeMetricError, match="did you mean 'layer2'"):
        LayerWise().check(small(1), inheritance_of("layer_wise", layers=("layer1", "layer22")).method)
    with pytest.raises(KeMetricError, match="has no shape"):
        LayerWise().check(nn.Sequential(nn.LazyLinear(3)), inheritance_of("layer_wise").method)


def test_the_parent_may_teach(small, inheritance_of):
    assert type(LayerWise().hooks(small(2), inheritance_of("layer_wise"))) is TrainingHooks
    assert isinstance(LayerWise().hooks(small(2), inheritance_of("layer_wise", teacher_weight=1.0)), Guided)
