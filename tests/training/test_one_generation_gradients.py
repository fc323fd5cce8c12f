"""Mean absolute gradients: of every batch by itself, and nothing else moves."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from ke_metric.images.batches import DeviceBatch
from ke_metric.losses.losses import AdaCosLoss, CrossEntropyLoss, CSKDLoss
from ke_metric.training.engine import Engine
from ke_metric.training.gradients import mean_gradients

BATCH, CLASSES = 6, 3


class Network(nn.Module):
    """Batch norm and dropout tell eval mode from train mode; one layer is never used, one is frozen."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, CLASSES)
        self.idle = nn.Linear(2, 2)
        self.head.bias.requires_grad_(False)

    def forward(self, images):
        maps = self.dropout(torch.relu(self.norm(self.convolution(images))))
        return self.head(maps.mean(dim=(2, 3)))


def batches(count=3):
    for step in range(count):
        images = torch.randn(BATCH, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        yield DeviceBatch(images, torch.arange(BATCH) % CLASSES, tuple("abcdef"))


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network()


@pytest.fixture
def engine():
    return Engine("fp32", "cpu")


def means_by_hand(network, criterion):
    """Batch by batch, in eval mode: the absolute gradient, summed and divided."""
    network.eval()
    sums = {name: torch.zeros(parameter.shape) for name, parameter in network.named_parameters()}
    for batch in batches():
        value = criterion(network(batch.images), batch.labels)
        chosen = {name: each for name, each in network.named_parameters() if each.requires_grad}
        found = torch.autograd.grad(value, list(chosen.values()), allow_unused=True)
        for name, gradient in zip(chosen, found, strict=True):
            sums[name] += 0 if gradient is None else gradient.abs()
    return {name: total / 3 for name, total in sums.items()}


def test_they_are_means_of_absolute_gradients(network, engine):
    found = mean_gradients(network.train(), CrossEntropyLoss(), batches(), engine)
    expected = means_by_hand(network, cross_entropy)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
        assert found[name].device.type == "cpu"
        assert found[name].dtype == torch.float32
    assert found["convolution.weight"].min() > 0
    assert not found["idle.weight"].any()
    assert not found["head.bias"].any()


def test_opposite_gradients_do_not_cancel(engine):
    """The sum of what is absolute, not the absolute sum."""
    network = nn.Linear(1, 1, bias=False)

    class Sum(nn.Module):
        def forward(self, outputs, labels):
            return outputs.sum()

    pair = [DeviceBatch(torch.full((1, 1), value), torch.zeros(1), ("a",)) for value in (1.0, -1.0)]
    assert float(mean_gradients(network, Sum(), pair, engine)["weight"]) == 1


def test_statistics_and_weights_stay(network, engine):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    mean_gradients(network.train(), CrossEntropyLoss(), batches(), engine)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_partners_add_nothing(network, engine):
    plain = mean_gradients(network, CrossEntropyLoss(), batches(), engine)
    paired = mean_gradients(network, CSKDLoss(), batches(), engine)
    for name, value in plain.items():
        torch.testing.assert_close(paired[name], value, msg=name)


def test_a_scale_does_not_move(network, engine):
    class Cosines(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            return normalize(self.network(images), dim=1)

    loss = AdaCosLoss(CLASSES)
    scale = loss.scale.clone()
    mean_gradients(Cosines(), loss.train(), batches(), engine)
    assert torch.equal(loss.scale, scale)


def test_there_is_a_batch(network, engine):
    with pytest.raises(AssertionError, match="no batches"):
        mean_gradients(network, CrossEntropyLoss(), [], engine)
