"""The site, built once for all tests that look at it."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from built_site import ROOT, build


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of the built site, what Sphinx said while it built it, and its exit status."""
    for library in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(library)
    target = tmp_path_factory.mktemp("site")
    code, said = build(ROOT / "docs", target)
    return target / "html", said, code


@pytest.fixture(scope="session")
def site(built):
    """The folder of the built site."""
    return built[0]
