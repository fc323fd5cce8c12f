import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.split.graph import ChannelGraph, Layer
from ke_metric.split.kels import CutError, fit_labels, prefix


@given(st.integers(1, 100), st.integers(1, 4096))
def test_prefix_is_the_ceiling_of_the_exact_product(percent, channels):
    assert prefix(percent / 100, channels) == math.ceil(Fraction(percent, 100) * channels)


def test_float_noise_does_not_add_a_channel():
    assert 0.55 * 100 > 55
    assert prefix(0.55, 100) == 55


def graph_of(widths, ties):
    """Layers of the given widths, and ties between (layer, channel) pairs; layer None is what is always there."""
    graph = ChannelGraph()
    outputs = []
    for number, width in enumerate(widths):
        labels = graph.new_outputs(f"layer{number}.weight", width)
        outputs.append(labels)
        graph.add_layer(f"layer{number}.weight", Layer((width, 1), labels, torch.zeros(1, dtype=torch.long)))
    for pair in ties:
        graph.tie(*(torch.tensor(0) if node is None else outputs[node[0]][node[1]] for node in pair))
    return graph, outputs


@st.composite
def tied_layers(draw):
    widths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    node = st.integers(0, len(widths) - 1).flatmap(lambda i: st.tuples(st.just(i), st.integers(0, widths[i] - 1)))
    return widths, draw(st.lists(st.tuples(st.one_of(st.none(), node), node), max_size=20))


def families_fit(widths, ties, rate):
    """The slow, obvious twin: gather families of tied channels, then decide section by section."""
    nodes = [(i, c) for i, width in enumerate(widths) for c in range(width)]
    family = {node: {node} for node in [*nodes, None]}
    for first, second in ties:
        union = family[first] | family[second]
        for node in union:
            family[node] = union
    fit = dict.fromkeys(nodes, True)
    sections = {}
    for node in nodes:
        members = family[node]
        if None not in members and node == min(members):
            sections.setdefault(frozenset(i for i, _ in members), []).append(members)
    for layers, several in sections.items():
        sizes = [sum(i == min(layers) for i, _ in members) for members in several]
        for number, members in enumerate(several):
            fit |= dict.fromkeys(members, sum(sizes[:number]) < prefix(rate, sum(sizes)))
    return fit


@given(tied_layers(), st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_tied_channels_are_decided_family_by_family(network, rate):
    widths, ties = network
    expected = families_fit(widths, ties, rate)
    graph, outputs = graph_of(widths, ties)
    fit = fit_labels(graph, rate)
    for i, labels in enumerate(outputs):
        assert fit[labels].tolist() == [expected[i, c] for c in range(widths[i])]


def test_kept_whole_keeps_what_is_tied_to_it():
    graph, _ = graph_of([4, 4], [((0, 0), (1, 2)), ((0, 1), (1, 3))])
    assert fit_labels(graph, 0.5)[1:].tolist() == [True, False, True, False, True, False, True, False]
    assert fit_labels(graph, 0.5, {"layer0.weight"})[1:].tolist() == [True] * 4 + [True, False, True, True]


@given(st.integers(1, 64), st.integers(1, 16))
def test_kept_channels_are_rounded_up_to_a_multiple(channels, multiple):
    count = prefix(0.5, channels, multiple)
    assert count == channels or (count % multiple == 0 and count - multiple < math.ceil(channels / 2) <= count)


def test_one_error_names_every_place_and_every_layer():
    graph, outputs = graph_of([4, 4, 4], [])
    for labels in outputs[:2]:
        graph.demand(labels, "softmax mixes channels")
    with pytest.raises(CutError, match="only 2 of these 4 channels are fit") as caught:
        fit_labels(graph, 0.5)
    assert "and 1 more such places" in str(caught.value)
    assert caught.value.weights == ["layer0.weight", "layer1.weight"]
