"""Which kind of FAISS index for how many vectors."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.stores.faiss_kinds import (
    LEAST_PER_CENTROID,
    choose_kind,
    is_exact,
    list_count,
    make_index,
    training_counts,
)


@pytest.mark.parametrize(
    ("count", "dimension", "factory", "words"),
    [
        (0, 128, "Flat", "0 vectors of 128 numbers take 0 bytes and are searched exactly"),
        (4_021, 128, "Flat", "4,021 vectors of 128 numbers take 2 MB and are searched exactly"),
        (100_000, 128, "Flat", "51 MB"),
        (100_001, 128, "HNSW32", "51 MB"),
        (500_000, 128, "HNSW32", "256 MB"),
        (500_001, 128, "IVF4096,Flat", "256 MB"),
        (1_000_000, 128, "IVF4096,Flat", "512 MB"),
        (2_000_001, 128, "IVF4096,PQ64x4fs", "1.0 GB"),
        (100_000_000, 128, "IVF65536,PQ64x4fs", "4.0 GB"),
        (10_000, 512, "Flat", "20 MB"),
        (40_000, 2048, "IVF256,Flat", "328 MB"),
        (3_000_000, 127, "IVF4096,SQ8", "1.5 GB"),
    ],
)
def test_the_kind_and_its_reason(count, dimension, factory, words):
    choice = choose_kind(count, dimension)
    assert choice.factory == factory
    assert choice.reason.startswith(f"{factory}: {count:,} vectors of {dimension} numbers take ")
    assert words in choice.reason


def test_around_a_limit_the_kind_that_is_there_stays():
    assert choose_kind(90_000, 128, "HNSW32").factory == "HNSW32"
    assert "90,000" in choose_kind(90_000, 128, "HNSW32").reason
    assert choose_kind(90_000, 128).factory == "Flat"
    assert choose_kind(49_000, 128, "HNSW32").factory == "Flat"
    assert choose_kind(100_001, 128, "Flat").factory == "HNSW32", "a kind that is too small does not stay"
    assert choose_kind(90_000, 128, "IVF4096,PQ64x4fs").factory == "Flat"


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 4096))
def test_a_chosen_kind_can_be_trained(count, dimension):
    factory = choose_kind(count, dimension).factory
    if "65536" not in factory and "16384" not in factory:
        assert training_counts(make_index(factory, dimension))[0] <= max(count, 1)
    assert LEAST_PER_CENTROID * (list_count(count) if "IVF" in factory else 0) <= count


@given(st.integers(0, 10**9))
def test_lists_are_a_power_of_four_and_rise(count):
    lists = list_count(count)
    assert lists in (4**n for n in range(1, 9))
    assert list_count(count + 1) >= lists


@pytest.mark.parametrize(("factory", "exact"), [("Flat", True), ("HNSW32", False), ("IVF4,Flat", False)])
def test_exactness(factory, exact):
    assert is_exact(make_index(factory, 16)) is exact
