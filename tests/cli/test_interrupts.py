import os
import signal

import pytest
from click.testing import CliRunner

from ke_metric.cli import main
from ke_metric.cli.recording import Interrupts, interruptible
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import TrainingState
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import StepReport

STEPS_PER_EPOCH, EPOCHS = 5, 4


def step(number):
    epoch = 1 + (number - 1) // STEPS_PER_EPOCH
    return StepReport(2, epoch, number, STEPS_PER_EPOCH * EPOCHS, 8, 0.5, 0.1)


def state(epoch):
    return TrainingState(2, epoch, {}, {}, {}, (), 1.0)


@pytest.fixture
def interrupts():
    return Interrupts(Engine("fp32", "cpu"), EPOCHS, "ke-metric train r --resume")


def test_without_a_signal_nothing_stops(interrupts):
    with interruptible(interrupts):
        for number in range(1, STEPS_PER_EPOCH * EPOCHS + 1):
            interrupts.step_done(step(number))
            if number % STEPS_PER_EPOCH == 0:
                interrupts.epoch_done(state(number // STEPS_PER_EPOCH))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_is_finished_and_the_resume_command_told(interrupts, number):
    with interruptible(interrupts):
        os.kill(os.getpid(), number)
        with pytest.raises(KeMetricError, match=r"generation 2, epoch 1.*ke-metric train r --resume") as caught:
            interrupts.step_done(step(3))
    assert caught.value.exit_code is ExitCode.INTERRUPTED


def test_the_last_step_of_an_epoch_waits_until_its_state_is_saved(interrupts):
    with interruptible(interrupts):
        os.kill(os.getpid(), signal.SIGINT)
        interrupts.step_done(step(10))
        with pytest.raises(KeMetricError, match="epoch 2"):
            interrupts.epoch_done(state(2))


def test_a_second_signal_stops_at_once(interrupts):
    with interruptible(interrupts):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back(interrupts):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interruptible(interrupts):
        assert signal.getsignal(signal.SIGINT) == interrupts.receive
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("work", "arguments", "is_training"),
    [
        ("ke_metric.recipe.file.load_recipe", ["train", "recipes/glyphs_resnet18.yaml"], True),
        ("ke_metric.cli.index.describe_index", ["index", "info", "--index", "photos.index"], False),
    ],
)
def test_only_a_training_is_told_how_it_goes_on(work, arguments, is_training, monkeypatch):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, stopped)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == ExitCode.INTERRUPTED
    assert "stopped at once" in result.stderr
    assert ("--resume" in result.stderr) == is_training
