"""Losses of classifiers, beside the rules of their authors as plain loops over plain numbers."""

import copy
import math
import re
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.losses.building import build_classification_loss, require_fit
from ke_metric.losses.losses import CLASSIFICATION_LOSSES, AdaCosLoss, CSKDLoss
from ke_metric.recipe.schema import Augmentation, Loss, Recipe

CLASSES = 5
LABELS = torch.tensor([3, 0, 4, 4, 1, 2])
SHIPPED = {
    "cross-entropy": Loss(name="CrossEntropyLoss"),
    "smoothed": Loss(name="CrossEntropyLoss", arguments={"label_smoothing": 0.1}),
    "cs-kd": Loss(name="CSKDLoss"),
    "adacos": Loss(name="AdaCosLoss"),
    "adacos fixed": Loss(name="AdaCosLoss", arguments={"dynamic": False}),
}


def build(loss, classes=CLASSES):
    return build_classification_loss(loss, classes=classes)


def random_logits(seed=4):
    return 3 * torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(seed))


def random_cosines(seed=4, classes=CLASSES):
    return 2 * torch.rand(6, classes, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture(params=SHIPPED)
def shipped(request):
    """A loss, and what it is called with before the labels and after them."""
    loss = build(SHIPPED[request.param])
    outputs = random_cosines() if loss.takes_cosines else random_logits()
    return loss, outputs, (random_logits(5),) * loss.takes_partners


def softmax(row, temperature=1.0):
    weights = [math.exp(value / temperature) for value in row]
    return [weight / sum(weights) for weight in weights]


def cross_entropy(rows, labels, smoothing=0.0):
    """KE's trainer: (1 - e) times the likelihood of the label, e times the mean over all classes."""
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        logs = [-math.log(p) for p in softmax(row)]
        total += (1 - smoothing) * logs[label] + smoothing * sum(logs) / len(logs)
    return total / len(rows)


# Cross-entropy.


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_smoothing_is_over_all_classes_the_right_one_included(smoothing):
    loss = build(Loss(name="CrossEntropyLoss", arguments={"label_smoothing": smoothing}))
    logits = random_logits()
    value = loss(logits, LABELS)
    assert torch.equal(value, nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, LABELS))
    assert float(value) == pytest.approx(cross_entropy(logits.tolist(), LABELS.tolist(), smoothing), rel=1e-5)


# CS-KD.


@settings(deadline=None)
@given(st.integers(0, 99), st.floats(0.5, 9), st.floats(0, 5))
def test_cskd_is_the_authors_rule(seed, temperature, weight):
    logits, partners = random_logits(seed), random_logits(seed + 1)
    divergence = 0.0
    for row, partner in zip(logits.tolist(), partners.tolist(), strict=True):
        student, teacher = softmax(row, temperature), softmax(partner, temperature)
        divergence += sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))
    expected = cross_entropy(logits.tolist(), LABELS.tolist()) + weight * temperature**2 * divergence / len(logits)
    assert float(CSKDLoss(temperature, weight)(logits, LABELS, partners)) == pytest.approx(expected, rel=1e-3)


def test_cskd_takes_the_authors_numbers_for_fine_grained_classes():
    loss = build(Loss(name="CSKDLoss"))
    assert (loss.temperature, loss.weight) == (4, 3)
    assert loss.takes_partners


def test_cskd_of_one_picture_twice_in_eval_mode_is_cross_entropy():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.Dropout(), nn.Linear(9, CLASSES)).eval()
    images = torch.randn(6, 7)
    logits, partners = network(images), network(images)
    value = CSKDLoss()(logits, LABELS, partners)
    assert value.item() == pytest.approx(functional.cross_entropy(logits, LABELS).item(), rel=1e-6)


def test_no_gradient_reaches_the_partners():
    logits, partners = random_logits().requires_grad_(), random_logits(5).requires_grad_()
    loss = build(Loss(name="CSKDLoss"))
    loss(logits, LABELS, partners).backward()
    assert partners.grad is None
    plain = random_logits().requires_grad_()
    functional.cross_entropy(plain, LABELS).backward()
    assert not torch.allclose(logits.grad, plain.grad)


# AdaCos.


@pytest.mark.parametrize(
    ("classes", "scale"), [(67, 5.925), (100, 6.498), (102, 6.527), (120, 6.759), (200, 7.486), (3, 0.980)]
)
def test_the_scale_begins_at_its_fixed_value(classes, scale):
    loss = build(Loss(name="AdaCosLoss"), classes)
    assert float(loss.scale) == pytest.approx(math.sqrt(2) * math.log(classes - 1), rel=1e-6)
    assert float(loss.scale) == pytest.approx(scale, abs=5e-4)


def next_scale(scale, rows, labels):
    """The public code (4uiiurz1/pytorch-adacos) as loops; the lower one of the two angles in the middle."""
    others = sum(
        math.exp(scale * cosine) for row, label in zip(rows, labels, strict=True)
        for k, cosine in enumerate(row) if k != label
    )  # fmt: skip
    angles = [math.acos(row[label]) for row, label in zip(rows, labels, strict=True)]
    return math.log(others / len(rows)) / math.cos(min(math.pi / 4, statistics.median_low(angles)))


def test_hand_made_cosines_give_the_scale_of_the_next_step():
    """Two items, four classes, cosines of 0 with all others: B = 3. The smaller angle is 60 or 30 degrees."""
    far = torch.tensor([[0.5, 0, 0, 0], [0, 0, -1, 0]])
    near = torch.tensor([[math.sqrt(3) / 2, 0, 0, 0], [0, 0, -1, 0]])
    labels = torch.tensor([0, 2])
    for cosines, angle in ((far, math.pi / 4), (near, math.pi / 6)):
        loss = AdaCosLoss(4)
        value = loss(cosines, labels)
        scale = math.log(3) / math.cos(angle)
        assert float(loss.scale) == pytest.approx(scale, rel=1e-6)
        assert float(value) == pytest.approx(cross_entropy((scale * cosines).tolist(), labels.tolist()), rel=1e-5)


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(8, 40), st.integers(1, 4))
def test_the_scale_goes_from_step_to_step_as_in_the_public_code(seed, classes, steps):
    loss, scale = AdaCosLoss(classes), math.sqrt(2) * math.log(classes - 1)
    labels = torch.randint(classes, (6,), generator=torch.Generator().manual_seed(seed))
    for step in range(steps):
        cosines = random_cosines(seed + step, classes) / 2
        loss(cosines, labels)
        scale = next_scale(scale, cosines.tolist(), labels.tolist())
        assert float(loss.scale) == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize("own", [1.0, 1.0000001, -1.0])
def test_cosines_at_their_limits_have_an_angle(own):
    loss = AdaCosLoss(4)
    loss(torch.tensor([[own, 0, 0, 0]]), torch.tensor([0]))
    expected = math.log(3) / (1 if own > 0 else math.cos(math.pi / 4))
    assert float(loss.scale) == pytest.approx(expected, rel=1e-6)


def test_the_scale_is_not_part_of_the_graph():
    cosines = random_cosines().requires_grad_()
    loss = build(Loss(name="AdaCosLoss"))
    loss(cosines, LABELS).backward()
    assert not loss.scale.requires_grad
    constant = random_cosines().requires_grad_()
    functional.cross_entropy(float(loss.scale) * constant, LABELS).backward()
    torch.testing.assert_close(cosines.grad, constant.grad)
    assert not list(loss.parameters())


@pytest.mark.parametrize("dynamic", [True, False])
def test_the_scale_moves_in_train_mode_only_and_is_saved(dynamic):
    loss = build(Loss(name="AdaCosLoss", arguments={"dynamic": dynamic}))
    start = float(loss.scale)
    loss.eval()(random_cosines(), LABELS)
    assert float(loss.scale) == start
    loss.train()(random_cosines(), LABELS)
    assert (float(loss.scale) != start) == dynamic
    again = AdaCosLoss(CLASSES, dynamic)
    again.load_state_dict(copy.deepcopy(loss.state_dict()), strict=True)
    assert float(again.scale) == float(loss.scale)
    assert loss.scale.dtype == torch.float32


def test_two_losses_of_one_step_can_both_be_differentiated():
    cosines = random_cosines().requires_grad_()
    loss = build(Loss(name="AdaCosLoss"))
    (loss(cosines, LABELS) + loss(cosines, LABELS)).backward()
    assert cosines.grad.isfinite().all()


def test_logits_that_are_no_cosines_are_refused():
    with pytest.raises(KeMetricError, match=r"network\.head = 'cosine'") as caught:
        build(Loss(name="AdaCosLoss"))(random_logits(), LABELS)
    assert caught.value.exit_code is ExitCode.RECIPE


def test_a_scale_that_would_turn_the_loss_around_makes_it_no_number_and_is_told():
    """For good: whoever looks at the loss does so one step later, when the cosines may be others or none."""
    loss = AdaCosLoss(3)
    assert loss.fault() is None
    turning, fine = torch.tensor([[0.9, -0.95, -0.95]]), torch.tensor([[0.5, 0.1, 0.1]])
    for cosines in (turning, fine, fine * torch.nan):
        assert loss(cosines, torch.tensor([0])).isnan()
        assert float(loss.scale) == pytest.approx(0.98, abs=1e-3)
        assert re.search(r"from 0\.98 to -0\.265.*dynamic: false", loss.fault())
    assert "_refused" not in loss.state_dict()


def test_a_loss_that_is_no_number_for_another_reason_is_not_the_scales_fault():
    loss = AdaCosLoss(3)
    assert loss(torch.full((1, 3), torch.nan), torch.tensor([0])).isnan()
    assert loss.fault() is None


# All of them.


def test_all_are_shipped():
    assert {loss.name for loss in SHIPPED.values()} == set(CLASSIFICATION_LOSSES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_half_precision_logits_is_computed_in_float32(shipped, dtype):
    loss, outputs, partners = shipped
    half, partners = outputs.to(dtype), [partner.to(dtype) for partner in partners]
    twin = copy.deepcopy(loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, LABELS, *partners)
    assert value.dtype == torch.float32
    assert torch.equal(value, twin(half.float(), LABELS, *(partner.float() for partner in partners)))


def test_the_order_of_a_batch_does_not_matter(shipped):
    loss, outputs, partners = shipped
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    twin = copy.deepcopy(loss)
    shuffled = twin(outputs[order], LABELS[order], *(partner[order] for partner in partners))
    assert float(shuffled) == pytest.approx(float(loss(outputs, LABELS, *partners)), rel=1e-5)


def test_a_step_down_the_gradient_lowers_the_loss(shipped):
    loss, outputs, partners = shipped
    outputs = outputs.clone().requires_grad_()
    value = loss(outputs, LABELS, *partners)
    value.backward()
    assert value.shape == ()
    lower = loss.eval()((outputs - 0.01 * outputs.grad).detach(), LABELS, *partners)
    assert lower < value.detach()


@pytest.mark.parametrize(
    ("loss", "classes", "words"),
    [
        (Loss(name="CrossEntropy"), 5, ("loss.name = 'CrossEntropy'", "did you mean 'CrossEntropyLoss'", "CSKDLoss")),
        (
            Loss(),
            5,
            (
                "loss.name = 'ProxyAnchorLoss': is a loss of task = 'retrieval'",
                "AdaCosLoss, CSKDLoss, CrossEntropyLoss",
            ),
        ),
        (
            Loss(name="CrossEntropyLoss", arguments={"smoothing": 0.1}),
            5,
            ("loss.arguments.smoothing", "did you mean 'label_smoothing'"),
        ),
        (Loss(name="CrossEntropyLoss", arguments={"label_smoothing": 1}), 5, ("label_smoothing = 1", "[0, 1)")),
        (Loss(name="CrossEntropyLoss", arguments={"label_smoothing": "some"}), 5, ("'some'", "finite number")),
        (Loss(name="CSKDLoss", arguments={"temperature": 0}), 5, ("temperature = 0", "greater than 0")),
        (Loss(name="CSKDLoss", arguments={"weight": -1}), 5, ("weight = -1", "at least 0")),
        (Loss(name="CSKDLoss", arguments={"label_smoothing": 0.1}), 5, ("no such keyword", "temperature, weight")),
        (Loss(name="AdaCosLoss", arguments={"dynamic": 1}), 5, ("dynamic = 1", "true or false")),
        (Loss(name="AdaCosLoss", arguments={"num_classes": 7}), 5, ("num_classes = 7", "make it 5")),
        (Loss(name="AdaCosLoss"), 2, ("at least 3 classes, not 2",)),
    ],
)
def test_what_cannot_be_built(loss, classes, words):
    with pytest.raises(KeMetricError) as caught:
        build(loss, classes)
    assert caught.value.exit_code is ExitCode.RECIPE
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def recipe_of(loss, head, sampler):
    return Recipe.model_validate(
        {
            "name": "x",
            "task": "classification",
            "loss": {"name": loss},
            "network": {"head": head},
            "batches": {"sampler": sampler},
        }
    )


@pytest.mark.parametrize("loss", CLASSIFICATION_LOSSES)
def test_a_loss_has_one_head_and_knows_whether_it_needs_pairs(loss):
    fitting = {"AdaCosLoss": "cosine"}.get(loss, "linear")
    built = build(Loss(name=loss))
    for head in ("linear", "cosine"):
        for sampler in ("shuffled", "class_balanced", "paired"):
            recipe = recipe_of(loss, head, sampler)
            if head == fitting and (sampler == "paired") == (loss == "CSKDLoss"):
                require_fit(built, recipe)
                continue
            with pytest.raises(KeMetricError, match=rf"(network\.head|batches\.sampler) = .*{loss}") as caught:
                require_fit(built, recipe)
            assert caught.value.exit_code is ExitCode.RECIPE


@pytest.mark.parametrize("name", ["cross-entropy", "smoothed", "adacos fixed"])
def test_the_loss_of_shared_labels_is_the_mean_by_shares(name):
    loss, partners = build(SHIPPED[name]), LABELS.roll(1)
    outputs = random_cosines() if loss.takes_cosines else random_logits()
    shares = 0.3 * functional.one_hot(LABELS, CLASSES) + 0.7 * functional.one_hot(partners, CLASSES)
    leaf, other = outputs.clone().requires_grad_(), outputs.clone().requires_grad_()
    mixed, expected = loss(leaf, shares), 0.3 * loss(other, LABELS) + 0.7 * loss(other, partners)
    torch.testing.assert_close(mixed, expected)
    gradients = torch.autograd.grad(mixed, leaf) + torch.autograd.grad(expected, other)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mixes", [{"mixup": 0.2}, {"cutmix": 1.0}])
@pytest.mark.parametrize("name", SHIPPED)
def test_what_needs_pictures_of_one_class_is_refused_mixed_ones(name, mixes):
    loss = build(SHIPPED[name])
    head, sampler = "cosine" if loss.takes_cosines else "linear", "paired" if loss.takes_partners else "shuffled"
    recipe = recipe_of(SHIPPED[name].name, head, sampler)
    require_fit(loss, recipe)
    recipe = recipe.model_copy(update={"augmentation": Augmentation(**mixes)})
    if name in ("cross-entropy", "smoothed", "adacos fixed"):
        require_fit(loss, recipe)
        return
    words = rf"augmentation\.(mixup|cutmix) = .*loss\.name = '{SHIPPED[name].name}' .*allowed: CrossEntropyLoss"
    with pytest.raises(KeMetricError, match=words) as caught:
        require_fit(loss, recipe)
    assert caught.value.exit_code is ExitCode.RECIPE
