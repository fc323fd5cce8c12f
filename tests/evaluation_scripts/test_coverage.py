"""Rows are made once, a lost child costs one answer, and the document says what the rows say."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest

from eval.coverage import run as coverage
from eval.coverage import torch_pruning as coverage_torch_pruning
from eval.coverage.document import OURS, THEIRS, document, read, table
from eval.coverage.run import ChildLostError, Limits, answers, examine_network, run
from eval.coverage.verdict import CRASHED, EXACT, EXACT_NORMS, EXACT_PASTED, NO_ANSWER, REFUSED, WRONG
from ke_metric.errors import KeMetricError

LIMITS = Limits(seconds=60, threads=1, memory=None)
TASKS = [(tool, rate) for tool in (OURS, THEIRS) for rate in (0.5, 0.8)]


def row(network, tool=OURS, rate=0.5, verdict=EXACT, **more):
    facts = {"network": network, "class": "convolutional", "pixels": 128, "parameters": 11_700_000}
    figures = {"error": 2e-7, "reset_share": 0.74, "flop_ratio": 0.27, "kept_whole": {}}
    measured = figures if tool == OURS and verdict not in (REFUSED, CRASHED, NO_ANSWER) else {}
    return facts | measured | {"tool": tool, "rate": rate, "verdict": verdict, "made_by": "now"} | more


def begun(**more):
    chosen = {
        "command": "python -m eval.coverage.run run",
        "made_by": {"ke_metric": "now", "torch-pruning": "now"},
        "jobs": 2,
        "threads": 1,
        "seconds": 180.0,
    }
    machine = {"python": "3.11.7", "system": "Linux", "processor": "Some", "cores": 2, "memory": 10_000_000_000}
    return {"started": "2026-11-24", "commit": "abc", "versions": {"torch": "2.14.1"}} | chosen | machine | more


# --- running ------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Answer everything at once, and keep what was asked."""
    asked = []

    def examine(name, tasks, limits, stop):
        asked.extend((name, *task) for task in tasks)
        verdict = NO_ANSWER if limits.seconds < 10 else EXACT
        return [{"network": name, "tool": tool, "rate": rate, "verdict": verdict} for tool, rate in tasks]

    monkeypatch.setattr(coverage, "examine_network", examine)
    monkeypatch.setattr(coverage, "require_torch_pruning", lambda: None)
    monkeypatch.setattr(coverage, "version", lambda _: "1.6.1")
    return asked


def test_what_is_in_the_file_is_not_asked_again(asked, tmp_path):
    out = tmp_path / "folder" / "rows.jsonl"
    run(out, ["resnet18"], jobs=1, seconds=60)
    assert asked == [("torchvision/resnet18", *task) for task in TASKS]
    run(out, ["resnet18"], jobs=1, seconds=60)
    assert len(asked) == len(TASKS)
    run(out, ["torchvision/resnet18", "timm/test_vit"], [0.5], jobs=2, seconds=60)
    assert asked[len(TASKS) :] == [("timm/test_vit", OURS, 0.5), ("timm/test_vit", THEIRS, 0.5)]
    started, rows = read(out)
    assert len(started) == 2
    assert len(rows) == len(TASKS) + 2


def test_a_row_that_is_missing_is_asked_alone(asked, tmp_path):
    out = tmp_path / "rows.jsonl"
    run(out, ["resnet18"], jobs=1, seconds=60)
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:-1]) + "\n")
    asked.clear()
    run(out, ["resnet18"], jobs=1, seconds=60)
    assert asked == [("torchvision/resnet18", THEIRS, 0.8)]


def test_rows_of_other_sources_are_made_again(asked, tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    run(out, ["resnet18"], jobs=1, seconds=60)
    asked.clear()
    monkeypatch.setattr(coverage, "version", lambda _: "1.6.2")
    run(out, ["resnet18"], jobs=1, seconds=60)
    assert len(asked) == len(TASKS)
    assert len(read(out)[1]) == len(TASKS)


def test_more_time_is_another_chance(asked, tmp_path):
    out = tmp_path / "rows.jsonl"
    for seconds, expected in ((5, 4), (5, 4), (60, 8), (90, 8)):
        run(out, ["resnet18"], jobs=1, seconds=seconds)
        assert len(asked) == expected
    assert {found["verdict"] for found in read(out)[1]} == {EXACT}


def test_the_fingerprints_cover_what_rows_depend_on(tmp_path, monkeypatch):
    assert {path.name for path in coverage.SOURCES} == {"networks.py", "verdict.py"}
    assert [path.name for path in coverage.OWN_SOURCES[THEIRS]] == ["torch_pruning.py"]
    ours = {path.name for path in coverage.OWN_SOURCES[OURS]}
    assert {"planning.py", "operations.py", "rehearsal.py", "hypotheses.py"} < ours
    before = {tool: coverage.fingerprint(tool) for tool in (OURS, THEIRS)}
    (tmp_path / "slim.py").write_text("changed")
    monkeypatch.setitem(coverage.OWN_SOURCES, OURS, [tmp_path / "slim.py"])
    assert coverage.fingerprint(OURS) != before[OURS]
    assert coverage.fingerprint(THEIRS) == before[THEIRS]


@pytest.mark.usefixtures("asked")
def test_what_cannot_be_run(tmp_path, monkeypatch):
    with pytest.raises(KeMetricError, match="did you mean 'resnet18'"):
        run(tmp_path / "rows.jsonl", ["resnt18"], jobs=1, seconds=60)
    (tmp_path / "torn.jsonl").write_text(json.dumps(row("timm/a")) + '\n{"network": "ti')
    with pytest.raises(KeMetricError, match=r"torn\.jsonl, line 2"):
        run(tmp_path / "torn.jsonl", ["resnet18"], jobs=1, seconds=60)
    with pytest.raises(KeMetricError, match="no file"):
        table(tmp_path / "none.jsonl", tmp_path / "out.md")


# --- children -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick_children(monkeypatch):
    """Fork from here: a server of children would import all libraries first."""
    monkeypatch.setattr(coverage, "CONTEXT", multiprocessing.get_context("fork"))


def test_answers_of_a_child():
    assert list(answers(range, 3, seconds=60)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("function", "value", "seconds", "said", "in_time"),
    [
        (time.sleep, 100, 0.2, "no answer within 0.2 s", False),
        (os._exit, 3, 60, "exit code 3", True),
        (int, "x", 60, "ValueError: invalid literal", True),
    ],
)
def test_a_lost_child(function, value, seconds, said, in_time):
    with pytest.raises(ChildLostError, match=said) as lost:
        list(answers(map, function, [value], seconds=seconds))
    assert lost.value.in_time == in_time


def test_a_killed_child():
    with pytest.raises(ChildLostError, match="not enough memory"):
        list(answers(map, lambda number: os.kill(os.getpid(), number), [9], seconds=60))


def examined(monkeypatch, *children):
    """Return rows where children give so many answers each, the first one being the facts, and are lost then."""
    waiting = list(children)

    def answer(work, name, tasks, limits, *, seconds):
        count, error = waiting.pop(0)
        given = [{"network": name, "class": "convolutional"}]
        given += [{"tool": tool, "rate": rate, "verdict": EXACT} for tool, rate in tasks]
        yield from given[:count]
        if error:
            raise error

    monkeypatch.setattr(coverage, "answers", answer)
    rows = examine_network("timm/test_vit", TASKS, LIMITS, Event())
    assert not waiting
    assert [(found["tool"], found["rate"]) for found in rows] == TASKS
    return [found["verdict"] for found in rows]


def test_a_network_that_answers(monkeypatch):
    assert examined(monkeypatch, (5, None)) == [EXACT] * 4


def test_a_crash_costs_one_answer(monkeypatch):
    crash = ChildLostError("SIGSEGV", in_time=True)
    assert examined(monkeypatch, (1, crash), (4, None)) == [CRASHED, EXACT, EXACT, EXACT]
    assert examined(monkeypatch, (3, crash), (2, None)) == [EXACT, EXACT, NO_ANSWER, EXACT]


def test_too_slow_at_one_rate_is_not_asked_at_the_next(monkeypatch):
    slow = ChildLostError("no answer within 60 s", in_time=False)
    assert examined(monkeypatch, (1, slow), (3, None)) == [NO_ANSWER, NO_ANSWER, EXACT, EXACT]
    assert examined(monkeypatch, (3, slow)) == [EXACT, EXACT, NO_ANSWER, NO_ANSWER]


def test_a_network_that_cannot_be_built(monkeypatch):
    broken = ChildLostError("RuntimeError: no", in_time=True)
    assert examined(monkeypatch, (0, broken)) == [CRASHED, CRASHED, NO_ANSWER, NO_ANSWER]


def test_nothing_is_begun_after_an_interrupt():
    stop = Event()
    stop.set()
    assert examine_network("timm/test_vit", TASKS, LIMITS, stop) == []


# --- the document -------------------------------------------------------------------------------------------------


def line_of(text, start):
    [line] = [line for line in text.splitlines() if line.startswith(start)]
    return line


def made_up():
    whole = {"stage2.1": "24 channels meet 26", "stage3.1": "no"}
    refused = {"reason": "blocks.0.sort: a sort of [1, 8] is not followed\nmore", "wels": "works", "pasted": ["stem"]}
    return [
        row("torchvision/resnet18"),
        row("torchvision/resnet18", rate=0.8, error=0.0, reset_share=0.35, flop_ratio=0.66),
        row("torchvision/resnet18", THEIRS, verdict=coverage_torch_pruning.SAME),
        row("torchvision/resnet18", THEIRS, 0.8, verdict=coverage_torch_pruning.OTHER),
        row("torchvision/shuffle", reset_share=0.02, kept_whole=whole),
        row(
            "torchvision/shuffle", rate=0.8, verdict=WRONG, reason="of the largest dense output: error 0.5", error=0.5
        ),
        row("torchvision/shuffle", THEIRS, verdict=coverage_torch_pruning.TRACING, reason="shape 12 | 13"),
        row("torchvision/shuffle", THEIRS, 0.8, verdict=coverage_torch_pruning.TRACING, reason="shape 7 | 9"),
        row("timm/vit", verdict=EXACT_NORMS) | {"class": "attention"},
        row("timm/vit", rate=0.8, verdict=EXACT_PASTED, reason="a: no", pasted=["b"]) | {"class": "attention"},
        row("timm/refused", verdict=REFUSED, **refused),
        row("timm/lost", verdict=CRASHED, reason="File /some/lib/site-packages/timm/x.py: boom"),
    ]


def test_the_summary_counts():
    text = document([begun()], made_up())
    head = [cell.strip() for cell in line_of(text, "| networks | rate | number | exact |").split("|")]

    def cells(name, rate):
        lines = [line for line in text.splitlines() if line.startswith(f"| {name} | {rate} |")]
        return dict(zip(head, [cell.strip() for cell in lines[0].split("|")], strict=True))

    half = cells("torchvision, convolutional", "0.5")
    assert (half["number"], half[EXACT], half[WRONG], half["the first three"]) == ("2", "2", "0", "2 (100 %)")
    assert half["of them reset < 10%"] == "1"
    assert half["Torch-Pruning: runs"] == "1 of 2"
    more = cells("torchvision, convolutional", "0.8")
    assert (more[EXACT], more[WRONG], more["the first three"]) == ("1", "1", "1 (50 %)")
    assert more["Torch-Pruning: runs"] == "1 of 2"
    assert more["and equals the zeroed dense network"] == "0 of 2"
    timm = cells("timm, convolutional", "0.5")
    assert (timm["number"], timm[REFUSED], timm[CRASHED]) == ("2", "1", "1")
    other = cells("timm, others", "0.8")
    assert (other["number"], other[EXACT_PASTED], other["Torch-Pruning: runs"]) == ("1", "1", "0 of 0")


def test_a_network_that_is_hardly_split_is_named():
    text = document([begun()], made_up())
    assert "networks that reset less than 10% of their parameters: torchvision/shuffle (2.0%)." in text
    assert "resets 36% of its weights: networks that reset less than 10% of their parameters: none." in text


def test_a_line_per_network():
    text = document([begun()], made_up())
    line = "convolutional | 11.7 | 128 | exact | 2e-07 / 0 | 74% / 35% | 0.27 / 0.66 | 0 | exact / runs, differs |"
    assert line_of(text, "| resnet18 |") == f"| resnet18 | {line}"
    assert "| exact / wrong | 2e-07 / 5e-01 | 2% / 74% | 0.27 | 2 / 0 |" in line_of(text, "| shuffle |")
    assert "| refused / – | – | – |" in line_of(text, "| refused |")
    assert "exact (norms) / exact (keep_whole)" in line_of(text, "| vit |")


def test_reasons():
    text = document([begun()], made_up())
    assert "stage2.1, stage3.1. The first because of `24 channels meet 26`" in text
    refused = line_of(text, "- timm/refused, rate 0.5")
    assert "`blocks.0.sort: a sort of [1, 8] is not followed`" in refused
    assert refused.endswith("WELS works.")
    assert "Kept whole then: b." in line_of(text, "- timm/vit, rate 0.8")
    assert line_of(text, "- timm/lost").endswith("crashed. `File timm/x.py: boom`")
    assert line_of(text, "- torchvision/shuffle, rate 0.8: wrong.")
    assert "| 2 | crashes while tracing: `shape # \\| #` |" in text


def test_how_it_was_made():
    text = document([begun(), begun(made_by={"ke_metric": "before"}, commit="old")], made_up())
    assert "python -m eval.coverage.run table FILE.jsonl --out docs/results/coverage.md" in text
    for said in ("commit abc", "2026-11-24", "Some, 2 cores", "torch 2.14.1", "180 s", "10 GB", "random.Random(0)"):
        assert said in text
    assert "commit old" not in text
    assert "different sources" not in text


def test_rows_of_two_sources_are_owned_up_to():
    rows = [*made_up(), row("timm/old", made_by="before")]
    text = document([begun(), begun(made_by={"ke_metric": "before"}, commit="old")], rows)
    assert "**The rows of ke_metric are of different sources or versions: 8 by now, 1 by before.**" in text
    assert "The rows of torch-pruning are" not in text
    assert "commit old" in text


def test_the_last_row_counts_and_the_document_is_written(tmp_path):
    path, out = tmp_path / "rows.jsonl", tmp_path / "coverage.md"
    lines = [begun(), row("timm/a", verdict=WRONG), row("timm/a")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table(path, out)
    assert "| a | convolutional | 11.7 | 128 | exact |" in out.read_text()
    assert "All were." in out.read_text()
    path.write_text(json.dumps(begun()) + "\n")
    with pytest.raises(KeMetricError, match="holds no rows"):
        table(path, out)


@pytest.mark.slow
def test_the_command(tmp_path):
    pytest.importorskip("torch_pruning")
    root, rows, out = Path(coverage.__file__).parents[2], tmp_path / "rows.jsonl", tmp_path / "coverage.md"
    given = ["run", "--out", rows, "--networks", "timm/test_resnet", "timm/test_vit", "--rates", "0.5", "--jobs", "2"]
    for arguments in (given, given, ["table", rows, "--out", out]):
        command = [sys.executable, "-m", "eval.coverage.run", *arguments]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert [found["verdict"] for found in read(rows)[1] if found["tool"] == OURS] in (
        [EXACT, EXACT_NORMS],
        [EXACT_NORMS, EXACT],
    )
    assert "| test_resnet | convolutional |" in out.read_text()
