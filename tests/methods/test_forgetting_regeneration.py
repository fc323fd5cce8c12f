"""Dynamic Neural Regeneration: the least salient weights, over all layers together, are new."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ke_metric.errors import KeMetricError
from ke_metric.methods.forgetting import SHARE, NeuralRegeneration, least_salient, share_of
from ke_metric.methods.method import Guided
from ke_metric.training.hooks import TrainingHooks

NAME = "neural_regeneration"


def gradients_of(parent, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(value.shape, generator=generator) for name, value in parent.items()}


def grow(small, inheritance_of, parent, *, gradients=None, **facts):
    gradients = gradients or gradients_of(parent)
    child = small(facts.get("number", 2))
    NeuralRegeneration().inherit(child, inheritance_of(NAME, parent=parent, gradients=gradients, **facts))
    return child.state_dict()


def weights_of(small):
    return [name for name, value in small(1).named_parameters() if value.ndim > 1]


def regenerated(child, parent, names):
    return {name: child[name] != parent[name] for name in names}


def least_salient_one_by_one(saliency, share):
    """Sort every entry of every weight by its saliency, ties by their order, and take the first of them."""
    entries = [
        (float(value), position, name, index)
        for position, (name, values) in enumerate(saliency.items())
        for index, value in enumerate(values.flatten())
    ]
    entries.sort(key=lambda entry: (entry[0], entry[1], entry[3]))
    return {(name, index) for _, _, name, index in entries[: round(share * len(entries))]}


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=4), st.floats(0.01, 0.99))
def test_the_share_is_exact_and_global(values, share):
    saliency = {f"w{number}": torch.tensor(each, dtype=torch.float32)[None] for number, each in enumerate(values)}
    chosen = least_salient(saliency, share)
    assert {name: flags.shape for name, flags in chosen.items()} == {name: v.shape for name, v in saliency.items()}
    found = {
        (name, index) for name, flags in chosen.items() for index in flags.flatten().nonzero().flatten().tolist()
    }
    assert found == least_salient_one_by_one(saliency, share)
    assert len(found) == round(share * sum(map(len, values)))


@pytest.mark.parametrize("share", [None, 0.1, 0.5])
def test_exactly_the_least_salient_weights_are_new(share, small, inheritance_of, parent):
    gradients, names = gradients_of(parent), weights_of(small)
    child = grow(small, inheritance_of, parent, gradients=gradients, share=share)
    new = regenerated(child, parent, names)
    total = sum(flags.numel() for flags in new.values())
    assert sum(int(flags.sum()) for flags in new.values()) == round((share or 0.2) * total)
    saliency = {name: parent[name].abs() * gradients[name] for name in names}
    highest_new = max(float(saliency[name][flags].max()) for name, flags in new.items() if flags.any())
    lowest_kept = min(float(saliency[name][~flags].min()) for name, flags in new.items() if (~flags).any())
    assert highest_new <= lowest_kept
    for name, value in child.items():
        if name not in names:
            assert torch.equal(value, parent[name]), name


@pytest.mark.parametrize(
    ("fields", "shares"),
    [
        ({}, [0.2, 0.2, 0.2, 0.2]),
        ({"share": 0.4}, [0.4, 0.4, 0.4, 0.4]),
        ({"share": 0.4, "final_share": 0.1}, [0.4, 0.3, 0.2, 0.1]),
        ({"final_share": 0.0}, [0.2, 0.2 * 2 / 3, 0.2 / 3, 0.0]),
        ({"final_share": 0.5}, [0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_the_share_changes_in_equal_steps(fields, shares, inheritance_of):
    found = [share_of(inheritance_of(NAME, number=number, generations=5, **fields)) for number in range(2, 6)]
    assert found == pytest.approx(shares)


def test_a_final_share_of_nothing_inherits_everything(small, inheritance_of, parent):
    child = grow(small, inheritance_of, parent, number=3, final_share=0.0)
    assert all(torch.equal(value, parent[name]) for name, value in child.items())


def test_the_share_is_the_papers(inheritance_of):
    assert SHARE == 0.2
    assert inheritance_of(NAME).method.share is None


def test_layers_have_different_shares(small, inheritance_of, parent):
    """It is one ranking, not one for each layer."""
    gradients = gradients_of(parent)
    gradients["head.weight"] *= 1e-6
    new = regenerated(grow(small, inheritance_of, parent, gradients=gradients), parent, weights_of(small))
    assert new["head.weight"].all()
    assert 0 < new["layer1.conv2.weight"].float().mean() < 0.3


def test_weights_without_gradient_are_redrawn_first(small, inheritance_of, parent):
    gradients = gradients_of(parent)
    idle = torch.zeros(8, 8, 3, 3, dtype=torch.bool)
    idle[::2, 1] = True
    gradients["layer1.conv2.weight"][idle] = 0
    new = regenerated(grow(small, inheritance_of, parent, gradients=gradients, share=0.1), parent, weights_of(small))
    assert new["layer1.conv2.weight"][idle].all()


def test_what_is_new_follows_the_gradients(small, inheritance_of, parent):
    """The mask is another one in every generation."""
    one, other = (
        regenerated(
            grow(small, inheritance_of, parent, gradients=gradients_of(parent, seed)), parent, ["layer2.0.weight"]
        )
        for seed in (0, 1)
    )
    assert not torch.equal(one["layer2.0.weight"], other["layer2.0.weight"])


@pytest.mark.parametrize("reset", ["official", "same_as_init"])
def test_new_values_in_every_generation_and_the_same_for_one_seed(reset, small, inheritance_of, parent):
    one, again, other = (
        grow(small, inheritance_of, parent, reset=reset, number=number)["layer2.0.weight"] for number in (2, 2, 3)
    )
    assert torch.equal(one, again)
    new = one != parent["layer2.0.weight"]
    assert new.any()
    assert (one[new] != other[new]).all()
    if reset == "same_as_init":
        assert torch.equal(one[new], small(2).state_dict()["layer2.0.weight"][new])
    else:
        assert one[new].abs().max() <= 72**-0.5


def test_a_network_that_no_rule_covers_shows_at_once(small, inheritance_of):
    recipe = inheritance_of(NAME).method
    NeuralRegeneration().check(small(1), recipe)
    odd = small(1)
    odd.table = nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(KeMetricError, match="no rule says whether table"):
        NeuralRegeneration().check(odd, recipe)


def test_the_parent_may_teach(small, inheritance_of):
    assert type(NeuralRegeneration().hooks(small(2), inheritance_of(NAME))) is TrainingHooks
    assert isinstance(NeuralRegeneration().hooks(small(2), inheritance_of(NAME, teacher_weight=1.0)), Guided)
