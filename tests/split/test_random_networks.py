"""The invariant on networks that nobody designed: a network is split exactly, or refused with a reason.

Sums, concatenations, gates, groups, channel shuffles, halves, norms over channels and attention, in any order.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from ke_metric.errors import KeMetricError

WIDTH = st.integers(1, 7)
WIDE = ["convolution", "concatenation", "sum", "bottleneck", "gate", "transposed", "unequal sum"]
PLAIN = ["norm", "relu", "prelu", "depthwise", "pooling", "input"]
# What groups or takes apart; a step whose width does not allow it does nothing.
GROUPED = ["grouped", "shuffle", "halves", "gated halves", "swapped halves", "group norm", "layer norm", "attention"]
STEP = st.one_of(
    st.tuples(st.sampled_from(WIDE), WIDTH),
    st.tuples(st.sampled_from(PLAIN), st.just(0)),
    st.tuples(st.sampled_from(GROUPED), st.just(0)),
)


class LayerNorm(nn.LayerNorm):
    """Over the channels of [B, C, H, W]."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Two heads over all positions."""

    def __init__(self, width):
        super().__init__()
        self.heads = 2
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.projection = nn.Conv2d(width, width, 1)

    def forward(self, x):
        batch, _, height, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, 3, self.heads, -1, height * width).transpose(-1, -2).unbind(1)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.projection(y.transpose(-1, -2).reshape(batch, -1, height, width))


class RandomNetwork(nn.Module):
    """A chain of steps; each widens, adds to, gates or pools what the one before returned."""

    def __init__(self, steps, ending, hidden):
        super().__init__()
        self.steps, self.ending = steps, ending
        self.layers = nn.ModuleList()
        width = 3
        for kind, size in steps:
            layer, width = self._layer(kind, size, width)
            self.layers.append(layer)
        columns = width * 4 if ending == "flatten" else width
        self.hidden = nn.Linear(columns, hidden)
        self.head = nn.Linear(hidden, 3)

    def _layer(self, kind, size, width):
        """Return the layer of a step and the width after it."""
        layers = {
            "convolution": lambda: (nn.Conv2d(width, size, 3, padding=1), size),
            "concatenation": lambda: (nn.Conv2d(width, size, 1, bias=False), width + size),
            "sum": lambda: (nn.Conv2d(width, width, 1), width),
            "gate": lambda: (nn.Conv2d(width, width, 1), width),
            "bottleneck": lambda: (
                nn.Sequential(nn.Conv2d(width, size, 1), nn.BatchNorm2d(size), nn.Conv2d(size, width, 1)),
                width,
            ),
            "norm": lambda: (nn.BatchNorm2d(width), width),
            "depthwise": lambda: (nn.Conv2d(width, width, 3, padding=1, groups=width), width),
            "input": lambda: (nn.Identity(), width + 3),
            "prelu": lambda: (nn.PReLU(width), width),
            "transposed": lambda: (nn.ConvTranspose2d(width, size, 3, padding=1), size),
            "unequal sum": lambda: (nn.ModuleList([nn.Conv2d(width, 2, 1), nn.Conv2d(width, width, 1)]), width + 2),
            "layer norm": lambda: (LayerNorm(width), width),
        }
        if width % 2 == 0:
            layers |= {
                "grouped": lambda: (nn.Conv2d(width, 2 * width, 1, groups=2), 2 * width),
                "shuffle": lambda: (nn.ChannelShuffle(2), width),
                "group norm": lambda: (nn.GroupNorm(2, width), width),
                "gated halves": lambda: (nn.GLU(1), width // 2),
                "attention": lambda: (Attention(width), width),
            }
        return layers.get(kind, lambda: (nn.Identity(), width))()

    def forward(self, images):
        x = images
        for (kind, _), layer in zip(self.steps, self.layers, strict=True):
            y = x if isinstance(layer, nn.ModuleList) else layer(x)
            if kind == "concatenation":
                x = torch.cat([x, y], dim=1)
            elif kind in ("sum", "bottleneck"):
                x = x + y
            elif kind == "gate":
                x = x * torch.sigmoid(y.mean((2, 3), keepdim=True))
            elif kind == "relu":
                x = torch.relu(y)
            elif kind == "pooling":
                x = nn.functional.avg_pool2d(y, 3, stride=1, padding=1)
            elif kind == "input":
                x = torch.cat([images, y], dim=1)
            elif kind == "unequal sum":
                x = torch.cat([layer[0](x), layer[1](x)], dim=1) + torch.cat([x, layer[0](x)], dim=1)
            elif kind in ("halves", "swapped halves") and x.size(1) % 2 == 0:
                first, second = x.chunk(2, dim=1)
                x = torch.cat([first, torch.tanh(second)] if kind == "halves" else [second, first], dim=1)
            else:
                x = y
        x = nn.functional.adaptive_max_pool2d(x, 2).flatten(1) if self.ending == "flatten" else x.mean((2, 3))
        return self.head(torch.tanh(self.hidden(x)))


def build(steps, ending, hidden):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RandomNetwork(steps, ending, hidden).double()


NETWORKS = {
    "steps": st.lists(STEP, min_size=1, max_size=7),
    "ending": st.sampled_from(["flatten", "mean"]),
    "hidden": WIDTH,
    "rate": st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0]),
}


def split_or_refuse(randomise, slim_is_dense_with_zeros, *, steps, ending, hidden, rate):
    """Demand exactness, or an error that says where and why; return whether it was exact."""
    network = randomise(build(steps, ending, hidden))
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    refusal = None
    try:
        slim_is_dense_with_zeros(network, images, rate=rate)
    except KeMetricError as error:
        refusal = str(error)
    if refusal is not None:
        assert "kind='wels'" in refusal
        assert any(kind in GROUPED for kind, _ in steps), "only what takes channels apart may be refused"
    return refusal is None


# Halves of what is kept (3 | 3) that are not what is kept of the halves (4 | 2): another channel would get the tanh.
@example(steps=[("concatenation", 5), ("halves", 0)], ending="flatten", hidden=1, rate=0.3)
@settings(max_examples=60)
@given(**NETWORKS)
def test_slim_is_dense_with_zeros(randomise, slim_is_dense_with_zeros, steps, ending, hidden, rate):
    split_or_refuse(randomise, slim_is_dense_with_zeros, steps=steps, ending=ending, hidden=hidden, rate=rate)


@pytest.mark.slow
@settings(max_examples=3000)
@given(**NETWORKS)
def test_thousands_of_networks(randomise, slim_is_dense_with_zeros, steps, ending, hidden, rate):
    split_or_refuse(randomise, slim_is_dense_with_zeros, steps=steps, ending=ending, hidden=hidden, rate=rate)
