"""One of two processes is killed: the other one says so and how to go on, and the command that it prints goes on."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ke_metric.errors import ExitCode

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "training" / "two_process_training.py"
TINY = """
generations: 1
data: {benchmark: glyphs, train_classes: 8, test_classes: 4, image_size: 32, store_size: 32}
network: {backbone: timm/test_resnet, embedding_size: 8}
loss: {name: ProxyAnchorLoss}
batches: {size: 8, images_per_class: 2}
training: {epochs: 2, precision: fp32}
evaluation: {resize: 32, recall_at: [1], kmeans_seeds: 1}
"""


def start(rank, port, arguments, folder):
    environment = {
        **os.environ,
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT), "DIES_AT": "14",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, PROGRAM, *arguments], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_process_ends_in_words_and_its_command_goes_on(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [start(rank, port, ["train", "tiny.yaml", "--lineage", "l"], tmp_path) for rank in (0, 1)]
    told = processes[0].communicate(timeout=300)[1]
    processes[1].communicate(timeout=60)
    assert processes[0].returncode == ExitCode.ENVIRONMENT, told
    assert processes[1].returncode < 0
    assert "another process of this training has gone" in told
    assert "Traceback" not in told
    assert json.loads((tmp_path / "l" / "lineage.json").read_text())["status"] == "failed"
    command = shlex.split(told.partition("Go on with: ")[2].splitlines()[0])
    assert command[:4] == ["torchrun", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command[1:]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "so far, goes on" not in done.stderr
    facts = json.loads((tmp_path / "l" / "generation-001" / "provenance.json").read_text())["training"]
    assert facts["epochs"] == [{"first": 1, "last": 2, "processes": 2, "precision": "fp32"}]
