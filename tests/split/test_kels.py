import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.graph import ChannelGraph, Layer
from ke_metric.split.kels import fit_labels, prefix


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
    """The slow, obvious twin: gather families of tied channels, then decide family by family."""
    family = {(i, c): {(i, c)} for i, width in enumerate(widths) for c in range(width)} | {None: {None}}
    for first, second in ties:
        union = family[first] | family[second]
        for node in union:
            family[node] = union
    return {
        node: None in members or all(c < prefix(rate, widths[i]) for i, c in members)
        for node, members in family.items()
    }


@given(tied_layers(), st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_tied_channels_are_decided_family_by_family(network, rate):
    widths, ties = network
    expected = families_fit(widths, ties, rate)
    graph, outputs = graph_of(widths, ties)
    if any(not any(expected[i, c] for c in range(width)) for i, width in enumerate(widths)):
        with pytest.raises(KeMetricError, match="would keep none"):
            fit_labels(graph, rate)
        return
    fit = fit_labels(graph, rate)
    for i, labels in enumerate(outputs):
        assert fit[labels].tolist() == [expected[i, c] for c in range(widths[i])]


def test_a_layer_that_would_lose_every_channel_is_an_error():
    graph, _ = graph_of([4, 4], [((0, 0), (1, 2)), ((0, 1), (1, 3))])
    with pytest.raises(KeMetricError, match=r"layer0\.weight would keep none of its 4 output channels") as caught:
        fit_labels(graph, 0.5)
    assert caught.value.exit_code == ExitCode.RECIPE
    assert "keep_whole=['layer0']" in str(caught.value)
    assert bool(fit_labels(graph, 0.5, {"layer0.weight"})[1:5].all())


def test_one_error_names_every_place_and_every_layer():
    graph, outputs = graph_of([4, 4, 4], [])
    for labels in outputs[:2]:
        graph.demand(labels.view(1, -1), "softmax mixes channels")
    with pytest.raises(KeMetricError, match="only 2 of these 4 channels are fit") as caught:
        fit_labels(graph, 0.5)
    assert "and 1 more such places" in str(caught.value)
    assert "keep_whole=['layer0', 'layer1']" in str(caught.value)
