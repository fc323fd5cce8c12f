"""Collecting what a claim rests on: everything of a finished lineage but its weights."""

import json
import sys

import pytest
import torch

from eval.shared import collect
from ke_metric import Lineage
from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.recipe.schema import Recipe


@pytest.fixture
def lineages(tmp_path):
    """Two finished lineages of one recipe."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path / f"small-s{seed}"
        lineage = Lineage.create(folder, Recipe(name="small", seed=seed), text="x", command="ke-metric")
        card = Scorecard({"recall@1": 0.5 + seed}, {"recall@1": 0.25}, 9, 3)
        provenance = Provenance("x", None, seed, {"commit": "c"}, {"device": "cpu"}, {"training": 2.0})
        lineage.append(Generation(1, {"w": torch.zeros(1)}, {}, "{}", {}, card, (), {}, provenance))
        lineage.set_status("finished")
        folders.append(folder)
    return folders


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["collect.py", *map(str, arguments)])
    collect.main()


def test_a_file_a_lineage_or_a_line_a_lineage(lineages, tmp_path, monkeypatch):
    run(monkeypatch, tmp_path / "results", *(f"ke={folder}" for folder in lineages))
    run(monkeypatch, tmp_path / "results.jsonl", *lineages)
    files = [json.loads((tmp_path / "results" / f"ke-s{seed}.json").read_text()) for seed in (0, 1)]
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [document["method"] for document in (*files, *lines)] == ["ke", "ke", "small", "small"]
    assert [{**line, "method": "ke"} for line in lines] == files
    assert [document["generations"][0]["dense"]["recall@1"] for document in files] == [0.5, 1.5]
    kept = {"slim": {"recall@1": 0.25}, "slim_parameters": 3, "seconds": {"training": 2.0}}
    assert kept.items() <= files[0]["generations"][0].items()
    assert files[0]["generations"][0]["environment"] == {"commit": "c"}
    assert files[1]["recipe"]["seed"] == 1


def test_a_command_leaves_its_machine_behind():
    command = "budget.py eval/budget/grids/x.yaml --results '/some where/results' --set a=[1,2]"
    assert collect.portable(command) == "budget.py eval/budget/grids/x.yaml --results results --set 'a=[1,2]'"


def test_two_of_one_name_are_not_one_file(lineages, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="small-s0 is there twice"):
        run(monkeypatch, tmp_path / "results", lineages[0], lineages[0])


def test_folders_with_an_equals_sign(lineages, tmp_path, monkeypatch):
    odd = tmp_path / "fold=1"
    lineages[0].rename(odd)
    run(monkeypatch, tmp_path / "new" / "results.jsonl", odd, f"ke={odd}")
    lines = [json.loads(line) for line in (tmp_path / "new" / "results.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["small", "ke"]


def test_what_is_not_finished_is_no_result(lineages, tmp_path, monkeypatch):
    Lineage(lineages[1]).set_status("interrupted")
    with pytest.raises(SystemExit, match="small-s1: interrupted, not finished"):
        run(monkeypatch, tmp_path / "results.jsonl", *lineages)
    assert not (tmp_path / "results.jsonl").exists()
