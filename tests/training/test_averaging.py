"""Averaged weights: the average that was asked for, beside a training that it does not change, and exact resumes."""

import copy
import math

import pytest
import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.batches import DeviceBatch
from ke_metric.methods.generations import Sparse
from ke_metric.recipe.schema import Optimizer, Recipe, Training
from ke_metric.training.averaging import AveragedWeights, warmed_decay
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingHooks, TrainingObserver
from ke_metric.training.one_generation import GenerationTraining

EPOCHS, STEPS = 4, 3
KINDS = ({"average": 0.6}, {"average_last": 2}, {"average_last": EPOCHS})


class Toy(nn.Module):
    """A convolution in NHWC, batch norm and a classifier; its first bias is frozen."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(24, 4)
        self.convolution.bias.requires_grad_(False)

    def forward(self, images):
        return self.head(torch.relu(self.norm(self.convolution(images))).flatten(1))


class Noise:
    def __len__(self):
        return STEPS

    def epoch(self, number):
        generator = torch.Generator().manual_seed(number)
        for _ in range(STEPS):
            labels = torch.randint(0, 4, (8,), generator=generator)
            images = torch.randn(8, 3, 4, 4, generator=generator) + labels.view(8, 1, 1, 1)
            yield DeviceBatch(images.contiguous(memory_format=torch.channels_last), labels, ())


class Recorder(TrainingObserver):
    def __init__(self):
        self.states = []

    def epoch_done(self, state):
        self.states.append(state)


class Watching(TrainingHooks):
    """Keeps the weights after every step."""

    def __init__(self, network):
        self._network, self.seen = network, []

    def after_step(self):
        self.seen.append({name: value.detach().clone() for name, value in self._network.named_parameters()})


def prepare(fields, *, seed=0, hooks=None, scaler=None):
    recipe = Recipe(
        name="toy",
        task="classification",
        optimizer=Optimizer(learning_rate=0.05),
        training=Training(epochs=EPOCHS, precision="fp32", **fields),
    )
    torch.manual_seed(seed)
    network = Toy().to(memory_format=torch.channels_last)
    built = hooks(network) if hooks else None
    training = GenerationTraining(
        network, nn.CrossEntropyLoss(), Noise(), recipe=recipe, engine=Engine("fp32", "cpu"), number=1, hooks=built
    )
    training.scaler = scaler or training.scaler
    return training


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def contents(state):
    log = [{name: value for name, value in record.items() if name != "seconds"} for record in state.training_log]
    return log, {**state.weights, **{f"average.{name}": value for name, value in state.average.items()}}


@pytest.mark.parametrize(("steps", "decay"), [(0, 0.1), (80, 0.9), (890, 0.99), (8990, 0.999), (10**6, 0.999)])
def test_the_decay_begins_small(steps, decay):
    assert warmed_decay(0.999, steps) == pytest.approx(decay)


def test_while_the_decay_grows_the_average_is_over_the_last_ninth_or_so():
    """A step's share in the average over n steps; 1 / (1 - decay) of them is what an average of that decay spans."""
    for count in (50, 500, 5000):
        shares = torch.ones(count, dtype=torch.float64)
        for step in range(1, count):
            shares[:step] *= warmed_decay(0.9999, step)
            shares[step] = 1 - warmed_decay(0.9999, step)
        assert shares.sum() == pytest.approx(1)
        assert 1 / (1 - warmed_decay(0.9999, count)) == pytest.approx((10 + count) / 9)
        assert shares[: count // 2].sum() < 0.01, "the first half hardly counts"


def test_a_moving_average_is_that_of_the_formula():
    training = prepare({"average": 0.6}, hooks=Watching)
    state = training.train(TrainingObserver())
    steps = training.hooks.seen
    assert len(steps) == EPOCHS * STEPS
    for name, found in state.average.items():
        expected = steps[0][name].double()
        for number, weights in enumerate(steps[1:], start=1):
            decay = min(0.6, (1 + number) / (10 + number))
            expected = decay * expected + (1 - decay) * weights[name].double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(found, state.weights[name], atol=1e-5), "it is another network"


@pytest.mark.parametrize("last", [2, 3, EPOCHS])
def test_the_mean_is_that_of_the_last_epochs(last):
    recorder = Recorder()
    state = prepare({"average_last": last}).train(recorder)
    assert [bool(each.average) for each in recorder.states] == [
        epoch > EPOCHS - last for epoch in range(1, EPOCHS + 1)
    ]
    for name, found in state.average.items():
        expected = torch.stack([each.weights[name].double() for each in recorder.states[-last:]]).mean(dim=0)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fields", KINDS)
def test_the_training_itself_is_as_ever(fields):
    plain, averaged = prepare({}).train(TrainingObserver()), prepare(fields).train(TrainingObserver())
    assert_equal(averaged.weights, plain.weights)
    assert not plain.average


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
@pytest.mark.parametrize("fields", KINDS)
def test_a_resume_is_bit_identical(fields, epoch):
    recorder = Recorder()
    log, expected = contents(prepare(fields).train(recorder))
    training = prepare(fields, seed=1)
    training.restore(recorder.states[epoch - 1])
    found_log, found = contents(training.train(TrainingObserver()))
    assert_equal(found, expected)
    assert found_log == log


def test_a_state_is_a_record():
    """Neither the training that made it nor one that goes on from it changes it."""
    recorder, copies = Recorder(), []
    training = prepare({"average": 0.6})
    recorder.epoch_done = lambda state: copies.append((state, copy.deepcopy(dict(state.average))))
    training.train(recorder)
    other = prepare({"average": 0.6})
    other.restore(copies[0][0])
    other.train(TrainingObserver())
    for state, copied in copies:
        assert_equal(state.average, copied)


def test_one_copy_of_what_trains_and_none_where_nothing_is_averaged():
    training, plain = prepare({"average": 0.6}), prepare({})
    for each in (training, plain):
        each.train(TrainingObserver())
    trained = {name: value for name, value in training.network.named_parameters() if value.requires_grad}
    assert training.average._averages.keys() == trained.keys() - {"convolution.bias"}
    for name, value in training.average._averages.items():
        assert (value.shape, value.dtype, value.stride()) == (
            trained[name].shape,
            torch.float32,
            trained[name].stride(),
        )
    assert plain.average._averages == {}


@pytest.mark.parametrize("fields", KINDS)
def test_the_network_has_the_average_when_it_is_given_it(fields):
    training = prepare(fields)
    state = training.train(TrainingObserver())
    training.average.give()
    found = training.network.state_dict()
    assert_equal({name: found[name] for name in state.average}, dict(state.average))
    rest = state.weights.keys() - state.average.keys()
    assert rest == {"convolution.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert_equal({name: found[name] for name in rest}, {name: state.weights[name] for name in rest})


@pytest.mark.parametrize("fields", KINDS)
def test_what_a_method_holds_at_zero_is_zero_in_the_average(fields):
    flags = torch.arange(4 * 24).view(4, 24) % 3 == 0

    def sparse(network):
        hooks = Sparse(network, {"head.weight": flags})
        hooks.set_to_zero()
        return hooks

    average = prepare(fields, hooks=sparse).train(TrainingObserver()).average["head.weight"]
    assert torch.equal(average == 0, flags)


def test_a_step_that_the_scaler_leaves_out_leaves_a_finite_average():
    """The first scale of 16 bits is too large more often than not."""
    scaler = torch.amp.GradScaler("cpu", init_scale=math.inf)
    training = prepare({"average": 0.6}, hooks=Watching, scaler=scaler)
    begun = {name: value.detach().clone() for name, value in training.network.named_parameters()}
    training.begin_training()
    training.heard(training.take_step(0, next(training.epochs.epoch(1))))
    assert_equal(training.hooks.seen[0], begun)
    assert_equal(training.average.tensors(), {name: begun[name] for name in training.average.tensors()})


@pytest.mark.parametrize(
    ("fields", "change", "told"),
    [
        ({"average": 0.6}, lambda found: {}, r"\(0 tensors\) .* of which 5 are averaged .*training\.average = 0\.6"),
        ({"average": 0.6}, lambda found: found | {"more": torch.ones(1)}, r"\(6 tensors\)"),
        ({"average": 0.6}, lambda found: found | {"head.bias": torch.ones(5)}, r"\(5 tensors\)"),
        ({"average_last": 2}, lambda found: {}, r"training\.average_last = 2"),
        ({}, lambda found: {"head.bias": torch.ones(4)}, r"of which 0 are averaged .*\(nothing\)"),
    ],
)
def test_an_average_of_another_network_is_refused(fields, change, told):
    training = prepare(fields)
    tensors = training.train(TrainingObserver()).average
    with pytest.raises(KeMetricError, match=told) as raised:
        AveragedWeights(training.network, training.recipe.training).restore(change(tensors), EPOCHS)
    assert raised.value.exit_code == ExitCode.LINEAGE


def test_before_the_last_epochs_there_is_no_mean_to_go_on_with():
    training = prepare({"average_last": 2})
    AveragedWeights(training.network, training.recipe.training).restore({}, EPOCHS - 2)
