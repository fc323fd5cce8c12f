"""What a person sees of a training: a live line on a terminal, plain lines elsewhere. All on stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn

from ke_metric.cli.display import CONSOLE, say
from ke_metric.generation import Generation, TrainingState
from ke_metric.lineage.report import BASELINE, decisive_score, is_share
from ke_metric.training.hooks import StepReport, TrainingObserver
from ke_metric.training.patience import VALIDATION
from ke_metric.training.steps import SIGNS

# Share of the new value in the running means of loss and speed.
SMOOTHING = 0.05
# Where there is no live line.
SECONDS_BETWEEN_LINES = 60
BAR_WIDTH = 10
# What a line says of a training, in this order; what has no room goes, the last of `NEEDED` first.
SHOWN = ("loss", "sign", "lr", "speed", "left", "all")
NEEDED = ("loss", "left", "all", "sign", "speed", "lr")


class TrainingDisplay(TrainingObserver):
    """Shows a lineage grow.

    Args:
        generations: How many there will be.
    """

    def __init__(self, generations: int) -> None:
        self._generations = generations
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.fields[facts]}"),
        )
        self._progress = Progress(*columns, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal)
        self._task = self._progress.add_task("", total=None, facts="")
        self._loss: float | None = None
        self._seconds_per_step: float | None = None
        self._last = time.perf_counter()
        self._began = self._last
        self._scoring_seconds, self._inheriting_seconds, self._slim_seconds = 0.0, 0.0, 0.0
        self._validating_seconds = 0.0
        self._said = self._last
        self._facts: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """Print a line."""
        say(text)

    def warn(self, text: str) -> None:
        """Print a line that stands out."""
        say(f"warning: {text}", style="yellow")

    def step_done(self, step: StepReport) -> None:
        """Refresh the live line."""
        now = time.perf_counter()
        self._loss = _smooth(self._loss, step.loss)
        self._seconds_per_step = _smooth(self._seconds_per_step, now - self._last)
        self._last = now
        left = (step.steps - step.step) * self._seconds_per_step
        lineage_left = left + (self._generations - step.generation) * (
            step.steps * self._seconds_per_step + self._scoring_seconds
        )
        where = f"generation {step.generation}/{self._generations} epoch {step.epoch}"
        self._facts = {
            "loss": f"loss {self._loss:.3f}",
            "lr": f"lr {step.learning_rate:.1e}",
            "speed": f"{step.images / self._seconds_per_step:,.0f} images/s",
            "left": f"left {_duration(left)}",
            "all": f"lineage {_duration(lineage_left)}",
        }
        # Rich puts one space on either side of the bar.
        facts = fitting(self._facts, CONSOLE.width - len(where) - BAR_WIDTH - 2)
        self._progress.update(self._task, description=where, completed=step.step, total=step.steps, facts=facts)
        if self._progress.disable and now - self._said > SECONDS_BETWEEN_LINES:
            self._say(f"{where} step {step.step}/{step.steps}", self._facts)

    def epoch_done(self, state: TrainingState) -> None:
        """Print a line for the epoch where there is no live line."""
        if self._progress.disable:
            record = state.training_log[-1]
            sign = next(f"{name} {record[name]:.3f}" for name in SIGNS.values() if name in record)
            where = f"generation {state.number}/{self._generations} epoch {state.epoch} done"
            sign += f"  {VALIDATION} {record[VALIDATION]:.3f}" if VALIDATION in record else ""
            self._say(where, self._facts | {"sign": sign})
        self._last = time.perf_counter()

    def _say(self, where: str, facts: Mapping[str, str]) -> None:
        say(f"{where}  {fitting(facts, CONSOLE.width - len(where) - 2)}")
        self._said = time.perf_counter()

    def generation_done(self, generation: Generation) -> None:
        """Print the generation's line."""
        scorecard, seconds = generation.scorecard, generation.provenance.seconds
        self._scoring_seconds = seconds["scoring"]
        self._inheriting_seconds += seconds["inheriting"]
        self._slim_seconds += seconds["slim"]
        self._validating_seconds += seconds.get("validating", 0.0)
        self._last = time.perf_counter()
        shown = [f"dense {_percent(scorecard.dense)}"]
        if scorecard.slim is not None:
            shown.append(f"slim {_percent(scorecard.slim)}")
        for name in list(scorecard.slims)[1:]:
            # One number is enough of each further one: the table at the end has all.
            scores = scorecard.networks[name]
            first = decisive_score(scores)
            shown += [f"{name} {_percent({first: scores[first]})}"] if first else []
        say(
            f"generation {generation.number}/{self._generations}: {'; '.join(shown)}; "
            f"trained {_duration(seconds['training'])}, scored {_duration(seconds['scoring'])}",
            style="bold",
        )

    def own_work(self, saving_seconds: float) -> str:
        """Return what of the time was spent on other work than training and scoring the whole network."""
        total, inheriting = time.perf_counter() - self._began, self._inheriting_seconds
        own, slim = (100 * seconds / total for seconds in (inheriting + saving_seconds, self._slim_seconds))
        return (
            f"took {_duration(total)}, {own:.1f} % of it for lineage and split (inheriting {inheriting:.1f} s, "
            f"saving {saving_seconds:.1f} s), {slim:.1f} % for slim networks{self._validating(total)}"
        )

    def _validating(self, total: float) -> str:
        """Return what part of all seconds the validation part took; nothing where there is no patience."""
        share = 100 * self._validating_seconds / total
        return f", {share:.1f} % for validating ({self._validating_seconds:.1f} s)" if share else ""


def fitting(facts: Mapping[str, str], width: int) -> str:
    """Return as many of the facts as fit into a width, the most needed ones, in the order of SHOWN.

    Args:
        facts: Names of SHOWN to texts.
        width: In columns.
    """
    shown: list[str] = []
    for name in (name for name in NEEDED if name in facts):
        wanted = [each for each in SHOWN if each in (*shown, name)]
        if len("  ".join(facts[each] for each in wanted)) <= width:
            shown = wanted
    return "  ".join(facts[name] for name in shown)


def _percent(scores: object) -> str:
    assert isinstance(scores, dict), "scores are a dict"
    shown = {name: value for name, value in scores.items() if is_share(name) and not name.endswith(BASELINE)}
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in shown.items())


def _smooth(mean: float | None, value: float) -> float:
    return value if mean is None else mean + SMOOTHING * (value - mean)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
