"""A network is the same one inside DistributedDataParallel and torch.compile, and is refused when sharded."""

import copy

import pytest
import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.admission import class_names, unwrapped
from ke_metric.split.hypotheses import redraw_reset
from ke_metric.split.plan import SplitPlan
from ke_metric.split.wels import plan_wels


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def plan(network):
    return SplitPlan("wels", 0.5, plan_wels(network, rate=0.5, keep_whole=(), seed=0))


@pytest.fixture
def process_group(tmp_path):
    """One process, of its own process group."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def compiled():
    """Compile without a compiler, and forget it afterwards."""
    yield lambda network: torch.compile(network, backend="eager")
    torch.compiler.reset()


def generator():
    return torch.Generator().manual_seed(5)


def demand_the_same(wrapped, network, plan):
    """Demand that a wrapped network is redrawn as it is without its wrapper, and computes with the new values."""
    twin, examples = copy.deepcopy(network), torch.rand(5, 4)
    before = wrapped(examples)
    redraw_reset(twin, plan, generator=generator())
    redraw_reset(wrapped, plan, generator=generator())
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in network.state_dict().items())
    assert not torch.allclose(wrapped(examples), before)
    torch.testing.assert_close(wrapped(examples), twin(examples))


def test_a_plain_network_is_itself(network):
    assert unwrapped(network) is network


def test_data_parallel(network, plan):
    wrapped = nn.DataParallel(network)
    assert unwrapped(wrapped) is network
    demand_the_same(wrapped, network, plan)


def test_compiled(network, plan, compiled):
    wrapped = compiled(network)
    assert unwrapped(wrapped) is network
    demand_the_same(wrapped, network, plan)


@pytest.mark.usefixtures("compiled")
def test_compiled_in_place(network, plan):
    network.compile(backend="eager")
    assert unwrapped(network) is network
    examples = torch.rand(5, 4)
    network(examples)
    redraw_reset(network, plan, generator=generator())
    torch.testing.assert_close(network(examples), nn.Sequential(*network)(examples))


@pytest.mark.usefixtures("process_group")
def test_distributed_in_any_nesting(network, plan, compiled):
    distributed = nn.parallel.DistributedDataParallel(network)
    for wrapped in (distributed, compiled(distributed), nn.parallel.DistributedDataParallel(compiled(network))):
        assert unwrapped(wrapped) is network
    demand_the_same(distributed, network, plan)


def test_values_of_a_fresh_network_that_is_wrapped(network, plan):
    fresh = nn.DataParallel(copy.deepcopy(network))
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        fresh.module[0].weight.fill_(9)
    redraw_reset(network, plan, init="same_as_init", fresh=fresh)
    mask = plan.masks["0.weight"]
    assert bool((network[0].weight[~mask] == 9).all())
    assert torch.equal(network[0].weight[mask], before["0.weight"][mask])
    with pytest.raises(KeMetricError, match="the network itself"):
        redraw_reset(network, plan, init="same_as_init", fresh=nn.DataParallel(network))


def refuse(network, words):
    with pytest.raises(KeMetricError, match=words) as caught:
        unwrapped(network)
    assert "Split, redraw and extract before it is sharded" in str(caught.value)
    assert caught.value.exit_code == ExitCode.RECIPE


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:FSDP")
def test_fully_sharded(network):
    from torch.distributed.fsdp import FullyShardedDataParallel

    sharded = FullyShardedDataParallel(network, device_id=torch.device("cpu"))
    refuse(sharded, "this FullyShardedDataParallel is sharded by FSDP")
    refuse(nn.Sequential(nn.Linear(4, 4), sharded), "module '1' is sharded by FSDP")


@pytest.mark.usefixtures("process_group")
def test_sharded_in_place(network):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(network, mesh=init_device_mesh("cpu", (1,)))
    refuse(network, "this FSDPSequential is sharded by FSDP")


@pytest.mark.usefixtures("process_group")
def test_a_distributed_tensor(network):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    weight = distribute_tensor(network[2].weight.detach(), init_device_mesh("cpu", (1,)), [Shard(0)])
    network[2].weight = nn.Parameter(weight)
    refuse(network, r"2\.weight of this Sequential is sharded as a DTensor")


def test_class_names_are_those_of_the_bases():
    class Narrow(nn.Conv2d):
        pass

    names = class_names(Narrow(1, 1, 1))
    assert names[0][1] == "Narrow"
    assert names[1:3] == [("torch", "Conv2d"), ("torch", "_ConvNd")]
