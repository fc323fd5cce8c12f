"""A weight that meets the input before it multiplies is refused by name; positions, tokens and queries are not."""

import ast
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.planning import plan_split

EXAMPLES = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(2))


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
UNFOLLOWED = {
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


@pytest.mark.parametrize("name", UNFOLLOWED)
def test_a_weight_that_meets_the_input_first(name, randomise, slim_is_dense_with_zeros):
    """Refused by name; what is proposed leaves it as it is."""
    module = UNFOLLOWED[name]
    weight = "2.w.weight" if isinstance(module.w, nn.Embedding) else "2.w"
    network = nn.Sequential(
        nn.Linear(8, 12), nn.ReLU(), module, nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)
    )
    with pytest.raises(
        KeMetricError, match=rf"{weight} \[12, 12.*\] of .* is computed with in another way"
    ) as caught:
        plan_split(network, EXAMPLES, rate=0.5)
    assert caught.value.exit_code == ExitCode.RECIPE
    keep_whole = ast.literal_eval(re.search(r"keep_whole=(\[.*?\])", str(caught.value))[1])
    assert weight in keep_whole
    plan, _ = slim_is_dense_with_zeros(randomise(network), EXAMPLES, rate=0.5, keep_whole=keep_whole)
    assert plan.reset_count > 0
    assert weight in plan.kept_whole


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
    plan, _ = slim_is_dense_with_zeros(randomise(network), TOKENS, rate=0.5)
    weights = {name for name, parameter in network.named_parameters() if parameter.ndim >= 2}
    assert weights == {*plan.weights, *beside}
    assert not plan.kept_whole
