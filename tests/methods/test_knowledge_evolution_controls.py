"""The controls: everything inherited, nothing inherited, everything weakened, and the slim architecture by itself."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.methods.knowledge_evolution import Repeats, Restarts, ShrinkAndPerturb, SlimAlone
from ke_metric.methods.method import Guided
from ke_metric.recipe.schema import Split
from ke_metric.split.hypotheses import extract_slim
from ke_metric.training.hooks import TrainingHooks

WEIGHTS = {
    "conv1.weight", "layer1.conv1.weight", "layer1.conv2.weight", "layer1.shortcut.weight", "layer2.0.weight",
    "layer2.3.weight", "head.weight",
}  # fmt: skip


def test_restarts_are_the_parent_bit_for_bit(small, inheritance_of, parent):
    child = small(2)
    Restarts().inherit(child, inheritance_of("restarts", parent=parent))
    assert all(torch.equal(value, parent[name]) for name, value in child.state_dict().items())
    child.head.weight.data.zero_()
    assert parent["head.weight"].any()


def test_repeats_share_nothing(small, inheritance_of, parent):
    child = small(2)
    Repeats().inherit(child, inheritance_of("repeats", parent=parent))
    assert all(torch.equal(value, small(2).state_dict()[name]) for name, value in child.state_dict().items())
    for name in WEIGHTS:
        assert (child.state_dict()[name] != parent[name]).all()
        assert (child.state_dict()[name] != small(3).state_dict()[name]).all()


@pytest.mark.parametrize(("shrink", "perturb"), [(0.4, 0.1), (0.5, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_shrink_and_perturb_is_its_formula(shrink, perturb, small, inheritance_of, parent):
    child, noise = small(2), small(2).state_dict()
    inheritance = inheritance_of("shrink_and_perturb", parent=parent, shrink=shrink, perturb=perturb)
    ShrinkAndPerturb().inherit(child, inheritance)
    for name, value in child.state_dict().items():
        expected = shrink * parent[name] + perturb * noise[name] if name in WEIGHTS else parent[name]
        assert torch.equal(value, parent[name]) if name not in WEIGHTS else torch.allclose(value, expected), name


def test_the_defaults_of_shrink_and_perturb_are_ours(inheritance_of):
    recipe = inheritance_of("shrink_and_perturb").method
    assert (recipe.shrink, recipe.perturb) == (0.4, 0.1)


def test_every_generation_is_perturbed_by_another_noise(small, inheritance_of, parent):
    children = [small(number) for number in (2, 2, 3)]
    for child, number in zip(children, (2, 2, 3), strict=True):
        ShrinkAndPerturb().inherit(child, inheritance_of("shrink_and_perturb", parent=parent, number=number))
    for name in WEIGHTS:
        one, again, other = (child.state_dict()[name] for child in children)
        assert torch.equal(one, again)
        assert (one != other).all()


@pytest.mark.parametrize(
    ("method", "name"),
    [(Restarts(), "restarts"), (ShrinkAndPerturb(), "shrink_and_perturb")],
    ids=["restarts", "shrink"],
)
def test_a_parent_may_teach(method, name, small, inheritance_of):
    assert type(method.hooks(small(2), inheritance_of(name))) is TrainingHooks
    assert isinstance(method.hooks(small(2), inheritance_of(name, teacher_weight=1.0)), Guided)


def test_nobody_teaches_repeats(small, inheritance_of):
    assert type(Repeats().hooks(small(2), inheritance_of("repeats"))) is TrainingHooks


def test_slim_alone_is_the_slim_part_of_the_first_weights(small, inheritance_of, networks_of):
    dense = small(1)
    plan = inheritance_of(number=1).plan
    networks = networks_of(inheritance_of("slim_alone", number=1).recipe)
    slim, expected = networks.build(1), extract_slim(dense, plan)
    assert slim.state_dict().keys() == expected.state_dict().keys()
    for name, value in slim.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])
    weight, mask = dense.layer1.conv1.weight.detach(), plan.masks["layer1.conv1.weight"]
    assert torch.equal(slim.layer1.conv1.weight.flatten(), weight[mask])
    assert slim.layer1.conv1.weight.shape == (4, 3, 3, 3)
    assert networks.recipe.trains_slim(1)
    assert not inheritance_of("restarts", number=1).recipe.trains_slim(1)


def test_slim_alone_inherits_like_restarts(small, inheritance_of):
    plan = inheritance_of(number=1).plan
    parent = {name: value + 1 for name, value in extract_slim(small(1), plan).state_dict().items()}
    child = extract_slim(small(2), plan)
    SlimAlone().inherit(child, inheritance_of("slim_alone", parent=parent))
    assert all(torch.equal(value, parent[name]) for name, value in child.state_dict().items())


def test_single_weights_have_no_slim_network(inheritance_of, networks_of):
    recipe = inheritance_of("slim_alone", number=1).recipe
    with pytest.raises(KeMetricError, match="no slim network") as raised:
        networks_of(recipe.model_copy(update={"split": Split(kind="wels")})).build(1)
    assert raised.value.exit_code == ExitCode.RECIPE


def test_a_network_that_no_rule_covers_shows_at_once(inheritance_of):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(3, 4))

    ShrinkAndPerturb().check(nn.Linear(3, 4), inheritance_of("shrink_and_perturb").method)
    with pytest.raises(KeMetricError, match="no rule says whether table"):
        ShrinkAndPerturb().check(Odd(), inheritance_of("shrink_and_perturb").method)


@pytest.mark.parametrize("method", [Restarts(), ShrinkAndPerturb()], ids=["restarts", "shrink_and_perturb"])
def test_without_a_parent_nothing_is_inherited(method, small, inheritance_of):
    with pytest.raises(AssertionError, match="no parent"):
        method.inherit(small(2), replace(inheritance_of(), parent=None))
