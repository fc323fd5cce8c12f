from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.images.samplers import balanced_sequence


@st.composite
def requests(draw):
    items = draw(st.integers(1, 12))
    return {
        "items": np.arange(items) * 7 + 3,
        "length": draw(st.integers(0, 60)),
        "start": draw(st.integers(0, 100)),
        "group": draw(st.integers(1, items)),
        "generator": np.random.default_rng(draw(st.integers(0, 5))),
    }


@settings(deadline=None)
@given(requests())
def test_counts_differ_by_one_at_most_and_the_turn_decides_who_gets_one_more(request_):
    items, length = request_["items"], request_["length"]
    counts = Counter(balanced_sequence(**request_).tolist())
    assert sum(counts.values()) == length
    passes, extra = divmod(length, len(items))
    once_more = {int(items[(request_["start"] + turn) % len(items)]) for turn in range(extra)}
    assert counts == Counter({int(i): passes + (int(i) in once_more) for i in items if passes or int(i) in once_more})


@settings(deadline=None)
@given(requests())
def test_a_group_never_repeats_an_item(request_):
    sequence, group = balanced_sequence(**request_).tolist(), request_["group"]
    for first in range(0, len(sequence), group):
        part = sequence[first : first + group]
        assert len(set(part)) == len(part)


def test_every_order_of_a_pass_occurs():
    items, generator = np.arange(3), np.random.default_rng(0)
    drawn = [tuple(balanced_sequence(items, 3, start=0, group=3, generator=generator)) for _ in range(600)]
    counts = Counter(drawn)
    assert len(counts) == 6
    assert min(counts.values()) > 60


def as_it_was(items, length, start, group, generator):
    """The rule of commit 059f433, whose draws stored lineages go on with."""
    passes, extra = divmod(length, len(items))
    sequence = [generator.permutation(items.take(np.arange(start, start + extra), mode="wrap"))]
    for done in range(passes):
        begun = (extra + done * len(items)) % group
        shuffled = generator.permutation(items)
        if begun:
            repeats = np.isin(shuffled, sequence[-1][len(sequence[-1]) - begun :])
            head, tail = np.split(shuffled[~repeats], [group - begun])
            shuffled = np.concatenate([head, generator.permutation(np.concatenate([tail, shuffled[repeats]]))])
        sequence.append(shuffled)
    return np.concatenate(sequence)


@settings(deadline=None)
@given(requests())
def test_the_draws_are_those_that_they_always_were(request_):
    before = as_it_was(**request_ | {"generator": np.random.default_rng(9)})
    generator = np.random.default_rng(9)
    assert np.array_equal(balanced_sequence(**request_ | {"generator": generator}), before)
    as_it_was(**request_ | {"generator": (twin := np.random.default_rng(9))})
    assert generator.random() == twin.random()
