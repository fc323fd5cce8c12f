"""The speed of scores on a tiny set: every row is measured, and what is compared is the same task."""

import json
import time

import numpy as np
import pytest

from eval.shared.rounds import Clocked
from eval.speed import scores
from eval.speed.scores import (
    Measured,
    compare_ami,
    compare_neighbours,
    compared,
    draw_embeddings,
    measured,
    score_mapped,
    stream,
)
from eval.speed.scoring_ways import watched_memory
from ke_metric import score_retrieval
from ke_metric.evaluation.retrieval import Scoring


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    scores._draw(folder, 300, 60)
    return folder


def test_classes_are_of_2_to_12_items():
    vectors, labels = draw_embeddings(600, 120)
    sizes = np.bincount(labels)
    assert (vectors.shape, len(labels), len(sizes)) == ((600, 512), 600, 120)
    assert sizes.min() >= 2
    assert sizes.max() <= 12
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_a_way_gives_what_the_package_gives(place):
    found = measured("scorecard", place)
    vectors, labels = (np.load(place / f"{name}.npy") for name in ("vectors", "labels"))
    expected = score_retrieval(vectors, labels, (1, 10, 100), scoring=Scoring(backend="faiss-cpu"))
    assert found.found == pytest.approx(expected, abs=1e-4)
    assert found.clocked.wall > 0


def test_rows(place):
    rows = [
        *compare_ami(place, np.load(place / "labels.npy"), 1),
        *compare_neighbours(place, 1),
        *stream(place, 2560),
        *score_mapped(place, 10_000),
    ]
    assert [len(row) for row in rows] == [6] * 7
    assert rows[1][-1] == "yes"


def test_memory_that_was_freed_meanwhile_is_seen():
    with watched_memory() as grown:
        held = np.ones(2**24)
        time.sleep(0.2)
        del held
    # The system counts a process's pages in lots.
    assert max(grown) == pytest.approx(2**27, rel=0.05)


def test_another_task_is_no_comparison():
    with pytest.raises(SystemExit, match=r"map@r: 0\.5 here, 0\.6 of PML: not the same task"):
        scores._require_same({"map@r": 0.5, "nmi": 1}, {"map@r": 0.6, "nmi": 2}, "PML", 1e-4)


def test_a_way_that_fails_says_so(place):
    with pytest.raises(SystemExit, match="KeyError: 'nothing'"):
        measured("nothing", place)


@pytest.mark.parametrize(("target", "met"), [(0.5, "yes"), (0.4, "no")])
def test_a_target_goes_by_cpu_time(target, met):
    ours, theirs = ([Measured(Clocked(wall, cpu), 0, {})] for wall, cpu in ((9, 1), (1, 2)))
    row = compared("it", "them", ours, theirs, target)
    assert row == ("it / them", "9 s to 1 s", "9.00 (9.00-9.00)", "0.50 (0.50-0.50)", json.dumps(target), met)
