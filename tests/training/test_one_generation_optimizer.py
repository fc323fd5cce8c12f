"""The optimizer's groups, and the learning rate step by step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ke_metric.recipe.schema import Loss, Optimizer, Recipe, Training
from ke_metric.training.one_generation import build_optimizer, learning_rate_factor, set_learning_rate

KINDS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class Proxies(nn.Module):
    def __init__(self):
        super().__init__()
        self.proxies = nn.Parameter(torch.zeros(3, 2))


def build(name="sgd", loss=None, network=None, *, scaled=False, **loss_section):
    return build_optimizer(
        network or nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)),
        Proxies() if loss is None else loss,
        Recipe(
            name="x",
            optimizer=Optimizer(name=name, learning_rate=0.2, weight_decay=0.03, momentum=0.7),
            loss=Loss(**loss_section),
        ),
        device=torch.device("cpu"),
        scaled=scaled,
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_trainable_tensor_is_in_exactly_one_group(name):
    network, loss = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), Proxies()
    network[0].bias.requires_grad_(False)
    optimizer = build(name, loss, network)
    assert type(optimizer) is KINDS[name]
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    trainable = [network[0].weight, network[1].weight, network[1].bias, loss.proxies]
    assert sorted(grouped) == sorted(id(parameter) for parameter in trainable)


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_has_its_own_learning_rate_and_no_weight_decay(name):
    of_network, of_loss = build(name, learning_rate_factor=100.0).param_groups
    assert (of_network["lr"], of_network["weight_decay"]) == (0.2, 0.03)
    assert of_loss["lr"] == pytest.approx(20.0)
    assert of_loss["weight_decay"] == 0


def test_momentum_is_that_of_the_recipe():
    assert {group["momentum"] for group in build("sgd").param_groups} == {0.7}


@pytest.mark.parametrize("name", KINDS)
def test_a_first_step_that_the_scaler_leaves_out_leaves_no_momentum(name, monkeypatch):
    """Where the optimizer allocates memory for it, what happens to lie there must not be taken for momentum."""
    network = nn.Linear(3, 2)
    optimizer, scaler = build(name, nn.Module(), network, scaled=True), torch.amp.GradScaler("cpu")
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **_: torch.full_like(tensor, torch.nan))
    before = {parameter: value.detach().clone() for parameter, value in network.named_parameters()}
    for gradient in (torch.inf, 0.0):
        scaler.scale(torch.zeros(1))
        for value in network.parameters():
            value.grad = torch.full_like(value, gradient)
        scaler.step(optimizer)
        scaler.update()
    for parameter, value in network.named_parameters():
        # Weight decay alone has moved them, Adam by its learning rate of 0.2.
        assert (value.detach() - before[parameter]).abs().max() < 0.21


def test_a_loss_without_parameters_has_no_group():
    assert len(build(loss=nn.Module()).param_groups) == 1


def test_nothing_is_remembered_at_the_start():
    assert not build("adam").state


def test_every_group_follows_the_factor():
    optimizer = build(learning_rate_factor=10.0)
    for factor in (0.25, 0.5):
        set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2 * factor, 2.0 * factor])


SCHEDULES = st.integers(1, 30).flatmap(
    lambda epochs: st.tuples(
        st.just(epochs),
        st.integers(1, 20),
        st.floats(0, epochs, exclude_max=True),
        st.sampled_from(["cosine", "constant"]),
    )
)


def factors(epochs, batches, warmup, schedule):
    training = Training(epochs=epochs, warmup_epochs=warmup, schedule=schedule)
    return [learning_rate_factor(step, batches, training) for step in range(epochs * batches)]


@given(SCHEDULES)
@settings(deadline=None)
def test_factor_is_the_formula(schedule):
    epochs, batches, warmup_epochs, kind = schedule
    total, warmup = epochs * batches, warmup_epochs * batches
    for step, factor in enumerate(factors(*schedule)):
        if step < warmup:
            expected = (step + 1) / (warmup + 1)
        elif kind == "cosine":
            expected = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        else:
            expected = 1
        assert factor == pytest.approx(expected)


@given(SCHEDULES)
@settings(deadline=None)
def test_factor_rises_then_never_rises_again(schedule):
    found = factors(*schedule)
    highest = found.index(max(found))
    assert found[: highest + 1] == sorted(found[: highest + 1])
    assert found[highest:] == sorted(found[highest:], reverse=True)
    assert min(found) > 0
    assert max(found) <= 1


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_whole_epochs_of_warmup_end_at_the_highest_rate(kind, warmup):
    found = factors(5, 7, warmup, kind)
    assert found[warmup * 7] == 1
    assert all(factor < 1 for factor in found[: warmup * 7])


def test_cosine_ends_near_zero():
    assert factors(100, 10, 5, "cosine")[-1] < 1e-5


def test_one_step_is_taken_at_the_highest_rate():
    assert factors(1, 1, 0, "cosine") == [1]
