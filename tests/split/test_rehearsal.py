"""A slim network is proved by running it: what the labels cannot know is found here."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from ke_metric.errors import KeMetricError
from ke_metric.split import planning
from ke_metric.split.planning import plan_split


class Network(nn.Module):
    """A convolution, what is done with its channels, and a last layer that takes as many as there are after it."""

    def __init__(self, body, channels, left=None):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)
        self.body = body
        self.head = nn.Linear(left or channels, 2)

    def forward(self, images):
        return self.head(self.body(self.stem(images)).mean((2, 3)))


class Parity(nn.Module):
    """What it computes depends on the number of channels."""

    def forward(self, x):
        return torch.tanh(x) if x.size(1) % 2 else x


class Regroup(nn.Module):
    """Holds two numbers that must be changed together, and one that only looks like a width."""

    def __init__(self, channels):
        super().__init__()
        self.groups, self.inside, self.side = 2, channels // 2, channels
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        assert self.side == x.size(-1)
        y = x.reshape(len(x), self.groups, self.inside, *x.shape[2:]).transpose(1, 2)
        return y.reshape(x.shape) * self.scale[:, None, None]


class Split(nn.Module):
    """Split sizes of unlike parts."""

    def __init__(self, *sizes):
        super().__init__()
        self.sizes = sizes

    def forward(self, x):
        first, *others = x.split(self.sizes, dim=1)
        return torch.cat([*others, first.relu()], dim=1)


class Hidden(nn.Module):
    """Cuts its channels at a number that it holds nowhere."""

    def forward(self, x):
        return x[:, :4]


def test_numbers_are_found_and_what_only_looks_like_one_stays(images, randomise, slim_is_dense_with_zeros):
    plan, slim = slim_is_dense_with_zeros(randomise(Network(Regroup(8), 8)), images, rate=0.5)
    assert plan.settings == {"body": {"inside": 2}}
    assert (slim.body.inside, slim.body.side) == (2, 8)


def test_lists_of_widths(images, randomise, slim_is_dense_with_zeros):
    plan, slim = slim_is_dense_with_zeros(randomise(Network(Split(2, 6, 4), 12)), images, rate=0.5)
    assert plan.settings == {"body": {"sizes": [1, 3, 2]}}
    assert slim.body.sizes == (1, 3, 2)


def test_what_depends_on_the_number_of_channels_is_refused(images, with_more_to_reset):
    """6 channels pass as they are, 3 through a tanh: the labels are the same, the function is not."""
    with pytest.raises(KeMetricError, match=r"body: .*tanh is computed 1 times instead of 0.*Split single weights"):
        plan_split(Network(Parity(), 6), images[:1], rate=0.5)
    network = with_more_to_reset(Network(Parity(), 6))
    with pytest.raises(KeMetricError, match=r"body: .*keep_whole=\['network.stem'\]"):
        plan_split(network, images[:1], rate=0.5)
    plan = plan_split(network, images[:1], rate=0.5, keep_whole=["network.stem"])
    assert plan.weights["network.stem.weight"].outputs.count == 6


def test_what_nothing_narrower_can_serve_is_kept_whole_and_said(
    images, randomise, slim_is_dense_with_zeros, with_more_to_reset
):
    network = with_more_to_reset(Network(Hidden(), 8, left=4))
    plan, _ = slim_is_dense_with_zeros(randomise(network), images, rate=0.5)
    assert plan.weights["network.stem.weight"].outputs.count == 8
    assert list(plan.kept_whole) == ["network.body"]
    assert "network.body keeps all of its channels: no narrower width can serve it: with fewer, network.b" in str(
        plan
    )
    with pytest.raises(
        KeMetricError, match=r"nothing of this Network would be reset .*; body keeps all of its chann"
    ):
        plan_split(network.network, images, rate=0.5)


class NormedHead(nn.Module):
    """One head of attention [B, N, C]: what a norm has seen channel by channel becomes one head after it."""

    def __init__(self, channels):
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, images):
        tokens = images.flatten(2).transpose(1, 2)
        query, key, value = self.qkv(tokens).chunk(3, dim=2)
        query = self.norm(query)
        mixed = (query @ key.transpose(1, 2)).softmax(-1) @ value + query
        return self.proj(mixed).transpose(1, 2).reshape(images.shape)


def test_channels_that_become_one_head_after_a_norm(images, randomise, slim_is_dense_with_zeros):
    plan, _ = slim_is_dense_with_zeros(randomise(Network(NormedHead(6), 6)), images, rate=0.5)
    assert plan.weights["body.qkv.weight"].inputs.count == 3


class OpenAttention(nn.Module):
    """Attention [B, C, H, W] whose reshape takes whatever number of channels there is, as if they were more tokens.

    Queries are pooled over as many tokens as there are heads: that number stays what it is.
    """

    def __init__(self, channels, heads):
        super().__init__()
        self.width, self.heads, self.inside, self.stride = channels, heads, channels // heads, heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, images):
        tokens = images.flatten(2).transpose(1, 2)
        parts = self.qkv(tokens).reshape(len(images), -1, 3, self.heads, self.inside).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        query = query.reshape(len(images), self.heads, self.stride, -1, self.inside).amax(dim=2)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        mixed = self.proj(mixed.transpose(1, 2).reshape(len(images), -1, self.width))
        return mixed.transpose(1, 2).reshape(len(images), self.width, -1, 1)


def test_a_reshape_that_takes_any_number_of_channels(images, randomise, slim_is_dense_with_zeros):
    network = randomise(Network(OpenAttention(24, heads=4), 24))
    _, slim = slim_is_dense_with_zeros(network, images, rate=0.5)
    assert (slim.body.heads, slim.body.inside, slim.body.width, slim.body.stride) == (2, 6, 12, 4)


class Cosines(nn.Conv1d):
    """Features [B, F] to their cosines with C rows of weights, whose lengths are computed from the weights alone."""

    def __init__(self, features, classes):
        super().__init__(features, classes, 1, bias=False)
        self.weight = nn.Parameter(self.weight.detach().squeeze(-1))

    def forward(self, features):
        lengths = torch.linalg.vector_norm(self.weight, dim=1)
        return functional.linear(functional.normalize(features, dim=1), self.weight) / lengths


def test_sizes_of_what_is_computed_from_a_weight_alone_are_not_compared(images, randomise, slim_is_dense_with_zeros):
    """It is labelled by its rows: of its columns nothing is known before it is used."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Cosines(8, 48))
    plan, slim = slim_is_dense_with_zeros(randomise(network), images, rate=0.5)
    assert (slim[4].weight.shape, list(plan.norms)) == ((48, 4), ["4"])


class Parts(nn.Module):
    """Takes nothing of some channels, and puts it in front of the others."""

    def forward(self, x):
        nothing = x[:, :, :0].mT.mT
        return torch.tanh(torch.cat([torch.cat([nothing, x], dim=2), x[:, :0]], dim=1))


def test_parts_without_elements(images, randomise, slim_is_dense_with_zeros):
    plan, _ = slim_is_dense_with_zeros(randomise(Network(Parts(), 6)), images, rate=0.5)
    assert plan.weights["stem.weight"].outputs.count == 3


class Outer(nn.Module):
    """Its inner module, which has no layers of its own, is where a slim network is found to fail."""

    def __init__(self):
        super().__init__()
        self.inner = Parity()

    def forward(self, x):
        return self.inner(x)


def test_a_refusal_names_layers_that_can_be_kept_whole_beside_those_that_are(images, with_more_to_reset):
    network = with_more_to_reset(with_more_to_reset(Network(Outer(), 6)))
    with pytest.raises(KeMetricError, match=r"keep_whole=\['first', 'network.network.stem'\]"):
        plan_split(network, images, rate=0.5, keep_whole=["first"])
    plan = plan_split(network, images, rate=0.5, keep_whole=["first", "network.network.stem"])
    assert plan.weights["network.network.stem.weight"].outputs.count == 6
    assert plan.reset_count > 0


def test_nothing_of_a_rehearsal_stays_in_memory(images, monkeypatch, with_more_to_reset):
    """Attempts that fail, too, are freed at once, not at the next garbage collection."""
    slims = []
    extract_slim = planning.extract_slim

    def remember(network, plan):
        slim = extract_slim(network, plan)
        slims.append(weakref.ref(slim))
        return slim

    monkeypatch.setattr(planning, "extract_slim", remember)
    gc.collect()
    gc.disable()
    try:
        plan_split(with_more_to_reset(Network(Hidden(), 8, left=4)), images[:1], rate=0.5)
        assert slims
        assert all(slim() is None for slim in slims)
    finally:
        gc.enable()


def test_the_network_keeps_its_numbers(images):
    network = Network(Split(2, 6, 4), 12)
    plan_split(network, images[:1], rate=0.5)
    assert network.body.sizes == (2, 6, 4)
    assert "forward" not in network.body.__dict__


def test_why_attention_keeps_its_width_is_said_in_words():
    network = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    plan = plan_split(network, torch.zeros(2, 5, 16), rate=0.5)
    assert list(plan.kept_whole) == ["self_attn"]
    assert plan.kept_whole["self_attn"].startswith(
        "no narrower width can serve it: with fewer, self_attn does not work on the channels that are kept ("
    )
    assert plan.reset_count > 0
