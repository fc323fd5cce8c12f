"""Tensors of a stored network: ties, layouts and every layer kind survive being replaced."""

import hashlib

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ke_metric.arrays import tensors_of
from ke_metric.networks.bundle import (
    describe,
    read_weights,
    replace_tensors,
    require_same_tensors,
    to_bytes,
)
from ke_metric.networks.bundle_config import WeightsFile

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Tied(nn.Module):
    """Reads and writes the same words."""

    def __init__(self, tie=True):
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5, bias=False)
        if tie:
            self.out.weight = self.words.weight

    def forward(self, words):
        return self.out(self.words(words))


def travel(network, empty, folder):
    """Write the tensors of a network and put them into another one."""
    content = to_bytes(network)
    path = folder / "weights"
    path.write_bytes(content)
    facts = {name: describe(tensor) for name, tensor in tensors_of(network).items()}
    file = WeightsFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    replace_tensors(empty, read_weights(path, file, facts), facts)
    return empty


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    network, words = Tied(), torch.arange(5)
    assert list(safetensors.torch.load(to_bytes(network))) == ["words.weight"]
    with torch.device("meta"):
        empty = Tied()
    loaded = travel(network, empty, tmp_path)
    assert loaded.out.weight is loaded.words.weight
    assert loaded(words).equal(network(words))


@pytest.mark.parametrize(
    ("network", "dense", "words"),
    [
        (
            Tied(),
            Tied(tie=False),
            "out.weight is tied to words.weight in the network, a tensor of its own",
        ),
        (
            Tied(tie=False),
            Tied(),
            "out.weight is a tensor of its own in the network, tied to words.weight",
        ),
        (nn.Linear(2, 2), nn.Linear(2, 2, bias=False), "bias is a tensor of its own in the network, absent in its"),
        (nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2), "weight is absent in the network"),
    ],
)
def test_other_tensors_than_the_architecture_has(network, dense, words):
    with pytest.raises(ValueError, match=words):
        require_same_tensors(network, dense)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_compute_with_what_was_stored(kind, tmp_path):
    network, empty = kind(3, 4, num_layers=2, bidirectional=True), kind(3, 4, num_layers=2, bidirectional=True)
    steps = torch.randn(2, 5, 3)
    assert travel(network, empty.to("meta"), tmp_path)(steps)[0].equal(network(steps)[0])


@given(
    shape=st.lists(st.integers(1, 3), min_size=0, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]),
    channels_last=st.booleans(),
    frozen=st.booleans(),
)
def test_every_tensor_comes_back_in_the_same_form(shape, dtype, channels_last, frozen, tmp_path_factory):
    tensor = torch.randn(shape).to(dtype)
    if channels_last and len(shape) in FORMATS:
        tensor = torch.empty(shape, dtype=dtype, memory_format=FORMATS[len(shape)]).copy_(tensor)
    frozen = frozen or not (dtype.is_floating_point or dtype.is_complex)
    network, empty = nn.Module(), nn.Module()
    for module, values in ((network, tensor), (empty, tensor.new_zeros(1))):
        module.weight = nn.Parameter(values, requires_grad=not frozen)
        module.register_buffer("table", values.clone(), persistent=False)
    loaded = travel(network, empty, tmp_path_factory.mktemp("t"))
    for ours, theirs in ((network.weight, loaded.weight), (network.table, loaded.table)):
        assert describe(ours) == describe(theirs)
        assert ours.stride() == theirs.stride()
        assert type(ours) is type(theirs)
        assert ours.equal(theirs)
    assert "table" not in loaded.state_dict()


def test_views_with_gaps_become_contiguous(tmp_path):
    network, empty = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
    network.weight = nn.Parameter(torch.randn(6, 8)[::2, ::2].t())
    loaded = travel(network, empty, tmp_path)
    assert loaded.weight.equal(network.weight)
    assert loaded.weight.is_contiguous()


class Special(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.ones(2).as_subclass(Special),
    ],
    ids=["meta", "sparse", "subclass"],
)
def test_special_tensors_are_refused(tensor):
    network = nn.Module()
    network.register_buffer("table", tensor)
    with pytest.raises(ValueError, match="table is no ordinary tensor"):
        to_bytes(network)


def test_an_integer_parameter_that_is_not_frozen_is_refused(tmp_path):
    network = nn.Module()
    network.weight = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    content = to_bytes(network)
    (tmp_path / "w").write_bytes(content)
    facts = {"weight": describe(network.weight).model_copy(update={"frozen": False})}
    stored = read_weights(
        tmp_path / "w", WeightsFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest()), facts
    )
    with pytest.raises(ValueError, match="int64 that is not frozen"):
        replace_tensors(network, stored, facts)
