"""`ke-metric train`: load, open the lineage, grow it, store every generation."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Group

from ke_metric.cli.display import TrainingDisplay, counting, say, say_skipped
from ke_metric.cli.dry_run import expected_disk
from ke_metric.cli.interrupts import Interrupts, interruptible
from ke_metric.cli.keeper import Keeper
from ke_metric.cli.result import Result
from ke_metric.cli.resume import resume_command, together, warn_of_changes
from ke_metric.comparison import told_ties
from ke_metric.data.benchmarks import load_benchmark
from ke_metric.data.images import Benchmark
from ke_metric.data.pictures import Pictures, fingerprint
from ke_metric.data.problems import require_scorable
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evolution import Nursery, Start, evolve
from ke_metric.lineage import Lineage, default_folder
from ke_metric.lineage_folder import require_room
from ke_metric.lineage_recipe import why_not_longer
from ke_metric.recipe import Recipe
from ke_metric.report import idle_steps, mistakes_table, scorecard_document, scorecards_table, untrained_document
from ke_metric.training.engine import Engine
from ke_metric.training.watch import Watches

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
        overwrite: Replace it, once everything that the new one needs has been built.

    Raises:
        KeMetricError: See the exit codes.
    """
    folder = _own_folder(folder or default_folder(recipe))
    engine = Engine(recipe.training.precision, device)
    with ExitStack() as stack:
        stack.enter_context(together(engine, folder, device))
        start = Start()
        if resume:
            recipe = _require_unfinished(Lineage(folder), recipe)
            if engine.is_main:
                stack.enter_context(Lineage(folder).writing())
            start = _start(Lineage(folder))
        elif engine.is_main:
            require_room(folder, overwrite=overwrite)
        pictures = _decode(_checked_benchmark(recipe, engine, folder, start=start, resume=resume), recipe)
        if resume and (unchecked := Lineage(folder).require_data(pictures.fingerprint)):
            say(f"warning: {unchecked}", style="yellow")
        if engine.is_main:
            if resume:
                Lineage(folder).continue_with(recipe)
            else:
                stack.enter_context(_create(folder, recipe, text, overwrite).writing())
            Lineage(folder).record_data(pictures.fingerprint)
        engine.wait()
        lineage = Lineage(folder)
        _grow(lineage, pictures, start=start, engine=engine, device=device)
        # The first process has stored the last generation when the others read it.
        engine.wait()
    cards = {number: lineage.scorecard(number) for number in lineage.numbers}
    untrained = lineage.untrained
    idle = {number: idle_steps(lineage.training_log(number)) for number in cards}
    document = {
        "lineage": str(folder),
        **untrained_document(untrained, cards),
        "generations": [scorecard_document(number, card) | idle[number] for number, card in cards.items()],
    }
    last = lineage.numbers[-1]
    table = scorecards_table(str(folder), cards, untrained=untrained)
    ties = [sentence] if (sentence := told_ties([lineage])) else []
    return Result(document, Group(table, *_idle_lines(idle), *ties, mistakes_table(last, cards[last])))


def _idle_lines(idle: Mapping[int, Mapping[str, int]]) -> Iterator[str]:
    for number, counts in idle.items():
        if counts:
            yield (
                f"generation {number}: {counts['idle_steps']:,} of {counts['steps']:,} steps had loss 0 or no tuples"
            )


def _checked_benchmark(recipe: Recipe, engine: Engine, folder: Path, *, start: Start, resume: bool) -> Benchmark:
    """Load the benchmark and find out whatever recipe, labels and folder can tell before the pictures are decoded.

    Raises:
        KeMetricError: Whatever would end the training before its first step, or after its last.
    """
    benchmark = load_benchmark(recipe.data, recipe.task)
    for kind, paths in benchmark.skipped.items():
        say_skipped(kind, paths)
    if resume:
        Lineage(folder).require_data(fingerprint(benchmark))
    nursery = Nursery(recipe, Pictures.undecoded(benchmark), engine)
    if start.parent or start.state:
        _warn_of_refusals(Lineage(folder), nursery.require_resumable(start), engine)
        return benchmark
    require_scorable(benchmark)
    network, loss = nursery.require_buildable()
    if not resume and engine.is_main and not folder.exists():
        _require_space(folder, expected_disk(recipe, network, loss, kept=1))
    return benchmark


def _warn_of_refusals(lineage: Lineage, refusals: Sequence[str], engine: Engine) -> None:
    """Say, and log, what a new lineage would be refused for, where one goes on that was trained with it so far."""
    for refusal in refusals:
        text = f"{refusal}. A new lineage would be refused; this one goes on as it was trained so far"
        say(f"warning: {text}", style="yellow")
        if engine.is_main:
            lineage.log("warning", text=text)


def _require_space(folder: Path, needed: int) -> None:
    """Refuse a disk on which not even the first generation has room."""
    above = next(path for path in folder.resolve().parents if path.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise KeMetricError(
            f"{folder}: a generation and the states to resume from need {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB "
            "are free; free some space, or choose another folder with --lineage",
            ExitCode.ENVIRONMENT,
        )


def _decode(benchmark: Benchmark, recipe: Recipe) -> Pictures:
    with counting(f"decoding {benchmark.name}") as progress:
        return Pictures.decode(
            benchmark, recipe.data.store_size, store_shape=recipe.data.store_shape, progress=progress
        )


def _start(lineage: Lineage) -> Start:
    """Read where a lineage goes on."""
    numbers = lineage.numbers
    return Start(lineage.load(numbers[-1]) if numbers else None, lineage.load_state())


def _own_folder(folder: Path) -> Path:
    """Refuse the current folder: it is replaced by a new one of its name, which nobody would be in."""
    if folder.resolve() == Path.cwd():
        raise KeMetricError(
            f"--lineage {folder}: is the current folder; name one of the lineage's own", ExitCode.USAGE
        )
    return folder


def _require_unfinished(lineage: Lineage, recipe: Recipe) -> Recipe:
    """Return the recipe with which the lineage goes on."""
    recipe = lineage.require_recipe(recipe)
    if len(lineage.numbers) < recipe.generations:
        return recipe
    if lineage.facts["status"] != "finished":
        # Killed between its last generation and this record.
        with lineage.writing():
            lineage.set_status("finished")
    why_not = why_not_longer(recipe)
    raise KeMetricError(
        f"{lineage.folder}: finished, it has all {recipe.generations} generations of the recipe; "
        + (
            f"there cannot be more: {why_not}"
            if why_not
            else f"ask for more with --set generations={recipe.generations + 1}"
        ),
        ExitCode.LINEAGE,
    )


def _create(folder: Path, recipe: Recipe, text: str, overwrite: bool) -> Lineage:
    program = Path(sys.argv[0]).name
    command = shlex.join(["ke-metric" if program == "__main__.py" else program, *sys.argv[1:]])
    return Lineage.create(folder, recipe, text=text, command=command, overwrite=overwrite)


def _grow(lineage: Lineage, pictures: Pictures, *, start: Start, engine: Engine, device: str | None) -> None:
    recipe = lineage.recipe
    interrupts = Interrupts(engine, recipe.training.epochs, resume_command(lineage.folder, device))
    if not engine.is_main:
        with interruptible(interrupts):
            for _ in evolve(recipe, pictures, start=start, device=device, watch=interrupts):
                pass
        return
    say(f"lineage {lineage.folder}: {_where(start)}")
    warn_of_changes(start, engine, lineage=lineage, device=device)
    with (
        _recorded_status(lineage),
        Keeper(lineage) as keeper,
        TrainingDisplay(recipe.generations) as display,
        interruptible(interrupts),
        # Here as well, so that the lineage records why it stopped.
        together(engine, lineage.folder, device),
    ):
        watch = Watches(display, keeper, interrupts)
        for generation in evolve(recipe, pictures, start=start, device=device, watch=watch):
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
        stopped = isinstance(error, KeyboardInterrupt)
        status = "interrupted" if stopped else STATUS.get(code, "failed")
        _try_to_record(lineage, status, str(error) or type(error).__name__)
        raise
    lineage.set_status("finished")


def _try_to_record(lineage: Lineage, status: str, reason: str) -> None:
    """Record why a training ended, unless what ended it (a full disk) forbids that too."""
    try:
        lineage.set_status(status)
        lineage.log("stopped", status=status, reason=reason)
    except KeMetricError as error:
        say(f"the status '{status}' was not recorded: {error}", style="yellow")
