"""A training by several processes: when one ends before its time all end, one says why, and the training goes on.

The processes are started by hand, so that nobody but themselves can end them.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ke_metric.errors import ExitCode

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "training" / "faulty_training.py"
TINY = """
generations: 1
data: {benchmark: glyphs, train_classes: 8, test_classes: 4, image_size: 32, store_size: 32}
network: {backbone: timm/test_resnet, embedding_size: 8}
loss: {name: ProxyAnchorLoss}
batches: {size: 8, images_per_class: 2}
training: {epochs: 2, precision: fp32}
evaluation: {resize: 32, recall_at: [1], kmeans_seeds: 1}
"""
STEPS = 12
"""Steps of an epoch."""
MIXED = (
    "task=classification",
    "data.test_classes=null",
    "network.embedding_size=128",
    "loss={name: CrossEntropyLoss}",
    "batches.size=4",
    "augmentation={mixup: 0.4, cutmix: 1, erasing: 0.5, policy: rand_augment, hue: 0.1, blur: 0.5}",
    "training.average=0.9",
)
"""Of which an epoch has one step more. Every partner is of the other process's share."""
KILLED = -9
GONE = "another process of this training has gone"
BROKEN = "a picture that process alone has seen is broken"
# Seconds within which all processes end after the first one.
END_WITHIN = 30


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT), **more}


def start(rank, count, port, folder, arguments, **more):
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, PROGRAM, "train", *arguments],
        cwd=folder, env=environment(**shared, **own, **more), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def train(folder, count=2, arguments=("tiny.yaml", "--lineage", "l"), **more):
    """Train by processes; return each one's exit code and what it said, and the seconds from the first end to all."""
    (folder / "tiny.yaml").write_text(TINY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [start(rank, count, port, folder, arguments, **more) for rank in range(count)]
    try:
        while all(process.poll() is None for process in processes):
            time.sleep(0.1)
        ended = time.monotonic()
        told = [process.communicate(timeout=2 * END_WITHIN)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], told, time.monotonic() - ended


def resume(folder):
    command = [sys.executable, PROGRAM, "train", "l/recipe.resolved.yaml", "--lineage", "l", "--resume"]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def status(folder):
    return json.loads((folder / "l" / "lineage.json").read_text())["status"]


def assert_ended_in_words(folder, codes, told, seconds, *, killed):
    survivor = 1 - killed
    assert codes[killed] == KILLED, told
    assert codes[survivor] == ExitCode.ENVIRONMENT, told
    assert seconds < END_WITHIN
    assert told[survivor].count(GONE) == 1
    assert "Traceback" not in told[survivor]
    # The first process keeps the lineage's record, and cannot after its own death.
    assert status(folder) == ("failed" if killed == 1 else "running")


def test_a_process_killed_in_training_ends_the_other_and_its_command_goes_on(tmp_path):
    found = train(tmp_path, FAULT="1:step:die", STEP=str(STEPS + 2))
    assert_ended_in_words(tmp_path, *found, killed=1)
    command = shlex.split(found[1][0].partition("Go on with: ")[2].splitlines()[0])
    assert command[:4] == ["torchrun", "--standalone", "--nproc_per_node", "2"]
    assert (tmp_path / "l" / "in-progress").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "killed"), [("step", 0), ("step", 1), ("scoring", 0), ("scoring", 1), ("saving", 0)]
)
def test_a_process_killed_anywhere_ends_the_other_and_leaves_a_lineage_that_goes_on(where, killed, tmp_path):
    """Scored by the first process alone for a minute, which waits for nobody meanwhile."""
    found = train(tmp_path, FAULT=f"{killed}:{where}:die", STEP=str(STEPS + 2), SLOW="60")
    assert_ended_in_words(tmp_path, *found, killed=killed)
    done = resume(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trained by 2 processes so far, goes on with 1 process" in done.stderr
    assert status(tmp_path) == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("where", ["decoding", "step"])
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_process_is_said_once_and_is_the_end_of_all(where, failing, tmp_path):
    codes, told, seconds = train(tmp_path, FAULT=f"{failing}:{where}:fail", STEP=str(STEPS + 2))
    assert codes == [ExitCode.DATA, ExitCode.DATA], told
    assert seconds < END_WITHIN
    assert [text.count(BROKEN) for text in told] == [1, 0]
    assert GONE not in "".join(told)


@pytest.mark.slow
def test_the_command_that_is_named_goes_on_with_as_many_processes(tmp_path):
    found = train(tmp_path, FAULT="1:step:die", STEP=str(STEPS + 2))
    command = shlex.split(found[1][0].partition("Go on with: ")[2].splitlines()[0])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command[1:]],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "so far, goes on" not in done.stderr
    facts = json.loads((tmp_path / "l" / "generation-001" / "provenance.json").read_text())["training"]
    assert facts["epochs"] == [{"first": 1, "last": 2, "processes": 2, "precision": "fp32"}]


def under_torchrun(folder, *command, **more):
    """Run a program by two processes of torchrun."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command],
        cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_what_is_wrong_in_a_recipe_is_said_by_processes_that_have_not_joined(tmp_path):
    """By each of them that torchrun has not ended before."""
    (tmp_path / "tiny.yaml").write_text(TINY.replace("epochs: 2", "epochs: 2, wokers: 1"))
    done = under_torchrun(tmp_path, "-m", "ke_metric.cli", "train", "tiny.yaml")
    assert done.returncode == 1
    assert done.stderr.count("training.wokers") in {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_torchrun_lets_the_other_process_say_why_and_reports_its_exit_code(workers, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ("train", "tiny.yaml", "--lineage", "l", "--set", f"data.workers={workers}")
    done = under_torchrun(tmp_path, str(PROGRAM), *arguments, FAULT="1:step:die", STEP=str(STEPS + 2))
    assert done.returncode == 1
    assert done.stderr.count(GONE) == 1, done.stderr
    codes = {int(code) for code in re.findall(r"exitcode\s*: (-?\d+)", done.stderr)}
    assert codes == {KILLED, int(ExitCode.ENVIRONMENT)}, done.stderr
    assert status(tmp_path) == "failed"
    assert resume(tmp_path).returncode == 0
    assert status(tmp_path) == "finished"


@pytest.mark.slow
def test_what_is_wrong_for_the_second_process_alone_is_said_and_ends_the_first(tmp_path):
    """The second one is refused its precision after both have joined, as by a GPU of another kind."""
    codes, told, seconds = train(tmp_path, FAULT="1:precision:fail")
    assert codes == [ExitCode.ENVIRONMENT, ExitCode.DATA], told
    assert seconds < END_WITHIN
    assert [text.count(BROKEN) for text in told] == [0, 1]
    assert told[0].count(GONE) == 1
    assert "Traceback" not in "".join(told)


def resume_by(folder, count, **more):
    """Go on with so many processes, and return their exit codes and what the first one said."""
    codes, told, _ = train(folder, count, ("l/recipe.resolved.yaml", "--lineage", "l", "--resume"), **more)
    return codes, told[0]


def epochs_of(folder):
    facts = json.loads((folder / "l" / "generation-001" / "provenance.json").read_text())["training"]
    return [(part["first"], part["last"], part["processes"]) for part in facts["epochs"]]


@pytest.mark.slow
def test_a_training_goes_on_with_any_number_of_processes(tmp_path):
    begun = ("tiny.yaml", "--lineage", "l", "--set", "training.epochs=4")
    codes, *_ = train(tmp_path, 1, begun, FAULT="0:step:fail", STEP=str(STEPS))
    assert codes == [ExitCode.DATA]
    codes, told = resume_by(tmp_path, 2, FAULT="1:step:fail", STEP=str(2 * STEPS))
    assert codes == [ExitCode.DATA] * 2
    assert "trained by 1 process so far, goes on with 2 processes" in told
    codes, told = resume_by(tmp_path, 4, FAULT="3:step:die", STEP=str(3 * STEPS))
    assert codes == [ExitCode.ENVIRONMENT] * 3 + [KILLED], told
    assert "trained by 2 processes so far, goes on with 4 processes" in told
    codes, told = resume_by(tmp_path, 1)
    assert codes == [0], told
    assert "trained by 4 processes so far, goes on with 1 process" in told
    assert epochs_of(tmp_path) == [(1, 1, 1), (2, 2, 2), (3, 3, 4), (4, 4, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [(), ("training.average=0.9",), ("training.average_last=2",), MIXED])
def test_a_training_that_goes_on_with_as_many_processes_is_the_same_to_the_last_bit(changes, tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for folder in (stopped, whole):
        folder.mkdir()
    arguments = ("tiny.yaml", "--lineage", "l", *(word for change in changes for word in ("--set", change)))
    assert train(whole, arguments=arguments)[0] == [0, 0]
    train(stopped, arguments=arguments, FAULT="1:step:die", STEP=str(STEPS + 2))
    codes, told = resume_by(stopped, 2)
    assert codes == [0, 0], told
    weights = [folder / "l" / "generation-001" / "weights.safetensors" for folder in (stopped, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
