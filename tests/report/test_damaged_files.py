"""A damaged file takes its own section, or its own line, off the page, which says so; the rest stays."""

import json
import shutil

import pytest

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.lineage.store import Lineage
from ke_metric.report.cost_section import NetworkCost, cost_section
from ke_metric.report.lineage_report import gather_report
from ke_metric.report.page import render_page
from ke_metric.report.page_parts import Number
from ke_metric.report.training_sections import magnitudes_section, training_section

COSTS = {"dense": NetworkCost(9, 18, {1: 0.5, 32: 1.0})}
GOOD = {"epoch": 1, "loss": 0.5, "spread": 0.25}


@pytest.fixture
def copied(retrieval, tmp_path):
    """A lineage that a test may damage."""
    return Lineage(shutil.copytree(retrieval.lineage.folder, tmp_path / "copy"))


@pytest.fixture
def logged(copied, monkeypatch):
    """Give a generation any records as its log, whatever a reader of files makes of them."""

    def logs(records):
        stored = {2: tuple(copied.training_log(2)), 1: records}
        monkeypatch.setattr(Lineage, "training_log", lambda _, number: stored[number])
        return copied

    return logs


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"loss": 0.5}, "name no epoch: 1 line"),
        ([1], "name no epoch: 1 line"),
        ({"epoch": "two", "loss": 0.5}, "name no epoch: 1 line"),
        ({"epoch": 2, "loss": None}, "loss is no finite number: epoch 2"),
        ({"epoch": 2, "loss": "low"}, "loss is no finite number: epoch 2"),
        ({"epoch": 2, "loss": float("nan")}, "loss is no finite number: epoch 2"),
        ({"epoch": 2, "spread": float("-inf")}, "spread is no finite number: epoch 2"),
    ],
)
def test_a_line_of_a_log_is_left_out_and_told(logged, record, told):
    section = training_section(logged([GOOD, record]))
    assert [told in sentence and "Generation 1" in sentence for sentence in section.missing] == [True]
    rows = [row for chart in section.parts for row in chart.specification["data"]["values"] if row["series"] == "1"]
    assert {(row["x"], row["y"]) for row in rows} == {(1, 0.5), (1, 0.25)}
    assert any(row["series"] == "2" for row in section.parts[0].specification["data"]["values"])


def test_a_page_is_written_whatever_a_log_holds(logged):
    report = gather_report([logged([{"epoch": 1, "loss": float("nan")}, [1]])]).report
    assert "no finite number" in render_page(report)


def test_a_lost_log_takes_its_generation_alone(copied):
    (copied.generation_folder(1) / "training.jsonl").unlink()
    training, cost = training_section(copied), cost_section(copied)
    assert "training.jsonl" in training.missing[0]
    assert {row["series"] for row in training.parts[0].specification["data"]["values"]} == {"2"}
    networks, table = cost.parts
    assert networks.rows
    assert [row[2] if row[2] == "–" else row[2].value for row in table.rows] == ["–", 120, "–"]
    assert [row[3].value for row in table.rows] == [12.5, 12.5, 25]
    assert len(cost.missing) == 1
    assert str(copied.folder.parent) not in cost.missing[0] + training.missing[0]


def test_an_empty_log_is_told(logged):
    assert training_section(logged([])).missing == ["Generation 1: no epoch of its training was recorded."]


def test_seconds_that_are_no_numbers_leave_the_epochs(copied):
    path = copied.generation_folder(2) / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": {"training": float("inf")}}))
    cost = cost_section(copied)
    assert [isinstance(row[2], Number) for row in cost.parts[1].rows] == [True] * 3
    assert [isinstance(row[3], Number) for row in cost.parts[1].rows] == [True, False, False]
    assert "not finite" in cost.missing[0]


def test_what_training_cost_stays_where_networks_cannot_be_built(copied, monkeypatch):
    def refuse(lineage):
        raise KeMetricError(f"{lineage.folder}: no such backbone", ExitCode.LINEAGE)

    monkeypatch.setattr("ke_metric.report.cost_section.lineage_networks", refuse)
    cost = cost_section(copied)
    assert [part.caption.split(";")[0] for part in cost.parts] == ["What training cost"]
    assert "no such backbone" in cost.missing[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_size_of_weights_that_is_not_finite_is_left_out(copied, value, monkeypatch):
    stored = {"a.weight": (0.5, value), "b.weight": (0.5, 0.25)}
    monkeypatch.setattr("ke_metric.report.training_sections.read_magnitudes", lambda folder, number: stored)
    section = magnitudes_section(copied)
    assert all("a.weight" in sentence for sentence in section.missing)
    assert len(section.missing) == 2
    assert {row["layer"] for row in section.parts[-1].specification["data"]["values"]} == {"b"}


def test_a_section_that_stumbles_over_a_file_says_so(copied):
    path = copied.generation_folder(2) / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"environment": [1, 2]}))
    sections = {section.name: section for section in gather_report([copied]).report.sections}
    assert "something else than was written" in sections["versions"].missing[0]
    assert sections["scores"].parts
    assert not sections["recipe"].missing


@pytest.mark.parametrize("name", ["provenance.json", "training.jsonl", "split.json", "weights.safetensors"])
@pytest.mark.parametrize("content", [None, "", "[1]", "{}", '{"seconds": NaN}'])
def test_no_single_file_stops_the_report(copied, name, content, monkeypatch):
    monkeypatch.setattr("ke_metric.report.cost_section.measure_costs", lambda networks, side, device: COSTS)
    path = copied.generation_folder(1) / name
    path.unlink() if content is None else path.write_text(content)
    report = gather_report([copied]).report
    sections = {section.name: section for section in report.sections}
    assert sections["scores"].parts
    assert report.headline
    page = render_page(report)
    assert str(copied.folder.parent) not in page
