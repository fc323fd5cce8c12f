"""Filters: which overlap, where new ones point, and what has to do with their output alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import DenseNet

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.methods.repr import (
    elsewhere,
    filters_of,
    most_redundant,
    most_redundant_count,
    reach_of,
    redundancy,
)
from ke_metric.networks.dense import CosineHead
from ke_metric.split.following import follow_channels

CLOSE = 1e-5


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    """Return a stream that none of the tensors above was drawn from."""
    return torch.Generator().manual_seed(2**31 + seed)


def redundancy_by_loops(weight):
    """O_f = (1 / J) sum_j |w_f . w_j - [f = j]|, filter by filter, in double precision."""
    rows = [row.flatten().double() / row.flatten().double().norm() for row in weight]
    return [sum(abs(float(a @ b) - (a is b)) for b in rows) / len(rows) for a in rows]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_redundancy_is_its_formula(filters, channels, seed):
    weight = drawn(filters, channels, 3, 3, seed=seed)
    assert redundancy(weight).tolist() == pytest.approx(redundancy_by_loops(weight), abs=1e-5)


def test_orthonormal_filters_are_not_redundant():
    rows = torch.linalg.qr(drawn(18, 6))[0].T
    assert redundancy(5 * rows.view(6, 2, 3, 3)).abs().max() < CLOSE


def test_a_duplicated_pair_is_the_most_redundant():
    weight = drawn(8, 6, 3, 3)
    weight[5] = -2 * weight[2]
    assert set(redundancy(weight).topk(2).indices.tolist()) == {2, 5}


def most_redundant_of_the_reimplementation(weights, share):
    """The public re-implementation's rule: a filter goes if its redundancy is above a percentile of all of them."""
    scores = {name: np.array(redundancy_by_loops(weight)) for name, weight in weights.items()}
    threshold = np.percentile(np.concatenate(list(scores.values())), 100 * (1 - share), method="lower")
    return {name: values > threshold for name, values in scores.items() if (values > threshold).any()}


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_all_layers_are_ranked_together(share):
    weights = {"a": drawn(10, 2, 3, 3), "b": drawn(20, 30, 1, 1, seed=1), "c": drawn(11, 1, 3, 3, seed=2)}
    chosen, expected = most_redundant(weights, share), most_redundant_of_the_reimplementation(weights, share)
    # Filters of 9 entries overlap more than filters of 30 do.
    assert chosen["c"].sum() > 0.2 * share * 41
    assert {name: flags.tolist() for name, flags in chosen.items()} == {
        name: flags.tolist() for name, flags in expected.items()
    }


@pytest.mark.parametrize(
    ("filters", "share", "count"), [(100, 0.29, 29), (10, 0.3, 3), (10, 0.35, 3), (50, 0.01, 0), (7, 0.999, 6)]
)
def test_a_share_of_whole_filters_is_not_rounded_away(filters, share, count):
    assert most_redundant_count(filters, share) == count


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 99))
@settings(deadline=None, max_examples=50)
def test_the_share_is_exact(filters, percent):
    weights = {f"w{number}": drawn(count, 3, seed=number) for number, count in enumerate(filters)}
    chosen = most_redundant(weights, percent / 100)
    assert sum(int(flags.sum()) for flags in chosen.values()) == percent * sum(filters) // 100
    assert all(flags.any() and flags.shape == weights[name].shape[:1] for name, flags in chosen.items())


@given(st.integers(1, 6), st.integers(0, 12), st.integers(0, 6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_with_room_new_filters_are_orthogonal_to_everything(count, staying, spare, seed):
    size = staying + 2 * count + spare
    old, kept = drawn(count, size, seed=seed), drawn(staying, size, seed=seed + 1)
    new = elsewhere(old, kept, generator(seed))
    assert new.dtype == torch.float32
    unit = {"old": nn.functional.normalize(old, dim=1), "kept": nn.functional.normalize(kept, dim=1)}
    assert (new @ unit["old"].T).abs().max() < CLOSE
    assert not staying or (new @ unit["kept"].T).abs().max() < CLOSE
    assert (new @ new.T - torch.eye(count)).abs().max() < CLOSE
    assert redundancy(torch.cat([new, torch.linalg.qr(kept.T)[0].T]))[:count].max() < CLOSE


@given(st.integers(2, 6), st.integers(1, 8), st.data())
@settings(deadline=None, max_examples=40)
def test_with_less_room_each_filter_takes_what_there_is(count, staying, data):
    size = data.draw(st.integers(staying + 2, staying + 2 * count - 1))
    old, kept = drawn(count, size), drawn(staying, size, seed=1)
    new = elsewhere(old, kept, generator())
    assert (new @ nn.functional.normalize(kept, dim=1).T).abs().max() < CLOSE
    assert (new * nn.functional.normalize(old, dim=1)).sum(dim=1).abs().max() < CLOSE
    torch.testing.assert_close(new.norm(dim=1), torch.ones(count))


def test_with_one_direction_left_it_is_taken():
    old, kept = drawn(2, 4), drawn(3, 4, seed=1)
    new = elsewhere(old, kept, generator())
    assert (new @ nn.functional.normalize(kept, dim=1).T).abs().max() < CLOSE
    torch.testing.assert_close(new.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("size", [2, 9])
def test_without_room_only_the_own_direction_is_left(size):
    """More filters than entries, as in a depthwise convolution."""
    old, kept = drawn(4, size), drawn(20, size, seed=1)
    new = elsewhere(old, kept, generator())
    assert (new * nn.functional.normalize(old, dim=1)).sum(dim=1).abs().max() < CLOSE
    torch.testing.assert_close(new.norm(dim=1), torch.ones(4))


def test_a_filter_of_one_entry_is_no_zero():
    assert elsewhere(drawn(3, 1), drawn(4, 1, seed=1), generator()).abs().tolist() == [[1.0]] * 3


@pytest.mark.parametrize("size", [30, 9])
def test_a_filter_that_was_a_copy_of_one_that_stays(size):
    """Its own direction is taken already: what rounding leaves of it must not count."""
    kept = drawn(4, size)
    new = elsewhere(kept[:3] * 2, kept, generator())
    assert (new @ nn.functional.normalize(kept, dim=1).T).abs().max() < CLOSE
    torch.testing.assert_close(new.norm(dim=1), torch.ones(3))


def test_a_layer_that_goes_as_a_whole():
    new = elsewhere(drawn(3, 9), torch.empty(0, 9), generator())
    assert (new @ new.T - torch.eye(3)).abs().max() < CLOSE


def test_new_directions_come_from_the_generator():
    old, kept = drawn(2, 20), drawn(3, 20, seed=1)
    one, again, other = (elsewhere(old, kept, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert (one != other).all()


def test_the_first_convolution_is_left_out(small):
    names = ["layer1.conv1", "layer1.conv2", "layer1.shortcut", "layer2.0", "layer2.3"]
    assert list(filters_of(small(1))) == [f"{name}.weight" for name in names]


def test_classes_are_no_filters():
    """The weights of a cosine head, which is a kind of convolution; neither are the rows of a transposed one."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 5, 1), nn.Conv2d(5, 6, 1), CosineHead(6, 3))
    assert list(filters_of(network)) == ["2.weight"]


@pytest.mark.parametrize("network", [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(2, 2))])
def test_networks_without_such_filters(network):
    with pytest.raises(KeMetricError, match=r"method\.name = 'repr'.*the network has none") as raised:
        filters_of(network)
    assert raised.value.exit_code == ExitCode.RECIPE


def flags(count, *places):
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[list(places)] = True
    return chosen


def test_the_reach_of_a_filter_in_a_chain(small, channels):
    """Its norm, and the entries that read its channel; only of filters whose channel meets no other."""
    chosen = {"layer1.conv1.weight": flags(8, 2, 5), "layer2.0.weight": flags(8, 7)}
    reach = reach_of(chosen, small(1), channels)
    expected = {"layer1.bn1": flags(8, 2, 5), "layer2.1": flags(8, 7)}
    tensors = ("weight", "bias", "running_mean", "running_var")
    assert {name: each.tolist() for name, each in reach.norms.items()} == {
        f"{norm}.{tensor}": each.tolist() for norm, each in expected.items() for tensor in tensors
    }
    assert set(reach.readers) == {"layer1.conv2.weight", "layer2.3.weight"}
    for name, places in {"layer1.conv2.weight": (2, 5), "layer2.3.weight": (7,)}.items():
        weight = small(1).get_parameter(name)
        read = torch.zeros(weight.shape, dtype=torch.bool)
        read[:, list(places)] = True
        assert torch.equal(reach.readers[name], read)


@pytest.mark.parametrize("name", ["layer1.conv2.weight", "layer1.shortcut.weight"])
def test_a_sum_is_not_the_filters_own(name, small, channels):
    reach = reach_of({name: flags(8, 0, 1, 2)}, small(1), channels)
    assert not reach.norms
    assert not reach.readers


def test_the_reach_goes_through_concatenations():
    """In a DenseNet every later layer of a block normalises and reads a filter's channel, at a place of its own."""
    network = DenseNet(growth_rate=4, num_init_features=6, block_config=(2, 1, 1, 1))
    graph = follow_channels(network, torch.zeros(1, 3, 32, 32))
    reach = reach_of({"features.denseblock1.denselayer1.conv2.weight": flags(4, 3)}, network, graph)
    norms = {name.removesuffix(".weight"): each for name, each in reach.norms.items() if name.endswith(".weight")}
    assert {name: each.nonzero().flatten().tolist() for name, each in norms.items()} == {
        "features.denseblock1.denselayer2.norm1": [6 + 3],
        "features.transition1.norm": [6 + 3],
    }
    readers = {name: each.any(dim=0).flatten().nonzero().tolist() for name, each in reach.readers.items()}
    assert readers == {
        "features.denseblock1.denselayer2.conv1.weight": [[9]], "features.transition1.conv.weight": [[9]],
    }  # fmt: skip


def test_the_reach_goes_through_a_flattening():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 6))
    graph = follow_channels(network, torch.zeros(1, 3, 8, 8))
    read = reach_of({"1.weight": flags(5, 1)}, network, graph).readers["4.weight"]
    assert read.shape == (6, 80)
    assert read[0].nonzero().flatten().tolist() == list(range(16, 32))
    assert torch.equal(read, read[:1].expand_as(read))


def test_the_reach_goes_into_a_transposed_convolution():
    """Whose first axis is that of its inputs."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.ConvTranspose2d(5, 2, 3))
    graph = follow_channels(network, torch.zeros(1, 3, 8, 8))
    read = reach_of({"1.weight": flags(5, 3)}, network, graph).readers["2.weight"]
    assert read.flatten(1).any(dim=1).tolist() == read.flatten(1).all(dim=1).tolist() == flags(5, 3).tolist()


def test_reading_the_reach_is_what_the_network_does(small, channels):
    """A filter changed at will changes nothing once its norm channel is off or the entries that read it are 0."""
    network, images = small(1).eval(), drawn(2, 3, 8, 8)
    chosen = {"layer1.conv1.weight": flags(8, 3), "layer2.0.weight": flags(8, 1, 4)}
    reach = reach_of(chosen, network, channels)
    with torch.no_grad():
        for name, read in reach.readers.items():
            network.get_parameter(name)[read] = 0
        before = network(images)
        for name, each in chosen.items():
            network.get_parameter(name)[each] += 10
        assert torch.equal(network(images), before)
