"""Parameters over one memory."""

import copy

import pytest
import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.hypotheses import redraw_reset
from ke_metric.split.planning import plan_split

EXAMPLES = torch.rand(2, 8)
WELS = {"kind": "wels", "seed": 0}


def network():
    return nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    )


def refused(network, **arguments):
    with pytest.raises(KeMetricError, match="are two parameters over one memory") as caught:
        plan_split(network, EXAMPLES, rate=0.5, **arguments)
    assert caught.value.exit_code == ExitCode.RECIPE
    return str(caught.value)


def test_masks_that_do_not_agree():
    """Layer 0 keeps all 8 inputs, layer 2 only those that layer 0 has kept."""
    shared = network()
    shared[2].weight = nn.Parameter(shared[0].weight.data)
    assert "0.weight and 2.weight are two parameters over one memory" in refused(shared)


def test_what_is_proposed_works(slim_is_dense_with_zeros):
    one, apart = network(), network()
    one[2].weight = one[0].weight
    apart[2].weight = nn.Parameter(apart[0].weight.data)
    apart[2].weight = nn.Parameter(apart[2].weight.detach().clone())
    slim_is_dense_with_zeros(one, EXAMPLES, rate=0.5)
    slim_is_dense_with_zeros(apart, EXAMPLES, rate=0.5)


def test_masks_that_agree(slim_is_dense_with_zeros):
    shared = network()
    shared[4].weight = nn.Parameter(shared[2].weight.data)
    plan, _ = slim_is_dense_with_zeros(shared, EXAMPLES, rate=0.5)
    before = shared[2].weight.detach().clone()
    redraw_reset(shared, plan, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shared[4].weight, shared[2].weight)
    assert torch.equal(shared[2].weight == before, plan.masks["2.weight"])


@pytest.mark.parametrize("arguments", [{}, WELS])
def test_views_that_overlap(arguments):
    """A transposed view, and rows that begin in the middle."""
    memory = torch.rand(12, 8)
    shared = network()
    shared[2].weight, shared[4].weight = nn.Parameter(memory[:8]), nn.Parameter(memory[4:])
    assert "2.weight and 4.weight" in refused(shared, **arguments)


def test_a_transposed_view():
    shared = network()
    shared[4].weight = nn.Parameter(shared[0].weight.data.t())
    refused(shared)


@pytest.mark.parametrize("arguments", [{}, WELS])
def test_one_memory_without_overlap(arguments):
    """As optimisers and communication lay parameters out."""
    memory = torch.rand(3 * 64)
    flat = network()
    for number, layer in enumerate((flat[0], flat[2], flat[4])):
        layer.weight = nn.Parameter(memory[64 * number :][:64].view(8, 8))
    assert plan_split(flat, EXAMPLES, rate=0.5, **arguments) == plan_split(network(), EXAMPLES, rate=0.5, **arguments)


def test_a_buffer_over_a_weight():
    shared = network()
    shared[2].register_buffer("average", shared[2].weight.detach())
    assert "2.weight and 2.average" in refused(shared)
    shared[2].average = copy.deepcopy(shared[2].average)
    assert plan_split(shared, EXAMPLES, rate=0.5).reset_count > 0


def test_single_weights_take_one_memory_for_one_weight():
    shared = network()
    shared[2].weight = nn.Parameter(shared[0].weight.data)
    plan = plan_split(shared, EXAMPLES, rate=0.5, **WELS)
    assert list(plan.weights) == ["0.weight", "4.weight", "6.weight"]
