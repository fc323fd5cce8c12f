"""A regime that nobody has filled does nothing."""

import pytest
import torch

from ke_metric.training.hooks import Regime


def test_it_does_nothing():
    regime, weight = Regime(), torch.nn.Parameter(torch.ones(2))
    regime.epoch_begins(1, torch.optim.SGD([weight]))
    regime.before_step()
    regime.after_step()
    regime.restore(regime.tensors())
    assert regime.tensors() == {}
    assert regime.targets(torch.zeros(1, 3, 4, 4)) is None
    assert regime.learning_rate_factor == 1
    assert torch.equal(weight, torch.ones(2))


def test_what_adds_to_the_loss_says_how():
    with pytest.raises(NotImplementedError):
        Regime().added_loss(torch.zeros(1), torch.zeros(1))
