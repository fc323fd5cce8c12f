"""Nested embeddings: the sum of one loss for each size, over the first numbers brought to length 1."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.losses.building import build_embedding_loss, build_loss
from ke_metric.losses.nested import NestedLoss
from ke_metric.recipe.schema import Loss, Miner, Recipe
from ke_metric.training.joint import at_rest

CLASSES, SIZE = 4, 8
LOSSES = {
    "proxy anchor": (Loss(name="ProxyAnchorLoss"), None),
    "proxy nca": (Loss(name="ProxyNCALoss", arguments={"softmax_scale": 9}), None),
    "classic proxy nca": (Loss(name="ClassicProxyNCALoss"), None),
    "contrastive": (Loss(name="ContrastiveLoss"), None),
    "mined": (Loss(name="MultiSimilarityLoss"), Miner(name="MultiSimilarityMiner")),
    "mined triplets": (Loss(name="TripletMarginLoss"), Miner(name="TripletMarginMiner")),
}


def build(name, nested_sizes, **options):
    torch.manual_seed(0)
    loss, miner = LOSSES[name]
    return build_embedding_loss(
        loss, miner, classes=CLASSES, embedding_size=SIZE, nested_sizes=nested_sizes, **options
    )


def drawn(seed, count):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, SIZE, generator=generator)
    return vectors / vectors.norm(dim=1, keepdim=True), torch.randint(CLASSES, (count,), generator=generator)


def slow_twin(built, name, embeddings, labels):
    """The same number, written down anew: parts by hand, proxies copied, one size after another."""
    loss, miner = LOSSES[name]
    total, tuples = torch.zeros(()), 0
    for size, own in built.losses.items():
        alone = build_embedding_loss(loss, miner, classes=CLASSES, embedding_size=int(size), rehearsed=False)
        alone.load_state_dict(own.state_dict())
        rows = [row[: int(size)] / row[: int(size)].pow(2).sum().sqrt() for row in embeddings]
        total = total + alone(torch.stack(rows), labels)
        tuples += alone.tuples or 0
    return total, tuples


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(LOSSES)),
    sizes=st.sets(st.integers(2, SIZE - 1), min_size=1, max_size=4).map(sorted),
    seed=st.integers(0, 2**16),
    count=st.integers(4, 12),
)
def test_it_is_the_sum_of_the_losses_of_its_sizes(name, sizes, seed, count):
    built = build(name, tuple(sizes), rehearsed=False)
    embeddings, labels = drawn(seed, count)
    ours, theirs = (embeddings.clone().requires_grad_() for _ in range(2))
    value, (expected, tuples) = built(ours, labels), slow_twin(built, name, theirs, labels)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert built.tuples == (tuples if LOSSES[name][1] else None)


def test_every_size_has_proxies_of_its_own_and_the_whole_embedding_those_that_it_has_alone():
    built = build("proxy anchor", (2, 5))
    shapes = {name: tuple(value.shape) for name, value in built.state_dict().items()}
    assert shapes == {f"losses.{size}.loss.proxies": (CLASSES, size) for size in (8, 2, 5)}
    alone = build("proxy anchor", ())
    assert not isinstance(alone, NestedLoss)
    assert torch.equal(built.losses["8"].loss.proxies, alone.loss.proxies)


def test_half_precision_is_computed_in_single():
    built = build("proxy anchor", (2,))
    embeddings, labels = drawn(1, 6)
    half = embeddings.bfloat16()
    value = built(half, labels)
    assert value.dtype is torch.float32
    assert torch.equal(value, built(half.float(), labels))


def test_it_comes_to_rest_as_a_whole():
    built = build("mined", (2, 4))
    with at_rest(built):
        assert not any(module.training for module in built.modules())
    assert all(module.training for module in built.modules())


def test_a_size_is_tried_before_a_training():
    loss = Loss(name="HistogramLoss")
    with pytest.raises(KeMetricError, match="HistogramLoss"):
        build_embedding_loss(loss, None, classes=CLASSES, embedding_size=SIZE, nested_sizes=(2,))


def test_a_size_that_does_not_work_is_named(monkeypatch):
    def refuse(build, loss, miner, *, embedding_size, batches):
        if embedding_size == 2:
            raise KeMetricError("its gradient is 0", ExitCode.RECIPE)

    monkeypatch.setattr("ke_metric.losses.building.rehearse", refuse)
    with pytest.raises(KeMetricError, match=r"nested_sizes = \[2, 4\]: of size 2, its gradient is 0") as caught:
        build("contrastive", (2, 4))
    assert caught.value.exit_code is ExitCode.RECIPE


def test_the_recipe_says_which_sizes():
    recipe = Recipe.model_validate({"name": "x", "network": {"embedding_size": 16, "nested_sizes": [4, 8]}})
    built = build_loss(recipe, class_sizes=[8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8])
    assert list(built.losses) == ["16", "4", "8"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"network": {"nested_sizes": [4, 4]}}, "ascending, each once"),
        ({"network": {"nested_sizes": [8, 4]}}, "ascending, each once"),
        ({"network": {"nested_sizes": [1, 4]}}, "at least 2"),
        ({"network": {"nested_sizes": [True, 4]}}, "integer"),
        ({"network": {"nested_sizes": [16, 32], "embedding_size": 32}}, "smaller than embedding_size = 32"),
        ({"network": {"nested_sizes": [16]}, "task": "classification"}, "is not read where task = 'classification'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Recipe.model_validate({"name": "x", **fields})
