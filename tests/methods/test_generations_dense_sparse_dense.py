"""Dense-Sparse-Dense: which weights become 0, that they stay 0, and what happens to them afterwards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ke_metric.errors import KeMetricError
from ke_metric.methods.generations import DenseAgain, DenseSparseDense, Sparse, smallest
from ke_metric.training.hooks import TrainingHooks, TrainingObserver

NAME = "dense_sparse_dense"


def weights_of(network):
    return {name: value for name, value in network.named_parameters() if value.ndim > 1}


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=12), st.floats(0.01, 0.99))
def test_the_share_is_exact_and_the_smallest(values, share):
    weight = torch.tensor(values, dtype=torch.float32)
    flags = smallest(weight, share)
    ranked = sorted(range(len(values)), key=lambda index: (abs(values[index]), index))
    assert flags.nonzero().flatten().tolist() == sorted(ranked[: round(share * len(values))])


@given(st.permutations(range(1, 11)), st.sampled_from([0.1, 0.3, 0.5]))
def test_it_is_the_papers_threshold(values, share):
    """Sorted magnitudes, and a threshold at the rank of the share: what is below it goes."""
    weight = torch.tensor(values, dtype=torch.float32)
    threshold = weight.abs().sort(descending=True).values[round((1 - share) * len(weight)) - 1]
    assert torch.equal(smallest(weight, share), weight.abs() < threshold)


@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize("number", [2, 4])
def test_a_sparse_generation_has_exact_zeros_in_every_layer(number, share, small, inheritance_of, parent):
    child = small(number)
    DenseSparseDense().inherit(child, inheritance_of(NAME, parent=parent, number=number, share=share))
    for name, value in child.state_dict().items():
        if name not in weights_of(child):
            assert torch.equal(value, parent[name]), name
            continue
        held = value == 0
        assert int(held.sum()) == round((share or 0.3) * value.numel())
        assert torch.equal(value[~held], parent[name][~held])
        assert parent[name][held].abs().max() <= parent[name][~held].abs().min()


def zeros_of(network, share=0.3):
    return {name: smallest(value, share) for name, value in weights_of(network).items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_zeros_stay_zeros(optimizer, clip, small, inheritance_of, training_of, parent):
    """Through momentum and weight decay, for several steps; all other weights train."""
    network, inheritance = small(2), inheritance_of(NAME, parent=parent)
    DenseSparseDense().inherit(network, inheritance)
    hooks = DenseSparseDense().hooks(network, inheritance)
    training = training_of(network, hooks, optimizer=optimizer, gradient_clip=clip)
    before = {name: value.detach().clone() for name, value in weights_of(network).items()}
    training.train(TrainingObserver())
    for name, value in weights_of(network).items():
        held = before[name] == 0
        assert int(held.sum()) == round(0.3 * value.numel())
        assert not value[held].any(), name
        assert (value[~held] != before[name][~held]).all(), name


def test_a_scaled_loss_and_a_step_that_is_skipped(small, inheritance_of, training_of, parent, scaling):
    """As in fp16: gradients come in scaled, and a step whose gradients are not finite is not taken."""
    network, inheritance = small(2), inheritance_of(NAME, parent=parent)
    DenseSparseDense().inherit(network, inheritance)
    training = training_of(network, DenseSparseDense().hooks(network, inheritance), gradient_clip=1.0, engine=scaling)
    held = {name: value == 0 for name, value in weights_of(network).items()}
    batches = list(training.epochs.epoch(1))
    before = network.head.weight.detach().clone()
    training.loss.register_forward_hook(lambda *facts: 100 * facts[2])
    training.take_step(0, batches[0])
    assert torch.equal(network.head.weight, before), "the scale was not too large"
    training.scaler.update(2.0**10)
    training.take_step(1, batches[1])
    assert not torch.equal(network.head.weight, before)
    assert all(not value[held[name]].any() for name, value in weights_of(network).items())


def test_held_weights_have_no_gradient(small):
    network = small(1).to(memory_format=torch.channels_last)
    hooks = Sparse(network, zeros_of(network))
    network(torch.ones(2, 3, 8, 8)).sum().backward()
    before = {name: value.grad.clone() for name, value in weights_of(network).items()}
    hooks.before_step()
    for name, flags in zeros_of(network).items():
        gradient = network.get_parameter(name).grad
        assert not gradient[flags].any()
        assert torch.equal(gradient[~flags], before[name][~flags])
    network.zero_grad(set_to_none=True)
    hooks.before_step()


def test_held_weights_go_back_to_zero_whatever_moved_them(small):
    network = small(1)
    zeros = zeros_of(network)
    hooks = Sparse(network, zeros)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(1)
    moved = {name: value.detach().clone() for name, value in network.named_parameters()}
    hooks.after_step()
    for name, value in network.named_parameters():
        flags = zeros.get(name, torch.zeros(value.shape, dtype=torch.bool))
        assert not value[flags].any()
        assert torch.equal(value[~flags], moved[name][~flags])


def test_the_mask_of_a_generation_is_fixed(small, inheritance_of, parent):
    """It is found from the parent, not from what the weights have become."""
    inheritance, network = inheritance_of(NAME, parent=parent), small(2)
    for seed in range(3):
        with torch.no_grad():
            for value in network.parameters():
                value.normal_(generator=torch.Generator().manual_seed(seed))
        DenseSparseDense().hooks(network, inheritance).after_step()
        for name, value in weights_of(network).items():
            assert torch.equal(value == 0, smallest(parent[name], 0.3))


def test_dense_again_starts_from_the_zeros_at_a_tenth_of_the_learning_rate(
    small, inheritance_of, training_of, parent
):
    sparse = {
        name: value.masked_fill(smallest(value, 0.3), 0) if value.ndim > 1 else value
        for name, value in parent.items()
    }
    network, inheritance = small(3), inheritance_of(NAME, parent=sparse, number=3)
    DenseSparseDense().inherit(network, inheritance)
    assert all(torch.equal(value, sparse[name]) for name, value in network.state_dict().items())
    hooks = DenseSparseDense().hooks(network, inheritance)
    assert type(hooks) is DenseAgain
    training = training_of(network, hooks)
    training.take_step(0, next(training.epochs.epoch(1)))
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.05)
    for name, value in weights_of(network).items():
        was_zero = sparse[name] == 0
        assert was_zero.any()
        assert value.grad[was_zero].abs().max() > 0
        assert value[was_zero].any(), name


def test_phases_take_turns(small, inheritance_of, parent):
    kinds = [type(DenseSparseDense().hooks(small(1), inheritance_of(NAME, number=1)))]
    kinds += [
        type(DenseSparseDense().hooks(small(number), inheritance_of(NAME, parent=parent, number=number)))
        for number in (2, 3, 4, 5)
    ]
    assert kinds == [TrainingHooks, Sparse, DenseAgain, Sparse, DenseAgain]
    assert [kind.learning_rate_factor for kind in kinds] == [1, 1, 0.1, 1, 0.1]


def test_a_network_that_no_rule_covers_shows_at_once(small, inheritance_of):
    DenseSparseDense().check(small(1), inheritance_of(NAME).method)
    odd = small(1)
    odd.table = nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(KeMetricError, match="no rule says whether table"):
        DenseSparseDense().check(odd, inheritance_of(NAME).method)
