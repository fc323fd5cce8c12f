"""Torch-Pruning is asked fairly, and its answers are told apart; skipped where it is not installed."""

import pytest
import torch
from torch import nn

from eval.coverage import torch_pruning as coverage_torch_pruning
from eval.coverage.torch_pruning import (
    FORWARD,
    NOTHING,
    OTHER,
    SAME,
    SHAPE,
    TRACING,
    Removed,
    ask,
    require_torch_pruning,
)
from ke_metric.errors import KeMetricError

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def chain():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


class Changed(nn.Module):
    """A chain, and something done to its features [B, 8, H, W]."""

    def __init__(self, change):
        super().__init__()
        self.chain, self.change = chain(), change

    def forward(self, images):
        return self.chain[5:](self.change(self.chain[:5](images)))


def test_what_is_left_is_counted_in_the_dense_network():
    removed = Removed()
    removed.remove("layer", "out", 6, [1, 4])
    removed.remove("layer", "out", 4, [0, 3])
    assert removed.kept == {("layer", "out"): ([2, 3], 6)}


def test_it_must_be_installed(monkeypatch):
    monkeypatch.setattr(coverage_torch_pruning, "find_spec", lambda _: None)
    with pytest.raises(KeMetricError, match=r"pip install -e '\.\[compare\]'"):
        require_torch_pruning()


@pytest.fixture
def installed():
    return pytest.importorskip("torch_pruning")


@pytest.mark.usefixtures("installed")
class TestAnswers:
    @pytest.mark.parametrize("rate", [0.5, 0.8])
    def test_a_chain_is_cut_right(self, rate):
        network = chain()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        answer = ask(network, IMAGES, rate)
        assert answer["verdict"] == SAME
        assert answer["parameter_ratio"] < rate
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())

    def test_a_wrong_result_is_seen(self):
        # A softmax over channels is another one over fewer of them.
        assert ask(Changed(lambda features: 50 * features.softmax(1)), IMAGES, 0.5)["verdict"] == OTHER

    def test_a_network_that_runs_no_more(self):
        answer = ask(Changed(lambda features: features + torch.ones(1, 8, 1, 1)), IMAGES, 0.5)
        assert answer["verdict"] == FORWARD
        assert "size" in answer["reason"]

    def test_a_network_that_cannot_be_traced(self):
        class Counting(nn.Module):
            def __init__(self):
                super().__init__()
                self.chain = chain()

            def forward(self, images):
                if torch.is_grad_enabled():
                    raise ValueError("not with gradients")
                return self.chain(images)

        assert ask(Counting(), IMAGES, 0.5) == {"verdict": TRACING, "reason": "ValueError: not with gradients"}

    def test_a_network_that_loses_outputs(self):
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2)).eval()
        assert ask(network, IMAGES, 0.5)["verdict"] == SHAPE

    def test_nothing_removed_is_no_success(self):
        network = nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).eval()
        assert ask(network, IMAGES, 0.5)["verdict"] == NOTHING
