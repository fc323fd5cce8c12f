"""`ke-metric train`: load, open the lineage, grow it, store every generation."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from ke_metric.cli.display import TrainingDisplay, counting, say
from ke_metric.cli.keeper import Keeper
from ke_metric.cli.result import Result
from ke_metric.data.benchmarks import load_benchmark
from ke_metric.data.pictures import Pictures
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evolution import Start, evolve
from ke_metric.lineage import RESOLVED, Lineage, default_folder
from ke_metric.recipe import Recipe
from ke_metric.report import scorecard_document, scorecards_table
from ke_metric.training.engine import Engine
from ke_metric.training.watch import Step, Watch, Watches

STATUS = {ExitCode.DIVERGED: "diverged", ExitCode.INTERRUPTED: "interrupted"}


def train_lineage(
    recipe: Recipe, *, text: str, folder: Path | None, device: str | None, resume: bool, overwrite: bool
) -> Result:
    """Train a lineage, or the rest of one.

    Args:
        recipe: What to grow.
        text: The recipe file as given, for the record.
        folder: The lineage's folder; its default when None.
        device: A torch device.
        resume: Go on with the lineage that is there.
        overwrite: Replace it.

    Raises:
        KeMetricError: See the exit codes.
    """
    folder = folder or default_folder(recipe)
    if resume:
        _require_unfinished(Lineage(folder), recipe)
    benchmark = load_benchmark(recipe.data)
    engine = Engine(recipe.training.precision, device)
    with counting(f"decoding {benchmark.name}") as progress:
        pictures = Pictures.decode(benchmark, recipe.data.store_size, progress=progress)
    with ExitStack() as stack:
        if engine.is_main:
            lineage = Lineage(folder) if resume else _create(folder, recipe, text, overwrite)
            stack.enter_context(lineage.writing())
            if resume:
                lineage.continue_with(recipe)
        engine.wait()
        lineage = Lineage(folder)
        _grow(lineage, pictures, device=device, is_main=engine.is_main)
    cards = {number: lineage.scorecard(number) for number in lineage.numbers}
    document = {
        "lineage": str(folder),
        "generations": [scorecard_document(number, card) for number, card in cards.items()],
    }
    return Result(document, scorecards_table(str(folder), cards))


def _require_unfinished(lineage: Lineage, recipe: Recipe) -> None:
    lineage.require_recipe(recipe)
    if len(lineage.numbers) >= recipe.generations:
        raise KeMetricError(
            f"{lineage.folder}: finished, it has all {recipe.generations} generations of the recipe; ask for more "
            f"with --set generations={recipe.generations + 1}",
            ExitCode.LINEAGE,
        )


def _create(folder: Path, recipe: Recipe, text: str, overwrite: bool) -> Lineage:
    command = shlex.join(["ke-metric", *sys.argv[1:]])
    return Lineage.create(folder, recipe, text=text, command=command, overwrite=overwrite)


def _grow(lineage: Lineage, pictures: Pictures, *, device: str | None, is_main: bool) -> None:
    recipe = lineage.recipe
    numbers = lineage.numbers
    start = Start(lineage.load(numbers[-1]) if numbers else None, lineage.load_state())
    if not is_main:
        for _ in evolve(recipe, pictures, start=start, device=device):
            pass
        return
    say(f"lineage {lineage.folder}: {_where(start)}")
    with (
        _recorded_status(lineage),
        Keeper(lineage) as keeper,
        TrainingDisplay(recipe.generations) as display,
        _interrupts(f"ke-metric train {lineage.folder / RESOLVED} --lineage {lineage.folder} --resume") as interrupts,
    ):
        for generation in evolve(
            recipe, pictures, start=start, device=device, watch=Watches(display, keeper, interrupts)
        ):
            lineage.append(generation)
            keeper.generation_done(generation)
            display.generation_done(generation)


def _where(start: Start) -> str:
    after = f", epoch {start.state.epoch} of it finished" if start.state else ""
    return f"training from generation {start.number}{after}"


@contextmanager
def _recorded_status(lineage: Lineage) -> Iterator[None]:
    """Write into lineage.json how the training went."""
    lineage.set_status("running")
    try:
        yield
    except BaseException as error:
        code = error.exit_code if isinstance(error, KeMetricError) else ExitCode.UNEXPECTED
        lineage.set_status(STATUS.get(code, "failed"))
        raise
    lineage.set_status("finished")


class _Interrupts(Watch):
    """Stops the training after the step in which a signal came.

    Args:
        resume: The command that goes on.
    """

    def __init__(self, resume: str) -> None:
        self._resume = resume
        self._received = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first one lets the step finish, a second one does not."""
        if self._received:
            raise KeyboardInterrupt
        self._received = True
        say(f"{signal.Signals(number).name}: finishing the step; once more stops at once")

    def step_done(self, step: Step) -> None:
        """Stop if a signal has come."""
        if self._received:
            raise KeMetricError(
                f"interrupted in generation {step.generation}, epoch {step.epoch}; all up to the last finished "
                f"epoch is saved. Go on with: {self._resume}",
                ExitCode.INTERRUPTED,
            )


@contextmanager
def _interrupts(resume: str) -> Iterator[_Interrupts]:
    """Take SIGINT and SIGTERM for the time of a training."""
    interrupts = _Interrupts(resume)
    before = {number: signal.signal(number, interrupts.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
