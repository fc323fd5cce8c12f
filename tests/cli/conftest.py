"""A small lineage with honest scorecards, and its pictures as files."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # postgres_server, scored_lineages

from scored_lineages import grow_scored

from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.datasets.pictures import write_pictures


@pytest.fixture(scope="session")
def scored(tmp_path_factory):
    """A lineage of two generations on five classes of characters, D = 8."""
    return grow_scored(tmp_path_factory.mktemp("scored") / "lineage")


@pytest.fixture(scope="session")
def glyph_files(scored, tmp_path_factory):
    """Its test pictures as files: a folder with gallery, query and pictures.csv."""
    folder = tmp_path_factory.mktemp("glyph_files") / "pictures"
    write_pictures(load_benchmark(scored.recipe.data, scored.recipe.task), folder)
    return folder
