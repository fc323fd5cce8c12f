"""What a loss is put through before a training, for every loss and miner of pytorch-metric-learning."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.losses import trial as rehearsal
from ke_metric.losses.building import build_classification_loss, build_embedding_loss, build_part
from ke_metric.losses.library import EMBEDDING_LOSSES, MINERS
from ke_metric.losses.trial import possible_batches
from ke_metric.recipe.schema import Batches, Loss, Miner

CLASSES, SIZE = 8, 16
REQUIRED = {"RankedListLoss": {"margin": 0.4, "Tn": 10}, "HistogramLoss": {"n_bins": 20}}
PAIRS = torch.arange(4).repeat_interleave(2)
ONE_CLASS, ALL_DIFFERENT = torch.zeros(8, dtype=torch.int64), torch.arange(8)

# What each does beyond its first pass, found by hand with pytorch-metric-learning 2.9.0.
REFUSED = {
    "DynamicSoftMarginLoss": "at the second step",
    "HistogramLoss": "two pictures of one class have the same embedding",
    "TupletMarginLoss": "two pictures of one class have the same embedding",
}
# Losses made of losses: tests/losses/test_combined.py.
GOOD = sorted(EMBEDDING_LOSSES.keys() - REFUSED.keys() - {"CrossBatchMemory", "MultipleLosses"})
HALVES = Batches(size=8, images_per_class=4)
ONE = Batches(size=8, images_per_class=8)
SINGLES = Batches(size=8, images_per_class=1)


def loss_of(name: str) -> Loss:
    return Loss(name=name, arguments=REQUIRED.get(name, {}))


def bare(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"num_classes": CLASSES, "embedding_size": SIZE, "descriptors_dim": SIZE}
    return build_part(EMBEDDING_LOSSES, name, REQUIRED.get(name, {}), field="loss.arguments", sizes=sizes)


def gradient(loss, labels, spread=1.0):
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(len(labels), SIZE, generator=generator) * spread + (spread < 1)
    leaf = vectors.requires_grad_()
    loss(normalize(leaf), labels).backward()
    return float(leaf.grad.abs().max())


def refusal(loss: Loss, miner: Miner | None = None, batches: Batches | None = None, sizes=(9,) * CLASSES) -> str:
    with pytest.raises(KeMetricError) as caught:
        build(loss, miner, batches, sizes)
    assert caught.value.exit_code is ExitCode.RECIPE
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def build(loss: Loss, miner: Miner | None = None, batches: Batches | None = None, sizes=(9,) * CLASSES):
    possible = batches and possible_batches(batches, sizes)
    return build_embedding_loss(loss, miner, classes=CLASSES, embedding_size=SIZE, batches=possible)


@pytest.mark.parametrize("name", GOOD)
def test_a_loss_that_is_built_takes_two_steps_and_bears_equal_and_opposite_embeddings(name):
    built = build(loss_of(name))
    vectors = torch.randn(8, SIZE, generator=torch.Generator().manual_seed(2))
    equal, opposite = vectors.clone(), vectors.clone()
    equal[[1, 4]], opposite[[1, 4]] = vectors[0], -vectors[0]
    for embeddings in (vectors, vectors, equal, opposite, vectors[:1].repeat(8, 1)):
        leaf = embeddings.clone().requires_grad_()
        loss = built(normalize(leaf), PAIRS)
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", REFUSED)
def test_a_loss_that_ends_in_a_training_is_refused_in_words(name):
    """Each of them passes a first step on different embeddings, and fails in the way that the refusal says."""
    loss = bare(name)
    assert gradient(loss, PAIRS) > 0
    message = refusal(loss_of(name))
    assert f"loss.name = '{name}'" in message
    assert REFUSED[name] in message
    working = message.partition("of its kind that work: ")[2].split(", ")
    assert {"TripletMarginLoss", "MultiSimilarityLoss", "SupConLoss"} <= set(working) <= set(GOOD)
    assert "ProxyAnchorLoss" not in working
    leaf = torch.ones(8, SIZE, requires_grad=True)
    try:
        (loss if name == "DynamicSoftMarginLoss" else bare(name))(normalize(leaf), PAIRS).backward()
    except RuntimeError:
        return
    assert not leaf.grad.isfinite().all()


@pytest.fixture
def alone(monkeypatch):
    """Refusals that name no other losses, which takes half a second."""
    monkeypatch.setattr(rehearsal, "_alternatives", lambda *_: "")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", GOOD)
def test_what_is_refused_for_its_batches_is_what_learns_nothing_from_them(name):
    """Against the library: with batches of one class, or of all different ones, is there a gradient?"""
    for batches, labels in ((ONE, ONE_CLASS), (SINGLES, ALL_DIFFERENT)):
        try:
            moved = max(gradient(bare(name), labels, spread) for spread in (1.0, 0.3, 0.03))
        except RuntimeError:
            moved = 0.0
        point = gradient(bare(name), labels, 0.0) if batches is ONE else 1.0
        # nan, as NCALoss has it without positive pairs, is not above either.
        if moved > 1e-3 and point > 1e-3:
            build(loss_of(name), batches=batches)
        else:
            message = refusal(loss_of(name), batches=batches)
            pairs = "negative pairs" if batches is ONE else "positive pairs"
            assert f"batches.size = 8 with batches.images_per_class = {batches.images_per_class}" in message
            assert pairs in message


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("miner", sorted(MINERS))
def test_a_miner_finds_nothing_in_batches_of_one_sort_of_pairs(miner):
    triplet = Loss(name="TripletMarginLoss")
    build(triplet, Miner(name=miner), HALVES)
    for batches, pairs in ((ONE, "negative pairs"), (SINGLES, "positive pairs")):
        message = refusal(triplet, Miner(name=miner), batches)
        assert f"miner.name = '{miner}'" in message
        assert pairs in message


@pytest.mark.usefixtures("alone")
def test_the_cure_works():
    message = refusal(Loss(name="TripletMarginLoss"), batches=ONE)
    assert "use batches.size = 16, or batches.images_per_class = 4" in message
    for cured in (Batches(size=16, images_per_class=8), Batches(size=8, images_per_class=4)):
        build(Loss(name="TripletMarginLoss"), batches=cured)
    message = refusal(Loss(name="SupConLoss"), batches=Batches(size=5, images_per_class=1))
    assert "use batches.images_per_class = 2 with batches.size = 6" in message
    build(Loss(name="SupConLoss"), batches=Batches(size=6, images_per_class=2))


def test_the_losses_that_are_named_learn_from_the_batches():
    message = refusal(Loss(name="SupConLoss"), batches=Batches(size=2, images_per_class=2))
    assert "use batches.size = 4." in message
    learning = message.partition("Losses that learn from such batches: ")[2].split(", ")
    assert {"ArcFaceLoss", "ProxyAnchorLoss"} <= set(learning)
    for name in learning:
        build(Loss(name=name), batches=Batches(size=2, images_per_class=2))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("sampler", "size", "sizes", "name", "words"),
    [
        ("shuffled", 8, (1,) * 12, "SupConLoss", "positive pairs"),
        ("shuffled", 8, (12,), "SupConLoss", "negative pairs"),
        ("shuffled", 2, (4,) * 4, "TripletMarginLoss", "pairs of both sorts"),
        ("shuffled", 8, (4,) * 9, "NCALoss", "is nan on a batch without two pictures of one class"),
        # 12 pictures: the last batch has 4.
        ("shuffled", 8, (2,) * 6, "NCALoss", "is nan on a batch without two pictures of one class"),
        ("paired", 8, (12,), "SupConLoss", "negative pairs"),
        ("shuffled", 3, (4,) * 4, "TripletMarginLoss", None),
        ("shuffled", 8, (1, 1, 1, 1, 1, 1, 1, 2), "SupConLoss", None),
        ("shuffled", 8, (4,) * 4, "NCALoss", None),
        ("shuffled", 2, (4,) * 4, "ContrastiveLoss", None),
        ("shuffled", 8, (1,) * 12, "ProxyAnchorLoss", None),
        ("paired", 2, (4,) * 4, "TripletMarginLoss", None),
    ],
)
def test_batches_that_are_drawn(sampler, size, sizes, name, words):
    batches = Batches(sampler=sampler, size=size)
    if words is None:
        build(Loss(name=name), batches=batches, sizes=sizes)
    else:
        message = refusal(Loss(name=name), batches=batches, sizes=sizes)
        assert words in message
        assert f"batches.sampler = '{sampler}' with batches.size = {size}" in message


def test_tuples_that_can_teach_nothing_are_refused_whatever_the_batches():
    message = refusal(
        Loss(name="TripletMarginLoss"),
        Miner(name="TripletMarginMiner", arguments={"margin": 0.3, "type_of_triplets": "easy"}),
    )
    assert "its gradient is 0 whatever the embeddings" in message


def test_a_rehearsal_leaves_the_streams_and_the_threads_as_they_were():
    torch.manual_seed(5)
    threads, proxies = torch.get_num_threads(), build(Loss(name="SoftTripleLoss"), batches=HALVES).loss.fc
    after = torch.rand(1)
    torch.manual_seed(5)
    again = build_part(
        EMBEDDING_LOSSES,
        "SoftTripleLoss",
        {},
        field="loss.arguments",
        sizes={"num_classes": CLASSES, "embedding_size": SIZE},
    )
    assert torch.equal(proxies, again.fc)
    assert torch.equal(after, torch.rand(1))
    assert torch.get_num_threads() == threads


def test_a_loss_of_the_other_task_is_known_to_be_one():
    message = refusal(Loss(name="CrossEntropyLoss"))
    assert "is a loss of task = 'classification', and the recipe has task = 'retrieval'" in message
    with pytest.raises(KeMetricError) as caught:
        build_classification_loss(Loss(name="MultiSimilarityLoss"), classes=4)
    assert caught.value.exit_code is ExitCode.RECIPE
    message = str(caught.value)
    assert "'MultiSimilarityLoss': is a loss of task = 'retrieval'" in message
    assert "AdaCosLoss, CSKDLoss, CrossEntropyLoss" in message
    assert "not known" not in message
