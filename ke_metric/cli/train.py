"""`ke-metric train --dry-run`: build everything, try one real batch, write nothing.

`ke-metric train`: load, open the lineage, grow it, store every generation.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli.display import Outcome, counting, resume_command, say, say_skipped
from ke_metric.cli.processes import Processes, together
from ke_metric.cli.recording import (
    Interrupts,
    LineageRecorder,
    interruptible,
    warn_of_changes,
)
from ke_metric.cli.training_display import TrainingDisplay
from ke_metric.datasets.problems import require_scorable
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evolution import STARTING_WEIGHTS, LineageTraining, Start
from ke_metric.generation import rate_text
from ke_metric.images.batches import first_pictures, repeated_pictures
from ke_metric.images.image_set import Benchmark
from ke_metric.images.kept_stores import KeptStores
from ke_metric.images.pixel_store import Pictures, fingerprint
from ke_metric.lineage.beginning import require_room
from ke_metric.lineage.comparison import told_rules
from ke_metric.lineage.report import (
    idle_steps,
    mistakes_table,
    scorecard_document,
    scorecards_table,
    untrained_document,
)
from ke_metric.lineage.store import Lineage, default_folder
from ke_metric.networks.starting_weights import file_digest, is_there, require_same
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.network_choice import further_rates
from ke_metric.scoring import count_parameters
from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.plan import SplitPlan
from ke_metric.training.allocator import keep_freed_memory
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObservers
from ke_metric.training.one_generation import GenerationTraining

# Optimizer state per network weight, in weights.
MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2}
BYTES_PER_WEIGHT = 4


def dry_run(recipe: Recipe, *, device: str | None, folder: Path | None) -> Outcome:
    """Do everything `train` does up to the second optimizer step, and report what it would take.

    Raises:
        KeMetricError: A file, a field of the recipe or a part of the environment that the first step or the scoring
            needs is wrong. Only the pictures of the first batch are decoded: `ke-metric data check` looks at all.
    """
    benchmark = load_benchmark(recipe.data, recipe.task)
    for kind, paths in benchmark.skipped.items():
        say_skipped(kind, paths)
    require_scorable(benchmark)
    engine = Engine(recipe.training.precision, device)
    lineage_training = LineageTraining(recipe, Pictures.undecoded(benchmark), engine)
    inheritance = lineage_training.inheritance(1, None)
    training = lineage_training.assemble(inheritance)
    backend = lineage_training.search_backend()
    pictures, batches = first_pictures(benchmark, recipe)
    training.epochs = replace(lineage_training, pictures=pictures).epochs(1)
    repeated, start = repeated_pictures(benchmark, recipe), lineage_training.networks.starting_weights()
    value, seconds = _try(training, batches)
    document: dict[str, Any] = {
        "lineage": str(folder or default_folder(recipe)),
        **_count_images(benchmark),
        "batches_per_epoch": batches,
        **({"repeated_pictures": repeated} if repeated and recipe.task == "retrieval" else {}),
        **_count_parameters(training, inheritance.plan),
        **_count_narrow(training, lineage_training.narrow_plans(1, None), inheritance.plan),
        **({STARTING_WEIGHTS: start.describe()} if start else {}),
        "expected_disk_bytes": expected_disk(training) + recipe.generations * kept_vectors(recipe, benchmark),
        **({"kept_vectors_bytes": kept_vectors(recipe, benchmark)} if recipe.evaluation.keep_vectors else {}),
        "first_loss": value,
        "seconds_per_step": round(seconds, 4),
        "estimated_training_seconds": round(seconds * batches * recipe.training.epochs * recipe.generations),
        **engine.describe(),
        **({"search_backend": backend} if backend else {}),
    }
    return Outcome(document, Group(*([start.told] if start else []), _table(document)))


def _try(training: GenerationTraining, batches: int) -> tuple[float, float]:
    """Take two steps on the first batch; return the first one's loss and the second one's seconds."""
    training.begin_training()
    batch = next(training.epochs.epoch(1))
    first = training.heard(training.take_step(0, batch))
    started = time.perf_counter()
    training.heard(training.take_step(min(1, batches - 1), batch))
    return first.loss, time.perf_counter() - started


def _count_images(benchmark: Benchmark) -> dict[str, Any]:
    parts = {"train": benchmark.train, "query": benchmark.query, "gallery": benchmark.gallery}
    if benchmark.validation is not None:
        parts["validation"] = benchmark.validation
    return {name: {"images": len(images), "classes": len(images.class_names)} for name, images in parts.items()}


def _count_parameters(training: GenerationTraining, plan: SplitPlan) -> dict[str, int]:
    total = count_parameters(training.network)
    counts = {
        "parameters": total,
        "parameters_fit": total - plan.reset_count,
        "parameters_reset": plan.reset_count,
        "parameters_loss": count_parameters(training.loss),
    }
    if training.recipe.trains_slim(1) or plan.kind != "kels":
        return counts
    return counts | {"parameters_slim": count_parameters(extract_slim(training.network, plan))}


def _count_narrow(training: GenerationTraining, plans: Mapping[str, SplitPlan], own: SplitPlan) -> dict[str, int]:
    """Return the parameters of the slim networks of further rates."""
    return {
        f"parameters_slim_{rate}": count_parameters(extract_slim(training.network, plan))
        for rate, plan in plans.items()
        if rate != rate_text(own.rate)
    }


def expected_disk(training: GenerationTraining, *, kept: int | None = None) -> int:
    """Return the most bytes a lineage will hold: kept weights, and two resume states while one is written.

    Args:
        training: Of its first generation.
        kept: Generations that are kept; as many as the recipe keeps when left out.
    """
    recipe, weights = training.recipe, count_parameters(training.network) + count_parameters(training.loss)
    kept = kept or {"last": 2, "best": 3, "all": recipe.generations}[recipe.keep]
    section = recipe.training
    copies = 1 + bool(section.averages) + (section.patience is not None)
    states = 2 * (copies + MOMENTS[recipe.optimizer.name])
    # An average that a child does not inherit has the last weights beside it.
    return BYTES_PER_WEIGHT * weights * (kept * (2 - recipe.method.inherit_average) + states)


def kept_vectors(recipe: Recipe, benchmark: Benchmark) -> int:
    """Return the bytes of the vectors that every generation keeps; 0 where the recipe keeps none."""
    if not recipe.evaluation.keep_vectors:
        return 0
    networks = 1 + (1 + len(further_rates(recipe, 1)) if recipe.has_slim else 0)
    classifies = recipe.task == "classification"
    pictures = len(benchmark.query) + (0 if benchmark.leave_one_out or classifies else len(benchmark.gallery))
    length = len(benchmark.train.class_names) if classifies else recipe.network.embedding_size
    return BYTES_PER_WEIGHT * networks * pictures * length


def _table(document: dict[str, Any]) -> Table:
    title = "dry run: nothing was written; pictures beyond the first batch were not decoded (ke-metric data check)"
    table = Table(show_header=False, title=title, title_justify="left")
    for name, value in document.items():
        if name == STARTING_WEIGHTS:
            continue
        table.add_row(name.removesuffix("_bytes").replace("_", " "), _shown(name, value))
    return table


def _shown(name: str, value: Any) -> str:
    if name == "repeated_pictures":
        return (
            f"{value['classes']:,} classes have fewer images than batches.images_per_class: {value['self_pairs']:,} "
            f"of {value['positive_pairs']:,} positive pairs of an epoch are a picture and itself"
        )
    if isinstance(value, dict):
        return f"{value['images']:,} images, {value['classes']:,} classes"
    if name == "expected_disk_bytes":
        return f"{value / 1e6:,.0f} MB at most"
    if name == "kept_vectors_bytes":
        return f"{value / 1e6:,.1f} MB with every generation"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


STATUS = {ExitCode.DIVERGED: "diverged", ExitCode.INTERRUPTED: "interrupted"}


def train_lineage(
    recipe: Recipe, *, text: str, folder: Path | None, device: str | None, resume: bool, overwrite: bool
) -> Outcome:
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
    if engine.device.type == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        processes = stack.enter_context(together(engine, folder, device))
        start = Start()
        if resume:
            recipe = _require_unfinished(Lineage(folder), recipe)
            if engine.is_main:
                stack.enter_context(Lineage(folder).writing())
            start = _start(Lineage(folder))
        elif engine.is_main:
            require_room(folder, overwrite=overwrite)
        training = _decoded(_checked_training(recipe, engine, folder, start=start, resume=resume))
        data = training.pictures.fingerprint
        if resume and (unchecked := Lineage(folder).require_data(data)):
            say(f"warning: {unchecked}", style="yellow")
        if engine.is_main:
            if resume:
                Lineage(folder).continue_with(recipe)
            else:
                stack.enter_context(_create(folder, recipe, text, overwrite).writing())
            Lineage(folder).record_data(data)
            if recipe.network.weights is not None and not resume:
                Lineage(folder).record_starting_weights(file_digest(recipe.network.weights))
        engine.wait()
        lineage = Lineage(folder)
        _grow(lineage, training, processes, start=start, device=device)
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
    if engine.is_main:
        _say_what_is_next(lineage)
    return Outcome(
        document, Group(table, *_idle_lines(idle), *told_rules([lineage]).values(), mistakes_table(last, cards[last]))
    )


def _say_what_is_next(lineage: Lineage) -> None:
    folder = shlex.quote(str(lineage.folder))
    say(f"look at it: ke-metric report {folder}")
    if lineage.recipe.task == "retrieval":
        say(f"            ke-metric explore --lineage {folder}")


def _idle_lines(idle: Mapping[int, Mapping[str, int]]) -> Iterator[str]:
    for number, counts in idle.items():
        if counts:
            yield (
                f"generation {number}: {counts['idle_steps']:,} of {counts['steps']:,} steps had loss 0 or no tuples"
            )


def _checked_training(recipe: Recipe, engine: Engine, folder: Path, *, start: Start, resume: bool) -> LineageTraining:
    """Load the benchmark and find out whatever recipe, labels and folder can tell before the pictures are decoded.

    Raises:
        KeMetricError: Whatever would end the training before its first step, or after its last.
    """
    benchmark = load_benchmark(recipe.data, recipe.task)
    for kind, paths in benchmark.skipped.items():
        say_skipped(kind, paths)
    if resume:
        Lineage(folder).require_data(fingerprint(benchmark))
        _require_same_start(Lineage(folder), recipe)
    training = LineageTraining(recipe, Pictures.undecoded(benchmark), engine)
    if start.parent or start.state:
        _warn_of_refusals(Lineage(folder), training.require_resumable(start), engine)
        return training
    require_scorable(benchmark)
    begun, first = training.require_buildable()
    if (kept := kept_vectors(recipe, benchmark)) and engine.is_main:
        say(f"keeping {kept / 1e6:,.1f} MB of vectors with every generation (evaluation.keep_vectors)")
    if not resume and engine.is_main and not folder.exists():
        _require_space(folder, expected_disk(first, kept=1))
    return replace(training, begun=begun)


def _require_same_start(lineage: Lineage, recipe: Recipe) -> None:
    """Refuse a file of starting weights that has changed; one that is gone is missed by who reads it."""
    name, before = recipe.network.weights, lineage.starting_weights
    if name is None or before is None:
        return
    if is_there(name):
        require_same(name, file_digest(name), before, f"{lineage.folder} was begun")
    elif lineage.numbers and not recipe.method.looks_back:
        say(f"network.weights = {name!r} is not there any more; nothing that is left to do reads it")


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


def _decoded(training: LineageTraining) -> LineageTraining:
    benchmark, data = training.pictures.benchmark, training.recipe.data
    build = KeptStores.of_environment(say).store
    with counting(f"decoding {benchmark.name}") as progress:
        pictures = Pictures.decode(
            benchmark, data.store_size, store_shape=data.store_shape, progress=progress, build=build
        )
    return replace(training, pictures=pictures)


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
    why_not = recipe.method.why_not_longer
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


def _grow(
    lineage: Lineage, training: LineageTraining, processes: Processes, *, start: Start, device: str | None
) -> None:
    recipe, engine = training.recipe, training.engine
    interrupts = Interrupts(engine, recipe.training.epochs, resume_command(lineage.folder, device))
    if not engine.is_main:
        with interruptible(interrupts):
            for _ in training.evolve(start, interrupts):
                pass
        return
    say(f"lineage {lineage.folder}: {_where(start)}")
    warn_of_changes(start, engine, lineage=lineage, device=device)
    processes.record = lambda code, reason: _try_to_record(lineage, STATUS.get(code, "failed"), reason)
    with (
        _recorded_status(lineage),
        LineageRecorder(lineage) as recorder,
        TrainingDisplay(recipe.generations) as display,
        interruptible(interrupts),
        # Here as well, so that the lineage records why it stopped.
        processes.lost_in_words(),
    ):
        observer = TrainingObservers(display, recorder, interrupts)
        for generation in training.evolve(start, observer):
            recorder.store(generation)
            display.generation_done(generation)
        say(display.own_work(recorder.saving_seconds))


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
