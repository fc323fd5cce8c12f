"""Hooks that nobody has filled do nothing; observers pass everything on, in order."""

import pytest
import torch

from ke_metric.training.hooks import StepReport, TrainingHooks, TrainingObserver, TrainingObservers

STEP = StepReport(generation=1, epoch=1, step=1, steps=2, images=4, loss=0.5, learning_rate=0.1)
CALLS = [("note", "text"), ("warn", "text"), ("step_done", STEP), ("epoch_done", object())]


class Listener(TrainingObserver):
    def __init__(self, name, heard):
        for method in ("note", "warn", "step_done", "epoch_done"):
            setattr(self, method, lambda what, method=method: heard.append((name, method, what)))


@pytest.mark.parametrize(("method", "what"), CALLS, ids=[method for method, _ in CALLS])
def test_everything_is_passed_on_in_order(method, what):
    heard = []
    getattr(TrainingObservers(Listener("first", heard), Listener("second", heard)), method)(what)
    assert heard == [("first", method, what), ("second", method, what)]


@pytest.mark.parametrize(("method", "what"), CALLS, ids=[method for method, _ in CALLS])
def test_an_observer_need_not_listen(method, what):
    assert getattr(TrainingObserver(), method)(what) is None


def test_an_exception_reaches_the_caller_and_nobody_else():
    class Stop(TrainingObserver):
        def step_done(self, step):
            raise KeyboardInterrupt

    heard = []
    with pytest.raises(KeyboardInterrupt):
        TrainingObservers(Stop(), Listener("second", heard)).step_done(STEP)
    assert not heard


def test_hooks_do_nothing():
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
