"""The invariant on networks that nobody designed: sums, concatenations, gates and depthwise layers in any order."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from ke_metric.errors import KeMetricError

WIDTH = st.integers(1, 7)
STEP = st.one_of(
    st.tuples(st.sampled_from(["convolution", "concatenation", "sum", "bottleneck", "gate"]), WIDTH),
    st.tuples(st.sampled_from(["norm", "relu", "depthwise", "pooling", "input"]), st.just(0)),
)


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
        }
        return layers.get(kind, lambda: (nn.Identity(), width))()

    def forward(self, images):
        x = images
        for (kind, _), layer in zip(self.steps, self.layers, strict=True):
            y = layer(x)
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
            else:
                x = y
        x = nn.functional.adaptive_max_pool2d(x, 2).flatten(1) if self.ending == "flatten" else x.mean((2, 3))
        return self.head(torch.tanh(self.hidden(x)))


def build(steps, ending, hidden):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RandomNetwork(steps, ending, hidden).double()


@settings(max_examples=60)
@given(
    steps=st.lists(STEP, min_size=1, max_size=7),
    ending=st.sampled_from(["flatten", "mean"]),
    hidden=WIDTH,
    rate=st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0]),
)
def test_slim_is_dense_with_zeros(randomise, slim_is_dense_with_zeros, steps, ending, hidden, rate):
    network = randomise(build(steps, ending, hidden))
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    try:
        slim_is_dense_with_zeros(network, images, rate=rate)
    except KeMetricError as error:
        assume("would keep none of its" not in str(error))
        raise
