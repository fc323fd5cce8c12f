"""Losses made of losses: a memory of earlier batches, and weighted sums."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.losses import library
from ke_metric.losses.building import build_loss
from ke_metric.losses.library import REMEMBERING
from ke_metric.recipe.schema import Recipe
from ke_metric.training.joint import at_rest

SIZE, CLASS_SIZES = 6, [8] * 6
CONTRASTIVE = {"loss": {"name": "ContrastiveLoss", "pos_margin": 0.1, "neg_margin": 0.9}, "memory_size": 12}
TRIPLET = {"loss": {"name": "TripletMarginLoss", "margin": 0.4}, "memory_size": 12}


def recipe_of(name="CrossBatchMemory", arguments=None, miner=None, **fields):
    return Recipe.model_validate(
        {
            "name": "combined",
            "loss": {"name": name, "arguments": arguments or CONTRASTIVE},
            "miner": miner,
            "network": {"embedding_size": SIZE, **fields.pop("network", {})},
            "batches": {"size": 8, "images_per_class": 2},
            **fields,
        }
    )


def build(*arguments, rehearsed=False, **fields):
    torch.manual_seed(0)
    return build_loss(recipe_of(*arguments, **fields), class_sizes=CLASS_SIZES, rehearsed=rehearsed)


def refusal(*arguments, **fields):
    with pytest.raises(KeMetricError) as caught:
        build(*arguments, rehearsed=True, **fields)
    assert caught.value.exit_code is ExitCode.RECIPE
    return str(caught.value)


def batch(seed, count=5):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, SIZE, generator=generator) + 0.8
    return normalize(vectors), torch.randint(3, (count,), generator=generator)


def distance(left, right):
    return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(left, right, strict=True)))


def slow_twin(seen, size, arguments):
    """Return the value for the last batch of `seen`: every embedding of it against the last `size` that were seen."""
    memory = [
        (number, place, x, int(y))
        for number, (xs, ys) in enumerate(seen)
        for place, (x, y) in enumerate(zip(xs, ys, strict=True))
    ]
    memory = memory[-size:]
    found = {True: [], False: []}
    hinges = []
    last = len(seen) - 1
    for place, (anchor, label) in enumerate(zip(*seen[-1], strict=True)):
        others = [(x, y) for number, where, x, y in memory if (number, where) != (last, place)]
        own = [distance(anchor, x) for x, y in others if y == label]
        foreign = [distance(anchor, x) for x, y in others if y != label]
        found[True] += [max(0.0, each - 0.1) for each in own]
        found[False] += [max(0.0, 0.9 - each) for each in foreign]
        hinges += [max(0.0, pull - push + 0.4) for pull in own for push in foreign]
    if arguments is TRIPLET:
        return mean_of_positive(hinges)
    return mean_of_positive(found[True]) + mean_of_positive(found[False])


def mean_of_positive(values):
    positive = [value for value in values if value > 0]
    return sum(positive) / len(positive) if positive else 0.0


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(2, 8), min_size=1, max_size=6),
    arguments=st.sampled_from([CONTRASTIVE, TRIPLET]),
    seed=st.integers(0, 999),
)
def test_a_batch_is_compared_with_the_last_embeddings(counts, arguments, seed):
    loss, seen = build("CrossBatchMemory", arguments), []
    for step, count in enumerate(counts):
        seen.append(batch(seed + step, count))
        value = loss(*seen[-1])
        assert float(value) == pytest.approx(slow_twin(seen, 12, arguments), abs=1e-4)


def test_no_gradient_goes_through_the_memory():
    loss = build()
    earlier = batch(0)[0].requires_grad_()
    loss(earlier, batch(0)[1])
    now = batch(1)[0].requires_grad_()
    loss(now, batch(1)[1]).backward()
    assert now.grad.abs().sum() > 0
    assert earlier.grad is None


@settings(max_examples=15, deadline=None)
@given(before=st.integers(0, 7), count=st.integers(2, 7), seed=st.integers(0, 99))
def test_the_state_goes_on_where_it_was(before, count, seed):
    """Also where the queue is not full yet, is just full, or has begun anew."""
    loss, resumed = build(), build()
    for step in range(before):
        loss(*batch(seed + step, count))
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()), strict=True)
    for step in range(before, before + 3):
        ours, theirs = (batch(seed + step, count)[0].requires_grad_() for _ in range(2))
        values = [module(x, batch(seed + step, count)[1]) for module, x in ((loss, ours), (resumed, theirs))]
        for value in values:
            value.backward()
        assert torch.equal(*values)
        assert torch.equal(ours.grad, theirs.grad)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in loss.state_dict().items())


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5])
def test_nothing_is_remembered_at_rest_and_the_batch_stands_in_for_the_last_one(steps):
    """So narrow networks do not meet the whole network's embeddings of the very same pictures."""
    loss, seen = build(), [batch(step) for step in range(steps)]
    for each in seen:
        loss(*each)
    state = copy.deepcopy(loss.state_dict())
    with at_rest(loss):
        value = loss(*batch(77))
        assert torch.equal(loss(*batch(77)), value)
    assert all(torch.equal(each, state[name]) for name, each in loss.state_dict().items())
    expected = slow_twin([*seen[:-1], batch(77)], 12, CONTRASTIVE)
    assert float(value) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", sorted(REMEMBERING))
def test_where_an_embedding_lies_in_the_memory_does_not_matter(name):
    values = []
    for rows in (torch.arange(8), torch.randperm(8, generator=torch.Generator().manual_seed(0))):
        loss = build("CrossBatchMemory", {"loss": {"name": name}, "memory_size": 40})
        vectors, labels = batch(0, 8)
        loss(vectors[rows], labels[rows])
        torch.manual_seed(0)
        values.append(float(loss(*batch(1, 8)).detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert values[0] > 0


def test_lifted_structure_is_refused_in_a_memory_and_is_still_wrong_there(monkeypatch):
    message = refusal("CrossBatchMemory", {"loss": {"name": "LiftedStructureLoss"}})
    assert "loss.arguments.loss.name = 'LiftedStructureLoss'" in message
    assert "gets it wrong; allowed: AngularLoss" in message
    nested = {**library.NESTED, "loss": library.EMBEDDING_LOSSES}
    monkeypatch.setattr("ke_metric.losses.building.NESTED", nested)
    with pytest.raises(AssertionError):
        test_where_an_embedding_lies_in_the_memory_does_not_matter("LiftedStructureLoss")


def test_the_miner_of_the_recipe_mines_in_the_memory_and_its_tuples_are_counted():
    mined = build("CrossBatchMemory", CONTRASTIVE, {"name": "PairMarginMiner", "arguments": {"neg_margin": 0.6}})
    assert build().tuples is None
    counts = []
    for step in range(4):
        mined(*batch(step, 8))
        counts.append(mined.tuples)
    # Within one batch of 8 there are fewer than with 12.
    assert 0 < counts[0] < 8 * 7
    assert max(counts[1:]) > counts[0]


def test_every_nested_size_has_a_memory_of_its_own():
    loss = build(network={"nested_sizes": [2, 4]}, rehearsed=True)
    for step in range(2):
        loss(*batch(step))
    memories = {name: value for name, value in loss.state_dict().items() if name.endswith("embedding_memory")}
    assert [tuple(value.shape) for value in memories.values()] == [(12, 6), (12, 2), (12, 4)]
    whole = memories["losses.6.loss.embedding_memory"][:10]
    assert torch.equal(whole, torch.cat([batch(0)[0], batch(1)[0]]))
    for size in (2, 4):
        torch.testing.assert_close(
            memories[f"losses.{size}.loss.embedding_memory"][:10], normalize(whole[:, :size]), rtol=1e-6, atol=1e-6
        )


def test_a_batch_of_one_class_learns_from_the_memory():
    build(rehearsed=True, batches={"size": 4, "images_per_class": 4})
    message = refusal("TripletMarginLoss", {"margin": 0.2}, batches={"size": 4, "images_per_class": 4})
    assert "negative pairs" in message


@pytest.mark.parametrize(
    ("arguments", "miner", "words"),
    [
        ({"memory_size": 8}, None, "memory_size = 8 of CrossBatchMemory: must be more than batches.size = 8"),
        ({"memory_size": 49}, None, "at most the 48 training pictures"),
        ({"memory_size": 12.5}, None, "CrossBatchMemory cannot be built"),
        ({"memory_size": "all"}, None, "memory_size = 'all' must be a finite number"),
        ({"embedding_size": 9}, None, "embedding_size = 9: data and network make it 6"),
        ({"loss": {"name": "ProxyAnchorLoss"}}, None, "compares no batch with a memory by it"),
        ({"loss": {"name": "VICRegLoss"}}, None, "'VICRegLoss' cannot be used: it takes two views"),
        ({"loss": {"name": "TripletMarginLos"}}, None, "did you mean 'TripletMarginLoss'"),
        ({"loss": "TripletMarginLoss"}, None, "must be a mapping with a name"),
        ({"enqueue_mask": [True]}, None, "a second, slowly moving network gave (MoCo)"),
        ({"enqueue_idx": [0]}, None, "a second, slowly moving network gave (MoCo)"),
        ({"miner": {"name": "HDCMiner"}}, None, "loss.arguments.miner: is the recipe's section miner"),
        # The easiest positive of a picture is itself, in the memory.
        ({}, {"name": "BatchEasyHardMiner"}, "pos_strategy = 'easy': the easiest positive"),
    ],
)
def test_memories_that_cannot_be_are_refused(arguments, miner, words):
    assert words in refusal("CrossBatchMemory", {**CONTRASTIVE, **arguments}, miner)


SUM = {"losses": [{"name": "ProxyAnchorLoss"}, {"name": "CrossBatchMemory", **TRIPLET}], "weights": [2, 0.5]}
HARD = {"name": "TripletMarginMiner", "arguments": {"type_of_triplets": "hard"}}


def test_a_sum_is_the_weighted_sum_of_its_losses():
    both = build("MultipleLosses", SUM, rehearsed=True)
    parts = [build("ProxyAnchorLoss", {"margin": 0.1}), build("CrossBatchMemory", TRIPLET)]
    parts[0].load_state_dict(both.losses[0].state_dict())
    for step in range(3):
        vectors, labels = batch(step)
        expected = 2 * parts[0](vectors, labels) + 0.5 * parts[1](vectors, labels)
        torch.testing.assert_close(both(vectors, labels), expected)
    assert both.tuples is None


def test_the_miner_of_the_recipe_mines_for_every_loss_of_a_sum_and_a_list_for_some():
    losses = [{"name": "TripletMarginLoss"}, {"name": "ContrastiveLoss"}]
    easy = {"name": "TripletMarginMiner", "type_of_triplets": "all", "margin": 0.5}
    whole = build("MultipleLosses", {"losses": losses}, HARD, rehearsed=True)
    listed = build("MultipleLosses", {"losses": losses, "miners": [None, easy]}, rehearsed=True)
    for loss in (whole, listed):
        loss(*batch(3, 8))
    assert whole.tuples == 2 * whole.losses[0].tuples > 0
    assert listed.losses[0].tuples is None
    assert listed.tuples == listed.losses[1].tuples > 0


@pytest.mark.parametrize(
    ("arguments", "miner", "words"),
    [
        ({}, None, "loss.arguments.losses = None must be a list of losses"),
        ({"losses": []}, None, "must be a list of losses"),
        ({"losses": ["SupConLoss"]}, None, "loss.arguments.losses.0 = 'SupConLoss' must be a mapping with a name"),
        ({"losses": [{"name": "SupConLos"}]}, None, "loss.arguments.losses.0.name = 'SupConLos'"),
        ({"losses": [{"name": "SupConLoss", "temperatur": 1}]}, None, "did you mean 'temperature'"),
        ({"losses": [{"name": "MultipleLosses"}]}, None, "'MultipleLosses' is not known"),
        ({"losses": [{"name": "InstanceLoss"}]}, None, "takes the k-th picture of a batch for the k-th class"),
        ({"losses": [{"name": "SupConLoss"}], "weights": [1, 2]}, None, "must be 1 numbers"),
        ({"losses": [{"name": "SupConLoss"}], "weights": ["1"]}, None, "must be 1 numbers"),
        ({"losses": [{"name": "SupConLoss"}], "miners": []}, None, "must be 1 miners"),
        ({"losses": [{"name": "SupConLoss"}], "miners": [None]}, HARD, "stands beside miner.name"),
        ({"losses": [{"name": "SupConLoss"}], "weight": [1]}, None, "MultipleLosses has no such keyword"),
        ({"losses": [{"name": "ClassicProxyNCALoss"}]}, HARD, "takes no mined tuples"),
        ({"losses": [{"name": "CrossBatchMemory", **CONTRASTIVE, "memory_size": 8}]}, None, "memory_size = 8"),
        ({"losses": [{"name": "HistogramLoss"}, {"name": "SupConLoss"}]}, None, "have the same embedding"),
    ],
)
def test_sums_that_cannot_be_are_refused(arguments, miner, words):
    assert words in refusal("MultipleLosses", arguments or {"weights": [1]}, miner)
