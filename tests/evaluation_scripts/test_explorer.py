"""Answer times of the explorer: the table is what was measured, and the measuring works."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from eval.explorer import run
from eval.explorer.drawn import DrawnPictures

HERE = Path(run.__file__).parent


def test_the_table_that_is_committed_is_that_of_the_measurements():
    measured = json.loads((HERE / "measurements.json").read_text(encoding="utf-8"))
    assert run.report(measured) == (HERE / "results.md").read_text(encoding="utf-8")


def test_the_times_are_counted_as_they_are_told():
    measured = {
        "provenance": ["- command: `x`"], "pictures": 10, "networks": 2, "page_bytes": {"a.js": 1000, "b.css": 500},
        "first_answer": 1.25, "all_networks": 2.5,
        "seconds": {"a question": [9.0] * 10 + [0.001 * n for n in range(101)]},
    }  # fmt: skip
    text = run.report(measured)
    assert "| a question | 101 | 50.0 | 99.0 | 100.0 |" in text
    assert "1,500 bytes in 2 files" in text


@pytest.mark.parametrize(("seconds", "words"), [(0.12, "120 ms in the median"), (0.08, "within 100 ms")])
def test_a_dropped_picture_that_takes_too_long_is_said_plainly(seconds, words):
    text = run.answer_to_drops([9.0] * 10 + [seconds] * 30)
    assert words in text
    assert ("longer than 100 ms" in text) == (seconds > 0.1)


def test_drawn_vectors_gather_from_generation_to_generation():
    drawn = DrawnPictures(120, 4)
    means = [
        np.mean(drawn.outcomes(network).scores["map@r"]) for network in drawn.networks if network.name == "dense"
    ]
    assert means == sorted(means)
    assert means[0] < means[-1]


@pytest.mark.slow
def test_every_kind_of_question_is_answered():
    found = run.measure(Namespace(pictures=60, generations=2, requests=3))
    assert set(found["seconds"]) == set(json.loads((HERE / "measurements.json").read_text())["seconds"])
    assert all(second > 0 for seconds in found["seconds"].values() for second in seconds)
