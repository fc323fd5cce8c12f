"""A small embedder of one's own, and pictures that differ from each other."""

import sys
from pathlib import Path

import pytest

from ke_metric.export.export import Evidence

sys.path.append(str(Path(__file__).parent))

from made import make_embedder, make_pictures


@pytest.fixture(scope="session")
def embedder():
    return make_embedder()


@pytest.fixture(scope="session")
def pictures():
    return make_pictures()


@pytest.fixture
def evidence(pictures):
    return Evidence(pictures, source="random colours", calibration=pictures)
