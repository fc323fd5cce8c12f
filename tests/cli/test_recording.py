"""The recorder writes resume states as often as their writing allows, and never leaves the last one unwritten."""

import pytest

from ke_metric.cli import recording as module
from ke_metric.cli.recording import LineageRecorder
from ke_metric.errors import KeMetricError
from ke_metric.generation import Scorecard, TrainingState
from ke_metric.recipe.schema import Recipe


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class FakeLineage:
    """Takes some seconds to save a state, and has room for so many."""

    def __init__(self, folder, clock, seconds, room=100):
        self.folder, self.recipe, self.saved = folder, Recipe(name="x"), []
        self._clock, self.seconds, self._room = clock, seconds, room

    def save_state(self, state):
        if len(self.saved) == self._room:
            raise KeMetricError("no room")
        self._clock.now += self.seconds
        self.saved.append(state.epoch)

    def append(self, generation):
        self._clock.now += 3.0

    def log(self, event, **facts):
        pass


def state_of(epoch):
    log = ({"generation": 1, "epoch": epoch, "loss": 1.0, "learning_rate": 0.1},)
    return TrainingState(1, epoch, {}, {}, {}, log, 0.0)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def train(recorder, clock, epochs, seconds):
    for epoch in range(1, epochs + 1):
        clock.now += seconds
        recorder.epoch_done(state_of(epoch))


def stop(lineage, clock, error):
    with LineageRecorder(lineage) as recorder:
        train(recorder, clock, 3, 1.0)
        raise error


@pytest.mark.parametrize(
    ("writing", "epoch", "saved"),
    [
        (0.1, 0.01, [1, 2, 3, 4, 5, 6]),  # quick: always, however short the epochs
        (5.0, 400.0, [1, 2, 3, 4, 5, 6]),  # a small share of the time
        (5.0, 120.0, [1, 4, 6]),  # 329 seconds must have gone by; the last one when it ends
        (0.5, 10.0, [1, 5, 6]),  # 33 seconds
        (5.0, 1.0, [1, 6]),
    ],
)
def test_writing_takes_three_parts_in_two_hundred_of_the_time_at_most(writing, epoch, saved, clock, tmp_path):
    lineage = FakeLineage(tmp_path, clock, writing)
    with LineageRecorder(lineage) as recorder:
        train(recorder, clock, 6, epoch)
    assert lineage.saved == saved


def test_a_disk_that_was_slow_once_puts_nothing_off(clock, tmp_path):
    """Ten seconds, where a tenth of one is usual: without the write before it, the next would be 657 seconds away."""
    lineage = FakeLineage(tmp_path, clock, 0.1)
    with LineageRecorder(lineage) as recorder:
        train(recorder, clock, 2, 1.0)
        lineage.seconds = 10.0
        clock.now += 1.0
        recorder.epoch_done(state_of(3))
        lineage.seconds = 0.1
        clock.now += 1.0
        recorder.epoch_done(state_of(4))
        assert lineage.saved == [1, 2, 3, 4]


def test_what_is_not_written_when_it_stops_is_written_then(clock, tmp_path):
    lineage = FakeLineage(tmp_path, clock, 5.0)
    with pytest.raises(ArithmeticError):
        stop(lineage, clock, ArithmeticError())
    assert lineage.saved == [1, 3]


def test_a_second_ctrl_c_writes_nothing_more(clock, tmp_path):
    lineage = FakeLineage(tmp_path, clock, 5.0)
    with pytest.raises(KeyboardInterrupt):
        stop(lineage, clock, KeyboardInterrupt())
    assert lineage.saved == [1]


def test_what_stopped_it_is_told_even_where_the_state_cannot_be_written(clock, tmp_path, capsys):
    lineage = FakeLineage(tmp_path, clock, 5.0, room=1)
    with pytest.raises(ArithmeticError):
        stop(lineage, clock, ArithmeticError())
    assert lineage.saved == [1]
    assert "the state after epoch 3 is lost: no room" in capsys.readouterr().err


class Stored:
    """As much of a stored generation as a recorder looks at."""

    number, magnitudes = 1, {}

    scorecard = Scorecard({}, None, 9, None)


def test_a_stored_generation_leaves_no_state(clock, tmp_path):
    lineage = FakeLineage(tmp_path, clock, 5.0)
    with LineageRecorder(lineage) as recorder:
        train(recorder, clock, 3, 1.0)
        saved = recorder.saving_seconds
        recorder.store(Stored())
    assert lineage.saved == [1]
    assert (saved, recorder.saving_seconds) == (5.0, 8.0)
