"""A compiled network trains the plain one: the same names, split, resume; where it cannot be compiled, words."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ke_metric import extract_slim, plan_split
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Recipe
from ke_metric.training import compiling
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver

sys.path.append(str(Path(__file__).parent))

from test_one_generation import PROXIES, Recorder, Toy, assert_identical, contents, prepare, recipe_of

BACKENDS = ["eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """What compiles: torch's follower of Python alone, which is quick, or all of it."""
    monkeypatch.setattr(compiling, "BACKEND", request.param)
    yield request.param
    torch.compiler.reset()


def compiled_recipe(**fields):
    return recipe_of(compile=True, **fields)


def test_a_compiled_network_learns_what_the_plain_one_does(backend):
    """Dropout is drawn otherwise by what inductor writes."""
    plain, compiled = (
        prepare(recipe, network=quiet()) for recipe in (recipe_of(epochs=2), compiled_recipe(epochs=2))
    )
    called = []
    compiled.parallel.register_forward_hook(lambda *_: called.append(1))
    found, expected = (training.train(TrainingObserver()) for training in (compiled, plain))
    assert called
    assert compiled.parallel is not compiled.network
    if backend == "eager":
        assert_identical(contents(found), contents(expected))
    assert list(found.weights) == list(expected.weights) == list(plain.network.state_dict())
    for name, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=1e-3, atol=1e-4)


def quiet():
    torch.manual_seed(0)
    network = Toy()
    network.dropout.p = 0.0
    return network


def test_a_compiled_training_goes_on_bit_for_bit(backend):
    recipe, recorder = compiled_recipe(), Recorder()
    uninterrupted = prepare(recipe).train(recorder)
    training = prepare(recipe, seed=1)
    training.restore(recorder.states[1])
    assert_identical(contents(training.train(TrainingObserver())), contents(uninterrupted))


class Narrowable(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 8)

    def forward(self, images):
        return nn.functional.normalize(self.head(torch.relu(self.norm(self.convolution(images))).mean((2, 3))), dim=1)


def test_a_network_that_was_trained_compiled_is_cut_like_any_other(backend):
    torch.manual_seed(0)
    training = prepare(compiled_recipe(epochs=1, warmup_epochs=0), network=Narrowable())
    example = torch.randn(2, 3, 4, 4)
    plan = plan_split(training.network, example, rate=0.5)
    training.train(TrainingObserver())
    dense = copy.deepcopy(training.network).eval()
    slim = extract_slim(dense, plan)
    with torch.no_grad():
        for name, mask in plan.masks.items():
            dense.get_parameter(name).mul_(mask)
        torch.testing.assert_close(slim(example), dense(example))
    assert not any("_orig_mod" in name for name in [*slim.state_dict(), *training.network.state_dict()])


def test_a_network_that_cannot_be_followed_is_told_and_not_trained(backend):
    class Asking(Toy):
        def forward(self, images):
            return super().forward(images * (2 if float(images.sum()) > 0 else 1))

    with pytest.raises(KeMetricError, match=r"training\.compile = true: torch cannot compile the network") as raised:
        prepare(compiled_recipe(), network=Asking()).train(TrainingObserver())
    assert raised.value.exit_code == ExitCode.ENVIRONMENT


def test_later_generations_use_what_was_compiled_for_the_first(monkeypatch):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(compiling, "BACKEND", counting)
    torch.compiler.reset()
    counts = []
    for seed in range(3):
        prepare(compiled_recipe(epochs=1, warmup_epochs=0), seed=seed).train(TrainingObserver())
        counts.append(len(graphs))
    # What the compiler is tried with, and the network.
    assert counts == [2, 2, 2]
    torch.compiler.reset()


@pytest.mark.slow
def test_without_a_compiler_it_is_refused_before_the_first_step(monkeypatch, tmp_path):
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(KeMetricError, match=r"No working C\+\+ compiler.*such as g\+\+ on the CPU") as raised,
    ):
        prepare(compiled_recipe())
    assert raised.value.exit_code == ExitCode.ENVIRONMENT
    torch.compiler.reset()


def test_what_the_compiler_says_is_told_before_the_first_step(monkeypatch):
    def broken(graph, inputs):
        raise ValueError("no compiler found")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    with pytest.raises(KeMetricError, match="ValueError: no compiler found"):
        prepare(compiled_recipe())


def test_several_processes_are_refused():
    engine = Engine("fp32", "cpu")
    engine.processes = 2
    with pytest.raises(KeMetricError, match="trains in one process, there are 2") as raised:
        compiling.compiled(Toy(), engine)
    assert raised.value.exit_code == ExitCode.ENVIRONMENT


def test_joint_widths_are_refused():
    fields = {"split": {"rates": [0.5]}, "evaluation": {"slim_repair": "auto"}, "training": {"compile": True}}
    with pytest.raises(ValueError, match=r"training\.compile = True, does not go with split\.rates"):
        Recipe.model_validate({"name": "x", "loss": PROXIES.model_dump(), **fields})
