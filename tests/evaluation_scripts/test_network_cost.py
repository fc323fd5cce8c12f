"""FLOPs agree with a count by hand, memory with what is known to be allocated; the tables say what was measured."""

import gc
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from eval.network_cost import run as network_cost
from eval.network_cost.run import (
    Cost,
    SplitCost,
    Times,
    compare_times,
    dense_and_slim,
    report,
)
from eval.shared import memory
from eval.shared.memory import limit_memory, peak_of_process, peak_of_tensors
from eval.shared.networks import count_flops
from ke_metric import plan_split, redraw_reset

SCRIPT = ["-m", "eval.network_cost.run"]
ROOT = Path(network_cost.__file__).parents[2]


class Token(nn.Module):
    """Gives a parameter to a module."""

    def __init__(self):
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.randn(1, 3)), nn.Linear(3, 2, bias=False)

    def forward(self, images):
        return self.layer(self.token).expand(len(images), 2)


def test_flops_where_a_parameter_is_given_to_a_module():
    network = Token()
    assert network_cost.count_flops(network, torch.zeros(1, 3, 4, 4)) == 2 * 3 * 2
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_flops_of_a_convolution():
    convolution = nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, groups=2).eval()
    # 2 operations x batch x outputs x inputs of a group x taps x places.
    assert count_flops(convolution, torch.zeros(3, 4, 11, 13)) == 2 * 3 * 6 * 2 * (3 * 5) * (6 * 6)


@pytest.mark.parametrize("hidden", [0, 16])
def test_flops_of_attention(hidden):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.encoder = nn.TransformerEncoderLayer(8, 2, hidden or 1, batch_first=True)

        def forward(self, tokens):
            return self.encoder(tokens) if hidden else self.attention(tokens, tokens, tokens)

    # Queries, keys, values and outputs, twice all pairs of tokens, and the hidden layer of the encoder.
    by_hand = 2 * (5 * 4 * 8 * 8 + 2 * 5 * 5 * 8 + 5 * 2 * 8 * hidden)
    assert count_flops(Attention().eval(), torch.zeros(1, 5, 8)) == by_hand


def test_slim_is_a_part_of_dense():
    dense, slim = dense_and_slim("timm/test_resnet", 0.5, 32)
    images = torch.zeros(1, 3, 32, 32)
    assert 0.2 < count_flops(slim, images) / count_flops(dense, images) < 0.6
    assert not dense.training
    assert not slim.training


def test_a_network_of_one_size_is_built_for_another():
    dense, _ = dense_and_slim("timm/test_vit", 0.5, 64)
    with torch.no_grad():
        assert dense(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_both_are_timed_in_every_round():
    dense, slim = nn.Conv2d(3, 64, 3), nn.Conv2d(3, 1, 3)
    times = compare_times(dense, slim, lambda: torch.zeros(2, 3, 64, 64), rounds=3)
    assert len(times.dense) == len(times.slim) == 3
    assert min(times.dense + times.slim) > 0


def test_they_take_turns_in_being_first(monkeypatch):
    asked = []
    monkeypatch.setattr(network_cost, "_seconds", lambda network, *_: asked.append(network) or 1.0)
    compare_times("dense", "slim", lambda: None, rounds=2)
    assert asked[-4:] == ["slim", "dense", "dense", "slim"]


def test_what_does_not_fit_is_no_time(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 50_000_000)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    network = nn.Conv2d(3, 64, 3)
    assert compare_times(network, network, lambda: torch.ones(64, 3, 256, 256), rounds=1) is None
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_another_error_is_an_error():
    with pytest.raises(RuntimeError, match="channels"):
        compare_times(nn.Conv2d(3, 1, 1), nn.Conv2d(4, 1, 1), lambda: torch.ones(1, 3, 8, 8), rounds=1)


def test_a_limit_holds_for_allocations():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        limit_memory(20_000_000)
        with pytest.raises(RuntimeError, match="memory"):
            torch.ones(100_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def two_tensors():
    """Hold 4 MB, then 8 MB at a time, and return 4."""
    first = torch.ones(1_000_000)
    del first
    second = torch.ones(1_000_000)
    third = second + 1
    del second
    return third


def test_peak_of_tensors(monkeypatch):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    assert peak_of_tensors(two_tensors) == pytest.approx(8_000_000, abs=1000)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
def test_peak_of_process():
    grown = peak_of_process(lambda: torch.ones(20_000_000))
    assert grown == pytest.approx(80_000_000, rel=0.1)
    gc.collect()
    assert peak_of_process(lambda: None) < 8_000_000


def test_tables():
    times = {("cpu", 8): Times([0.4, 0.5, 0.6], [0.1, 0.1, 0.1]), ("cuda", 256): None}
    split = SplitCost(0.5, 0.25, 0.125, tensors=0.59, process=None)
    text = "\n".join(
        report([Cost("resnet18", (11_000_000, 3_000_000), (8_000_000_000, 2_000_000_000), times, split)])
    )
    assert "| resnet18 | 11.00 | 3.00 | 8.000 | 2.000 | 4.000 | 1.000 | 4.00 |" in text
    # 5 times as fast of 4 times fewer operations: 125 % of the saving.
    assert "| resnet18 | cpu | 8 | 500 (450–550) | 100 (100–100) | 16.0 | 80.0 | 5 (4.5–5.5) | 125 % |" in text
    assert "| resnet18 | cuda | 256 | does not fit in memory |" in text
    assert "| resnet18 | 0.500 | 0.250 | 0.125 | 0.59 | not known |" in text
    for table in text.split("\n\n"):
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) <= 1


def started(*arguments):
    return subprocess.run(
        [sys.executable, *SCRIPT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_command(tmp_path):
    options = ["--size", "32", "--batch", "1", "2", "--rounds", "2", "--device", "cpu", "--channels-last"]
    done = started("timm/test_resnet", *options, "--markdown", tmp_path / "cost.md")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (tmp_path / "cost.md").read_text()
    assert re.search(r"\| timm/test_resnet \| cpu \| 2 \| [\d.]+ \(", done.stdout)
    assert "commit" in done.stdout
    assert "USDT" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"), [(["resnt18"], "did you mean 'resnet18'"), (["resnet18", "--rounds", "1"], "at least 2")]
)
def test_wrong_arguments(arguments, said):
    done = started(*arguments)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_training_with_a_plan_allocates_what_training_without_allocates():
    network = torchvision.models.resnet18(num_classes=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    peak_of_tensors(step)  # the profiler does not hear of what is freed but was made before it ran
    without = peak_of_tensors(step)
    plan = plan_split(network, images[:1], rate=0.5)
    redraw_reset(network, plan, generator=torch.Generator().manual_seed(0))
    assert without > 0
    assert peak_of_tensors(step) == without
    # Masks that were held meanwhile would show.
    assert peak_of_tensors(lambda: (dict(plan.masks), step())) > without
