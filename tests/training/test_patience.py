"""Patience: the epoch whose weights count, when a generation ends, and that going on is never having stopped."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.batches import DeviceBatch
from ke_metric.lineage.files import BEST, read_state, write_state
from ke_metric.recipe.schema import Optimizer, Recipe, Training
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver
from ke_metric.training.one_generation import GenerationTraining

EPOCHS, STEPS = 7, 2
RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
CASES = {
    "rising": (RISING, 2),
    "falling": ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], 3),
    "a tie": ([0.1, 0.5, 0.5, 0.5, 0.4, 0.5, 0.5], 4),
    "a second rise": ([0.4, 0.3, 0.6, 0.2, 0.7, 0.7, 0.1], 2),
    "more patience than epochs": ([0.4, 0.3, 0.6, 0.2, 0.1, 0.0, 0.1], 9),
}


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(24, 4)

    def forward(self, images):
        return self.head(torch.relu(self.norm(self.convolution(images))).flatten(1))


class Proxies(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, outputs, labels):
        return nn.functional.cross_entropy(outputs + self.bias, labels)


class Noise:
    def __len__(self):
        return STEPS

    def epoch(self, number):
        generator = torch.Generator().manual_seed(number)
        for _ in range(STEPS):
            labels = torch.randint(0, 4, (8,), generator=generator)
            yield DeviceBatch(torch.randn(8, 3, 4, 4, generator=generator) + labels.view(8, 1, 1, 1), labels, ())


class Scripted:
    """Gives the scores that it is told, and keeps what it was shown."""

    def __init__(self, scores):
        self._scores, self.seen = list(scores), []

    def validate(self, network):
        self.seen.append(copy.deepcopy(network.state_dict()))
        return self._scores.pop(0)

    def measure_norms(self, network, number):
        with torch.no_grad():
            network.norm.running_mean.fill_(number)


class Recorder(TrainingObserver):
    def __init__(self):
        self.states, self.notes, self.warnings = [], [], []

    def epoch_done(self, state):
        self.states.append(state)

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)


def prepare(scores=None, patience=None, *, average=None, seed=0):
    section = Training(epochs=EPOCHS, precision="fp32", patience=patience, average=average, schedule="constant")
    recipe = Recipe(name="toy", task="classification", optimizer=Optimizer(learning_rate=0.05), training=section)
    torch.manual_seed(seed)
    training = GenerationTraining(Toy(), Proxies(), Noise(), recipe=recipe, engine=Engine("fp32", "cpu"), number=1)
    if scores is not None:
        training.validate_by(Scripted(scores))
    return training


def watched(training):
    recorder = Recorder()
    return training.train(recorder), recorder


@pytest.fixture(scope="module")
def plain():
    """All epochs of the same training, nobody looking."""
    return watched(prepare())


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def twin(scores, patience):
    """Return the best epoch and how many are trained, one by one."""
    best, waited, trained = 0, 0, 0
    for score in scores:
        trained += 1
        if best == 0 or score > scores[best - 1]:
            best, waited = trained, 0
        else:
            waited += 1
        if waited == patience:
            break
    return best, trained


def without_seconds(log):
    return [
        {name: value for name, value in record.items() if name not in ("seconds", "validation_seconds")}
        for record in log
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=EPOCHS, max_size=EPOCHS), st.integers(1, EPOCHS + 1))
def test_the_epoch_that_counts_is_that_of_the_twin(plain, scores, patience):
    state, recorder = watched(prepare(scores, patience))
    best, trained = twin(scores, patience)
    assert len(recorder.states) == len(state.training_log) == trained
    assert [record["validation"] for record in state.training_log] == scores[:trained]
    assert_equal(state.weights, plain[1].states[best - 1].weights)
    assert_equal(state.loss_weights, plain[1].states[best - 1].loss_weights)


def test_with_patience_for_more_and_the_best_at_the_end_all_is_as_ever(plain):
    """Scoring epochs changes nothing of the training."""
    state, recorder = watched(prepare(RISING, EPOCHS + 1))
    assert_equal(state.weights, plain[0].weights)
    assert_equal(state.loss_weights, plain[0].loss_weights)
    for found, expected in zip(recorder.states, plain[1].states, strict=True):
        assert_equal(found.weights, expected.weights)
    bare = [{name: value for name, value in each.items() if name != "validation"} for each in state.training_log]
    assert without_seconds(bare) == without_seconds(plain[0].training_log)
    assert not any("validation" in record for record in plain[0].training_log)


@pytest.mark.parametrize("case", CASES)
def test_network_and_loss_have_the_weights_that_count(case):
    training = prepare(*CASES[case])
    state, recorder = watched(training)
    best, trained = twin(*CASES[case])
    assert_equal(training.network.state_dict(), state.weights)
    assert_equal(training.loss.state_dict(), state.loss_weights)
    assert_equal(training.patience._validator.seen[best - 1], state.weights)
    assert recorder.notes == [
        f"generation 1: {trained} epochs trained; its weights are those of epoch {best}, the best one on the "
        f"validation part ({100 * CASES[case][0][best - 1]:.1f} %)"
    ]


def test_a_validation_part_that_all_is_right_of_is_said_to_tell_nothing():
    _, recorder = watched(prepare([0.5, 1.0, 1.0, 1.0], 2))
    (warning,) = recorder.warnings
    assert warning.startswith("generation 1: every picture of the validation part was right after epoch 2;")
    assert watched(prepare([0.5, 0.999, 0.9, 0.9], 2))[1].warnings == []


@pytest.mark.parametrize("average", [None, 0.6])
@pytest.mark.parametrize("case", CASES)
def test_going_on_is_never_having_stopped(case, average, tmp_path):
    """From every epoch, also from the last one, through files."""
    scores, patience = CASES[case]
    expected, recorder = watched(prepare(scores, patience, average=average))
    for state in recorder.states:
        write_state(tmp_path / f"{state.epoch}", state)
        training = prepare(scores[state.epoch :], patience, average=average, seed=1)
        training.restore(read_state(tmp_path / f"{state.epoch}", 1))
        found, _ = watched(training)
        assert_equal(found.weights, expected.weights)
        assert_equal(found.loss_weights, expected.loss_weights)
        assert_equal(training.network.state_dict(), expected.weights)
        assert without_seconds(found.training_log) == without_seconds(expected.training_log)


@pytest.mark.parametrize("case", CASES)
def test_what_is_averaged_is_what_is_looked_at_and_counts(case):
    """With statistics of its own; the training goes on as if nobody had looked."""
    scores, patience = CASES[case]
    _, free = watched(prepare(average=0.6))
    training = prepare(scores, patience, average=0.6)
    state, recorder = watched(training)
    best, trained = twin(scores, patience)
    for found, expected in zip(recorder.states, free.states[:trained], strict=True):
        assert_equal(found.weights, expected.weights)
        assert_equal(found.average, expected.average)
    at_best = recorder.states[best - 1]
    norms = {"norm.running_mean": torch.full((6,), 1.0)}
    assert_equal(state.weights, {**at_best.weights, **at_best.average, **norms})
    assert_equal(training.patience._validator.seen[best - 1], state.weights)
    assert_equal(training.network.state_dict(), state.weights)


def test_a_state_is_a_record():
    """What comes after it does not change it."""
    recorder, copies = Recorder(), []
    training = prepare(*CASES["a second rise"])
    recorder.epoch_done = lambda state: copies.append((state, copy.deepcopy((state.best, state.best_loss))))
    training.train(recorder)
    assert any(state.best for state, _ in copies)
    for state, (best, best_loss) in copies:
        assert_equal(state.best, best)
        assert_equal(state.best_loss, best_loss)


def test_weights_are_stored_once_where_the_last_epoch_is_the_best(tmp_path):
    _, recorder = watched(prepare(*CASES["a second rise"]))
    for state in recorder.states:
        write_state(tmp_path / f"{state.epoch}", state)
    has_best = [(tmp_path / f"{state.epoch}" / BEST).exists() for state in recorder.states]
    assert has_best == [False, True, False, True, False, True, True]


def test_weights_of_another_network_are_refused():
    _, recorder = watched(prepare(*CASES["falling"]))
    state = recorder.states[-1]
    state.best.pop("head.bias")
    with pytest.raises(KeMetricError, match=r"head\.bias is missing") as raised:
        prepare(*CASES["falling"]).restore(state)
    assert raised.value.exit_code == ExitCode.LINEAGE
