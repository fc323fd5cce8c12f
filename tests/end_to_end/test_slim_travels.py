"""A slim network grown by the real command gives the same bits in a process that never saw training code."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ke_metric import Lineage, extract_slim
from ke_metric.arrays import load_whole
from ke_metric.cli import main
from ke_metric.networks.dense import build_network
from ke_metric.split.plan import SplitPlan

RECIPE = """
generations: 2
data: {benchmark: glyphs, image_size: 32, store_size: 32, train_classes: 8, test_classes: 4}
network: {backbone: squeezenet1_1, embedding_size: 8}
batches: {size: 8, images_per_class: 2}
optimizer: {name: adamw, learning_rate: 1e-3}
training: {epochs: 1, precision: fp32}
evaluation: {resize: 32, recall_at: [1, 2]}
"""
# In a fresh interpreter that sees neither this folder nor any variable of ours.
STRANGER = """
import sys
import numpy as np
import torch
from ke_metric import load_network

network = load_network(sys.argv[1])
assert not any(module.training for module in network.modules())
torch.set_num_threads(int(sys.argv[4]))
with torch.no_grad():
    embeddings = network(torch.from_numpy(np.load(sys.argv[2], allow_pickle=False)))
np.save(sys.argv[3], embeddings.numpy())
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("ke_metric.")}
print(*sorted(rooms & {"training", "losses", "data", "methods", "split", "evaluation", "evolution", "lineage"}))
"""


def run(*arguments):
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A lineage, its slim network stored by the command, and what the command printed."""
    folder = tmp_path_factory.mktemp("grown")
    (folder / "tiny.yaml").write_text(RECIPE)
    trained = run("train", folder / "tiny.yaml", "--lineage", folder / "lineage", "--json")
    stored = run("slim", "--lineage", folder / "lineage", "--gen", 2, "-o", folder / "slim", "--json")
    return folder, trained, stored


def cut_in_process(folder):
    lineage = Lineage(folder / "lineage")
    recipe, generation = lineage.recipe, lineage.load(2)
    network = build_network(recipe.network, recipe.data.image_size)
    load_whole(network, generation.weights, "the weights")
    network.to(memory_format=torch.channels_last)
    return extract_slim(network, SplitPlan.from_json(generation.split, generation.split_bits)).eval()


def test_a_stranger_computes_the_same_bits(grown, tmp_path):
    folder, _, _ = grown
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "images.npy", images.numpy())
    arguments = [folder / "slim", tmp_path / "images.npy", tmp_path / "embeddings.npy", torch.get_num_threads()]
    finished = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *map(str, arguments)],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == [], "training code was loaded"
    with torch.no_grad():
        expected = cut_in_process(folder)(images).numpy()
    assert np.load(tmp_path / "embeddings.npy", allow_pickle=False).tobytes() == expected.tobytes()


def test_what_is_printed_is_what_was_scored_and_stored(grown):
    folder, trained, stored = grown
    assert stored["slim"] == trained["generations"][1]["slim"]
    assert stored["slim_bytes"] == (folder / "slim" / "model.safetensors").stat().st_size < stored["dense_bytes"]
    assert stored["slim_parameters"] == sum(tensor.numel() for tensor in cut_in_process(folder).parameters())


def test_a_stranger_is_told_what_is_wrong_with_a_pickle(grown, tmp_path):
    folder, _, _ = grown
    (tmp_path / "slim").mkdir()
    (tmp_path / "slim" / "config.json").write_bytes((folder / "slim" / "config.json").read_bytes())
    torch.save(cut_in_process(folder), tmp_path / "slim" / "model.safetensors")
    program = "import sys; from ke_metric import load_network; load_network(sys.argv[1])"
    finished = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path / "slim")], capture_output=True, text=True, check=False
    )
    assert finished.returncode != 0
    assert "KeMetricError" in finished.stderr
    assert "a pickle (torch.save), which can run code when it is read; it was not" in finished.stderr
