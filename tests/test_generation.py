"""The records refuse what cannot be, and a state dict's digest changes with every bit of it."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.arrays import weights_digest
from ke_metric.generation import Generation, Provenance, Scorecard

SCORES = {"recall@1": 0.5}


def generation(number=1, parent_digest=None):
    provenance = Provenance("recipe", parent_digest, 0, environment={}, training={}, seconds={})
    return Generation(number, {}, {}, "{}", {}, Scorecard(SCORES, None, 1, None), (), {}, provenance)


@pytest.mark.parametrize(("number", "parent_digest"), [(1, None), (2, "a"), (1000, "b")])
def test_a_generation_has_a_parent_unless_it_is_the_first(number, parent_digest):
    assert generation(number, parent_digest).number == number


@pytest.mark.parametrize(("number", "parent_digest"), [(0, None), (-1, "a"), (1, "a"), (2, None)])
def test_a_generation_that_cannot_be_is_refused(number, parent_digest):
    with pytest.raises(AssertionError):
        generation(number, parent_digest)


@pytest.mark.parametrize(("slim", "parameters"), [(SCORES, None), (None, 5)])
def test_slim_scores_come_with_the_size_of_a_slim_network(slim, parameters):
    with pytest.raises(AssertionError, match="slim"):
        Scorecard(SCORES, slim, 10, parameters)


def test_the_digest_is_sha_256_of_names_types_shapes_and_bytes():
    weights = {"b": torch.tensor([1, 2], dtype=torch.int64), "a": torch.tensor(0.5)}
    digest = hashlib.sha256()
    digest.update(b"a torch.float32 ()\n" + bytes.fromhex("0000003f"))
    digest.update(b"b torch.int64 (2,)\n" + (1).to_bytes(8, "little") + (2).to_bytes(8, "little"))
    assert weights_digest(weights) == digest.hexdigest()


def test_order_and_memory_layout_do_not_change_the_digest():
    weights = {"a": torch.randn(2, 3, 4, 5), "b": torch.randn(4, 3)}
    strided = {"b": weights["b"].t().contiguous().t(), "a": weights["a"].to(memory_format=torch.channels_last)}
    assert not strided["a"].is_contiguous()
    assert weights_digest(strided) == weights_digest(weights)


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.zeros(2, 3)},
        {"v": torch.zeros(6)},
        {"w": torch.zeros(6, dtype=torch.int32)},
        {"w": torch.zeros(6), "v": torch.zeros(0)},
        {"w": torch.tensor([0.0, 0, 0, 0, 0, -0.0])},
        {},
    ],
    ids=["shape", "name", "type", "one more", "sign of zero", "nothing"],
)
def test_any_other_weights_have_another_digest(other):
    assert weights_digest(other) != weights_digest({"w": torch.zeros(6)})


@given(st.integers(0, 4 * 8 * 5 - 1), st.sampled_from([torch.float32, torch.bfloat16, torch.bool]))
def test_every_bit_counts(bit, dtype):
    content = bytearray(b"\x00\x01" * 10)
    before = weights_digest({"w": torch.frombuffer(bytearray(content), dtype=dtype)})
    index = bit // 8
    content[index] = content[index] ^ 1 if dtype == torch.bool else content[index] ^ (1 << bit % 8)
    assert weights_digest({"w": torch.frombuffer(content, dtype=dtype)}) != before
