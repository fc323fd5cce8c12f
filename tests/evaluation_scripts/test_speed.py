"""The speed scripts run, and say no where something is not as it should be."""

import sys
from pathlib import Path

import pytest
import torch

from eval.speed import gpu, precision, processes, run, splitting
from ke_metric.errors import ExitCode


@pytest.mark.slow
def test_the_gpu_script_runs_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--tiny"])
    gpu.main()
    told = capsys.readouterr().out
    assert "| numbers read from the device |" in told
    assert "| torch | " in told
    assert "faiss-gpu | not possible here" in told or "faiss-gpu | 0." in told
    assert "| recall@1 | " in told
    assert "| no |" not in told


def test_the_gpu_script_says_that_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as raised:
        gpu.main()
    assert raised.value.code == ExitCode.ENVIRONMENT
    assert "sees no NVIDIA GPU here: nothing was measured" in capsys.readouterr().err


def test_scores_that_are_apart_are_told(monkeypatch):
    scores = iter([{"recall@1": 0.5, "nmi": 0.5}, {"recall@1": 0.5002, "nmi": 0.6}])
    monkeypatch.setattr(gpu.Scorer, "score", lambda self, network: next(scores))
    lines = list(gpu.score_lines(gpu.TINY, torch.device("cpu")))
    assert [line.rsplit("| ", 1)[1] for line in lines[2:]] == ["no |", "by clusters, which begin otherwise |"]


def found(**changes):
    facts = {
        "gradients": {"weight": torch.tensor([1.0, 2.0])},
        "trained": ["a", "b"],
        "scored": 2,
        "scores": {"recall@1": 0.5},
        "grown": {"recall@1": 0.6},
    }
    return facts | changes


HALVES = [found(trained=["a"], scored=1), found(trained=["b"], scored=1)]


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (HALVES, ["0.0e+00", "0, 0 of 2", "2 of 2", "0.0e+00", "0.0e+00", "yes"]),
        ([HALVES[0], found(trained=["a"], scored=1)], ["0.0e+00", "1, 1 of 2", "2 of 2", "0.0e+00", "0.0e+00", "no"]),
        ([HALVES[0], found(trained=["b"], scored=2)], ["0.0e+00", "0, 0 of 2", "3 of 2", "0.0e+00", "0.0e+00", "no"]),
        (
            [HALVES[0], HALVES[1] | {"gradients": {"weight": torch.tensor([1.0, 2.1])}}],
            ["5.0e-02", "0, 0 of 2", "2 of 2", "0.0e+00", "0.0e+00", "no"],
        ),
        (
            [HALVES[0], HALVES[1] | {"scores": {"recall@1": 0.75}}],
            ["0.0e+00", "0, 0 of 2", "2 of 2", "2.5e-01", "0.0e+00", "no"],
        ),
    ],
)
def test_what_processes_compute_otherwise_is_told(ranks, expected):
    assert list(processes._compared(found(), ranks)) == expected


def test_the_trainings_of_processes_have_no_batch_norm():
    for kind in processes.KINDS:
        recipe = processes.recipe_of(kind)
        assert recipe.network.backbone == "timm/test_convnext"
        assert len(processes.pictures_of(recipe).benchmark.train) % 2 == 1


def test_splitting_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["splitting", "--rounds", "1"])
    monkeypatch.setattr(splitting, "NETWORKS", ("resnet18",))
    splitting.main()
    assert [line.split(" | ")[1] for line in capsys.readouterr().out.splitlines() if "resnet18 |" in line] == [
        "plan_split", "redraw_reset", "extract_slim",
    ]  # fmt: skip


def test_precisions_are_timed():
    cells = precision.row("timm/test_resnet", 2, batch=2, size=32).strip("| ").split(" | ")
    assert cells[0] == "timm/test_resnet"
    assert len(cells) == len(precision.HEAD.strip("| ").split(" | "))
    assert all(float(cell.split()[0]) > 0 for cell in cells[1:])


def test_a_script_that_fails_is_a_failure_of_all(monkeypatch, capsys):
    monkeypatch.setattr(run, "SHORT", {"splitting": ["--no-such-option"]})
    monkeypatch.setattr(sys, "argv", ["run"])
    with pytest.raises(SystemExit, match="failed: splitting"):
        run.main()
    assert "exit code 2" in capsys.readouterr().out


def test_a_script_that_takes_too_long_is_ended(monkeypatch, capsys):
    monkeypatch.setattr(run, "LIMIT", 0.4)
    monkeypatch.setattr(sys, "argv", ["run", "--only", "splitting", "scores"])
    with pytest.raises(SystemExit, match="failed: splitting, scores"):
        run.main()
    assert [line[:13] for line in capsys.readouterr().out.splitlines() if "ended" in line] == ["ended after 0"] * 2


def test_time_that_is_left_over_goes_to_the_next(monkeypatch):
    clock, limits = iter([0.0, 0.0, 100.0, 100.0]), {}
    monkeypatch.setattr(run, "SHORT", {name: [] for name in "abc"})
    monkeypatch.setattr(sys, "argv", ["run"])
    monkeypatch.setattr(run.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(run, "ran", lambda name, limit: limits.setdefault(name, limit) > 0)
    run.main()
    assert limits == {"a": 200, "b": 250, "c": 500}


def test_every_script_that_is_run_is_there():
    folder = Path(run.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in run.SHORT)
