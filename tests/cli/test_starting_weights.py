"""`ke-metric train` from a file of weights: what it tells, what a resume refuses; nothing else needs the file."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image

from ke_metric.cli import main
from ke_metric.cli.recording import Interrupts
from ke_metric.errors import ExitCode
from ke_metric.lineage.files import read_provenance
from ke_metric.lineage.store import Lineage

RECIPE = """
generations: 2
data: {benchmark: folder, root: images, image_size: 32, store_size: 32}
network: {backbone: timm/test_resnet, embedding_size: 8, weights: weights.pt}
loss: {name: ProxyAnchorLoss}
batches: {size: 4, images_per_class: 2}
training: {epochs: 2, precision: fp32}
evaluation: {resize: 32, recall_at: [1], kmeans_seeds: 1, backend: torch}
"""


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [*map(str, arguments), "--device", "cpu"])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result


def weights(path, factor=1.0):
    generator = torch.Generator().manual_seed(0)
    state = timm.create_model("test_resnet").state_dict()
    torch.save(
        {
            f"module.{name}": factor * 0.1 * torch.rand(value.shape, generator=generator)
            for name, value in state.items()
            if value.is_floating_point()
        },
        path,
    )


def stop(self, state):
    raise self._interrupted(state.number, state.epoch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, weights and a recipe; a whole lineage, one that was interrupted, and one of generation 1 alone."""
    folder = tmp_path_factory.mktemp("weights")
    for number in range(12):
        path = folder / "images" / str(number // 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    weights(folder / "weights.pt")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("train", "tiny.yaml", "--lineage", "whole")
        run("train", "tiny.yaml", "--lineage", "first", "--set", "generations=1")
        patch.setattr(Interrupts, "epoch_done", stop)
        run("train", "tiny.yaml", "--lineage", "begun", code=ExitCode.INTERRUPTED)
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """A copy of it, which is the current folder: where the file lies is as relative as `data.root`."""
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


TOLD = (
    "starting weights: weights.pt, at 'module.'",
    "  matched      75  conv1.0.weight",
    "  missing      15  conv1.1.num_batches_tracked",
    "  left over     2  module.fc.weight, module.fc.bias",
)


def test_a_dry_run_tells_what_matched(here):
    result = run("train", "tiny.yaml", "--dry-run")
    assert all(result.stdout.count(line) == 1 for line in TOLD), result.stdout
    document = json.loads(run("train", "tiny.yaml", "--dry-run", "--json").stdout)
    found = document["starting_weights"]
    assert found["sha256"] == hashlib.sha256((here / "weights.pt").read_bytes()).hexdigest()
    assert (found["matched"], found["missing"], found["left_over"]) == (75, 15, 2)
    assert "starting_weights" not in json.loads(
        run("train", "tiny.yaml", "--dry-run", "--json", "--set", "network.weights=null").stdout
    )


def test_a_training_tells_it_once_and_keeps_it(here):
    result = run("train", "tiny.yaml", "--lineage", "again")
    assert all(result.stderr.count(line) == 1 for line in TOLD), result.stderr
    log = [json.loads(line) for line in (here / "again" / "log.jsonl").read_text().splitlines()]
    assert sum("starting weights: weights.pt" in event.get("text", "") for event in log) == 1
    sha256 = hashlib.sha256((here / "weights.pt").read_bytes()).hexdigest()
    assert Lineage("again").starting_weights == sha256
    for number in (1, 2):
        provenance = read_provenance(Lineage("again").generation_folder(number))
        assert provenance.training["starting_weights"]["sha256"] == sha256


def test_what_does_not_fit_is_refused_before_a_picture_is_decoded(here):
    torch.save({"conv1.weight": torch.ones(3)}, "weights.pt")
    for arguments in (("--dry-run",), ("--lineage", "new")):
        told = run("train", "tiny.yaml", *arguments, code=ExitCode.RECIPE).stderr
        assert "network.weights = 'weights.pt': nothing in it matches network.backbone" in told
    assert not (here / "new").exists()


@pytest.mark.parametrize("lineage", ["begun", "first"])
def test_a_resume_goes_on_with_the_same_file(lineage, here):
    run("train", "tiny.yaml", "--lineage", lineage, "--resume")
    assert Lineage(lineage).load(2).weights.keys() == Lineage("whole").load(2).weights.keys()
    for name, value in Lineage(lineage).load(2).weights.items():
        assert torch.equal(value, Lineage("whole").load(2).weights[name]), name


@pytest.mark.parametrize("lineage", ["begun", "first"])
def test_a_resume_refuses_a_file_that_has_changed(lineage, here):
    weights("weights.pt", factor=2)
    told = run("train", "tiny.yaml", "--lineage", lineage, "--resume", code=ExitCode.DATA).stderr
    assert f"network.weights = 'weights.pt': has changed since {lineage} was begun (SHA-256 " in told
    assert "put the file back, or begin another lineage with --lineage" in told


def test_the_file_may_lie_elsewhere(here):
    shutil.move("weights.pt", "elsewhere.pt")
    run("train", "tiny.yaml", "--lineage", "begun", "--resume", "--set", "network.weights=elsewhere.pt")
    told = run(
        "train", "tiny.yaml", "--lineage", "first", "--resume", "--set", "network.weights=null", code=ExitCode.LINEAGE
    ).stderr
    assert "network.weights = None, the lineage has 'weights.pt'" in told


def test_a_file_that_is_gone_is_missed_by_who_reads_it(here):
    (here / "weights.pt").unlink()
    told = run("train", "tiny.yaml", "--lineage", "begun", "--resume", code=ExitCode.DATA).stderr
    assert "network.weights = 'weights.pt': there is no such file" in told
    told = run("train", "tiny.yaml", "--lineage", "first", "--resume").stderr
    assert "network.weights = 'weights.pt' is not there any more; nothing that is left to do reads it" in told


def test_scoring_and_cutting_out_need_no_file(here):
    (here / "weights.pt").unlink()
    stored = Lineage("whole").scorecard(2).dense
    scored = json.loads(run("eval", "--lineage", "whole", "--gen", "2", "--json").stdout)["dense"]
    assert scored == pytest.approx({name: value for name, value in stored.items() if name in scored}, abs=1e-6)
    result = CliRunner().invoke(main, ["slim", "--lineage", "whole", "--gen", "2", "-o", "slim"])
    assert result.exit_code == 0, result.output
    assert "weights.pt" not in (here / "slim" / "config.json").read_text()
