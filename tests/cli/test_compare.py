"""`ke-metric compare`, from the command line."""

import io
import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from ke_metric.cli import main
from ke_metric.cli.compare import compare_lineages
from ke_metric.errors import ExitCode
from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.lineage.store import Lineage
from ke_metric.recipe.schema import Recipe


@pytest.fixture
def folders(tmp_path):
    """Two seeds of a plain training and of a lineage of two generations."""

    def grow(name, seed, recalls, epochs):
        recipe = Recipe(name=name, seed=seed, generations=len(recalls), training={"epochs": epochs})
        lineage = Lineage.create(tmp_path / f"{name}-s{seed}", recipe, text="x", command="ke-metric train x.yaml")
        for number, recall in enumerate(recalls, start=1):
            card = Scorecard({"recall@1": recall, "nmi": 0.5}, {"recall@1": recall / 4, "nmi": 0.25}, 1234, 345)
            provenance = Provenance("x", None if number == 1 else "x", seed, {}, {}, {})
            lineage.append(Generation(number, {"w": torch.zeros(1)}, {}, "{}", {}, card, (), {}, provenance))
        return str(lineage.folder)

    return [
        grow("long", 0, [0.5], 20), grow("long", 1, [0.6], 20),
        grow("ke", 0, [0.3, 0.56], 10), grow("ke", 1, [0.3, 0.68], 10),
    ]  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(main, ["compare", *arguments])


def test_the_document(folders):
    result = run(*folders, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    rows = {(row["strategy"], row["generation"], row["network"]): row for row in document["scores"]}
    assert list(rows) == [
        ("long", 1, "dense"), ("long", 1, "slim"),
        ("ke", 1, "dense"), ("ke", 1, "slim"), ("ke", 2, "dense"), ("ke", 2, "slim"),
    ]  # fmt: skip
    last = rows["ke", 2, "dense"]
    assert (last["epochs"], last["parameters"], last["seeds"]) == (20, 1234, [0, 1])
    assert last["scores"]["recall@1"] == {"mean": pytest.approx(0.62), "spread": pytest.approx(0.06 * 2**0.5)}
    dense, slim = document["differences"]
    assert (dense["strategy"], dense["reference"], dense["network"]) == ("ke", "long", "dense")
    assert (dense["epochs"], dense["reference_epochs"], dense["seeds"]) == (20, 20, [0, 1])
    assert dense["scores"]["recall@1"] == {
        "difference": pytest.approx(0.07), "low": pytest.approx(0.06), "high": pytest.approx(0.08),
    }  # fmt: skip
    assert slim["scores"]["recall@1"]["difference"] == pytest.approx(0.07 / 4)


def test_the_tables(folders):
    shown = run(*folders).stdout
    last = next(line.split() for line in shown.splitlines() if line.split()[:3] == ["2", "20", "dense"])
    assert last == ["2", "20", "dense", "1,234", "2", *["62.0", "±", "8.5", "0.500", "±", "0.000"]]
    ahead = next(line.split() for line in shown.splitlines() if line.split()[:5] == ["ke", "20", "-", "20", "dense"])
    assert ahead[5:] == ["1,234", "2", "+7.0", "[+6.0,", "+8.0]", "+0.000", "[+0.000,", "+0.000]"]
    assert "too narrow to be trusted" in shown


@pytest.mark.parametrize("width", [80, 60])
def test_a_narrow_terminal_has_whole_cells(width, folders):
    narrow = io.StringIO()
    shown = compare_lineages([Path(folder) for folder in folders]).shown
    Console(file=narrow, width=width).print(shown, crop=False)
    lines = narrow.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    cells = [re.split("  +", line.strip()) for line in lines if "dense" in line]
    assert [row[-2:] if width == 80 else row[-1:] for row in cells] == [
        row if width == 80 else row[:1]
        for row in (
            ["55.0 ± 7.1", "0.500 ± 0.000"], ["30.0 ± 0.0", "0.500 ± 0.000"], ["62.0 ± 8.5", "0.500 ± 0.000"],
            ["+7.0 [+6.0, +8.0]", "+0.000 [+0.000, +0.000]"],
        )
    ]  # fmt: skip
    for header in ("generation", "network", "R@1"):
        assert any(header in line.split() for line in lines)


def test_the_untrained_network_is_generation_0(folders):
    """Of one seed alone: the other lineage is of before it was kept."""
    assert json.loads(run(*folders, "--json").stdout)["untrained"] == []
    Lineage(folders[2]).record_untrained(Scorecard({"recall@1": 0.4, "nmi": 0.7}, None, 1234, None))
    (row,) = json.loads(run(*folders, "--json").stdout)["untrained"]
    assert (row["strategy"], row["generation"], row["epochs"], row["network"]) == ("ke", 0, 0, "dense")
    assert (row["seeds"], row["parameters"]) == ([0], 1234)
    assert row["scores"]["recall@1"] == {"mean": 0.4, "spread": None}
    shown = run(*folders).stdout
    lines = [line.split() for line in shown.splitlines()]
    assert ["ke", "0", "0", "dense", "1,234", "1", "40.0", "0.700"] in lines
    assert "ke: training made it worse: R@1 30.0 in generation 1 (40.0 untrained)" in shown


def test_what_is_not_finished_is_told(folders):
    for file in (Path(folders[3]) / "generation-002").iterdir():
        file.unlink()
    (Path(folders[3]) / "generation-002").rmdir()
    document = json.loads(run(*folders, "--json").stdout)
    assert document["incomplete"] == [{"lineage": folders[3], "generations": 1, "of": 2}]
    assert [row["seeds"] for row in document["scores"] if row["strategy"] == "ke"] == [[0, 1], [0, 1], [0], [0]]
    assert f"{folders[3]} has 1 of 2 generations" in run(*folders).stdout


def test_two_rules_for_ties_in_one_table_are_told(folders):
    assert "ties" not in json.loads(run(*folders, "--json").stdout)
    for folder in folders[2:]:
        path = Path(folder) / "generation-002" / "provenance.json"
        facts = json.loads(path.read_text())
        path.write_text(json.dumps(facts | {"training": {"ties": "mean over all orders"}}))
    assert "ties" not in json.loads(run(folders[0], "--json").stdout), "one rule"
    told = json.loads(run(*folders, "--json").stdout)["ties"]
    assert "order of rows in generation 1 of" in told
    assert f"generation 1 of {folders[2]}" in told
    assert "generation 2" not in told
    assert "elsewhere by the mean over all orders" in told
    assert told.split("; ")[1] in " ".join(run(*folders).stdout.split())


def test_clusters_of_two_ways_in_one_table_are_told(folders):
    path = Path(folders[2]) / "generation-002" / "provenance.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"training": {"clusters": "k-means drawn in blocks"}}))
    told = json.loads(run(*folders, "--json").stdout)
    assert "ties" not in told
    assert "k-means drawn item by item in generation 1 of" in told["clusters"]
    assert f"generation 2 of {folders[2]}" not in told["clusters"]
    assert told["clusters"].split("; ")[1] in " ".join(run(*folders).stdout.split())


def test_one_recipe_has_no_difference(folders):
    result = run(*folders[:2], "--json")
    assert json.loads(result.stdout)["differences"] == []
    assert "interval" not in run(*folders[:2]).stdout


def test_a_folder_without_a_lineage(folders, tmp_path):
    result = run(folders[0], str(tmp_path))
    assert result.exit_code == ExitCode.LINEAGE
    assert f"{tmp_path}: no lineage here" in result.stderr
