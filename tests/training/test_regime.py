"""Hooks that nobody has filled do nothing."""

import pytest
import torch

from ke_metric.training.hooks import TrainingHooks


def test_it_does_nothing():
    hooks, weight = TrainingHooks(), torch.nn.Parameter(torch.ones(2))
    hooks.epoch_begins(1, torch.optim.SGD([weight]))
    hooks.before_step()
    hooks.after_step()
    hooks.restore(hooks.tensors())
    assert hooks.tensors() == {}
    assert hooks.targets(torch.zeros(1, 3, 4, 4)) is None
    assert hooks.learning_rate_factor == 1
    assert torch.equal(weight, torch.ones(2))


def test_what_adds_to_the_loss_says_how():
    with pytest.raises(NotImplementedError):
        TrainingHooks().added_loss(torch.zeros(1), torch.zeros(1))
