"""Networks with statistics that are not the initial ones, and the invariant that proves a split right."""

from contextlib import contextmanager

import pytest
import torch
import torchvision
from hypothesis import settings
from torch import nn

from ke_metric.split.hypotheses import extract_slim, kept_axes, narrowed, zero_reset
from ke_metric.split.narrow import NarrowNetwork
from ke_metric.split.planning import plan_split

settings.register_profile("split", deadline=None)
settings.load_profile("split")


def _randomise(network, seed=0):
    """Norm parameters, norm statistics and biases as after some training: none of them 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [*network.named_parameters(), *network.named_buffers()]
    with torch.no_grad():
        for _, tensor in tensors:
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.copy_(torch.empty_like(tensor).uniform_(0.5, 1.5, generator=generator))
    return network.eval()


@contextmanager
def _norms_over_fit_channels(network, slim, plan):
    """Let the norms that the plan names, and nothing else, see the fit channels only."""

    def over_fit(narrow, norm, weight):
        def hook(_module, inputs, output):
            kept = norm.channels.index
            result = narrow(inputs[0].index_select(norm.axis, kept))
            kept = kept if weight is None else weight.outputs.index
            return torch.zeros_like(output).index_copy(norm.axis, kept, result)

        return hook

    handles = [
        network.get_submodule(name).register_forward_hook(
            over_fit(slim.get_submodule(name), norm, plan.weights.get(f"{name}.weight"))
        )
        for name, norm in plan.norms.items()
    ]
    yield
    for handle in handles:
        handle.remove()


def _slim_is_dense_with_zeros(network, images, **arguments):
    """Demand that slim == dense with its reset hypothesis zeroed; return plan and slim network."""
    plan = plan_split(network, images[:1], **arguments)
    slim = extract_slim(network, plan)
    zero_reset(network, plan)
    network.eval()
    slim.eval()
    with torch.no_grad(), _norms_over_fit_channels(network, slim, plan):
        dense_output, slim_output = network(images), slim(images)
    assert dense_output.shape == slim_output.shape
    assert dense_output.abs().max() > 0
    assert dense_output.std() > 0
    difference = (dense_output - slim_output).abs().max() / dense_output.abs().max()
    assert difference <= 1e-5, f"slim and zeroed dense network differ by {difference:.1e}"
    return plan, slim


def _demand_narrow_is_slim(network, plan, images):
    """Demand that a narrow training step gives the outputs and gradients of the slim network, and nothing else."""
    network.train()
    narrow, slim = NarrowNetwork(network, plan), extract_slim(network, plan).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
        for parameter in slim.parameters():
            parameter.add_(0.01)
    narrow.refresh()
    found, expected = narrow.module.train()(images), slim(images)
    # In fp32 another layout of the weights may sum in another order: small gradients are what is left of large ones.
    is_double = images.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    for outputs in (found, expected):
        if outputs.requires_grad:
            outputs.square().sum().backward()
    narrow.add_gradients()
    slim_parameters = dict(slim.named_parameters())
    axes = kept_axes(network, plan)
    gradients = [each.grad for each in slim.parameters() if each.grad is not None]
    largest = max((float(gradient.abs().max()) for gradient in gradients), default=0.0)
    for name, parameter in network.named_parameters():
        gradient = slim_parameters[name].grad
        if gradient is None:
            assert parameter.grad is None, name
            continue
        inside = narrowed(parameter.grad, axes.get(name, ()))
        scale = float(gradient.abs().max()) if is_double else largest
        assert float((inside - gradient).abs().max()) <= 1e-5 * scale + 1e-12, name
        assert float(inside.abs().sum()) == pytest.approx(float(parameter.grad.abs().sum()), rel=1e-5), name


@pytest.fixture(scope="session")
def demand_narrow_is_slim():
    return _demand_narrow_is_slim


@pytest.fixture(scope="session")
def randomise():
    return _randomise


@pytest.fixture(scope="session")
def slim_is_dense_with_zeros():
    return _slim_is_dense_with_zeros


@pytest.fixture(scope="session")
def torchvision_network():
    """Build a torchvision classifier with random weights and few classes."""

    def build(name, **arguments):
        if name in ("googlenet", "inception_v3"):
            arguments |= {"aux_logits": False, "init_weights": False}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _randomise(torchvision.models.get_model(name, weights=None, num_classes=7, **arguments))

    return build


@pytest.fixture
def small_network():
    """Convolutions with and without bias, norms, a shortcut, a flatten with positions and two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _randomise(_Small())


class _Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.widen = nn.Conv2d(6, 10, 3, stride=2)
        self.hidden = nn.Linear(90, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        x = torch.relu(self.norm(self.stem(images)))
        x = torch.relu(x + self.inner(x))
        x = torch.relu(self.widen(x))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class _Beside(nn.Module):
    """A network beside two layers of which there is something to reset, whatever is kept of the network."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, images):
        beside = self.second(torch.relu(self.first(images.mean((2, 3)))))
        return torch.cat([self.network(images).flatten(1), beside], dim=1)


@pytest.fixture(scope="session")
def with_more_to_reset():
    """Put layers of which a part can be reset beside a network on pictures [B, 3, H, W]."""
    return _Beside


@pytest.fixture
def images():
    """Two pictures [2, 3, 8, 8]."""
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
