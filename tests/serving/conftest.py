"""A service over ten items."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # live_service

from live_service import FakeSearcher, encode, picture_of, running

from ke_metric.serving import exchange
from ke_metric.stores.contract import Item


@pytest.fixture(scope="session", autouse=True)
def short_lingering():
    """Refused uploads are read for half a second only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "LINGER_SECONDS", 0.5)
        yield


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Ten items; the picture of the third one is a JPEG, that of others is not there, no picture, or special."""
    folder = tmp_path_factory.mktemp("gallery")
    found = []
    for number in range(10):
        path = folder / f"{number}.png"
        path.write_bytes(encode(picture_of(number), "JPEG" if number == 2 else "PNG"))
        found.append(Item(f"birds/{number} ü.png", str(path), f"class {number % 3}"))
    (folder / "5.png").unlink()
    (folder / "6.png").write_text("<script>alert(1)</script>")
    found[7] = replace(found[7], path="")
    found[8] = replace(found[8], path="/dev/zero")
    found[9] = replace(found[9], path=str(folder))
    return found


@pytest.fixture(scope="module")
def service(items):
    """A service for tests that leave it as it is."""
    with running(FakeSearcher(items)) as found:
        yield found


@pytest.fixture
def fresh(items):
    """A service for tests that need its queue or its end: `with fresh(queue=2) as service`."""
    return lambda settings=None, **limits: running(FakeSearcher(items), settings, **limits)
