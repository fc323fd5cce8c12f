"""One generation: it learns, goes on exactly where it stopped, and stops where numbers end."""

import copy
import io
import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import normalize

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.batches import DeviceBatch
from ke_metric.losses.building import build_embedding_loss
from ke_metric.losses.losses import CrossEntropyLoss, CSKDLoss
from ke_metric.randomness import default_streams, numpy_generator
from ke_metric.recipe.schema import Loss, Miner, Optimizer, Recipe, Training
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingHooks, TrainingObserver
from ke_metric.training.one_generation import GenerationTraining, learning_rate_factor, weights_of
from ke_metric.training.steps import sign_of

CLASSES, BATCHES, BATCH = 4, 3, 8
# What the log says of the engine.
ENGINE = ("processes", "precision")
PROXIES = Loss(name="ProxyNCALoss", learning_rate_factor=5.0)


class Toy(nn.Module):
    """A convolution (so that there is a layout), batch norm (buffers), dropout (random numbers), a linear head."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(6 * 16, 8)

    def forward(self, images):
        maps = self.dropout(torch.relu(self.norm(self.convolution(images))))
        return normalize(self.head(maps.flatten(1)).float(), dim=1)


class ToyEpochs:
    """Noise around one picture per class; every epoch draws its own. Picture `poisoned` of all is not a number."""

    def __init__(self, poisoned=None):
        self._poisoned = poisoned
        self._centres = torch.randn(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(7))

    def __len__(self):
        return BATCHES

    def epoch(self, number):
        generator = numpy_generator(0, number, "toy")
        for step in range(BATCHES):
            labels = torch.from_numpy(generator.integers(0, CLASSES, BATCH))
            noise = torch.from_numpy(generator.normal(size=(BATCH, 3, 4, 4)).astype(np.float32))
            images = self._centres[labels] + 0.3 * noise
            if self._poisoned == (number, step):
                images[3] = torch.nan
            keys = tuple(f"picture-{number}-{step}-{item}" for item in range(BATCH))
            yield DeviceBatch(images.contiguous(memory_format=torch.channels_last), labels, keys)


class Recorder(TrainingObserver):
    def __init__(self):
        self.steps, self.states, self.warnings = [], [], []

    def step_done(self, step):
        self.steps.append(step)

    def epoch_done(self, state):
        self.states.append(state)

    def warn(self, text):
        self.warnings.append(text)


def recipe_of(optimizer="sgd", *, loss=PROXIES, miner=None, learning_rate=0.05, task="retrieval", **training):
    return Recipe(
        name="toy",
        task=task,
        loss=loss,
        miner=miner,
        optimizer=Optimizer(name=optimizer, learning_rate=learning_rate),
        training=Training(**{"epochs": 4, "warmup_epochs": 1, "precision": "fp32"} | training),
    )


def prepare(recipe, *, seed=0, epochs=None, network=None, loss=None, hooks=None):
    engine = Engine(recipe.training.precision, "cpu")
    with default_streams(seed, 1, "toy"):
        network = network or Toy()
        loss = loss or build_embedding_loss(recipe.loss, recipe.miner, classes=CLASSES, embedding_size=8)
    engine.place(network, channels_last=True)
    return GenerationTraining(
        network, loss, epochs or ToyEpochs(), recipe=recipe, engine=engine, number=1, hooks=hooks
    )


def flatten(value, path=""):
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, part in items for key, leaf in flatten(part, f"{path}/{name}").items()}
    return {path: value}


def contents(state):
    """Everything of a state but how long it took."""
    log = [{name: value for name, value in record.items() if name != "seconds"} for record in state.training_log]
    tensors = [dict(state.weights), dict(state.loss_weights), dict(state.method_weights), dict(state.optimizer)]
    return flatten([*tensors, log, state.epoch])


def assert_identical(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same, name


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_loss_goes_down(optimizer):
    recorder = Recorder()
    rate = 0.05 if optimizer == "sgd" else 0.01
    state = prepare(recipe_of(optimizer, learning_rate=rate, epochs=6)).train(recorder)
    losses = [record["loss"] for record in state.training_log]
    assert losses[-1] < 0.8 * losses[0]
    assert not recorder.warnings


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_restored_training_goes_on_bit_for_bit(optimizer, on_disk):
    recipe, recorder = recipe_of(optimizer, learning_rate=0.01), Recorder()
    uninterrupted = prepare(recipe).train(recorder)
    state = recorder.states[1]
    assert state.epoch == 2
    if on_disk:
        file = io.BytesIO()
        torch.save(dict(state.optimizer), file)
        file.seek(0)
        object.__setattr__(state, "optimizer", torch.load(file, weights_only=True))
    # Other starting weights: all that counts must come from the state.
    training = prepare(recipe, seed=1)
    training.restore(state)
    assert_identical(contents(training.train(TrainingObserver())), contents(uninterrupted))


def test_a_state_of_a_loss_for_other_classes_is_refused_in_words():
    recipe, recorder = recipe_of("sgd"), Recorder()
    prepare(recipe).train(recorder)
    training = prepare(recipe)
    training.loss = build_embedding_loss(PROXIES, None, classes=CLASSES + 1, embedding_size=8)
    told = r"the parameters of the loss to go on with do not fit .*: \S*proxies has shape \[4, 8\], not \[5, 8\]"
    with pytest.raises(KeMetricError, match=told) as raised:
        training.restore(recorder.states[0])
    assert raised.value.exit_code == ExitCode.LINEAGE


def test_a_state_is_a_record():
    """Neither the training that made it nor one that goes on from it changes it."""
    recipe = recipe_of("adamw")

    class StateCollector(Recorder):
        def epoch_done(self, state):
            super().epoch_done(state)
            self.copies = [*getattr(self, "copies", []), copy.deepcopy(contents(state))]

    collector = StateCollector()
    prepare(recipe).train(collector)
    assert_identical(contents(collector.states[0]), collector.copies[0])
    training = prepare(recipe)
    training.restore(collector.states[0])
    training.train(TrainingObserver())
    assert_identical(contents(collector.states[0]), collector.copies[0])


def test_epochs_draw_different_dropout():
    """A training restored after epoch 1 draws epoch 2, and not epoch 1 again."""
    same_pictures = ToyEpochs()
    first = list(same_pictures.epoch(1))
    same_pictures.epoch = lambda number: iter(first)
    training = prepare(recipe_of(learning_rate=1e-30, epochs=2, warmup_epochs=0), epochs=same_pictures)
    one, two = training.train(TrainingObserver()).training_log
    assert one["loss"] != two["loss"]


def test_a_finished_training_is_left_alone():
    recipe, recorder = recipe_of(), Recorder()
    state = prepare(recipe).train(recorder)
    training, silent = prepare(recipe), Recorder()
    training.restore(state)
    assert_identical(contents(training.train(silent)), contents(state))
    assert not silent.steps


def test_the_log_says_what_the_steps_said():
    recorder = Recorder()
    state = prepare(recipe_of(learning_rate=0.05)).train(recorder)
    assert len(state.training_log) == len(recorder.states) == 4
    for number, record in enumerate(state.training_log, start=1):
        steps = [step for step in recorder.steps if step.epoch == number]
        assert set(record) == {"generation", "epoch", "loss", "spread", "learning_rate", "images", *ENGINE, "seconds"}
        assert (record["generation"], record["epoch"]) == (1, number)
        assert record["images"] == sum(step.images for step in steps) == BATCHES * BATCH
        assert record["loss"] == pytest.approx(sum(step.loss for step in steps) / BATCHES)
        assert record["learning_rate"] == steps[-1].learning_rate
        assert 0 < record["spread"] < 2
        assert record["seconds"] >= 0
    assert [step.step for step in recorder.steps] == list(range(1, 4 * BATCHES + 1))
    assert {step.steps for step in recorder.steps} == {4 * BATCHES}
    assert {step.generation for step in recorder.steps} == {1}
    assert max(step.learning_rate for step in recorder.steps) == pytest.approx(0.05)
    assert recorder.states[-1].seconds == pytest.approx(sum(r["seconds"] for r in state.training_log), abs=0.01)


def test_mined_tuples_are_logged():
    recipe = recipe_of(loss=Loss(name="TripletMarginLoss"), miner=Miner(name="TripletMarginMiner"))
    training = prepare(recipe)
    counts = []
    training.loss.register_forward_hook(lambda module, *_: counts.append(module.tuples))
    record = training.train(TrainingObserver()).training_log[0]
    assert record["tuples"] == sum(counts[:BATCHES]) / BATCHES > 0


class Idle(nn.Module):
    """A triplet loss whose first batches have no tuples, and whose next ones have loss 0."""

    def __init__(self, without_tuples, without_loss):
        super().__init__()
        self.proxy = nn.Parameter(torch.ones(1))
        self.tuples, self.left, self.without_tuples = None, without_tuples + without_loss, without_tuples

    def forward(self, embeddings, labels):
        self.tuples = 0 if self.without_tuples > 0 else 5
        self.without_tuples -= 1
        self.left -= 1
        return embeddings.square().mean() * (0 if self.left >= 0 and self.tuples else 1)


def test_an_epoch_in_which_nothing_is_learnt_is_warned_of_and_such_steps_are_counted():
    recorder = Recorder()
    # Of 3 steps in each epoch: all three; the first of the second; none.
    log = prepare(recipe_of(epochs=3), loss=Idle(2, 2)).train(recorder).training_log
    assert [(record.get("idle_steps"), record.get("steps")) for record in log] == [(3, 3), (1, 3), (None, None)]
    assert len(recorder.warnings) == 1
    assert "epoch 1: nothing was learnt: all 3 steps had loss 0 or no tuples" in recorder.warnings[0]


@pytest.mark.parametrize("step", range(BATCHES))
def test_a_loss_that_is_not_a_number_stops_before_it_is_kept(step):
    """It is heard when the next step is taken already, and told as what it was; the last before the epoch ends."""
    recipe = recipe_of(warmup_epochs=0)
    training, recorder = prepare(recipe, epochs=ToyEpochs(poisoned=(2, step))), Recorder()
    with pytest.raises(KeMetricError) as raised:
        training.train(recorder)
    rate = recipe.optimizer.learning_rate * learning_rate_factor(BATCHES + step, BATCHES, recipe.training)
    assert raised.value.exit_code == ExitCode.DIVERGED
    message = str(raised.value)
    assert f"generation 1, epoch 2, step {step + 1} of 3: the loss is nan at learning rate {rate:.3g}" in message
    assert all(f"picture-2-{step}-{item}" in message for item in range(BATCH))
    assert "optimizer.learning_rate" in message
    assert [state.epoch for state in recorder.states] == [1]
    assert recorder.steps[-1].step == BATCHES + step
    unharmed = prepare(recipe).train_epoch(1, Recorder())
    assert_identical(contents(recorder.states[0]), contents(unharmed))


class Cliff(nn.Module):
    """A loss that stays finite while its gradient, from one call on, is infinite: in the network or in its proxy."""

    def __init__(self, calls, where):
        super().__init__()
        self.proxy = nn.Parameter(torch.ones(1))
        self.calls, self.where = calls, where

    def forward(self, embeddings, labels):
        self.calls -= 1
        value = embeddings.square().mean() + self.proxy.mean()
        broken = embeddings.mean() if self.where == "network" else self.proxy.mean()
        return value if self.calls >= 0 else value + (broken - broken.detach()).sqrt()


@pytest.mark.parametrize(("where", "name"), [("network", "convolution.weight"), ("loss", "proxy")])
def test_a_weight_that_is_not_finite_never_leaves_the_training(where, name):
    # The last step of epoch 2: there is no later loss in which it would show.
    loss = Cliff(2 * BATCHES - 1, where)
    training, recorder = prepare(recipe_of(epochs=2), loss=loss), Recorder()
    with pytest.raises(KeMetricError, match=rf"epoch 2, step 3 of 3: {name} is not finite.*picture-2-2-0") as raised:
        training.train(recorder)
    assert raised.value.exit_code == ExitCode.DIVERGED
    assert [state.epoch for state in recorder.states] == [1]
    kept = [*recorder.states[0].weights.values(), *recorder.states[0].loss_weights.values()]
    assert all(torch.isfinite(value).all() for value in kept)


def test_collapsed_embeddings_are_told():
    network, recorder = Toy(), Recorder()
    nn.init.zeros_(network.head.weight)
    prepare(recipe_of(learning_rate=1e-12, epochs=1, warmup_epochs=0), network=network).train(recorder)
    assert len(recorder.warnings) == 1
    assert "generation 1, epoch 1: embeddings have collapsed" in recorder.warnings[0]


def test_the_networks_gradient_is_clipped():
    recipe = recipe_of("sgd", learning_rate=1.0, gradient_clip=1e-3, warmup_epochs=0)
    training = prepare(recipe)
    before, proxies = weights_of(training.network), weights_of(training.loss)
    training.take_step(0, next(training.epochs.epoch(1)))
    moved = [
        (parameter.detach() - before[name]).square().sum() for name, parameter in training.network.named_parameters()
    ]
    # The step is the gradient and the weight decay of 1e-4 times the weights, whose norm is below 10.
    assert float(sum(moved).sqrt()) == pytest.approx(1e-3, rel=1)
    [(name, proxy)] = training.loss.named_parameters()
    assert float((proxy.detach() - proxies[name]).norm()) > 1e-2
    unclipped = prepare(recipe_of("sgd", learning_rate=1.0, warmup_epochs=0))
    unclipped.take_step(0, next(unclipped.epochs.epoch(1)))
    assert float(unclipped.network.head.weight.grad.norm()) > 2e-3


class Pairs(ToyEpochs):
    """Batches whose second half are partners of the first."""

    def epoch(self, number):
        for batch in super().epoch(number):
            labels = batch.labels[: BATCH // 2].repeat(2)
            yield DeviceBatch(batch.images, labels, batch.keys)


def test_partners_go_through_the_network_by_themselves():
    """In train mode, normalised by their own statistics, and without gradient."""
    network, seen = Toy(), []
    network.dropout.p = 0.0
    reference = copy.deepcopy(network)
    network.register_forward_hook(
        lambda module, given, output: seen.append((given[0], output.requires_grad, module.training))
    )
    loss = CSKDLoss(temperature=2.0, weight=3.0)
    training = prepare(recipe_of(task="classification"), network=network, loss=loss, epochs=Pairs())
    batch = next(training.epochs.epoch(1))
    facts = training.heard(training.take_step(0, batch))
    value, accuracy = facts.loss, facts.sign
    half = BATCH // 2
    assert [(len(images), grad, train) for images, grad, train in seen] == [(half, True, True), (half, False, True)]
    assert torch.equal(torch.cat([images for images, *_ in seen]), batch.images)
    assert int(network.norm.num_batches_tracked) == 2

    reference.train()
    logits = reference(batch.images[:half])
    with torch.no_grad():
        partners = reference(batch.images[half:])
    expected = loss(logits, batch.labels[:half], partners)
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert accuracy == float((logits.argmax(dim=1) == batch.labels[:half]).float().mean())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, msg=name)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(network.get_buffer(name), buffer, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_partners_train_in_every_precision_and_after_a_resume(precision):
    recipe = recipe_of(task="classification", precision=precision, epochs=3)
    recorder = Recorder()
    expected = prepare(recipe, loss=CSKDLoss(), epochs=Pairs()).train(recorder)
    training = prepare(recipe, loss=CSKDLoss(), epochs=Pairs(), seed=1)
    training.restore(recorder.states[0])
    assert_identical(contents(training.train(TrainingObserver())), contents(expected))


def test_the_log_of_a_classification_has_an_accuracy():
    recorder = Recorder()
    recipe = recipe_of(task="classification", loss=Loss(name="CrossEntropyLoss"), epochs=6)
    record = prepare(recipe, loss=CrossEntropyLoss()).train(recorder).training_log[-1]
    assert set(record) == {"generation", "epoch", "loss", "top1", "learning_rate", "images", *ENGINE, "seconds"}
    assert 0.5 < record["top1"] <= 1


class Listener(TrainingHooks):
    """Writes down what it hears, and what a parameter is at that moment."""

    learning_rate_factor = 0.5

    def __init__(self, network):
        self.network, self.heard = network, []
        self.state = {"steps": torch.zeros(1)}

    def _hear(self, what):
        weight = self.network.head.weight
        self.heard.append((what, weight.grad is None, float(weight.detach().sum())))

    def epoch_begins(self, epoch, optimizer):
        assert optimizer.param_groups
        self.heard.append(f"epoch {epoch}")

    @contextmanager
    def step(self, number):
        self._hear(f"step {number}")
        yield
        self._hear("end")

    def targets(self, images):
        self.images = images
        self._hear("targets")
        return images.new_zeros(len(images), 8)

    def added_loss(self, outputs, targets):
        assert outputs.dtype == targets.dtype == torch.float32
        assert outputs.requires_grad
        self._hear("added_loss")
        return (outputs - targets).square().sum()

    def before_step(self):
        self._hear("before_step")

    def after_step(self):
        self._hear("after_step")
        self.state["steps"] = self.state["steps"] + 1

    def tensors(self):
        return {name: value.clone() for name, value in self.state.items()}

    def restore(self, tensors):
        self.state = dict(tensors)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_hooks_is_told_what_happens_when_it_happens(precision):
    with default_streams(0, 1, "network"):
        network = Toy()
    listener, recorder = Listener(network), Recorder()
    recipe = recipe_of(epochs=2, warmup_epochs=0, schedule="constant", precision=precision)
    training = prepare(recipe, network=network, hooks=listener)
    state = training.train(recorder)
    parts = ["targets", "added_loss", "end", "before_step", "after_step"]
    told = [each if isinstance(each, str) else each[0] for each in listener.heard]
    steps = [[f"step {number}", *parts] for number in range(2 * BATCHES)]
    assert told == ["epoch 1", *itertools.chain(*steps[:BATCHES]), "epoch 2", *itertools.chain(*steps[BATCHES:])]
    for first in range(1, 1 + 6 * BATCHES, 6):
        _, before, _, end, complete, after = listener.heard[first : first + 6]
        assert end[1] == complete[1], "the gradients were computed outside"
        assert (before[1], complete[1]) == (True, False), "the gradients were not complete"
        assert before[2] == complete[2] != after[2], "the weights had not changed"
    assert state.training_log[0]["learning_rate"] == pytest.approx(0.5 * 0.05)
    # Squares of L2-normalised embeddings: 1 for each image on top of the loss.
    plain = prepare(recipe).train(TrainingObserver())
    assert state.training_log[0]["loss"] == pytest.approx(plain.training_log[0]["loss"] + BATCH, rel=0.05)
    assert [float(state.method_weights["steps"]) for state in recorder.states] == [BATCHES, 2 * BATCHES]


def test_what_hooks_keeps_is_there_after_a_resume():
    recipe, recorder = recipe_of(epochs=2, warmup_epochs=0), Recorder()
    network = Toy()
    prepare(recipe, network=network, hooks=Listener(network)).train(recorder)
    network = Toy()
    listener = Listener(network)
    training = prepare(recipe, network=network, hooks=listener)
    training.restore(recorder.states[0])
    assert float(listener.state["steps"]) == BATCHES
    training.train(TrainingObserver())
    assert float(listener.state["steps"]) == 2 * BATCHES
    assert listener.heard[0] == "epoch 2"


@pytest.mark.parametrize("change", ["gradient", "weight"])
def test_hooks_may_change_what_it_is_told_of(change):
    """A gradient before it is clipped, a weight after the optimizer has."""

    class Freeze(TrainingHooks):
        def before_step(self):
            if change == "gradient":
                network.head.weight.grad.fill_(1e6)

        def after_step(self):
            if change == "weight":
                network.head.weight.data.zero_()

    network = Toy()
    recipe = recipe_of(gradient_clip=1e-3, warmup_epochs=0)
    training = prepare(recipe, network=network, hooks=Freeze())
    training.take_step(0, next(training.epochs.epoch(1)))
    if change == "gradient":
        total = sum(float(parameter.grad.square().sum()) for parameter in network.parameters()) ** 0.5
        assert total == pytest.approx(1e-3, rel=1e-3)
        assert float(network.head.weight.grad.norm()) == pytest.approx(1e-3, rel=1e-3)
    else:
        assert not network.head.weight.any()


def test_an_exception_in_a_watch_stops_at_once():
    class Stop(Recorder):
        def step_done(self, step):
            super().step_done(step)
            if step.step == 2:
                raise KeyboardInterrupt

    stop, training = Stop(), prepare(recipe_of())
    with pytest.raises(KeyboardInterrupt):
        training.train(stop)
    assert len(stop.steps) == 2
    assert not stop.states


def test_random_streams_outside_stay_untouched():
    training = prepare(recipe_of())
    random = torch.get_rng_state()
    training.train(TrainingObserver())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_loss_draws_the_same_in_every_process():
    """Each computes the loss of the whole batch, while dropout is its own."""

    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.drawn, self.values = [], []

        def forward(self, embeddings, labels):
            self.drawn.append(float(torch.rand(())))
            self.values.append(float(embeddings.detach().sum()))
            return embeddings.square().mean()

    losses = [Drawing(), Drawing()]
    for rank, loss in enumerate(losses):
        training = prepare(recipe_of(epochs=2, learning_rate=1e-30), loss=loss)
        training.engine.rank = rank
        training.train(TrainingObserver())
    assert losses[0].drawn == losses[1].drawn
    assert len(set(losses[0].drawn)) == 2 * BATCHES
    assert losses[0].values != losses[1].values


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", [None, nn.Sequential(nn.Flatten(), nn.Linear(48, 8))], ids=["float", "autocast"])
def test_the_loss_sees_float32(network, precision):
    seen = []

    class Look(nn.Module):
        def forward(self, embeddings, labels):
            seen.append((embeddings.dtype, torch.is_autocast_enabled("cpu")))
            return embeddings.square().mean()

    recipe = recipe_of(precision=precision, epochs=1, warmup_epochs=0)
    prepare(recipe, loss=Look(), network=copy.deepcopy(network)).train(TrainingObserver())
    assert set(seen) == {(torch.float32, False)}


@given(st.integers(2, 12), st.integers(0, 10**6))
@settings(deadline=None)
def test_spread_is_the_mean_distance_of_pairs(count, seed):
    drawn = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    embeddings = normalize(drawn, dim=1)
    distances = [1 - float(embeddings[i] @ embeddings[j]) for i in range(count) for j in range(count) if i != j]
    sign = sign_of(embeddings, torch.zeros(count), "retrieval")
    assert sign.of(float(sign.value)) == pytest.approx(sum(distances) / len(distances))


def test_a_single_item_has_no_spread():
    sign = sign_of(torch.ones(1, 1), torch.zeros(1), "retrieval")
    assert sign.of(float(sign.value)) == 0


def test_of_mixed_pictures_the_class_with_the_larger_share_is_right():
    shares = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.0, 0.7], [1.0, 0.0, 0.0], [0.0, 0.2, 0.8]])
    outputs = torch.eye(3)[[0, 0, 0, 2]]
    assert float(sign_of(outputs, shares, "classification").value) == 0.75


def test_copied_weights_are_contiguous_and_apart():
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    copied = weights_of(layer)
    expected = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(copied["weight"], expected)
    assert copied["weight"].is_contiguous()
