from __future__ import annotations

import math

import pytest
import torch

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.losses.building import build_embedding_loss
from ke_metric.losses.library import EMBEDDING_LOSSES, MINERS
from ke_metric.recipe.schema import Loss, Miner

CLASSES, SIZE = 4, 5
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
EVEN_LABELS = torch.tensor([0, 1, 2, 3]).repeat(2)

SEMIHARD = {"margin": 0.2, "type_of_triplets": "semihard"}
SHIPPED = {
    "triplet": (
        Loss(name="TripletMarginLoss", arguments={"margin": 0.2}),
        Miner(name="TripletMarginMiner", arguments=SEMIHARD),
    ),
    "proxy nca": (Loss(name="ProxyNCALoss", arguments={"softmax_scale": 9}), None),
    "classic proxy nca": (Loss(name="ClassicProxyNCALoss", arguments={"softmax_scale": 3}), None),
    "proxy anchor": (Loss(name="ProxyAnchorLoss"), None),
    "multi similarity": (Loss(name="MultiSimilarityLoss"), Miner(name="MultiSimilarityMiner")),
}
REQUIRED = {
    "RankedListLoss": {"margin": 0.4, "Tn": 10},
    "CrossBatchMemory": {"loss": {"name": "ContrastiveLoss"}, "memory_size": 16},
    "MultipleLosses": {"losses": [{"name": "ProxyAnchorLoss"}, {"name": "SupConLoss"}]},
}
# See tests/losses/test_trial.py.
REFUSED = {"DynamicSoftMarginLoss", "HistogramLoss", "TupletMarginLoss"}


def build(loss, miner=None):
    torch.manual_seed(0)
    return build_embedding_loss(loss, miner, classes=CLASSES, embedding_size=SIZE)


@pytest.fixture
def embeddings():
    return torch.randn(8, SIZE, generator=torch.Generator().manual_seed(4)) * 2


@pytest.fixture(params=SHIPPED)
def shipped(request):
    return build(*SHIPPED[request.param])


def value(loss, embeddings, labels):
    return loss(embeddings, labels).item()


def unit(vectors):
    return [vector / vector.norm() for vector in vectors]


def distance(left, right):
    return float((left - right).norm())


def same_and_others(anchor):
    others = [i for i in range(8) if i != anchor]
    return [i for i in others if LABELS[i] == LABELS[anchor]], [i for i in others if LABELS[i] != LABELS[anchor]]


def test_triplet_is_the_mean_hinge_of_the_semihard_triplets(embeddings):
    built, x = build(*SHIPPED["triplet"]), unit(embeddings)
    hinges = []
    for a in range(8):
        positives, negatives = same_and_others(a)
        for p in positives:
            for n in negatives:
                gap = distance(x[a], x[n]) - distance(x[a], x[p])
                if 0 < gap <= 0.2:
                    hinges.append(0.2 - gap)
    assert value(built, embeddings, LABELS) == pytest.approx(sum(hinges) / len(hinges), rel=1e-4)
    assert built.tuples == len(hinges) > 3


def test_proxy_nca_is_the_softmax_over_all_proxies(embeddings):
    built, x = build(*SHIPPED["proxy nca"]), unit(embeddings)
    proxies = unit(built.loss.proxies.detach())
    total = 0.0
    for vector, label in zip(x, LABELS.tolist(), strict=True):
        weights = [math.exp(-9 * distance(vector, proxy) ** 2) for proxy in proxies]
        total -= math.log(weights[label] / sum(weights))
    assert value(built, embeddings, LABELS) == pytest.approx(total / 8, rel=1e-4)
    assert built.tuples is None


def test_classic_proxy_nca_leaves_the_positive_out_of_the_denominator(embeddings):
    built, x = build(*SHIPPED["classic proxy nca"]), unit(embeddings)
    proxies = unit(built.loss.proxies.detach())
    total = 0.0
    for vector, label in zip(x, LABELS.tolist(), strict=True):
        weights = [math.exp(-3 * distance(vector, proxy) ** 2) for proxy in proxies]
        total -= math.log(weights[label] / (sum(weights) - weights[label]))
    assert value(built, embeddings, LABELS) == pytest.approx(total / 8, rel=1e-4)


def test_proxy_anchor_is_equation_4_of_the_paper(embeddings):
    built, x = build(*SHIPPED["proxy anchor"]), unit(embeddings)
    pull, push, present = 0.0, 0.0, set(LABELS.tolist())
    for number, proxy in enumerate(unit(built.loss.proxies.detach())):
        own = [float(vector @ proxy) for vector, label in zip(x, LABELS, strict=True) if label == number]
        others = [float(vector @ proxy) for vector, label in zip(x, LABELS, strict=True) if label != number]
        pull += math.log(1 + sum(math.exp(-32 * (cosine - 0.1)) for cosine in own))
        push += math.log(1 + sum(math.exp(32 * (cosine + 0.1)) for cosine in others))
    expected = pull / len(present) + push / CLASSES
    assert value(built, embeddings, LABELS) == pytest.approx(expected, rel=1e-4)


def test_multi_similarity_mines_and_weighs_as_in_the_paper(embeddings):
    built, x = build(*SHIPPED["multi similarity"]), unit(embeddings)
    total, tuples = 0.0, 0
    for a in range(8):
        positives, negatives = ([float(x[a] @ x[i]) for i in part] for part in same_and_others(a))
        hard_positives = [s for s in positives if s - 0.1 < max(negatives)]
        hard_negatives = [s for s in negatives if s + 0.1 > min(positives)]
        total += math.log(1 + sum(math.exp(-2 * (s - 0.5)) for s in hard_positives)) / 2
        total += math.log(1 + sum(math.exp(50 * (s - 0.5)) for s in hard_negatives)) / 50
        tuples += len(hard_positives) + len(hard_negatives)
    assert value(built, embeddings, LABELS) == pytest.approx(total / 8, rel=1e-4)
    assert built.tuples == tuples


def test_the_length_of_an_embedding_does_not_matter(shipped, embeddings):
    lengths = torch.linspace(0.1, 9, 8)[:, None]
    assert value(shipped, embeddings * lengths, LABELS) == pytest.approx(value(shipped, embeddings, LABELS), rel=1e-4)


def test_the_order_of_a_batch_does_not_matter(shipped, embeddings):
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = value(shipped, embeddings[order], LABELS[order])
    assert shuffled == pytest.approx(value(shipped, embeddings, LABELS), rel=1e-4)


def test_the_gradient_reaches_embeddings_and_proxies(shipped, embeddings):
    shipped(embeddings.requires_grad_(), LABELS).backward()
    assert embeddings.grad.abs().sum() > 0
    parameters = dict(shipped.named_parameters())
    assert set(parameters) <= {"loss.proxies"}
    for proxies in parameters.values():
        assert proxies.shape == (CLASSES, SIZE)
        assert (proxies.grad[:3].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_half_precision_embeddings_is_computed_in_float32(shipped, embeddings, dtype):
    half = embeddings.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = shipped(half, LABELS)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, shipped(half.float(), LABELS))
    assert all(parameter.dtype == torch.float32 for parameter in shipped.parameters())


def test_without_any_tuple_the_loss_is_zero_and_the_count_says_so():
    built = build(*SHIPPED["triplet"])
    apart = torch.eye(SIZE)[[0, 0, 1, 1]].requires_grad_()
    loss = built(apart, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.detach() == 0
    assert built.tuples == 0


@pytest.mark.parametrize("name", sorted(EMBEDDING_LOSSES.keys() - REFUSED))
def test_every_loss_that_is_not_refused_trains(name, embeddings):
    built = build(Loss(name=name, arguments=REQUIRED.get(name, {})))
    loss = built(embeddings.requires_grad_(), EVEN_LABELS)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(MINERS))
def test_every_known_miner_goes_with_the_triplet_loss(name, embeddings):
    built = build(Loss(name="TripletMarginLoss"), Miner(name=name))
    assert built(embeddings, LABELS).isfinite()
    assert built.tuples > 0


def refusal(loss, miner=None):
    with pytest.raises(KeMetricError) as caught:
        build(loss, miner)
    assert caught.value.exit_code is ExitCode.RECIPE
    return str(caught.value)


def test_a_miner_beside_classic_proxy_nca_is_refused():
    message = refusal(Loss(name="ClassicProxyNCALoss"), Miner(name="MultiSimilarityMiner"))
    assert all(word in message for word in ("miner.name = 'MultiSimilarityMiner'", "takes no mined tuples"))


@pytest.mark.parametrize(
    ("loss", "miner", "words"),
    [
        (Loss(name="P2SGradLoss"), Miner(name="TripletMarginMiner"), ("'P2SGradLoss'", "'TripletMarginMiner'")),
        (Loss(name="TripletMarginLoss", arguments={"triplets_per_anchor": "some"}), None, ("'some'", "8 embeddings")),
        (Loss(name="TripletMarginLoss", arguments={"reducer": {"name": "DivisorReducer"}}), None, ("KeyError",)),
        (Loss(name="CircleLoss", arguments={"distance": {"name": "LpDistance"}}), None, ("CosineSimilarity",)),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(loss, miner, words):
    message = refusal(loss, miner)
    assert [word for word in words if word not in message] == [], message
    assert "loss.arguments" in message


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_few_classes_are_enough_for_the_rehearsal(classes):
    build_embedding_loss(Loss(name="SmoothAPLoss"), None, classes=classes, embedding_size=SIZE)
