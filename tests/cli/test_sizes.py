"""Scores of nested sizes: stored with a generation, computed again by `eval`, shown beside the whole embedding."""

import json

import pytest
from click.testing import CliRunner
from scored_lineages import grow_scored

from ke_metric import Lineage
from ke_metric.cli import main
from ke_metric.environment import describe_environment


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """A lineage of two generations, D = 8, scored at 2 and 4 numbers as well."""
    network = {"backbone": "timm/test_resnet", "embedding_size": 8, "nested_sizes": [2, 4]}
    return grow_scored(tmp_path_factory.mktemp("nested") / "lineage", network=network)


def test_sizes_are_stored_and_read_back(nested):
    stored = json.loads((nested.generation_folder(2) / "scorecard.json").read_text(encoding="utf-8"))["sizes"]
    read = Lineage(nested.folder).scorecard(2).sizes
    assert stored == read
    assert {name: list(found) for name, found in read.items()} == {"dense": ["2", "4"], "slim": ["2", "4"]}
    assert "recall@1" in read["dense"]["2"]


def test_eval_scores_them_again(nested):
    words = ["eval", "--lineage", str(nested.folder), "--device", "cpu"]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sizes"] == nested.scorecard(2).sizes
    assert "generation 2: equal to the stored scorecard" in result.stderr
    shown = CliRunner().invoke(main, [*words, "--network", "slim"]).stdout
    assert [row in shown for row in ("slim, 4", "slim, 2", "dense, 4")] == [True, True, False]
    only = json.loads(CliRunner().invoke(main, [*words, "--network", "slim", "--json"]).stdout)
    assert list(only["sizes"]) == ["slim"]


def test_a_difference_is_told(nested):
    path = nested.generation_folder(1) / "scorecard.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["sizes"]["slim"]["4"]["map@r"] += 0.25
    path.write_text(json.dumps(document), encoding="utf-8")
    provenance = nested.generation_folder(1) / "provenance.json"
    facts = json.loads(provenance.read_text(encoding="utf-8"))
    facts |= {"environment": describe_environment(), "training": {**facts["training"], "device": "cpu"}}
    provenance.write_text(json.dumps(facts), encoding="utf-8")
    result = CliRunner().invoke(main, ["eval", "--lineage", str(nested.folder), "--gen", "1", "--device", "cpu"])
    assert "differs from the stored scorecard, most in map@r: 0.25" in " ".join(result.stderr.split())
