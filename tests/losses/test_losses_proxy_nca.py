from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import ProxyNCALoss

from ke_metric.losses.losses import ClassicProxyNCALoss

LABELS = torch.tensor([0, 2, 1, 0, 3])


@pytest.fixture
def embeddings():
    """The proxies that a test draws are the same ones whatever ran before."""
    torch.manual_seed(2)
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1)) * 3


def unit(vector):
    return vector / vector.norm()


@pytest.mark.parametrize("scale", [1.0, 9.0])
def test_is_equation_4_of_the_paper(embeddings, scale):
    loss = ClassicProxyNCALoss(4, 6, softmax_scale=scale)
    total = 0.0
    for embedding, label in zip(embeddings, LABELS.tolist(), strict=True):
        distances = [(unit(embedding) - unit(proxy)).square().sum().item() for proxy in loss.proxies]
        others = sum(math.exp(-scale * distances[z]) for z in range(4) if z != label)
        total -= math.log(math.exp(-scale * distances[label]) / others)
    assert loss(embeddings, LABELS).item() == pytest.approx(total / 5, rel=1e-5)


@pytest.mark.parametrize("scale", [1, 9])
def test_differs_from_the_form_over_all_classes_by_the_log_of_the_other_classes_share(embeddings, scale):
    classic, over_all = ClassicProxyNCALoss(4, 6, softmax_scale=scale), ProxyNCALoss(4, 6, softmax_scale=scale)
    over_all.proxies.data = classic.proxies.data.clone()
    for embedding, label in zip(embeddings, LABELS, strict=True):
        one = embedding[None], label[None]
        right = math.exp(-over_all(*one).item())
        assert classic(*one).item() == pytest.approx(over_all(*one).item() + math.log(1 - right), abs=1e-4)


def test_stays_finite_with_a_large_scale(embeddings):
    loss = ClassicProxyNCALoss(4, 6, softmax_scale=1000.0)
    value = loss(embeddings.requires_grad_(), LABELS)
    value.backward()
    assert value.isfinite()
    assert embeddings.grad.isfinite().all()
    assert loss.proxies.grad.isfinite().all()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes, not 1"):
        ClassicProxyNCALoss(1, 6)
