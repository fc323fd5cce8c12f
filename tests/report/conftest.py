"""Small lineages whose networks were scored as a training scores them, and their reports."""

import csv
import sys
from pathlib import Path
from unittest import mock

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # scored_lineages
sys.path.append(str(Path(__file__).parent))  # reported

from PIL import Image
from reported import HOSTILE, Grown, record_training
from scored_lineages import CLASSES, grow_scored

from ke_metric.report import cost_section


@pytest.fixture(scope="session", autouse=True)
def short_timings():
    """Networks are timed for an instant: what the times are is of no matter here."""
    with mock.patch.multiple(cost_section, ROUNDS=1, LEAST_SECONDS=1e-4):
        yield


@pytest.fixture(scope="session")
def retrieval(tmp_path_factory, short_timings):
    """Two generations on five classes of characters, dense and slim."""
    return Grown.of(record_training(grow_scored(tmp_path_factory.mktemp("retrieval") / "characters")))


@pytest.fixture(scope="session")
def classification(tmp_path_factory, short_timings):
    """Two generations of a classifier of ten characters."""
    return Grown.of(record_training(grow_scored(tmp_path_factory.mktemp("classes") / "lineage", **CLASSES)))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory, short_timings):
    """A lineage of pictures whose classes, files and folder have the names of an attack."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = []
    for position, name in enumerate(HOSTILE):
        for number in range(4):
            key = f"<b>{position}'{number}\".png"
            Image.new("RGB", (40, 40), (40 * position, 60 * number, 128)).save(folder / key)
            rows.append((key, name))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    data = {"benchmark": "folder", "root": str(folder / "labels.csv"), "image_size": 32, "store_size": 40}
    return Grown.of(record_training(grow_scored(folder / "<i>lineage<i>", data=data)))
