"""Every family of operations, in the smallest network that has it: the invariant holds, or the error is clear."""

import ast
import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.planning import plan_split


class Network(nn.Module):
    """Named layers, and a function that says what is done with them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            elif isinstance(layer, torch.Tensor):
                self.register_buffer(name, layer)
            else:
                self.add_module(name, layer)
        self.function = forward

    def forward(self, images):
        return self.function(self, images)


def conv(inputs, outputs, size=1, **arguments):
    return nn.Conv2d(inputs, outputs, size, **arguments)


def ending(network, x):
    """Mean over positions, then the last layer `head`."""
    return network.head(x.mean((2, 3)))


def values(*shape):
    return nn.Parameter(torch.rand(shape) + 0.5)


def zero_shortcut(network, x):
    """The shortcut of ResNets for CIFAR: every second position, zeros for the new channels."""
    x = torch.relu(network.a(x))
    return ending(network, network.b(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


FOLLOWED = {
    "gate from the mean": Network(
        lambda n, x: ending(n, (y := n.a(x)) * torch.sigmoid(n.b(y.mean((2, 3), keepdim=True)))),
        a=conv(3, 7),
        b=conv(7, 7),
        head=nn.Linear(7, 4),
    ),
    "gate with one channel for all": Network(
        lambda n, x: ending(n, (y := n.a(x)) * torch.sigmoid(n.b(y))),
        a=conv(3, 7),
        b=conv(7, 1),
        head=nn.Linear(7, 4),
    ),
    "gate through expand_as": Network(
        lambda n, x: ending(n, (y := n.a(x)) * torch.sigmoid(n.b(y)).expand_as(y)),
        a=conv(3, 7),
        b=conv(7, 1),
        head=nn.Linear(7, 4),
    ),
    "sum with the input": Network(
        lambda n, x: ending(n, n.b(x + n.a(x))), a=conv(3, 3), b=conv(3, 8), head=nn.Linear(8, 4)
    ),
    "sum of unlike chunks": Network(
        lambda n, x: ending(n, torch.cat([n.a(x), n.b(x)], 1) + n.c(x)),
        a=conv(3, 4),
        b=conv(3, 8),
        c=conv(3, 12),
        head=nn.Linear(12, 4),
    ),
    "chunks of input and features": Network(
        lambda n, x: ending(n, n.b(torch.cat([x, n.a(x), x], 1))), a=conv(3, 5), b=conv(11, 6), head=nn.Linear(6, 4)
    ),
    "chunk of constants": Network(
        lambda n, x: ending(n, n.b(torch.cat([torch.ones(len(x), 2, 8, 8), n.a(x)], 1))),
        a=conv(3, 5),
        b=conv(7, 6),
        head=nn.Linear(6, 4),
    ),
    "concatenation along positions": Network(
        lambda n, x: ending(n, torch.cat([n.a(x), n.b(x)], 2)), a=conv(3, 6), b=conv(3, 6), head=nn.Linear(6, 4)
    ),
    "stack": Network(
        lambda n, x: ending(n, torch.stack([n.a(x), n.b(x)], 1).mean(1)),
        a=conv(3, 6),
        b=conv(3, 6),
        head=nn.Linear(6, 4),
    ),
    "shortcut padded with zeros": Network(
        zero_shortcut, a=conv(3, 8), b=conv(8, 12, 3, stride=2, padding=1), head=nn.Linear(12, 4)
    ),
    "where": Network(
        lambda n, x: ending(n, torch.where((y := n.a(x)) > 0, y, n.b(x))),
        a=conv(3, 6),
        b=conv(3, 6),
        head=nn.Linear(6, 4),
    ),
    "zeros_like and in place": Network(
        lambda n, x: ending(n, torch.zeros_like(y := n.a(x)).add_(y).mul_(2).relu_()),
        a=conv(3, 6),
        head=nn.Linear(6, 4),
    ),
    "hardswish, in place": Network(
        lambda n, x: ending(n, functional.hardswish(n.a(x), True)), a=conv(3, 6), head=nn.Linear(6, 4)
    ),
    "max pooling, resizing, reflection": Network(
        lambda n, x: ending(
            n,
            functional.pad(
                functional.interpolate(functional.max_pool2d(n.a(x), 2), scale_factor=2), (1,) * 4, "reflect"
            ),
        ),
        a=conv(3, 6),
        head=nn.Linear(6, 4),
    ),
    "padding of positions": Network(
        lambda n, x: ending(n, n.b(functional.pad(n.a(x), (1, 2, 0, 1)))),
        a=conv(3, 6),
        b=conv(6, 6, 3),
        head=nn.Linear(6, 4),
    ),
    "generalised mean": Network(
        lambda n, x: n.head(n.a(x).clamp(min=1e-6).pow(n.p).mean((-2, -1)).pow(1 / n.p)),
        a=conv(3, 6),
        p=values(1),
        head=nn.Linear(6, 4),
    ),
    "maximum and variance over positions": Network(
        lambda n, x: n.head(torch.cat([(y := n.a(x)).amax((2, 3)), y.var((2, 3)), y.flatten(2).max(2).values], 1)),
        a=conv(3, 5),
        head=nn.Linear(15, 4),
    ),
    "flatten with channels last": Network(
        lambda n, x: n.head(n.a(x).permute(0, 2, 3, 1).flatten(1)), a=conv(3, 6), head=nn.Linear(6 * 64, 4)
    ),
    "linear layers over tokens": Network(
        lambda n, x: n.head(torch.relu(n.c(torch.relu(n.b(n.a(x).flatten(2).transpose(1, 2))))).mean(1)),
        a=conv(3, 6),
        b=nn.Linear(6, 9),
        c=nn.Linear(9, 6, bias=False),
        head=nn.Linear(6, 4),
    ),
    "token by number": Network(
        lambda n, x: n.head(n.a(x).flatten(2).transpose(1, 2)[:, 3]), a=conv(3, 6), head=nn.Linear(6, 4)
    ),
    "layer scale": Network(
        lambda n, x: ending(n, (y := n.a(x)) + n.gamma * n.b(y)),
        a=conv(3, 6),
        b=conv(6, 6),
        gamma=values(6, 1, 1),
        head=nn.Linear(6, 4),
    ),
    "buffer that is subtracted": Network(
        lambda n, x: ending(n, n.a(x) - n.mean), a=conv(3, 6), mean=torch.rand(1, 6, 1, 1), head=nn.Linear(6, 4)
    ),
    "layer called twice": Network(
        lambda n, x: ending(n, n.b(torch.relu(n.b(n.a(x))))), a=conv(3, 6), b=conv(6, 6), head=nn.Linear(6, 4)
    ),
    "layer called on unlike channels": Network(
        lambda n, x: ending(n, n.c(n.b(x)) + n.c(torch.cat([n.a(x), x], 1))),
        a=conv(3, 5),
        b=conv(3, 8),
        c=conv(8, 6),
        head=nn.Linear(6, 4),
    ),
    "norm called on unlike channels": Network(
        lambda n, x: ending(n, torch.cat([n.norm(n.a(x)), n.norm(torch.cat([n.b(x), x], 1))], 1)),
        a=conv(3, 8),
        b=conv(3, 5),
        norm=nn.BatchNorm2d(8),
        head=nn.Linear(16, 4),
    ),
    "norm without parameters": Network(
        lambda n, x: ending(n, n.norm(n.a(x)).abs()),
        a=conv(3, 6),
        norm=nn.BatchNorm2d(6, affine=False),
        head=nn.Linear(6, 4),
    ),
    "depthwise": Network(
        lambda n, x: ending(n, n.c(n.b(n.a(x)))),
        a=conv(3, 6),
        b=conv(6, 6, 3, groups=6),
        c=conv(6, 5),
        head=nn.Linear(5, 4),
    ),
    "depthwise, two outputs per input": Network(
        lambda n, x: ending(n, n.c(n.b(n.a(x)))),
        a=conv(3, 5),
        b=conv(5, 10, 3, groups=5),
        c=conv(10, 5),
        head=nn.Linear(5, 4),
    ),
    "depthwise on the input": Network(
        lambda n, x: ending(n, n.b(n.a(x))), a=conv(3, 6, groups=3), b=conv(6, 5), head=nn.Linear(5, 4)
    ),
    "grouped": Network(
        lambda n, x: ending(n, n.c(n.b(n.a(x)))),
        a=conv(3, 16),
        b=conv(16, 8, 3, groups=4),
        c=conv(8, 5),
        head=nn.Linear(5, 4),
    ),
    "normalised embedding": Network(
        lambda n, x: functional.normalize(ending(n, n.a(x))), a=conv(3, 6), head=nn.Linear(6, 5)
    ),
    "probabilities": Network(lambda n, x: ending(n, n.a(x)).log_softmax(1), a=conv(3, 6), head=nn.Linear(6, 5)),
    "layer norm at the end": Network(
        lambda n, x: n.norm(ending(n, n.a(x))), a=conv(3, 6), head=nn.Linear(6, 5), norm=nn.LayerNorm(5)
    ),
    "features at the end": Network(lambda n, x: n.b(n.a(x)).flatten(1), a=conv(3, 6), b=conv(6, 5)),
    "no last layer after a sum": Network(
        lambda n, x: ((y := n.a(x)) + n.b(torch.relu(n.c(y)))).mean((2, 3)), a=conv(3, 6), b=conv(7, 6), c=conv(6, 7)
    ),
}


@pytest.mark.parametrize("rate", [0.5, 0.7])
@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name, rate, images, randomise, slim_is_dense_with_zeros, with_more_to_reset):
    network = FOLLOWED[name] if name != "a group that is cut" else with_more_to_reset(FOLLOWED[name])
    slim_is_dense_with_zeros(randomise(network), images, rate=rate)


@pytest.mark.parametrize(
    "activation",
    [
        *(nn.CELU, nn.ELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.ReLU6),
        *(nn.RReLU, nn.SELU, nn.SiLU, partial(nn.Threshold, 0.1, 0.0)),
    ],
)
def test_activations_in_place(activation, images, randomise, slim_is_dense_with_zeros):
    """torch tags some operations as pointwise only where they make a new tensor, or only from some version on."""
    layers = (conv(3, 8), activation(inplace=True), conv(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = randomise(nn.Sequential(*layers, nn.Linear(8, 4)))
    slim_is_dense_with_zeros(network, images, rate=0.5)


def test_one_dimension_and_three(randomise, slim_is_dense_with_zeros):
    for dimension, convolution, norm in ((1, nn.Conv1d, nn.BatchNorm1d), (3, nn.Conv3d, nn.BatchNorm3d)):
        network = nn.Sequential(
            convolution(2, 6, 3), norm(6), nn.ReLU(), convolution(6, 5, 1), nn.Flatten(2),
            nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(5, 3),
        )  # fmt: skip
        slim_is_dense_with_zeros(randomise(network), torch.rand(2, 2, *[5] * dimension), rate=0.5)


def test_what_a_sum_drops_on_one_side_is_dropped_on_both(images):
    network = FOLLOWED["sum of unlike chunks"]
    plan = plan_split(network, images, rate=0.5)
    kept = {name: mask.outputs.ranges for name, mask in plan.weights.items()}
    # a is chunk 0..3, b chunk 4..11 of c: c keeps a prefix of either chunk
    assert kept["a.weight"] == ((0, 2),)
    assert kept["b.weight"] == ((0, 4),)
    assert kept["c.weight"] == ((0, 2), (4, 8))


def test_a_sum_with_the_input_is_kept_whole(images):
    plan = plan_split(FOLLOWED["sum with the input"], images, rate=0.5)
    assert plan.weights["a.weight"].outputs.count == 3


def test_grouped_layers_say_how_wide_they_are(images):
    slim = extract_slim(FOLLOWED["grouped"], plan_split(FOLLOWED["grouped"], images, rate=0.5))
    assert (slim.b.groups, slim.b.in_channels, slim.b.out_channels) == (2, 8, 4)
    network = FOLLOWED["depthwise, two outputs per input"]
    slim = extract_slim(network, plan_split(network, images, rate=0.5))
    assert (slim.b.groups, slim.b.in_channels, slim.b.out_channels) == (3, 3, 6)


def regrouped(network, x):
    y = network.a(x)
    return ending(network, y.view(len(y), 2, -1, *y.shape[2:]).transpose(1, 2).reshape(y.shape))


REFUSED = {
    "layer norm": (
        Network(
            lambda n, x: ending(n, n.norm(n.a(x).mT)),
            a=conv(3, 8),
            norm=nn.LayerNorm([8, 8, 8]),
            head=nn.Linear(8, 4),
        ),
        "norm: aten.native_layer_norm.default of [1, 8, 8, 8]",
    ),
    "softmax over channels": (
        Network(lambda n, x: ending(n, n.a(x).softmax(1)), a=conv(3, 8), head=nn.Linear(8, 4)),
        "aten._softmax",
    ),
    "normalised features": (
        Network(lambda n, x: ending(n, functional.normalize(n.a(x))), a=conv(3, 8), head=nn.Linear(8, 4)),
        "vector_norm",
    ),
    "half of the channels": (
        Network(lambda n, x: ending(n, n.a(x)[:, :4]), a=conv(3, 8), head=nn.Linear(4, 4)),
        "aten.slice",
    ),
    "two halves": (
        Network(lambda n, x: ending(n, torch.mul(*n.a(x).chunk(2, 1))), a=conv(3, 8), head=nn.Linear(4, 4)),
        "aten.split",
    ),
    "regrouped channels": (Network(regrouped, a=conv(3, 8), head=nn.Linear(8, 4)), "aten.view"),
    "channels by number": (
        Network(lambda n, x: ending(n, n.a(x)[:, torch.tensor([1, 0, 2])]), a=conv(3, 4), head=nn.Linear(3, 4)),
        "the slim network does not work on the channels that are kept",
    ),
    "cropped channels": (
        Network(
            lambda n, x: ending(n, functional.pad(n.a(x), (0, 0, 0, 0, -2, 0))), a=conv(3, 6), head=nn.Linear(4, 4)
        ),
        "aten.constant_pad_nd",
    ),
    "channels in place": (
        Network(lambda n, x: n.head(n.a(x).mean((2, 3)).t_().t_()), a=conv(3, 6), head=nn.Linear(6, 4)),
        "aten.t_",
    ),
    "transposed convolution": (
        Network(
            lambda n, x: ending(n, n.b(n.a(x))), a=conv(3, 6), b=nn.ConvTranspose2d(6, 5, 2), head=nn.Linear(5, 4)
        ),
        "b: aten.convolution",
    ),
    "product of features": (
        Network(lambda n, x: n.head((y := n.a(x).flatten(2)) @ y.mT).flatten(1), a=conv(3, 6), head=nn.Linear(6, 4)),
        "aten.bmm",
    ),
    "outer product of channels": (
        Network(
            lambda n, x: n.head(((y := n.a(x).mean((2, 3)))[:, :, None] * y[:, None]).flatten(1)),
            a=conv(3, 6),
            head=nn.Linear(36, 4),
        ),
        "spreads one channel over many",
    ),
    "mean over channels": (
        Network(lambda n, x: n.head(n.a(x).mean(1).flatten(1)), a=conv(3, 6), head=nn.Linear(64, 4)),
        "aten.mean",
    ),
    "pooling over channels": (
        Network(
            lambda n, x: n.head(functional.avg_pool1d(n.a(x).mean((2, 3))[:, None], 2).flatten(1)),
            a=conv(3, 6),
            head=nn.Linear(3, 4),
        ),
        "aten.avg_pool2d",
    ),
    "constant of full width": (
        Network(
            lambda n, x: ending(n, n.a(x) * torch.exp(n.scale)),
            a=conv(3, 6),
            scale=values(6, 1, 1),
            head=nn.Linear(6, 4),
        ),
        "meets a constant",
    ),
    "constant that varies over tokens and channels": (
        Network(
            lambda n, x: n.head(((y := n.a(x).mean(3)) + y.mT + n.scale).flatten(1)),
            a=conv(3, 8),
            scale=values(8, 8),
            head=nn.Linear(64, 4),
        ),
        "meets a constant",
    ),
    "a weight that is also read elsewhere": (
        Network(
            lambda n, x: ending(n, n.b(n.a(x))) + n.b.weight.sum(), a=conv(3, 6), b=conv(6, 6), head=nn.Linear(6, 4)
        ),
        "aten.sum.default",
    ),
    "a scale that is also read elsewhere": (
        Network(
            lambda n, x: ending(n, n.a(x) * n.scale) + n.scale.exp().mean(),
            a=conv(3, 6),
            scale=values(6, 1, 1),
            head=nn.Linear(6, 4),
        ),
        "aten.mean.default",
    ),
    "a matrix that is no linear layer": (
        Network(lambda n, x: n.a(x).mean((2, 3)) @ n.matrix, a=conv(3, 6), matrix=values(6, 4)),
        "matrix [6, 4] of module 'network', a Network, is computed with in another way",
    ),
    "a weight made of others": (
        Network(
            lambda n, x: ending(n, functional.conv2d(n.a(x), n.kernel * 2)),
            a=conv(3, 6),
            kernel=values(5, 6, 1, 1),
            head=nn.Linear(5, 4),
        ),
        "kernel [5, 6, 1, 1] of module 'network', a Network, is computed with in another way",
    ),
    "a group that is cut": (
        Network(lambda n, x: ending(n, n.b(n.a(x))), a=conv(3, 12), b=conv(12, 12, groups=3), head=nn.Linear(12, 4)),
        "3 groups of 4 channels",
    ),
}


for _name in (
    "two halves",
    "regrouped channels",
    "cropped channels",
    "transposed convolution",
    "constant of full width",
):
    FOLLOWED[_name] = REFUSED.pop(_name)[0]
# What ties all channels together, or needs as many as there are, is followed and leaves no choice.
ALL_OR_NOTHING = {
    name: REFUSED.pop(name)[0]
    for name in (
        "half of the channels",
        "outer product of channels",
        "constant that varies over tokens and channels",
    )
}
FOLLOWED["a group that is cut"] = REFUSED.pop("a group that is cut")[0]


@pytest.mark.parametrize("name", ALL_OR_NOTHING)
def test_all_channels_or_none(name, images, randomise, slim_is_dense_with_zeros, with_more_to_reset):
    network = with_more_to_reset(ALL_OR_NOTHING[name])
    plan, _ = slim_is_dense_with_zeros(randomise(network), images, rate=0.5)
    mask = plan.weights["network.a.weight"]
    assert mask.outputs.count == mask.outputs.size


@pytest.mark.parametrize("name", ALL_OR_NOTHING)
def test_nothing_to_reset_is_an_error(name, images):
    with pytest.raises(KeMetricError, match=r"nothing of this Network would be reset at split rate 0\.5") as caught:
        plan_split(ALL_OR_NOTHING[name], images, rate=0.5)
    assert caught.value.exit_code == ExitCode.RECIPE


@pytest.mark.parametrize("name", REFUSED)
def test_refused_until_kept_whole(name, images, randomise, slim_is_dense_with_zeros, with_more_to_reset):
    """The error says where, and what it proposes works."""
    alone, words = REFUSED[name]
    network = with_more_to_reset(alone)
    with pytest.raises(KeMetricError, match=re.escape(words)) as caught:
        plan_split(network, images[:1], rate=0.5)
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.RECIPE
    proposed = re.search(r"keep_whole=\[(.*?)\]", message)
    slim_is_dense_with_zeros(randomise(network), images, rate=0.5, keep_whole=ast.literal_eval(f"[{proposed[1]}]"))


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_refused_where_nothing_is_dropped(name, images):
    plan = plan_split(REFUSED[name][0], images[:1], rate=1.0)
    assert plan.reset_count == 0
