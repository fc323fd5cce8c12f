"""What all methods share: whole state dicts, streams of their own, and a parent that can teach."""

import pytest
import torch

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import load_whole
from ke_metric.methods.method import Method
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


def test_every_generation_and_purpose_has_a_stream_of_its_own(birth_of):
    def drawn(birth, purpose="reset"):
        return torch.rand(4, generator=birth.generator(purpose)).tolist()

    birth = birth_of()
    assert drawn(birth) == drawn(birth_of())
    others = [drawn(birth_of(number=3)), drawn(birth_of(seed=1)), drawn(birth, "filters")]
    assert all(drawn(birth) != other for other in others)


def test_only_same_as_init_needs_a_fresh_network(birth_of, small):
    assert birth_of(reset="official").fresh() is None
    fresh = birth_of(reset="same_as_init", number=3).fresh()
    assert torch.equal(fresh.head.weight, small(3).head.weight)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_teacher_is_the_parent_frozen(channels_last, birth_of, small, parent):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = small(2).to(memory_format=layout)
    birth = birth_of(parent=parent, place=lambda placed: placed.to(memory_format=layout))
    teacher = birth.teacher()
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
    assert birth.teacher().head.weight.any()


def test_generation_1_has_no_teacher(birth_of):
    with pytest.raises(AssertionError, match="no parent"):
        birth_of(number=1).teacher()


def test_a_method_changes_nothing_of_itself(birth_of, small):
    method, network, birth = Method(), small(1), birth_of(number=1)
    assert method.architecture(network, birth.plan) is network
    assert method.check(network, birth.recipe) is None
    assert type(method.hooks(network, birth)) is TrainingHooks
    with pytest.raises(NotImplementedError):
        method.inherit(network, birth)
