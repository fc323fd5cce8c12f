"""A lineage survives: whenever its writer is killed, wherever the disk is full, whoever else wants to write."""

import functools
import os
import resource
import shutil
import signal
import sys
import time

import pytest
import torch

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import Generation, Provenance, Scorecard, TrainingState
from ke_metric.lineage import beginning
from ke_metric.lineage.store import Lineage
from ke_metric.recipe.schema import Recipe

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def recipe(**fields):
    return Recipe.model_validate({"name": "x", "generations": 3, **fields})


def generation(number, recall=0.5, *, size=3):
    return Generation(
        number=number,
        weights={"w": torch.full((size,), float(number))},
        loss_weights={"proxies": torch.full((2,), float(-number))},
        split="{}",
        split_bits={},
        scorecard=Scorecard({} if recall is None else {"recall@1": recall, "recall@2": 1 - recall}, None, size, None),
        training_log=({"epoch": 1, "loss": 1.0},),
        magnitudes={"w": (float(number), None)},
        provenance=Provenance(
            "recipe", None if number == 1 else "parent", 0, environment={}, training={}, seconds={}
        ),
    )


def state(number, epoch, *, size=3):
    return TrainingState(
        number=number,
        epoch=epoch,
        weights={"w": torch.full((size,), float(epoch))},
        loss_weights={},
        optimizer={"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}, "scaler": {}},
        training_log=tuple({"epoch": done + 1} for done in range(epoch)),
        seconds=1.0,
    )


def begin(folder, *, overwrite=False, **fields):
    return Lineage.create(
        folder, recipe(**fields), text="generations: 3\n", command="ke-metric train", overwrite=overwrite
    )


def tree(folder):
    """Return every file and folder below, but for the lock, which only says that somebody has written here."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".lock")


def content(folder):
    return {name: (folder / name).read_bytes() for name in tree(folder) if (folder / name).is_file()}


def refused(exit_code, match):
    """Like pytest.raises, for an error with this exit code."""
    return pytest.raises(KeMetricError, match=match, check=lambda error: error.exit_code == exit_code)


def in_a_child(action, hook=None):
    """Run `action` in a forked process; return its exit code, or the signal that ended it as a negative number."""
    child = os.fork()
    if child == 0:
        code = int(ExitCode.UNEXPECTED)
        try:
            if hook:
                sys.addaudithook(hook)
            action()
            code = 0
        except KeMetricError as error:
            code = int(error.exit_code)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_change(step, happens):
    """Return an audit hook that calls `happens` instead of the `step`-th change to the disk, from 0."""
    left = step

    def hook(event, arguments):
        nonlocal left
        if event in CHANGES or (event == "open" and arguments[2] & WRITING):
            left -= 1
            if left == -1:
                happens()

    return hook


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run_out_of_space():
    raise OSError(28, "No space left on device")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A lineage with generation 1 and, of generation 2, one epoch."""
    folder = tmp_path_factory.mktemp("template") / "x-s0"
    lineage = begin(folder)
    with lineage.writing():
        lineage.append(generation(1))
        lineage.save_state(state(2, 1))
    return folder


@pytest.fixture
def copy(template, tmp_path):
    """Give a copy of it, in a folder of its own: `copy(name)`."""
    return lambda name: Lineage(shutil.copytree(template, tmp_path / str(name) / "x-s0"))


@pytest.fixture
def grown(copy):
    return copy("grown")


@pytest.fixture(autouse=True)
def _no_git(monkeypatch):
    """Asking git for the commit takes longer than all the rest."""
    monkeypatch.setattr(beginning, "describe_environment", dict)


# Whatever happens


def kill_everywhere(copy, action, check):
    """Kill `action` at its every change to the disk in turn, each time on a new copy, and `check` what is left."""
    codes = [-signal.SIGKILL]
    while codes[-1] == -signal.SIGKILL:
        step = len(codes) - 1
        lineage = copy(step)
        codes.append(in_a_child(functools.partial(action, lineage), at_change(step, die)))
        check(lineage.folder)
    assert codes[-1] == 0
    return step


def finish(lineage):
    """What a resume does with the lineage."""
    with lineage.writing():
        if lineage.numbers == [1]:
            lineage.append(generation(2))
        lineage.append(generation(3))


def finished_tree(copy):
    lineage = copy("uninterrupted")
    finish(lineage)
    return tree(lineage.folder.parent)


def test_a_kill_while_a_generation_is_stored_loses_nothing(copy):
    expected, outcomes = finished_tree(copy), set()

    def store(lineage):
        with lineage.writing():
            lineage.append(generation(2))

    def check(folder):
        lineage = Lineage(folder)
        outcomes.add(len(lineage.numbers))
        last = lineage.load(lineage.numbers[-1])
        assert last.weights["w"].tolist() == [last.number] * 3
        found = lineage.load_state()
        assert (found.number, found.epoch) == (2, 1) if lineage.numbers == [1] else found is None
        finish(lineage)
        assert tree(folder.parent) == expected

    assert kill_everywhere(copy, store, check) > 10
    assert outcomes == {1, 2}


def test_a_kill_while_a_state_is_saved_loses_an_epoch_at_most(copy):
    expected, outcomes = finished_tree(copy), set()

    def save(lineage):
        with lineage.writing():
            lineage.save_state(state(2, 2))

    def check(folder):
        lineage = Lineage(folder)
        found = lineage.load_state()
        outcomes.add(found.epoch)
        assert found.weights["w"].tolist() == [found.epoch] * 3
        with lineage.writing():
            lineage.save_state(state(2, found.epoch + 1))
        assert len(list((folder / "in-progress").iterdir())) == 1
        finish(lineage)
        assert tree(folder.parent) == expected

    assert kill_everywhere(copy, save, check) > 5
    assert outcomes == {1, 2}


def test_a_kill_while_a_lineage_is_replaced_leaves_the_old_or_the_new_or_none(copy):
    outcomes = set()

    def check(folder):
        seeds = Lineage(folder).recipe.seed if folder.exists() else None
        outcomes.add(seeds)
        if seeds == 0:
            assert Lineage(folder).load(1).number == 1
        begin(folder, overwrite=True, seed=4)
        assert tree(folder.parent) == ["x-s0", *(f"x-s0/{name}" for name in sorted(content(folder)))]

    def replace(lineage):
        begin(lineage.folder, overwrite=True, seed=4)

    assert kill_everywhere(copy, replace, check) > 10
    assert outcomes == {0, None, 4}


def test_a_kill_while_facts_are_written_leaves_the_old_or_the_new(copy):
    outcomes = set()

    def change(lineage):
        lineage.continue_with(recipe(generations=5))
        lineage.set_status("running")

    def check(folder):
        lineage = Lineage(folder)
        outcomes.add((lineage.facts["status"], lineage.recipe.generations))
        lineage.continue_with(recipe(generations=5))
        lineage.set_status("running")
        finish(lineage)
        assert lineage.facts["recipe_digest"] == recipe(generations=5).digest
        assert not [name for name in tree(folder.parent) if ".writing" in name]

    kill_everywhere(copy, change, check)
    assert outcomes == {("created", 3), ("created", 5), ("running", 5)}


@pytest.mark.parametrize("what", ["generation", "state"])
def test_on_a_full_disk_nothing_is_lost_and_nothing_is_left_behind(copy, what):
    """The disk is full at every change in turn."""
    expected, codes = finished_tree(copy), []

    def store(lineage):
        with lineage.writing():
            lineage.append(generation(2)) if what == "generation" else lineage.save_state(state(2, 2))

    while codes[-2:] != [0, 0]:
        lineage = copy(len(codes))
        before = content(lineage.folder)
        codes.append(in_a_child(functools.partial(store, lineage), at_change(len(codes), run_out_of_space)))
        assert codes[-1] in (0, ExitCode.ENVIRONMENT)
        assert not [name for name in tree(lineage.folder.parent) if ".writing" in name]
        complete = lineage.numbers == [1, 2] or lineage.load_state().epoch == 2
        assert complete or content(lineage.folder) == before
        finish(lineage)
        assert tree(lineage.folder.parent) == expected
    assert codes.count(ExitCode.ENVIRONMENT) > 5


@pytest.mark.parametrize("what", ["generation", "state"])
def test_a_file_too_large_for_the_system_is_an_error_of_the_environment(grown, what):
    """The real thing: the operating system refuses the write, not a stand-in."""
    before = content(grown.folder)

    def store():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with grown.writing():
            grown.append(generation(2, size=20_000)) if what == "generation" else grown.save_state(
                state(2, 2, size=20_000)
            )

    assert in_a_child(store) == ExitCode.ENVIRONMENT
    assert content(grown.folder) == before
    assert not [name for name in tree(grown.folder) if ".writing" in name]


# One writer


@pytest.fixture
def writer(grown):
    """Another process that writes, and has a worker of its own."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with grown.writing():
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            os.write(tell, f"{worker}\n".encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(ready, 20))
    yield child
    for process in (child, worker):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os.close(ready)
    os.close(tell)


def test_there_is_one_writer(grown, writer):
    def write():
        with grown.writing():
            pass

    for action in (write, lambda: begin(grown.folder), lambda: begin(grown.folder, overwrite=True)):
        with refused(ExitCode.LINEAGE, "x-s0: another process is writing this lineage"):
            action()
    assert grown.load(1).number == 1
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    with grown.writing():
        grown.append(generation(2))


def test_the_lock_is_free_after_an_error(grown):
    def fail():
        with grown.writing():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with grown.writing():
        pass


def test_an_error_inside_is_not_taken_for_a_busy_lineage(grown):
    def time_out():
        with grown.writing():
            raise TimeoutError("of something else")

    with pytest.raises(TimeoutError, match="of something else"):
        time_out()


def test_where_nothing_can_be_written_there_is_no_lock(grown):
    (grown.folder / ".lock").unlink(missing_ok=True)
    (grown.folder / ".lock").mkdir()

    def write():
        with grown.writing():
            pass

    with refused(ExitCode.ENVIRONMENT, r"\.lock: cannot be written: Is a directory"):
        write()
