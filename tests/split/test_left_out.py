"""No weight that is used is left out in silence: it is in a mask, kept whole by request, or refused by name.

So is one that meets the input before it multiplies; positions, tokens and queries are not.
"""

import ast
import copy
import re

import pytest
import torch
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig, prepare_qat
from torch.nn import functional
from torch.nn.utils import (
    parametrizations,
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
    spectral_norm,
    weight_norm,
)
from torchvision.models import VisionTransformer

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.hypotheses import redraw_reset
from ke_metric.split.planning import plan_split

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*deprecated:FutureWarning", "ignore:.*deprecated:DeprecationWarning", "ignore:Please use quant_min"
)

EXAMPLES = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))


class Network(nn.Module):
    """Named layers and parameters, and a function that says what is done with them."""

    def __init__(self, forward, **things):
        super().__init__()
        for name, thing in things.items():
            setattr(self, name, thing)
        self.function = forward

    def forward(self, examples):
        return self.function(self, examples)


def values(*shape):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(3)))


def deep(middle):
    """Two layers before what is in the middle, 12 to 12, and two behind it."""
    return nn.Sequential(
        nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 12), nn.ReLU(), middle, nn.ReLU(), nn.Linear(12, 6), nn.ReLU(),
        nn.Linear(6, 4),
    )  # fmt: skip


def refusal(network, examples=EXAMPLES, **arguments):
    with pytest.raises(KeMetricError) as caught:
        plan_split(network, examples, rate=0.5, **arguments)
    assert caught.value.exit_code == ExitCode.RECIPE
    return str(caught.value)


def proposed(message):
    """Return the keep_whole that a message proposes."""
    return ast.literal_eval(re.search(r"keep_whole=(\[.*?\])", message)[1])


def weights(network):
    return {name for name, parameter in network.named_parameters() if parameter.ndim >= 2}


def off(function):
    return lambda layer: function(layer, "weight")


OLD = "torch.nn.utils."
NEW = "torch.nn.utils.parametrize.remove_parametrizations"
PARAMETRISED = {
    "weight_norm, by a hook": (weight_norm, remove_weight_norm, OLD + "remove_weight_norm"),
    "spectral_norm, by a hook": (spectral_norm, remove_spectral_norm, OLD + "remove_spectral_norm"),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.3), off(prune.remove), OLD + "prune.remove"),
    "weight_norm": (parametrizations.weight_norm, off(parametrize.remove_parametrizations), NEW),
    "spectral_norm": (parametrizations.spectral_norm, off(parametrize.remove_parametrizations), NEW),
    "orthogonal": (parametrizations.orthogonal, off(parametrize.remove_parametrizations), NEW),
}


@pytest.mark.parametrize("name", PARAMETRISED)
def test_a_parametrised_weight_is_named_with_what_takes_that_off(name, slim_is_dense_with_zeros):
    wrap, remove, remover = PARAMETRISED[name]
    network = nn.Sequential(wrap(nn.Linear(8, 6)), nn.ReLU(), wrap(nn.Linear(6, 4)))
    message = refusal(network)
    first, *others = [name for name, parameter in network.named_parameters() if parameter.ndim >= 2]
    assert f"{first} {list(network.get_parameter(first).shape)} of module" in message
    assert f"is computed with in another way (and {len(others)} more such parameters)" in message
    assert f"{remover} makes it an ordinary weight again" in message
    assert "keep_whole" not in message, "nothing would be left to reset"
    for layer in (network[0], network[2]):
        remove(layer)
    plan, _ = slim_is_dense_with_zeros(network, EXAMPLES, rate=0.5)
    assert list(plan.weights) == ["0.weight", "2.weight"]


@pytest.mark.parametrize("name", PARAMETRISED)
def test_a_parametrised_weight_in_mid_network(name, slim_is_dense_with_zeros):
    """What is proposed leaves no hole: what feeds the layer is kept whole with it."""
    network = deep(PARAMETRISED[name][0](nn.Linear(12, 12))).eval()
    keep_whole = proposed(refusal(network))
    assert keep_whole[-1] == "2"
    plan, _ = slim_is_dense_with_zeros(network, EXAMPLES, rate=0.5, keep_whole=keep_whole)
    assert weights(network) == {*plan.weights, *keep_whole[:-1]}
    assert set(plan.kept_whole) == set(keep_whole)
    assert plan.weights["2.weight"].outputs.count == 12


def test_a_convolution_with_parametrised_weights(images):
    network = nn.Sequential(nn.Conv2d(3, 6, 3), prune.l1_unstructured(nn.Conv2d(6, 6, 1), "weight", 0.3))
    assert "1.weight_orig [6, 6, 1, 1] of module '1', a Conv2d, is computed with in another way" in refusal(
        network, images
    )


@pytest.fixture
def quantisation_aware():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
    network.qconfig = get_default_qat_qconfig("fbgemm")
    return prepare_qat(network.train())


def test_a_network_that_is_prepared_for_quantisation(quantisation_aware, images):
    message = refusal(quantisation_aware, images)
    assert "0.weight [6, 3, 3, 3] of module '0', a Conv2d, is computed with in another way" in message
    assert "split the network before it is prepared for quantisation" in message.casefold()


def test_observers_are_as_before(quantisation_aware, images):
    """They change buffers in eval mode, too."""
    before = copy.deepcopy(quantisation_aware.state_dict())
    buffers = dict(quantisation_aware.named_buffers())
    refusal(quantisation_aware, images)
    assert all(buffer is buffers[name] for name, buffer in quantisation_aware.named_buffers())
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantisation_aware.state_dict().items()), (
        "planning leaves a network as it is"
    )


def small_vit():
    network = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=5)
    nn.init.normal_(network.heads.head.weight)
    return network


@pytest.mark.parametrize(
    ("network", "examples"),
    [(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), EXAMPLES), (small_vit(), torch.rand(2, 3, 32, 32))],
    ids=["linear layers", "transformer"],
)
def test_planning_under_autocast(network, examples):
    plan = plan_split(network, examples, rate=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plan_split(network, examples, rate=0.5) == plan
        assert torch.is_autocast_enabled("cpu")
    assert plan.reset_count > 0


class Autocast(nn.Module):
    """Turns autocast on by itself."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head, self.table = nn.Linear(8, 4), nn.Parameter(torch.rand(1, 8, 8, 8))

    def forward(self, images):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.relu(self.norm(self.inner(self.stem(images)) + self.table))
            return self.head(x.mean((2, 3))).float()


def test_a_network_that_turns_autocast_on(images):
    """A weight in another precision is that weight."""
    network = Autocast()
    assert plan_split(network, images, rate=0.5).weights["inner.weight"].fit_count == 4 * 4 * 9
    assert set(plan_split(network, images, rate=0.5).weights) == weights(network) - {"table"}


def test_a_network_that_was_made_in_inference_mode():
    with torch.inference_mode():
        network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    for kind in ("kels", "wels"):
        assert "0.weight of this Sequential was made in inference mode" in refusal(network, kind=kind, seed=0)
    plan = plan_split(copy.deepcopy(network), EXAMPLES, rate=0.5)
    assert plan.reset_count > 0
    with pytest.raises(KeMetricError, match=r"0\.weight of this Sequential was made in inference mode"):
        redraw_reset(network, plan, generator=torch.Generator())


def recurrent(kind):
    return Network(lambda n, x: n.layer(x[:, None])[0][:, 0], layer=kind(12, 12, batch_first=True))


# What computes with weights as no layer does, 12 to 12 -> the weights.
UNFOLLOWED = {
    "einsum": (Network(lambda n, x: torch.einsum("bi,io->bo", x, n.w), w=values(12, 12)), ["w"]),
    "matrix": (Network(lambda n, x: x @ n.w, w=values(12, 12)), ["w"]),
    "sum of products": (Network(lambda n, x: (x[:, None] * n.w).sum(-1), w=values(12, 12)), ["w"]),
    "single row": (Network(lambda n, x: x * (x * n.w).sum(-1, keepdim=True), w=values(1, 12)), ["w"]),
    "row by number": (
        Network(lambda n, x: torch.bmm(x[:, None], n.w[(x[:, 0] > 0).long()])[:, 0], w=values(2, 12, 12)),
        ["w"],
    ),
    "LSTM": (recurrent(nn.LSTM), ["layer.weight_ih_l0", "layer.weight_hh_l0"]),
    "bilinear": (Network(lambda n, x: n.layer(x, x), layer=nn.Bilinear(12, 12, 12)), ["layer.weight"]),
    "cosine": (
        Network(lambda n, x: functional.linear(x, functional.normalize(n.layer.weight)), layer=nn.Linear(12, 12)),
        ["layer.weight"],
    ),
    "cosine of a table": (
        Network(lambda n, x: functional.linear(x, functional.normalize(n.layer.weight)), layer=nn.Embedding(12, 12)),
        ["layer.weight"],
    ),
    "low rank": (Network(lambda n, x: functional.linear(x, n.a @ n.b), a=values(12, 3), b=values(3, 12)), ["a", "b"]),
    "low rank by layers": (
        Network(lambda n, x: functional.linear(x, functional.linear(n.a, n.b)), a=values(12, 3), b=values(12, 3)),
        ["a"],
    ),
    "sum of weights": (
        Network(lambda n, x: functional.linear(x, n.layer.weight + n.b), layer=nn.Linear(12, 12), b=values(12, 12)),
        ["b", "layer.weight"],
    ),
    "rows of attention": (
        Network(
            lambda n, x: n.layer(x[:, None], n.keys(x)[:, None], n.keys(x)[:, None])[0][:, 0],
            keys=nn.Linear(12, 12),
            layer=nn.MultiheadAttention(12, 2, batch_first=True),
        ),
        ["layer.in_proj_weight"],
    ),
}


@pytest.mark.parametrize("name", UNFOLLOWED)
@pytest.mark.filterwarnings("ignore:.*trilinear")
def test_a_weight_of_no_layer(name, randomise, slim_is_dense_with_zeros):
    """In mid-network: refused by name; what is proposed leaves it as it is and everything else exact."""
    module, left_out = UNFOLLOWED[name]
    network = deep(module)
    left_out = [f"4.{each}" for each in left_out]
    message = refusal(network)
    assert re.search(rf"{left_out[0]} \[.* is computed with in another way", message)
    keep_whole = proposed(message)
    assert set(left_out) <= set(keep_whole)
    plan, _ = slim_is_dense_with_zeros(randomise(network), EXAMPLES, rate=0.5, keep_whole=keep_whole)
    assert weights(network) == {*plan.weights, *left_out}
    assert set(plan.kept_whole) == set(keep_whole)
    assert plan.reset_count > 0


@pytest.mark.parametrize("name", UNFOLLOWED)
def test_a_weight_of_no_layer_at_the_front(name):
    module, left_out = UNFOLLOWED[name]
    message = refusal(nn.Sequential(module, nn.ReLU(), nn.Linear(12, 4)), torch.rand(2, 12))
    assert f"0.{left_out[0]} [" in message
    assert "kels splits the weights of layers, and" in message


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTMCell])
def test_recurrent_layers_that_are_followed_are_refused_in_words(kind):
    layer = kind(12, 12) if kind is nn.LSTMCell else recurrent(kind)
    network = deep(Network(lambda n, x: n.layer(x)[0], layer=layer) if kind is nn.LSTMCell else layer)
    assert "kind='wels'" in refusal(network)
    assert plan_split(network, EXAMPLES, kind="wels", seed=0).reset_count > 0


def attention(**arguments):
    return Network(
        lambda n, x: n.b(n.layer(y := n.a(x), y, y, need_weights=False)[0]).mean(1),
        a=nn.Linear(8, 8),
        layer=nn.MultiheadAttention(8, 2, batch_first=True, **arguments),
        b=nn.Linear(8, 4),
    )


ALL_IN_MASKS = {
    "attention": (attention(), TOKENS, set()),
    "attention with biases": (attention(add_bias_kv=True), TOKENS, {"layer.bias_k", "layer.bias_v"}),
    "attention with other widths": (
        Network(
            lambda n, x: n.layer(n.a(x), n.k(x), n.v(x), need_weights=False)[0].mean(1),
            a=nn.Linear(8, 8),
            k=nn.Linear(8, 6),
            v=nn.Linear(8, 4),
            layer=nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=4),
        ),
        TOKENS,
        set(),
    ),
    "list of parameters": (
        Network(
            lambda n, x: functional.linear(functional.linear(x, n.list[0]).relu(), n.list[1]),
            list=nn.ParameterList([values(12, 8), values(4, 12)]),
        ),
        EXAMPLES,
        set(),
    ),
    "dict of parameters": (
        Network(
            lambda n, x: functional.conv2d(functional.conv2d(x, n.dict["a"]).relu(), n.dict["b"]),
            dict=nn.ParameterDict({"a": values(12, 3, 3, 3), "b": values(4, 12, 1, 1)}),
        ),
        torch.rand(2, 3, 8, 8),
        set(),
    ),
    "transposed convolution": (
        nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3)),
        torch.rand(2, 3, 8, 8),
        set(),
    ),
    "embedding": (
        Network(
            lambda n, x: n.b(torch.relu(n.a(n.e(x)))).mean(1),
            e=nn.Embedding(10, 8),
            a=nn.Linear(8, 12),
            b=nn.Linear(12, 4),
        ),
        torch.arange(10).view(2, 5),
        {"e.weight"},
    ),
    "table of a network's own": (
        Network(
            lambda n, x: n.b(torch.relu(n.a(n.table[x] + n.others[x]))).mean(1),
            table=values(10, 8),
            others=values(10, 8),
            a=nn.Linear(8, 12),
            b=nn.Linear(12, 4),
        ),
        torch.arange(10).view(2, 5),
        {"table", "others"},
    ),
    "positions, token and scale": (
        Network(
            lambda n, x: n.b(torch.cat([n.token.expand(len(x), 1, -1), n.a(x)], 1) * n.scale + n.positions).mean(1),
            a=nn.Linear(8, 12),
            token=values(1, 1, 12),
            scale=values(1, 1, 12),
            positions=values(1, 6, 12),
            b=nn.Linear(12, 4),
        ),
        TOKENS,
        {"token", "scale", "positions"},
    ),
    "queries": (
        Network(
            lambda n, x: n.c(n.a(n.queries.weight) @ n.b(x).mT).flatten(1),
            queries=nn.Embedding(3, 8),
            a=nn.Linear(8, 6),
            b=nn.Linear(8, 6),
            c=nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)),
        ),
        TOKENS,
        {"queries.weight"},
    ),
}


@pytest.mark.parametrize("name", ALL_IN_MASKS)
def test_all_weights_but_tables_tokens_and_scales_are_in_masks(name, randomise, slim_is_dense_with_zeros):
    network, examples, beside = ALL_IN_MASKS[name]
    plan, _ = slim_is_dense_with_zeros(randomise(network), examples, rate=0.5)
    assert weights(network) == {*plan.weights, *beside}
    assert not plan.kept_whole


def test_attention_with_zeros(randomise, slim_is_dense_with_zeros):
    """A constant of the width of all heads."""
    network = nn.Sequential(attention(add_zero_attn=True), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    keep_whole = proposed(refusal(network, TOKENS))
    plan, _ = slim_is_dense_with_zeros(randomise(network), TOKENS, rate=0.5, keep_whole=keep_whole)
    assert weights(network) == set(plan.weights)


@pytest.mark.parametrize(
    "network",
    [
        Network(lambda n, x: n.b(functional.linear(x, n.list[0])), list=[values(12, 8)], b=nn.Linear(12, 4)),
        Network(lambda n, x: n.b(n.list[0](x)), list=[nn.Linear(8, 12)], b=nn.Linear(12, 4)),
        Network(lambda n, x: n.b(x @ n.list[0]), list=[values(8, 12) * 2], b=nn.Linear(12, 4)),
    ],
    ids=["parameter", "module", "computed beforehand"],
)
def test_a_parameter_that_no_module_has_registered(network):
    message = refusal(network)
    assert "computes with a parameter that no module has registered" in message
    network.list = (nn.ModuleList if isinstance(network.list[0], nn.Module) else nn.ParameterList)(network.list)


def test_a_constant_is_no_parameter(slim_is_dense_with_zeros):
    network = Network(
        lambda n, x: n.b(torch.relu(n.a(x @ n.list[0]))),
        list=[nn.Parameter(torch.rand(8, 9), requires_grad=False)],
        a=nn.Linear(9, 12),
        b=nn.Linear(12, 4),
    )
    slim_is_dense_with_zeros(network, EXAMPLES, rate=0.5)


def test_what_divides_by_the_length_of_reset_weights():
    """DoRA on a convolution: the length of a channel's weights, computed from the layer and its low rank."""

    class Magnitudes(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.down, self.up = (nn.Conv2d(3, 8, 3), nn.Conv2d(3, 2, 3), nn.Conv2d(2, 8, 1))
            self.magnitudes, self.head = values(8, 1, 1), nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1))

        def forward(self, x):
            low_rank = (self.up.weight.flatten(1) @ self.down.weight.flatten(1)).view(self.base.weight.shape)
            lengths = (self.base.weight + low_rank).norm(p=2, dim=(1, 2, 3))[:, None, None]
            y = functional.conv2d(x, self.base.weight) + self.up(functional.conv2d(x, self.down.weight))
            return self.head(self.magnitudes / lengths * y)

    network, images = Magnitudes(), torch.rand(2, 3, 8, 8)
    message = refusal(network, images)
    assert "with its reset hypothesis at zero, the network returns numbers that are not finite" in message
    plan = plan_split(network, images, rate=0.5, keep_whole=proposed(message))
    assert plan.weights["head.0.weight"].outputs.count == 3
    assert plan_split(network.to("meta"), images.to("meta"), rate=0.5).reset_count > 0, (
        "there are no values to divide"
    )


# What is made of a weight [12, 12] and of the input [N, 12], to be used as a weight.
MOVED = {
    "sum": lambda w, x: w + x.mean(),
    "sum in place": lambda w, x: w.clone().add_(x.mean()),
    "difference": lambda w, x: x.mean() - w,
    "sum row by row": lambda w, x: w + x.mean(1)[:1, None],
    "sum, squashed": lambda w, x: (w + x.mean()).tanh().t(),
    "sum with as much": lambda w, x: w + torch.outer(x[0], x[-1]),
    "choice": lambda w, x: torch.where(x.sum() > 0, w, 2 * w),
    "mask": lambda w, x: w.masked_fill(x.sum() > 0, 0.5),
    "bound": lambda w, x: torch.maximum(w, x.min()),
    "some rows": lambda w, x: torch.cat([w[:6], torch.outer(x[0, :6], x[-1])]),
    "copy into activations": lambda w, x: torch.outer(x[0], x[-1]).copy_(w),
}
MEETS_INPUT_FIRST = {
    **{
        name: Network(lambda n, x, of=of: functional.linear(x, of(n.w, x)), w=values(12, 12))
        for name, of in MOVED.items()
    },
    "sum, not transposed": Network(lambda n, x: x @ (n.w + x.mean()), w=values(12, 12)),
    "sum, then products": Network(lambda n, x: (x[:, None] * (n.w + x.mean())).sum(-1), w=values(12, 12)),
    "sum for a convolution": Network(
        lambda n, x: functional.conv1d(x[..., None], n.w + x.mean()).flatten(1), w=values(12, 12, 1)
    ),
    "rows of an embedding": Network(
        lambda n, x: functional.linear(x, n.w(torch.arange(12))), w=nn.Embedding(12, 12)
    ),
    "rows of an embedding, by index": Network(
        lambda n, x: functional.linear(x, n.w.weight[torch.arange(12)]), w=nn.Embedding(12, 12)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEETS_INPUT_FIRST)
def test_a_weight_that_meets_the_input_first(name, randomise, slim_is_dense_with_zeros):
    """Refused by name; what is proposed leaves it as it is."""
    module = MEETS_INPUT_FIRST[name]
    weight = "2.w.weight" if isinstance(module.w, nn.Embedding) else "2.w"
    network = nn.Sequential(
        nn.Linear(8, 12), nn.ReLU(), module, nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)
    )
    message = refusal(network)
    assert re.search(rf"{weight} \[12, 12.*\] of .* is computed with in another way", message)
    keep_whole = proposed(message)
    assert weight in keep_whole
    plan, _ = slim_is_dense_with_zeros(randomise(network), EXAMPLES, rate=0.5, keep_whole=keep_whole)
    assert plan.reset_count > 0
    assert weight in plan.kept_whole


ONE_SEQUENCE = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(2))


def pooled(network, tokens):
    """Pool with activations in the place of a weight, and no norm or layer before."""
    return network.b((network.scores(tokens).softmax(1).mT @ tokens)[:, 0])


BESIDE = {
    "positions of all kinds, pooled": (
        Network(
            lambda n, x: pooled(n, n.a(x) + n.norm(n.a(n.e(torch.arange(5)))) + n.positions + n.more),
            e=nn.Embedding(5, 8),
            norm=nn.LayerNorm(12),
            positions=values(1, 5, 12),
            more=values(5, 12),
            a=nn.Linear(8, 12),
            scores=nn.Linear(12, 1),
            b=nn.Linear(12, 4),
        ),
        {"e.weight", "positions", "more"},
    ),
    "queries that the input moves": (
        Network(
            lambda n, x: n.b(torch.relu(n.a(n.queries + x.mean(1, keepdim=True)))).flatten(1),
            queries=values(1, 3, 8),
            a=nn.Linear(8, 12),
            b=nn.Linear(12, 4),
        ),
        {"queries"},
    ),
    "bias of scores, masked by the input": (
        Network(
            lambda n, x: n.b((n.q(x) @ n.k(x).mT + n.table.masked_fill(x[..., 0] > 9, -9)).softmax(-1) @ n.a(x)),
            q=nn.Linear(8, 12),
            k=nn.Linear(8, 12),
            table=values(1, 5, 5),
            a=nn.Linear(8, 12),
            b=nn.Linear(12, 4),
        ),
        {"table"},
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_positions_queries_and_biases_of_scores_stay_as_they_are(name, randomise, slim_is_dense_with_zeros):
    network, beside = BESIDE[name]
    plan, _ = slim_is_dense_with_zeros(randomise(network), ONE_SEQUENCE, rate=0.5)
    assert weights(network) == {*plan.weights, *beside}
    assert not plan.kept_whole
