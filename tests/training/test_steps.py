"""What a step says is read once, one step later: no other number of a step is waited for, but where a loss must."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.losses.building import build_classification_loss
from ke_metric.losses.losses import AdaCosLoss, CrossEntropyLoss
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Loss, Miner
from ke_metric.training.hooks import TrainingObserver
from ke_metric.training.steps import TakenStep, first_not_finite

sys.path.append(str(Path(__file__).parent))

from device_waits import DeviceWaits
from test_joint import recipe_of as joint_recipe
from test_joint import training_of
from test_one_generation import BATCHES, CLASSES, Recorder, Toy, ToyEpochs, prepare, recipe_of

# So wide a margin that some triplet has a loss: without one there is one wait less.
TRIPLETS = Loss(name="TripletMarginLoss", arguments={"margin": 1.0})


@pytest.mark.parametrize(
    ("loss", "miner", "waits"),
    [
        (Loss(name="ClassicProxyNCALoss"), None, 0),
        (Loss(name="NormalizedSoftmaxLoss"), None, 0),
        # pytorch-metric-learning turns masks into positions, whose number the host needs.
        (Loss(name="ProxyNCALoss"), None, 4),
        (TRIPLETS, None, 3),
        (TRIPLETS, Miner(name="TripletMarginMiner"), 6),
    ],
)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_waits_for_its_loss_alone(loss, miner, waits, clip):
    training = prepare(recipe_of(loss=loss, miner=miner, gradient_clip=clip))
    batch = next(training.epochs.epoch(1))
    training.parallel.train()
    # Whether there are tuples depends on what dropout draws.
    with default_streams(0, 1, "waits"), DeviceWaits() as counted:
        training.take_step(0, batch)
    assert counted.counts.total() == waits


def test_an_average_is_waited_for_by_nobody():
    training = prepare(recipe_of(loss=Loss(name="ClassicProxyNCALoss"), average=0.9))
    batches = training.epochs.epoch(1)
    training.take_step(0, next(batches))
    with DeviceWaits() as counted:
        training.take_step(1, next(batches))
    assert training.average.tensors()
    assert not counted.counts


class Cosines(Toy):
    def __init__(self):
        super().__init__()
        self.classes = nn.Parameter(torch.randn(CLASSES, 8))

    def forward(self, images):
        return super().forward(images) @ normalize(self.classes, dim=1).T


@pytest.mark.parametrize("loss", ["CrossEntropyLoss", "AdaCosLoss"])
def test_a_step_of_a_classifier_waits_for_nothing(loss):
    built = build_classification_loss(Loss(name=loss), classes=CLASSES)
    training = prepare(recipe_of(task="classification"), network=Cosines(), loss=built)
    first, second, *_ = training.epochs.epoch(1)
    training.take_step(0, first)
    with DeviceWaits() as counted:
        training.take_step(1, second)
    assert not counted.counts


@pytest.mark.parametrize("teacher", [0.0, 1.0])
def test_narrow_networks_wait_for_nothing_either(teacher):
    recipe = joint_recipe("classification", joint_teacher=teacher)
    training = training_of(recipe, loss=CrossEntropyLoss())
    batch = next(training.epochs.epoch(1))
    with DeviceWaits() as counted:
        training.take_step(0, batch)
    assert not counted.counts


def test_what_would_wait_is_counted():
    values = torch.arange(4.0)
    with DeviceWaits() as counted:
        float(values.sum())
        values[values > 1]
        values[values > 1] = 0
        values.nonzero()
        values[torch.tensor([0, 1])]
    assert counted.counts == {"_local_scalar_dense": 1, "index": 1, "index_put_": 1, "nonzero": 1}


def test_every_step_is_read_once_when_the_next_one_was_taken_and_the_last_before_its_epoch_ends(monkeypatch):
    told = []
    training = prepare(recipe_of(epochs=2))
    take, read = training.take_step, TakenStep.read
    monkeypatch.setattr(training, "take_step", lambda step, batch: told.append(f"take {step}") or take(step, batch))
    monkeypatch.setattr(TakenStep, "read", lambda taken: told.append(f"read {taken.number}") or read(taken))

    class Listener(TrainingObserver):
        def step_done(self, step):
            told.append(f"heard {step.step - 1}")

        def epoch_done(self, state):
            told.append("epoch")

    training.train(Listener())
    expected = []
    for epoch in range(2):
        first = epoch * BATCHES
        for step in range(first, first + BATCHES):
            expected += [f"take {step}", *([f"read {step - 1}", f"heard {step - 1}"] if step > first else [])]
        expected += [f"read {first + BATCHES - 1}", f"heard {first + BATCHES - 1}", "epoch"]
    assert told == expected


class Falling(nn.Module):
    """Fails where it is given what is no number, as some losses and miners do."""

    def forward(self, embeddings, labels):
        if embeddings.isnan().any():
            raise ValueError("cannot be sorted")
        return embeddings.square().mean() * torch.nan


def test_a_step_that_fails_of_what_the_one_before_left_behind_is_told_as_that_one():
    training, recorder = prepare(recipe_of(), loss=Falling()), Recorder()
    with pytest.raises(KeMetricError, match=r"epoch 1, step 1 of 3: the loss is nan.*picture-1-0-0") as raised:
        training.train(recorder)
    assert raised.value.exit_code == ExitCode.DIVERGED
    assert isinstance(raised.value.__context__, ValueError)


def test_a_step_that_fails_by_itself_is_told_as_it_is():
    training, recorder = prepare(recipe_of(), loss=Falling(), epochs=ToyEpochs(poisoned=(1, 1))), Recorder()
    training.loss.forward = lambda embeddings, labels: Falling.forward(training.loss, embeddings, labels).nan_to_num()
    with pytest.raises(ValueError, match="cannot be sorted"):
        training.train(recorder)
    assert not recorder.steps


def test_a_scale_that_turns_the_loss_around_is_told_in_the_words_of_the_loss():
    """Its cosines with other classes are as low as they can be."""

    class Apart(Cosines):
        def forward(self, images):
            return super().forward(images) * 1e-3 - 0.95

    training = prepare(recipe_of(task="classification"), network=Apart(), loss=AdaCosLoss(CLASSES))
    with pytest.raises(
        KeMetricError, match=r"step 1 of 3: AdaCosLoss: the scale would go from 1\.55 to -\d"
    ) as raised:
        training.train(Recorder())
    assert raised.value.exit_code == ExitCode.DIVERGED


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 500, 1002])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(strange, dtype, place):
    """Beside the largest numbers there are, an empty tensor and whole numbers."""
    largest = torch.finfo(dtype).max
    broken = torch.linspace(-1, 1, 1003).to(dtype)
    named = [
        ("count", torch.tensor(7)),
        ("empty", torch.zeros(0)),
        ("wide", torch.tensor([-largest, largest], dtype=dtype)),
        ("broken", broken),
        ("last", torch.ones(3)),
    ]
    assert first_not_finite(named) is None
    broken[place] = strange
    assert first_not_finite(named) == "broken"
