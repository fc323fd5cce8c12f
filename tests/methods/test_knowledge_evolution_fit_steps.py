"""Steps of the fit hypothesis alone: they compute what the slim network computes, and change nothing else."""

import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from ke_metric.methods.knowledge_evolution import FitSteps, KnowledgeEvolution, Restarts, with_fit_steps
from ke_metric.methods.method import Guided
from ke_metric.split.hypotheses import extract_slim
from ke_metric.training.hooks import TrainingHooks

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network(small, parent):
    network = small(1)
    network.load_state_dict(parent)
    return network.train()


@pytest.fixture
def plan(inheritance_of):
    return inheritance_of(number=1).plan


def copied(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_a_step_computes_what_the_slim_network_computes(network, plan):
    slim = extract_slim(network, plan).eval()
    hooks = FitSteps(TrainingHooks(), network, plan, 1.0)
    with hooks.step(0):
        found = network(IMAGES)
        found.square().sum().backward()
    hooks.before_step()
    expected = slim(IMAGES)
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected)
    for name, mask in plan.masks.items():
        gradient = network.get_parameter(name).grad
        torch.testing.assert_close(gradient[mask], slim.get_parameter(name).grad.flatten(), rtol=1e-4, atol=1e-6)
        assert not gradient[~mask].any()
    assert found.abs().sum() > 0


def test_weights_and_statistics_are_as_they_were(network, plan):
    before = copied(network)
    with FitSteps(TrainingHooks(), network, plan, 1.0).step(0):
        assert not torch.equal(network.head.weight, before["head.weight"])
        network(IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())


def test_also_when_a_step_fails(network, plan):
    before = copied(network)
    with pytest.raises(ArithmeticError), FitSteps(TrainingHooks(), network, plan, 1.0).step(0):
        raise ArithmeticError
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())


def test_frozen_norms_stay_frozen(network, plan):
    network.bn1.eval()
    with FitSteps(TrainingHooks(), network, plan, 1.0).step(0):
        network(IMAGES)
    assert not network.bn1.training


def test_any_other_step_is_a_step_of_the_whole_network(network, plan):
    before = copied(network)
    hooks = FitSteps(TrainingHooks(), network, plan, 0.4)
    with hooks.step(0):
        assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
        network(IMAGES).square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    hooks.before_step()
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in network.named_parameters())
    assert not torch.equal(network.bn1.running_mean, before["bn1.running_mean"])


@given(st.integers(1, 40), st.floats(0.01, 0.99))
def test_the_share_is_exact_and_even_over_the_generation(steps, share):
    """However the steps are cut into epochs."""
    hooks, taken = FitSteps(TrainingHooks(), nn.Identity(), EmptyPlan(), share), []
    for number in range(steps):
        if number % 3 == 0:
            hooks.epoch_begins(1 + number // 3, None)
        with hooks.step(number):
            taken.append(hooks._is_fit)
        assert sum(taken) == math.floor((number + 1) * share)
    # No two of them are further apart than the share says.
    places = [place for place, is_fit in enumerate(taken) if is_fit]
    assert all(after - place <= math.ceil(1 / share) for place, after in itertools.pairwise(places))


@dataclass
class EmptyPlan:
    weights: dict = field(default_factory=dict)


def test_only_where_the_recipe_asks_for_them(network, inheritance_of):
    inner = TrainingHooks()
    assert with_fit_steps(inner, network, inheritance_of()) is inner
    for name, method in (("knowledge_evolution", KnowledgeEvolution()), ("restarts", Restarts())):
        for number in (1, 2):
            assert type(method.hooks(network, inheritance_of(name, number=number))) is TrainingHooks
            assert isinstance(method.hooks(network, inheritance_of(name, number=number, fit_steps=0.5)), FitSteps)


def test_a_parent_may_teach_beside_them(network, inheritance_of):
    inheritance = inheritance_of(fit_steps=0.5, teacher_weight=1.0)
    hooks, guided = (
        KnowledgeEvolution().hooks(network, inheritance),
        KnowledgeEvolution().hooks(network, inheritance_of(teacher_weight=1.0)),
    )
    assert isinstance(guided, Guided)
    targets = hooks.targets(IMAGES)
    assert torch.equal(targets, guided.targets(IMAGES))
    assert torch.equal(hooks.added_loss(targets + 1, targets), guided.added_loss(targets + 1, targets))


class Hearing(TrainingHooks):
    learning_rate_factor = 0.5

    def __init__(self):
        self.heard = []

    def epoch_begins(self, epoch, optimizer):
        self.heard.append(("epoch_begins", epoch, optimizer))

    def before_step(self):
        self.heard.append("before_step")

    def after_step(self):
        self.heard.append("after_step")

    def tensors(self):
        return {"kept": torch.ones(1)}

    def restore(self, tensors):
        self.heard.append(("restore", tensors))


def test_what_else_happens_still_happens(network, plan):
    inner = Hearing()
    hooks = FitSteps(inner, network, plan, 0.5)
    assert hooks.learning_rate_factor == 0.5
    hooks.epoch_begins(3, "optimizer")
    hooks.before_step()
    hooks.after_step()
    hooks.restore(hooks.tensors())
    assert inner.heard[:3] == [("epoch_begins", 3, "optimizer"), "before_step", "after_step"]
    assert inner.heard[3][1]["kept"] == 1


def test_training_with_them_brings_the_slim_network_closer(small, plan):
    """To the labels, and needs them for that."""
    labels, losses = torch.arange(4) % 3, {}
    for share in (0.0, 0.5):
        network = small(1).train()
        hooks = FitSteps(TrainingHooks(), network, plan, share) if share else TrainingHooks()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for number in range(40):
            optimizer.zero_grad()
            with hooks.step(number):
                cross_entropy(network(IMAGES), labels).backward()
            hooks.before_step()
            optimizer.step()
        with torch.no_grad():
            losses[share] = float(cross_entropy(extract_slim(network, plan).eval()(IMAGES), labels))
    assert losses[0.5] < 0.5 * losses[0.0]
