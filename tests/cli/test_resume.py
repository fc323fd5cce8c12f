"""A training that goes on otherwise than it was trained before says so, and how it would go on as before."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ke_metric.cli import main
from ke_metric.cli.display import resume_command
from ke_metric.cli.recording import Interrupts
from ke_metric.errors import ExitCode
from ke_metric.generation import epochs_by_engine
from ke_metric.lineage.store import Lineage

TINY = """
generations: 1
data: {benchmark: folder, image_size: 32, store_size: 32}
network: {backbone: timm/test_resnet, embedding_size: 8}
loss: {name: ProxyAnchorLoss}
batches: {size: 8, images_per_class: 2}
training: {epochs: 2, precision: fp32}
evaluation: {resize: 32, recall_at: [1], kmeans_seeds: 1}
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A lineage with one epoch of generation 1."""
    tmp_path = tmp_path_factory.mktemp("begun")
    for number in range(8):
        for picture in range(2):
            path = tmp_path / "images" / str(number) / f"{picture}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(10 * number + picture).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    (tmp_path / "tiny.yaml").write_text(TINY)

    def stop(self, state):
        raise self._interrupted(state.number, state.epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interrupts, "epoch_done", stop)
        arguments = ("--set", f"data.root={tmp_path / 'images'}", "--lineage", tmp_path / "l")
        result = run("train", tmp_path / "tiny.yaml", *arguments)
    assert result.exit_code == ExitCode.INTERRUPTED, result.output
    return tmp_path / "l"


@pytest.fixture
def interrupted(begun, tmp_path):
    """A copy of it."""
    return shutil.copytree(begun, tmp_path / "l")


def trained_by(folder, processes):
    """Make it a training by other processes, as far as its records say."""
    (path,) = (folder / "in-progress").glob("*/state.json")
    facts = json.loads(path.read_text())
    assert facts["training_log"][0].pop("processes") == 1
    if processes is not None:
        facts["training_log"][0]["processes"] = processes
    path.write_text(json.dumps(facts))


def test_another_number_of_processes_is_warned_of_and_recorded(interrupted):
    trained_by(interrupted, 2)
    result = run("train", interrupted / "recipe.resolved.yaml", "--lineage", interrupted, "--resume")
    assert result.exit_code == 0, result.output
    told = result.stderr
    assert "warning: trained by 2 processes so far, goes on with 1 process: a batch of 8 pictures" in told
    assert "batch norm, where the network has it, goes by 8 pictures instead of 4" in told
    again = f"torchrun --standalone --nproc_per_node 2 -m ke_metric.cli train {interrupted / 'recipe.resolved.yaml'}"
    assert f"goes on with: {again} --lineage {interrupted} --resume" in told
    log = [json.loads(line) for line in (interrupted / "generation-001" / "training.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["processes"]) for record in log] == [(1, 2), (2, 1)]
    facts = json.loads((interrupted / "generation-001" / "provenance.json").read_text())["training"]
    assert facts["epochs"] == [
        {"first": 1, "last": 1, "processes": 2, "precision": "fp32"},
        {"first": 2, "last": 2, "processes": 1, "precision": "fp32"},
    ]
    events = [json.loads(line) for line in (interrupted / "log.jsonl").read_text().splitlines()]
    assert any(event["event"] == "warning" and "trained by 2 processes" in event["text"] for event in events)
    # The first number that a reader compares with was kept over the interruption.
    assert Lineage(interrupted).untrained is not None


@pytest.mark.parametrize("processes", [1, None])
def test_the_same_number_and_an_old_record_are_no_news(interrupted, processes):
    trained_by(interrupted, processes)
    result = run("train", interrupted / "recipe.resolved.yaml", "--lineage", interrupted, "--resume")
    assert result.exit_code == 0, result.output
    assert "so far, goes on" not in result.stderr


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, "ke-metric"),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, "ke-metric"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, "torchrun --standalone --nproc_per_node 4 -m ke_metric.cli"),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "5"},
            "torchrun --nproc_per_node 2 --nnodes 2 --node_rank 0 --master_addr a --master_port 5 -m ke_metric.cli",
        ),
    ],
)
def test_the_whole_command_goes_on(environment, launcher, tmp_path, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = resume_command(tmp_path, "cpu")
    rest = f"train {tmp_path / 'recipe.resolved.yaml'} --lineage {tmp_path} --resume --device cpu"
    assert command == f"{launcher} {rest}"


def test_stretches_of_epochs():
    def log(*rows):
        return [{"epoch": number, **row} for number, row in enumerate(rows, start=1)]

    two, one = {"processes": 2, "precision": "bf16"}, {"processes": 1, "precision": "bf16"}
    assert epochs_by_engine([]) == []
    assert epochs_by_engine(log({}, {}, two, two, one, two)) == [
        {"first": 1, "last": 2},
        {"first": 3, "last": 4, **two},
        {"first": 5, "last": 5, **one},
        {"first": 6, "last": 6, **two},
    ]
