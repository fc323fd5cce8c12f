"""Streams depend on (seed, generation, purpose) alone, and leave everything else as it was."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.randomness import default_streams, derive_seed, numpy_generator, torch_generator

KEYS = st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 1000), st.text(max_size=8))


def draw_torch(key):
    return torch.rand(8, generator=torch_generator(*key)).tolist()


def draw_numpy(key):
    return numpy_generator(*key).random(8).tolist()


def draw_default(key):
    with default_streams(*key):
        return torch.rand(8).tolist()


def global_states():
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002 -- the global stream is what must stay untouched
    return random.getstate(), numpy_state, torch.get_rng_state().tolist()


def test_seeds_stay_the_same_from_release_to_release():
    assert derive_seed(0, 1, "weights") == 2849678436392155461


@given(KEYS)
def test_seeds_fit_every_generator(key):
    assert 0 <= derive_seed(*key) < 2**63


@given(KEYS, KEYS)
def test_seeds_differ_where_any_part_of_the_key_differs(one, other):
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


@pytest.mark.parametrize("other", [(12, 1, "1"), (1, 21, "1"), (1, 2, "11"), (1, 2, "1/1"), (1, 2, "")])
def test_digits_do_not_slip_from_one_part_of_the_key_to_the_next(other):
    assert derive_seed(1, 2, "1") != derive_seed(*other)


@pytest.mark.parametrize("draw", [draw_torch, draw_numpy, draw_default])
def test_a_stream_repeats_whatever_was_drawn_before(draw):
    first = draw((0, 3, "reset"))
    draw((0, 3, "batches"))
    torch.rand(5)
    assert draw((0, 3, "reset")) == first


@pytest.mark.parametrize("draw", [draw_torch, draw_numpy, draw_default])
@pytest.mark.parametrize("other", [(1, 3, "reset"), (0, 4, "reset"), (0, 3, "batches")])
def test_streams_differ_by_seed_generation_and_purpose(draw, other):
    assert draw((0, 3, "reset")) != draw(other)


def test_streams_are_not_correlated():
    draws = [torch.randn(2000, generator=torch_generator(0, generation, "reset")) for generation in range(1, 21)]
    correlation = torch.corrcoef(torch.stack(draws)).fill_diagonal_(0).abs().max()
    assert correlation < 0.12  # 190 pairs with a standard deviation of 1 / sqrt(2000) = 0.022


@pytest.mark.parametrize("draw", [draw_torch, draw_numpy, draw_default])
def test_the_global_streams_are_left_alone(draw):
    before = global_states()
    draw((0, 1, "weights"))
    assert global_states() == before


def test_default_streams_are_put_back_after_an_error():
    before = global_states()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), default_streams(0, 1, "weights"):
        torch.rand(3, 2) @ torch.rand(3, 2)
    assert global_states() == before


def test_default_streams_nest():
    with default_streams(0, 1, "weights"):
        expected = torch.rand(6).tolist()
    with default_streams(0, 1, "weights"):
        first = torch.rand(3).tolist()
        with default_streams(0, 1, "dropout"):
            torch.rand(10)
        assert first + torch.rand(3).tolist() == expected


def test_default_streams_reach_code_that_takes_no_generator():
    weights = []
    for _ in range(2):
        with default_streams(0, 1, "weights"):
            weights.append(torch.nn.Linear(4, 4).weight.detach())
    assert torch.equal(*weights)


@pytest.mark.gpu
def test_default_streams_cover_cuda():
    before = torch.cuda.get_rng_state()
    with default_streams(0, 1, "weights"):
        first = torch.rand(4, device="cuda")
    with default_streams(0, 1, "weights"):
        assert torch.equal(first, torch.rand(4, device="cuda"))
    assert torch.equal(before, torch.cuda.get_rng_state())
