"""The engine of a single process on the CPU; several processes are in test_processes.py."""

import pytest
import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.training.engine import Engine, _numbered


@pytest.fixture
def capable(monkeypatch):
    """Make the processor one that has exactly these instructions."""

    def pretend(**capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    return pretend


@pytest.mark.parametrize("device", ["cuda:99", "zork", "cuda:-5"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(KeMetricError, match=f"device '{device}' cannot be used.*found: cpu") as raised:
        Engine("fp32", device)
    assert raised.value.exit_code == ExitCode.ENVIRONMENT


@pytest.mark.parametrize(
    ("wanted", "own", "processes", "expected"),
    [
        # Accelerate's device of a single process, and what a user writes, have no number; CUDA refuses such a one.
        (None, "cuda", 1, "cuda:3"),
        ("cuda", "cuda", 1, "cuda:3"),
        ("cuda:1", "cuda", 1, "cuda:1"),
        ("cuda", "cuda:2", 4, "cuda:2"),
        (None, "cuda:2", 4, "cuda:2"),
        ("cpu", "cuda", 1, "cpu"),
        (None, "cpu:0", 2, "cpu:0"),
    ],
)
def test_a_gpu_has_a_number(wanted, own, processes, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    found = _numbered(None if wanted is None else torch.device(wanted), torch.device(own), processes)
    assert found == torch.device(expected)


def test_several_processes_cannot_share_a_gpu():
    with pytest.raises(KeMetricError, match=r"device 'cuda:1': 2 processes cannot share one GPU.*'cuda'") as raised:
        _numbered(torch.device("cuda:1"), torch.device("cuda:0"), 2)
    assert raised.value.exit_code == ExitCode.ENVIRONMENT


def test_processes_that_do_not_come_are_told_in_words(monkeypatch):
    def alone(**options):
        raise torch.distributed.DistStoreError("Timed out after 601 seconds waiting for clients. 1/2 clients joined.")

    monkeypatch.setattr("ke_metric.training.engine.PartialState", alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        KeMetricError, match=r"the other processes did not come within 10 minutes.*WORLD_SIZE=2"
    ) as raised:
        Engine("fp32", "cpu")
    assert raised.value.exit_code == ExitCode.ENVIRONMENT


def test_fp16_needs_a_gpu():
    with pytest.raises(KeMetricError, match=r"training\.precision = 'fp16' needs a GPU.*bf16.*fp32") as raised:
        Engine("fp16", "cpu")
    assert raised.value.exit_code == ExitCode.ENVIRONMENT


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({}, "fp32"),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
    ],
)
def test_auto_is_bf16_only_where_the_processor_computes_in_it(capabilities, precision, capable):
    capable(**capabilities)
    assert Engine("auto", "cpu").precision == precision


def test_auto_is_fp32_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert Engine("auto", "cpu").precision == "fp32"


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_is_the_precision(precision, dtype):
    layer = nn.Linear(3, 2)
    with Engine(precision, "cpu").autocast():
        assert layer(torch.ones(1, 3)).dtype == dtype


def test_fp32_holds_inside_another_autocast():
    with torch.autocast("cpu", torch.bfloat16), Engine("fp32", "cpu").autocast():
        assert nn.Linear(3, 2)(torch.ones(1, 3)).dtype == torch.float32


@pytest.mark.parametrize("channels_last", [False, True])
def test_placed_weights_have_the_layout_asked_for_and_their_values(channels_last):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    parameters = list(network.parameters())
    placed = Engine("fp32", "cpu").place(network, channels_last=channels_last)
    assert placed is network
    assert [id(parameter) for parameter in network.parameters()] == [id(parameter) for parameter in parameters]
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_one_process_needs_nobody():
    engine = Engine("fp32", "cpu")
    network, embeddings, labels = nn.Linear(2, 2), torch.ones(3, 2), torch.zeros(3)
    network(embeddings).sum().backward()
    before = network.weight.grad.clone()
    engine.average_gradients(network)
    engine.share_buffers(network)
    engine.wait()
    assert (engine.rank, engine.processes, engine.is_main) == (0, 1, True)
    assert engine.parallel(network) is network
    assert torch.equal(network.weight.grad, before)
    assert engine.gather(embeddings, labels) == (embeddings, labels)
    assert engine.gather_records([1, 2]) == [1, 2]
    assert [engine.any(True), engine.any(False)] == [True, False]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_fp16_scales_the_loss(precision):
    assert not Engine(precision, "cpu").new_scaler().is_enabled()


def test_what_a_provenance_record_says():
    described = Engine("fp32", "cpu").describe()
    assert described.pop("threads") == torch.get_num_threads()
    assert described == {"device": "cpu", "device_name": "cpu", "precision": "fp32", "processes": 1}
