"""What a network and its example input may be, and the words for what they may not be."""

import re

import pytest
import torch
from torch import fx, nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.hypotheses import extract_slim, zero_reset
from ke_metric.split.planning import plan_split

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore:.*deprecated:DeprecationWarning")

EXAMPLES = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))


class Sum(nn.Module):
    """Two layers of one or two inputs, which are added."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, first, second=None):
        return self.c(self.a(first) + self.b(first if second is None else second))


def refusal(network, examples=EXAMPLES, **arguments):
    with pytest.raises(KeMetricError) as caught:
        plan_split(network, examples, rate=0.5, **arguments)
    assert caught.value.exit_code == ExitCode.RECIPE
    return str(caught.value)


def test_a_traced_sum(slim_is_dense_with_zeros):
    """The class of a traced network is another one once it is copied; the network is the same."""
    traced = fx.symbolic_trace(Sum(), concrete_args={"second": None})
    plan, _ = slim_is_dense_with_zeros(traced, EXAMPLES, rate=0.5)
    assert {name: mask.outputs.count for name, mask in plan.weights.items()} == {
        "a.weight": 3,
        "b.weight": 3,
        "c.weight": 4,
    }


def test_a_traced_resnet_is_split_as_the_network_it_was_made_from(torchvision_network):
    network, images = torchvision_network("resnet18"), torch.rand(1, 3, 32, 32)
    plan = plan_split(fx.symbolic_trace(network), images, rate=0.5)
    assert len(plan.weights) == 21
    assert plan.masks.keys() == (own := plan_split(network, images, rate=0.5)).masks.keys()
    assert plan == own


def test_a_feature_extractor():
    network = create_feature_extractor(resnet18(num_classes=5).eval(), ["layer2", "avgpool"])
    images = torch.rand(2, 3, 32, 32)
    plan = plan_split(network, images, rate=0.5)
    assert plan.weights["layer1.0.conv1.weight"].outputs.count == 32
    assert plan.weights["layer2.1.conv2.weight"].outputs.count == 128, "an output is never narrowed"
    slim = extract_slim(network, plan).eval()
    zero_reset(network, plan)
    with torch.no_grad():
        wide, narrow = network(images), slim(images)
    for name, output in wide.items():
        torch.testing.assert_close(narrow[name], output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "example",
    [
        (EXAMPLES, EXAMPLES.flip(0)),
        {"first": EXAMPLES, "second": EXAMPLES.flip(0)},
        {"second": EXAMPLES.flip(0), "first": EXAMPLES},
    ],
    ids=["tuple", "dict", "dict in another order"],
)
def test_several_inputs(example):
    network = Sum().eval()
    plan = plan_split(network, example, rate=0.5)
    slim = extract_slim(network, plan)
    zero_reset(network, plan)
    assert plan.reset_count == 8 * 6 + 4 * 3
    torch.testing.assert_close(slim(EXAMPLES, EXAMPLES.flip(0)), network(EXAMPLES, EXAMPLES.flip(0)))


class Listed(Sum):
    def forward(self, both):
        return super().forward(*both)


def test_an_input_of_another_kind():
    message = refusal(Listed(), [EXAMPLES, EXAMPLES])
    assert "the example input is a list: it must be a tensor, a tuple of positional arguments or a dict" in message
    assert plan_split(Listed(), ([EXAMPLES, EXAMPLES],), rate=0.5).reset_count > 0
    assert "there is no tensor in the example input, a tuple" in refusal(Sum(), (3,))


def test_lazy_layers():
    network = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(4))
    for kind in ("kels", "wels"):
        message = refusal(network, kind=kind, seed=0)
        assert "0.weight of this Sequential has no shape before the first forward pass: run the netw" in message
    network(EXAMPLES)
    assert plan_split(network, EXAMPLES, rate=0.5).reset_count > 0


def scripted_part():
    return nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(8, 6), nn.ReLU())), nn.Linear(6, 4))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.jit.script(Sum()), "this RecursiveScriptModule is scripted (torch.jit)"),
        (lambda: torch.jit.trace(Sum(), EXAMPLES), "this TopLevelTracedModule is scripted (torch.jit)"),
        (scripted_part, "module '0' of this Sequential is scripted (torch.jit)"),
        (lambda: torch.export.export(Sum(), (EXAMPLES,)).module(), "this GraphModule is exported (torch.export)"),
        (
            lambda: torch.export.export(Sum(), (EXAMPLES,)),
            "a split is made of an nn.Module, not of this ExportedProgram; split the network that was exported",
        ),
        (lambda: torch.sin, "a split is made of an nn.Module, not of this builtin_function_or_method"),
    ],
    ids=["scripted", "traced by jit", "a part of it", "exported", "exported program", "a function"],
)
def test_networks_that_cannot_be_followed(make, words):
    message = refusal(make())
    assert words in message
    assert "a split is made of" in message or "split the network it was made from, and script" in message


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_words_come_whatever_the_rate(rate):
    with pytest.raises(KeMetricError, match=re.escape("is scripted (torch.jit)")):
        plan_split(torch.jit.script(Sum()), EXAMPLES, rate=rate)


@pytest.mark.parametrize("kind", ["kels", "wels"])
@pytest.mark.parametrize(
    "compile",
    [
        torch.jit.script,
        lambda network: torch.jit.trace(network, EXAMPLES),
        lambda network: torch.export.export(network, (EXAMPLES,)).module(),
        lambda network: nn.Sequential(torch.jit.script(network), nn.Linear(4, 4)),
    ],
    ids=["scripted", "traced", "exported", "in part"],
)
def test_what_is_compiled_is_refused_for_either_kind(compile, kind):
    network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    message = refusal(compile(network), kind=kind, seed=0)
    assert "split the network it was made from" in message
    assert "keep_whole" not in message


@pytest.mark.parametrize("kind", ["kels", "wels"])
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("rate", value) for value in ("0.5", None, True, [0.5], float("nan"))),
        *(("channel_multiple", value) for value in ("8", None, True, 2.0)),
        *(("seed", value) for value in ("0", True, 1.5)),
        *(("keep_whole", value) for value in (None, "0", [0])),
    ],
)
def test_an_argument_of_another_type(argument, value, kind):
    network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    with pytest.raises(KeMetricError, match=rf"{argument} = {re.escape(repr(value))}: must be") as caught:
        plan_split(network, EXAMPLES, **{"rate": 0.5, "kind": kind, "seed": 0, argument: value})
    assert caught.value.exit_code == ExitCode.RECIPE


@pytest.mark.parametrize("kind", [None, 3, ["kels"]])
def test_a_kind_that_is_no_word(kind):
    assert f"split kind {kind!r} is none of kels, wels" in refusal(nn.Linear(8, 4), kind=kind)


@pytest.mark.parametrize(
    ("examples", "given", "sentence"),
    [
        (torch.zeros(2, 9), "[2, 9] torch.float32, in module 'a': RuntimeError", "cannot be multiplied"),
        (torch.zeros(2, 8).double(), "[2, 8] torch.float64, in module 'a': RuntimeError", "dtype"),
        ((EXAMPLES,) * 3, "[4, 8] torch.float32: TypeError", "positional arguments"),
        ({"images": EXAMPLES}, "[4, 8] torch.float32: TypeError", "'images'"),
    ],
)
def test_an_example_that_the_network_does_not_take(examples, given, sentence):
    message = refusal(Sum(), examples)
    assert "this Sum does not run in eval mode on the example input" in message
    assert given in message
    assert sentence in message


def test_a_mistake_of_our_own_is_not_blamed_on_the_example(monkeypatch):
    def mistaken(call):
        raise RuntimeError("our own mistake")

    monkeypatch.setattr("ke_metric.split.following.follow", mistaken)
    with pytest.raises(RuntimeError, match="our own mistake"):
        plan_split(Sum(), EXAMPLES, rate=0.5)
