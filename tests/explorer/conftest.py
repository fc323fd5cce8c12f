"""An explorer of a small collection whose vectors are drawn, and a browser to look at it."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # drawn_collection

from drawn_collection import DrawnCollection, running_explorer

from ke_metric.explorer.exploration import Exploration
from ke_metric.serving import exchange


@pytest.fixture(scope="session", autouse=True)
def short_lingering():
    """Refused uploads are read for half a second only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "LINGER_SECONDS", 0.5)
        yield


@pytest.fixture
def collection():
    return DrawnCollection()


@pytest.fixture
def exploration(collection):
    """An exploration whose networks are computed as they are asked for."""
    found = Exploration(collection)
    found.networks.start()
    yield found
    found.networks.close(20)


@pytest.fixture(scope="module")
def explorer():
    """An explorer for tests that leave it as it is."""
    with running_explorer(DrawnCollection()) as found:
        yield found
