"""Joint training: a step is the sum of what every width would learn alone; dense statistics are as without it."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax, normalize, softmax

from ke_metric.errors import KeMetricError
from ke_metric.losses.building import build_embedding_loss
from ke_metric.losses.losses import AdaCosLoss, CrossEntropyLoss
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Loss, Recipe
from ke_metric.split.hypotheses import extract_slim, kept_axes, narrowed
from ke_metric.split.planning import plan_split
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver
from ke_metric.training.joint import at_rest, distance_from_teacher
from ke_metric.training.one_generation import GenerationTraining

sys.path.append(str(Path(__file__).parent))  # test_one_generation

from test_one_generation import BATCH, CLASSES, Recorder, ToyEpochs, assert_identical, contents

RATES = (0.25, 0.5, 0.75)


class Network(nn.Module):
    """Two convolutions with batch norm between them, and a linear head."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 12, 3), nn.Linear(12, 8)

    def forward(self, images):
        maps = torch.relu(self.second(torch.relu(self.norm(self.first(images)))))
        return normalize(self.head(maps.mean((2, 3))).float(), dim=1)


class Logits(Network):
    def forward(self, images):
        maps = torch.relu(self.second(torch.relu(self.norm(self.first(images)))))
        return self.head(maps.mean((2, 3))).float()


def recipe_of(task="retrieval", **split):
    return Recipe.model_validate(
        {
            "name": "toy",
            "task": task,
            "loss": {"name": "ProxyNCALoss" if task == "retrieval" else "CrossEntropyLoss"},
            "split": {"rates": list(RATES), **split},
            "optimizer": {"learning_rate": 0.05},
            "training": {"epochs": 4, "precision": "fp32"},
            "evaluation": {"slim_repair": "auto"},
        }
    )


def plans_of(network, rates=RATES):
    return {f"{rate:g}": plan_split(network, torch.zeros(1, 3, 4, 4), rate=rate) for rate in rates}


def training_of(recipe, *, seed=0, network=None, loss=None, rates=RATES):
    engine = Engine(recipe.training.precision, "cpu")
    with default_streams(seed, 1, "toy"):
        network = network or (Network() if recipe.task == "retrieval" else Logits())
        loss = loss or (
            build_embedding_loss(Loss(name="ProxyNCALoss"), None, classes=CLASSES, embedding_size=8)
            if recipe.task == "retrieval"
            else CrossEntropyLoss()
        )
    engine.place(network, channels_last=True)
    training = GenerationTraining(network, loss, ToyEpochs(), recipe=recipe, engine=engine, number=1)
    training.train_widths(plans_of(network, rates))
    return training


def gradients_by_hand(training, batch, rates):
    """Return the sum of the gradients of the dense network and of a slim network for every rate."""
    network, loss = copy.deepcopy(training.network).train(), copy.deepcopy(training.loss)
    loss(network(batch.images), batch.labels).backward()
    total = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    for plan in plans_of(network, rates).values():
        slim = extract_slim(network, plan).train()
        loss(slim(batch.images), batch.labels).backward()
        axes = kept_axes(network, plan)
        for name, parameter in slim.named_parameters():
            mask = torch.zeros_like(total[name], dtype=torch.bool)
            for indices in [torch.meshgrid(*(channels.index for _, channels in axes[name]), indexing="ij")]:
                mask[indices] = True
            total[name][mask] += parameter.grad.flatten()
            assert parameter.grad.shape == narrowed(total[name], axes[name]).shape
    return total, [parameter.grad for parameter in loss.parameters()]


def test_a_step_adds_the_gradients_of_every_width():
    training = training_of(recipe_of())
    batch = next(training.epochs.epoch(1))
    expected, of_loss = gradients_by_hand(training, batch, RATES)
    training.network.train()
    training.take_step(0, batch)
    for name, parameter in training.network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
    for parameter, gradient in zip(training.loss.parameters(), of_loss, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_norm_statistics_are_those_of_a_dense_step():
    joint, plain = training_of(recipe_of()), training_of(recipe_of())
    plain.joint = None
    batch = next(joint.epochs.epoch(1))
    for training in (joint, plain):
        training.network.train()
        training.take_step(0, batch)
    for name, value in plain.network.named_buffers():
        assert torch.equal(dict(joint.network.named_buffers())[name], value), name
    assert not torch.equal(joint.network.first.weight, plain.network.first.weight)


def test_the_log_has_a_loss_for_every_rate():
    state = training_of(recipe_of()).train(TrainingObserver())
    first, last = state.training_log[0], state.training_log[-1]
    for name in ("loss", "loss_0.25", "loss_0.5", "loss_0.75"):
        assert last[name] < first[name], name


def test_a_resume_is_bit_identical():
    recorder = Recorder()
    whole = training_of(recipe_of(joint="sandwich")).train(recorder)
    training = training_of(recipe_of(joint="sandwich"), seed=1)
    training.restore(recorder.states[1])
    assert_identical(contents(training.train(TrainingObserver())), contents(whole))


def test_the_sandwich_trains_the_narrowest_and_one_other():
    joint = training_of(recipe_of(joint="sandwich")).joint
    steps = [[rate for rate, _ in joint.of_step(step)] for step in range(40)]
    assert all(len(rates) == 2 and rates[0] == "0.25" for rates in steps)
    assert {rates[1] for rates in steps} == {"0.5", "0.75"}
    assert steps == [[rate for rate, _ in joint.of_step(step)] for step in range(40)]
    everything = training_of(recipe_of()).joint
    assert [rate for rate, _ in everything.of_step(0)] == ["0.25", "0.5", "0.75"]


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_the_whole_network_teaches_the_narrow_ones(task):
    recipe = recipe_of(task, rates=[0.5], joint_teacher=2.0)
    training = training_of(recipe, rates=(0.5,))
    batch = next(training.epochs.epoch(1))
    dense = training.network.train()(batch.images).detach()
    slim = extract_slim(training.network, plans_of(training.network)["0.5"]).train()
    outputs = slim(batch.images).detach()
    if task == "classification":
        # The gradient of KL(teacher || student) by the student's logits.
        expected = (softmax(outputs, 1) - softmax(dense, 1)) / BATCH
        divergence = (softmax(dense, 1) * (log_softmax(dense, 1) - log_softmax(outputs, 1))).sum(1).mean()
    else:
        others = ~torch.eye(BATCH, dtype=torch.bool)
        taught, own = ((each @ each.T)[others].view(BATCH, -1) / 0.1 for each in (dense, outputs))
        divergence = (softmax(taught, 1) * (log_softmax(taught, 1) - log_softmax(own, 1))).sum(1).mean()
    added = training.joint.taught_loss(outputs, dense)
    assert float(added) == pytest.approx(2 * float(divergence), rel=1e-4)
    if task == "classification":
        outputs.requires_grad_()
        distance_from_teacher(outputs, dense, task=task).backward()
        torch.testing.assert_close(outputs.grad, expected)
    # It is part of what a step computes.
    plain = training_of(recipe_of(task, rates=[0.5]), rates=(0.5,))
    plain.network.load_state_dict(training.network.state_dict())
    gradients = []
    for each in (training, plain):
        each.network.train()
        each.take_step(0, batch)
        gradients.append(each.network.first.weight.grad)
    assert not torch.allclose(*gradients)


def test_a_scale_follows_the_whole_network_alone():
    loss = AdaCosLoss(num_classes=CLASSES)
    joint = training_of(recipe_of("classification"), loss=loss)
    plain = training_of(recipe_of("classification"), loss=copy.deepcopy(loss))
    plain.joint = None
    batch = next(joint.epochs.epoch(1))
    for training in (joint, plain):
        training.network.train()
        training.take_step(0, batch)
    assert torch.equal(joint.loss.scale, plain.loss.scale)
    assert joint.loss.training
    with at_rest(loss.eval()):
        assert not loss.training
    assert not loss.training


def test_a_narrow_loss_that_is_no_number_is_told():
    training, recorder = training_of(recipe_of()), Recorder()
    kept = training._compute_loss

    def broken(step, batch, network):
        loss, outputs, labels = kept(step, batch, network)
        return (loss if network is training.network else loss * torch.nan), outputs, labels

    training._compute_loss = broken
    with pytest.raises(KeMetricError, match=r"epoch 1, step 1 of \d+: the loss is nan"):
        training.train(recorder)
    assert not recorder.steps
    assert not recorder.states


class Counted(nn.Module):
    """A loss that has tuples for the whole network, and none for a narrow one, which it sees in eval mode."""

    def __init__(self):
        super().__init__()
        self.tuples = 0

    def forward(self, outputs, labels):
        self.tuples = 5 if self.training else 0
        return cross_entropy(outputs, labels)


def test_tuples_are_those_of_the_whole_network():
    training = training_of(recipe_of("classification"), loss=Counted())
    record = training.train(TrainingObserver()).training_log[-1]
    assert record["tuples"] == 5
    assert "idle_steps" not in record
