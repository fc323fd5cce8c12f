"""A resumed lineage equals an uninterrupted one, bit for bit, whatever interrupted it and whenever."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ke_metric.errors import ExitCode
from ke_metric.recipe.file import load_recipe

RECIPE = """
generations: 2
keep: all
data: {benchmark: folder, image_size: 32, store_size: 32}
augmentation: {flip: 0.5, brightness: 0.2, contrast: 0.2}
network: {embedding_size: 8}
loss: {name: ProxyAnchorLoss, learning_rate_factor: 10}
batches: {size: 8, images_per_class: 2}
training: {epochs: 3, warmup_epochs: 1}
evaluation: {resize: 32, recall_at: [1, 2], kmeans_seeds: 1}
"""
# What must come back from disk as it was: running means and two moments; what dropout draws, a momentum and a memory
# of earlier batches. Both have parameters of the loss besides.
MEMORY = (
    "{name: MultipleLosses, arguments: {losses: "
    "[{name: ProxyAnchorLoss}, {name: CrossBatchMemory, memory_size: 20, loss: {name: ContrastiveLoss}}]}}"
)
KINDS = {
    "batch norm and AdamW": ["network.backbone=timm/test_resnet", "optimizer={name: adamw, learning_rate: 1e-3}"],
    "averaged weights": [
        "network.backbone=timm/test_resnet",
        "optimizer={name: adamw, learning_rate: 1e-3}",
        "training.average=0.9",
        "method.inherit_average=false",
        "augmentation.policy=trivial_augment_wide",
        "augmentation.hue=0.1",
        "augmentation.blur=0.5",
    ],
    "mixed pictures": [
        "task=classification",
        "network={backbone: timm/test_resnet}",
        "loss={name: CrossEntropyLoss}",
        "augmentation.mixup=0.4",
        "augmentation.cutmix=1",
        "augmentation.policy=rand_augment",
        "augmentation.erasing=0.5",
    ],
    "patience": [
        "network.backbone=timm/test_resnet",
        "optimizer={name: adamw, learning_rate: 1e-3}",
        "data.validation_fraction=0.3",
        "training.patience=2",
    ],
    "dropout and SGD": [
        "network.backbone=squeezenet1_1",
        "optimizer={name: sgd, learning_rate: 1e-2}",
        f"loss={MEMORY}",
    ],
}
ONE_KIND = pytest.mark.parametrize("recipe", ["batch norm and AdamW"], indirect=True)
EVERY_KIND = pytest.mark.parametrize("recipe", KINDS, indirect=True)
# Imports once what takes seconds, and forks a process for every command. A process that is to be stopped does it
# itself: before it renames something to a certain place, or some changes to the disk later.
LAUNCHER = """
import json, os, resource, sys
import timm
import ke_metric.cli.train
from ke_metric.cli import main, recording

# Every epoch's state is written, also where the disk is slow for a moment: which ones are is another test's matter.
recording.SLOW_SECONDS = 3600

def stop_at(place, later, number):
    left = None
    def hook(event, arguments):
        nonlocal left
        if event == "os.rename" and str(arguments[1]).endswith(place):
            left = later
        elif left is not None and event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            left -= 1
        if left == 0:
            left = -1
            os.kill(os.getpid(), number)
    sys.addaudithook(hook)

print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    process = os.fork()
    if process == 0:
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if order["largest_file"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"],) * 2)
        if order["stop"]:
            stop_at(*order["stop"])
        main(order["arguments"], prog_name="ke-metric")
    print(process, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""
WRITER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1] + "/.lock"):
    print(flush=True)
    sys.stdin.read()
"""
FIRST_EPOCH = "in-progress/generation-001-epoch-00001"
SECOND_EPOCH = "in-progress/generation-001-epoch-00002"
FIRST_GENERATION = "lineage/generation-001"
LATER_EPOCH = "in-progress/generation-002-epoch-00002"
LAST_GENERATION = "lineage/generation-002"


class Launcher:
    """Runs `ke-metric` in processes of their own that can be killed."""

    def __init__(self, folder):
        self._output = folder / "output.txt"
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout.readline() == "ready\n"

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def run(self, arguments, *, stop=None, kill_after=None, largest_file=None):
        """Run a command and return exit code and output.

        Args:
            arguments: Of `ke-metric`.
            stop: Place, number of changes to the disk after something was renamed to it, and signal.
            kill_after: Seconds.
            largest_file: Bytes from where on the operating system refuses to write.
        """
        order = {"arguments": arguments, "output": str(self._output), "stop": stop, "largest_file": largest_file}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        process = int(self._process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(process, signal.SIGKILL)
        # Only now may the launcher take notice of its end: until then nobody else gets its number.
        print("wait", file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        return code, self._output.read_text()


class Training:
    """The training of one lineage in the tests' folder."""

    def __init__(self, launcher, recipe, folder):
        self.launcher, self.recipe, self.folder = launcher, recipe, folder

    def go(self, *options, **how):
        arguments = ["train", str(self.recipe), "--lineage", str(self.folder), *options]
        return self.launcher.run(arguments, **how)

    def go_on(self, **how):
        """Resume, or begin where nothing was written yet."""
        return self.go(*(["--resume"] if self.folder.exists() else []), **how)

    def finish(self):
        """Train what is left, if anything is, and return the results."""
        if not (self.folder.parent / LAST_GENERATION).exists():
            code, output = self.go_on()
            assert code == 0, output
        return results(self.folder)

    @property
    def status(self):
        """What lineage.json says; None before there is a lineage."""
        facts = self.folder / "lineage.json"
        return json.loads(facts.read_text())["status"] if facts.exists() else None


def results(folder):
    """Everything in a finished lineage but how long it took, and the state of our source at that moment."""
    found = {"untrained.json": (folder / "untrained.json").read_bytes()}
    for generation in sorted(folder.glob("generation-*")):
        for path in sorted(generation.iterdir()):
            name = f"{generation.name}/{path.name}"
            if path.name == "training.jsonl":
                no_seconds = {"seconds": 0, "validation_seconds": 0}
                found[name] = [json.loads(line) | no_seconds for line in path.read_text().splitlines()]
            elif path.name == "provenance.json":
                found[name] = json.loads(path.read_text()) | {"seconds": 0, "environment": 0}
            else:
                found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    launcher = Launcher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, request):
    """A recipe for pictures of 16 classes: 4 each of one colour, with noise."""
    folder = tmp_path_factory.mktemp("recipe")
    generator = np.random.default_rng(0)
    for number in range(16):
        (folder / "images" / f"class_{number}").mkdir(parents=True)
        colour = generator.integers(0, 256, 3)
        for picture in range(4):
            pixels = (colour + generator.normal(0, 40, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"class_{number}" / f"{picture}.png")
    (folder / "tiny.yaml").write_text(RECIPE)
    overrides = (f"data.root={folder / 'images'}", *KINDS[request.param])
    (folder / "complete.yaml").write_text(load_recipe(folder / "tiny.yaml", overrides).to_yaml())
    return folder / "complete.yaml"


@pytest.fixture(scope="module")
def uninterrupted(launcher, recipe, tmp_path_factory):
    """A lineage that nothing interrupted, and the seconds it took."""
    training = Training(launcher, recipe, tmp_path_factory.mktemp("uninterrupted") / "lineage")
    started = time.monotonic()
    training.finish()
    return training, time.monotonic() - started


@pytest.fixture
def training(launcher, recipe, tmp_path):
    return Training(launcher, recipe, tmp_path / "lineage")


@pytest.fixture
def expected(uninterrupted):
    return results(uninterrupted[0].folder)


@EVERY_KIND
def test_there_is_something_to_compare(expected, recipe):
    # Of a classification, the loss has no parameters.
    new = ["weights.safetensors", "scorecard.json", *["loss.safetensors"] * (load_recipe(recipe).task == "retrieval")]
    for number in (1, 2):
        for name in (*new, "split.json", "training.jsonl"):
            assert expected[f"generation-00{number}/{name}"]
    for name in new:
        assert expected[f"generation-001/{name}"] != expected[f"generation-002/{name}"]


@EVERY_KIND
def test_killed_again_and_again(training, expected):
    """Just before and just after a state or a generation appears; resumed after each."""
    for place, later in (
        (FIRST_EPOCH, 0),
        (SECOND_EPOCH, 1),
        (FIRST_GENERATION, 0),
        (FIRST_GENERATION, 1),
        (LATER_EPOCH, 1),
        (LAST_GENERATION, 0),
    ):
        code, output = training.go_on(stop=(place, later, signal.SIGKILL))
        assert code == -signal.SIGKILL, output
        assert training.status == "running"
    assert training.finish() == expected
    assert training.status == "finished"
    assert not (training.folder / "in-progress").exists()


@ONE_KIND
def test_killed_at_a_random_moment(training, uninterrupted, expected):
    after = random.Random().uniform(0, 1) * uninterrupted[1]
    code, output = training.go(kill_after=after)
    assert code in (0, -signal.SIGKILL), output
    assert training.finish() == expected, f"killed after {after} of {uninterrupted[1]} seconds"


@ONE_KIND
def test_an_interrupt_saves_and_says_how_to_go_on(training, expected, launcher):
    code, output = training.go(stop=(SECOND_EPOCH, 1, signal.SIGINT))
    assert code == ExitCode.INTERRUPTED, output
    assert "SIGINT: finishing the step" in output
    assert "interrupted in generation 1, epoch 3" in output
    assert training.status == "interrupted"
    command = shlex.split(output.partition("Go on with: ")[2].splitlines()[0])
    assert command[0] == "ke-metric"
    code, output = launcher.run(command[1:])
    assert code == 0, output
    assert "training from generation 1, epoch 2 of it finished" in output
    assert results(training.folder) == expected


@ONE_KIND
def test_a_full_disk_stops_with_its_own_exit_code_and_costs_an_epoch_at_most(training, expected):
    training.go(stop=(FIRST_EPOCH, 1, signal.SIGKILL))
    code, output = training.go_on(largest_file=1_000_000)
    assert code == ExitCode.ENVIRONMENT, output
    assert "cannot be written: File too large" in output
    assert "--resume" in output
    assert (training.folder / FIRST_EPOCH).exists()
    assert training.status == "failed"
    assert training.finish() == expected


@ONE_KIND
def test_the_resolved_recipe_gives_the_same_lineage(launcher, uninterrupted, expected, tmp_path):
    resolved = uninterrupted[0].folder / "recipe.resolved.yaml"
    assert Training(launcher, resolved, tmp_path / "lineage").finish() == expected


@ONE_KIND
def test_a_second_writer_is_refused(training, launcher, uninterrupted):
    """While one process trains, another one that resumes or replaces the lineage is sent away."""
    shutil.copytree(uninterrupted[0].folder, training.folder)
    command = [sys.executable, "-c", WRITER, str(training.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        for options in (["--resume", "--set", "generations=3"], ["--overwrite"]):
            code, output = training.go(*options)
            assert code == ExitCode.LINEAGE, output
            assert "another process is writing this lineage" in output
        writer.kill()


@pytest.mark.slow
@EVERY_KIND
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_random_moments_until_it_is_finished(training, uninterrupted, expected, seed):
    draw = random.Random(seed)
    for _ in range(3):
        code, output = training.go_on(kill_after=draw.uniform(0, 1) * uninterrupted[1])
        assert code in (0, -signal.SIGKILL, ExitCode.LINEAGE), output
    assert training.finish() == expected
