"""What all methods share: whole state dicts, streams of their own, and a parent that can teach."""

import pytest
import torch

from ke_metric.arrays import load_whole
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.methods.method import LineageMethod, frozen_parent
from ke_metric.recipe.schema import Training
from ke_metric.training.hooks import TrainingHooks


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda weights: weights.pop("bn1.running_mean"), "bn1.running_mean"),
        (lambda weights: weights.update({"tail.weight": torch.zeros(2)}), "tail.weight"),
        (lambda weights: weights.update({"head.weight": torch.zeros(10, 4)}), "head.weight"),
    ],
    ids=["missing", "left over", "wrong shape"],
)
def test_weights_that_do_not_fit(change, word, small, parent):
    change(parent)
    with pytest.raises(KeMetricError, match="the parent's weights do not fit the recipe's network") as raised:
        load_whole(small(2), parent, "the parent's weights")
    assert word in str(raised.value)
    assert raised.value.exit_code == ExitCode.LINEAGE


def test_loading_whole_copies(small, parent):
    network = small(2)
    load_whole(network, parent, "the stored weights")
    assert all(torch.equal(value, parent[name]) for name, value in network.state_dict().items())
    parent["head.weight"].zero_()
    assert network.head.weight.any()


def test_every_generation_and_purpose_has_a_stream_of_its_own(inheritance_of):
    def drawn(inheritance, purpose="reset"):
        return torch.rand(4, generator=inheritance.generator(purpose)).tolist()

    inheritance = inheritance_of()
    assert drawn(inheritance) == drawn(inheritance_of())
    others = [drawn(inheritance_of(number=3)), drawn(inheritance_of(seed=1)), drawn(inheritance, "filters")]
    assert all(drawn(inheritance) != other for other in others)


def test_only_same_as_init_needs_a_fresh_network(inheritance_of, small):
    assert inheritance_of(reset="official").fresh() is None
    fresh = inheritance_of(reset="same_as_init", number=3).fresh()
    assert torch.equal(fresh.head.weight, small(3).head.weight)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_teacher_is_the_parent_frozen(channels_last, inheritance_of, small, parent):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = small(2).to(memory_format=layout)
    inheritance = inheritance_of(parent=parent, training=Training(channels_last=channels_last))
    teacher = frozen_parent(inheritance)
    assert all(torch.equal(value, parent[name]) for name, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    strides = [{name: value.stride() for name, value in each.state_dict().items()} for each in (network, teacher)]
    assert strides[0] == strides[1]
    # It shares no memory.
    with torch.no_grad():
        for value in teacher.state_dict().values():
            value.zero_()
    assert parent["head.weight"].any()
    assert frozen_parent(inheritance).head.weight.any()


def test_generation_1_has_no_teacher(inheritance_of):
    with pytest.raises(AssertionError, match="no parent"):
        frozen_parent(inheritance_of(number=1))


def test_a_method_changes_nothing_of_itself(inheritance_of, small):
    method, network, inheritance = LineageMethod(), small(1), inheritance_of(number=1)
    assert not method.needs_gradients
    assert method.check(network, inheritance.method) is None
    assert type(method.hooks(network, inheritance)) is TrainingHooks
    with pytest.raises(NotImplementedError):
        method.inherit(network, inheritance)
