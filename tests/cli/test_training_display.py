"""The lines of a training: what they say, and that a terminal of 80 columns shows them whole."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from ke_metric.cli import display, training_display
from ke_metric.cli.training_display import TrainingDisplay, fitting
from ke_metric.generation import Scorecard, SlimScores
from ke_metric.training.hooks import StepReport

FACTS = {
    "loss": "loss 0.488",
    "lr": "lr 8.5e-04",
    "speed": "22 images/s",
    "left": "left 0:03",
    "all": "lineage 0:30",
    "sign": "spread 0.531",
}


def step_of(number=1, epoch=1, step=3, loss=0.5):
    return StepReport(
        generation=number, epoch=epoch, step=step, steps=9000, images=128, loss=loss, learning_rate=1.2345e-4
    )  # fmt: skip


def test_what_has_no_room_goes_the_least_needed_first():
    assert fitting(FACTS, 200) == "loss 0.488  spread 0.531  lr 8.5e-04  22 images/s  left 0:03  lineage 0:30"
    assert fitting(FACTS, 62) == "loss 0.488  spread 0.531  22 images/s  left 0:03  lineage 0:30"
    assert fitting(FACTS, 61) == "loss 0.488  spread 0.531  lr 8.5e-04  left 0:03  lineage 0:30"
    assert fitting(FACTS, 21) == "loss 0.488  left 0:03"
    assert fitting(FACTS, 9) == "left 0:03"


@pytest.mark.parametrize(("number", "epoch", "loss"), [(1, 1, 0.5), (10, 100, 123.456), (1000, 1000, 12345.6)])
@pytest.mark.parametrize("terminal", [True, False])
def test_the_lines_fit_into_80_columns(number, epoch, loss, terminal, monkeypatch):
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, highlight=False)
    for module in (display, training_display):
        monkeypatch.setattr(module, "CONSOLE", console)
    monkeypatch.setattr(training_display, "SECONDS_BETWEEN_LINES", -1)
    with TrainingDisplay(number) as shown:
        shown._seconds_per_step = 40.0
        shown.step_done(step_of(number, epoch, loss=loss))
        shown._progress.refresh()
        shown.epoch_done(SimpleNamespace(number=number, epoch=epoch, training_log=[{"spread": 0.25}]))
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", file.getvalue())]
    told = [line.rstrip() for line in lines if "generation" in line]
    assert told
    for line in told:
        assert len(line) <= 80
        assert "…" not in line
        assert line.startswith(f"generation {number}/{number} epoch {epoch}")
        assert f"loss {loss:.3f}" in line


def test_slim_networks_of_other_rates_are_told_by_one_number(monkeypatch):
    file = io.StringIO()
    console = Console(file=file, width=80, highlight=False)
    for module in (display, training_display):
        monkeypatch.setattr(module, "CONSOLE", console)
    scores = {"recall@1": 0.5, "recall@2": 0.75, "nmi": 0.25}
    card = Scorecard(scores, scores, 9, 4, narrow={"0.25": SlimScores(scores, 2), "0.75": SlimScores(scores, 6)})
    seconds = {"inheriting": 0.5, "training": 1.0, "scoring": 2.0, "slim": 1.5}
    stored = SimpleNamespace(number=1, scorecard=card, provenance=SimpleNamespace(seconds=seconds))
    TrainingDisplay(2).generation_done(stored)
    assert file.getvalue() == (
        "generation 1/2: dense recall@1 50.0, recall@2 75.0; slim recall@1 50.0, recall@2 75.0; "
        "slim 0.25 recall@1 50.0; slim 0.75 recall@1 50.0; trained 0:01, scored 0:02\n"
    )


@pytest.mark.parametrize(("more", "told"), [({}, ""), ({"validating": 1.5}, ", 3.0 % for validating (3.0 s)")])
def test_what_the_work_on_lineage_and_split_took_is_told_as_a_share_of_the_whole_time(monkeypatch, more, told):
    clock = iter([100.0, 150.0, 160.0, 200.0])
    monkeypatch.setattr(training_display.time, "perf_counter", lambda: next(clock))
    shown = TrainingDisplay(2)
    monkeypatch.setattr(training_display, "say", lambda *words, **style: None)
    for number in (1, 2):
        seconds = {"inheriting": 0.5, "training": 40.0, "scoring": 7.0, "slim": 2.5, **more}
        card = Scorecard({}, None, 9, None)
        shown.generation_done(
            SimpleNamespace(number=number, scorecard=card, provenance=SimpleNamespace(seconds=seconds))
        )
    assert shown.own_work(saving_seconds=1.5) == (
        "took 1:40, 2.5 % of it for lineage and split (inheriting 1.0 s, saving 1.5 s), 5.0 % for slim networks"
        + told
    )
