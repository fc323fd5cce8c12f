"""WELS on torch_geometric's own classes: which of their parameters are masked, and what a redraw leaves alone."""

import copy

import pytest
import torch
from torch import nn

from ke_metric.errors import KeMetricError
from ke_metric.split.hypotheses import redraw_reset
from ke_metric.split.plan import SplitPlan
from ke_metric.split.wels import multiplicative_weights, plan_wels

graph = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is an optional dependency")

NODES = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
EDGE_FEATURES = torch.rand(5, 2, generator=torch.Generator().manual_seed(1))
EDGE_TYPES = torch.tensor([0, 1, 0, 1, 1])


def mlp(inputs):
    return nn.Sequential(nn.Linear(inputs, 4), nn.BatchNorm1d(4), nn.PReLU(), nn.Linear(4, 5))


# Convolution -> (how it is built, masked names, names left alone, what else its forward takes).
CONVOLUTIONS = {
    "GCNConv": (lambda: graph.GCNConv(3, 4), "lin.weight", "bias", {}),
    "GATConv": (
        lambda: graph.GATConv(3, 4, heads=2, edge_dim=2, residual=True),
        "att_src att_dst att_edge lin.weight lin_edge.weight res.weight",
        "bias",
        {"edge_attr": EDGE_FEATURES},
    ),
    "GATConv of one head": (lambda: graph.GATConv(3, 4), "att_src att_dst lin.weight", "bias", {}),
    "GATConv from one kind of node to another": (
        lambda: graph.GATConv((3, 3), 4, heads=2, add_self_loops=False),
        "att_src att_dst lin_src.weight lin_dst.weight",
        "bias",
        {},
    ),
    "GATv2Conv": (
        lambda: graph.GATv2Conv(3, 4, heads=2, edge_dim=2, residual=True),
        "att lin_l.weight lin_r.weight lin_edge.weight res.weight",
        "bias lin_l.bias lin_r.bias",
        {"edge_attr": EDGE_FEATURES},
    ),
    "SAGEConv": (
        lambda: graph.SAGEConv(3, 4, project=True),
        "lin.weight lin_l.weight lin_r.weight",
        "lin.bias lin_l.bias",
        {},
    ),
    "GraphConv": (lambda: graph.GraphConv(3, 4), "lin_rel.weight lin_root.weight", "lin_rel.bias", {}),
    "GINConv": (
        lambda: graph.GINConv(mlp(3), train_eps=True),
        "nn.0.weight nn.3.weight",
        "eps nn.0.bias nn.1.weight nn.1.bias nn.2.weight nn.3.bias",
        {},
    ),
    "GINEConv": (
        lambda: graph.GINEConv(mlp(3), train_eps=True, edge_dim=2),
        "nn.0.weight nn.3.weight lin.weight",
        "eps nn.0.bias nn.1.weight nn.1.bias nn.2.weight nn.3.bias lin.bias",
        {"edge_attr": EDGE_FEATURES},
    ),
    "EdgeConv": (
        lambda: graph.EdgeConv(mlp(6)),
        "nn.0.weight nn.3.weight",
        "nn.0.bias nn.1.weight nn.1.bias nn.2.weight nn.3.bias",
        {},
    ),
    "ChebConv": (lambda: graph.ChebConv(3, 4, K=2), "lins.0.weight lins.1.weight", "bias", {}),
    "TAGConv": (lambda: graph.TAGConv(3, 4, K=1), "lins.0.weight lins.1.weight", "bias", {}),
    "TransformerConv": (
        lambda: graph.TransformerConv(3, 4, heads=2, beta=True, edge_dim=2),
        "lin_key.weight lin_query.weight lin_value.weight lin_edge.weight lin_skip.weight lin_beta.weight",
        "lin_key.bias lin_query.bias lin_value.bias lin_skip.bias",
        {"edge_attr": EDGE_FEATURES},
    ),
    "RGCNConv": (lambda: graph.RGCNConv(3, 4, 2), "weight root", "bias", {"edge_type": EDGE_TYPES}),
    "RGCNConv of bases": (
        lambda: graph.RGCNConv(3, 4, 2, num_bases=2),
        "weight comp root",
        "bias",
        {"edge_type": EDGE_TYPES},
    ),
    "FastRGCNConv of blocks": (
        lambda: graph.FastRGCNConv(3, 6, 2, num_blocks=3),
        "weight root",
        "bias",
        {"edge_type": EDGE_TYPES},
    ),
    "ARMAConv": (
        lambda: graph.ARMAConv(3, 4, num_stacks=2, num_layers=2),
        "weight init_weight root_weight",
        "bias",
        {},
    ),
    "GatedGraphConv": (
        lambda: graph.GatedGraphConv(4, num_layers=2),
        "weight rnn.weight_ih rnn.weight_hh",
        "rnn.bias_ih rnn.bias_hh",
        {},
    ),
}


@pytest.fixture(params=CONVOLUTIONS)
def convolution(request):
    """A convolution, the names masked in it, the names left alone, and a function that runs it on a small graph."""
    build, masked, alone, arguments = CONVOLUTIONS[request.param]

    def forward(layer):
        nodes = (NODES, NODES) if "another" in request.param else NODES
        with torch.no_grad():
            return layer.eval()(nodes, EDGES, **arguments)

    return build(), masked.split(), alone.split(), forward


def split(network, rate):
    return SplitPlan("wels", rate, plan_wels(network, rate=rate, keep_whole=(), seed=0))


def test_names_of_every_convolution(convolution):
    layer, masked, alone, _ = convolution
    assert sorted(multiplicative_weights(layer)) == sorted(masked)
    assert sorted(masked + alone) == sorted(name for name, _ in layer.named_parameters())


@pytest.mark.parametrize("init", ["official", "same_as_init", "orthogonal", "zero"])
def test_redraw(convolution, init):
    layer, masked, _, forward = convolution
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.25)
    plan, before, output = split(layer, 0.5), copy.deepcopy(layer.state_dict()), forward(layer)
    redraw_reset(layer, plan, generator=torch.Generator().manual_seed(0), init=init)
    for name, tensor in layer.state_dict().items():
        fit = plan.masks.get(name, torch.ones(tensor.shape, dtype=torch.bool))
        assert torch.equal(tensor[fit], before[name][fit]), name
        assert bool((tensor[~fit] != before[name][~fit]).all()), name
        assert bool((~fit).any()) == (name in masked), name
    changed = forward(layer)
    assert bool(changed.isfinite().all())
    assert not torch.allclose(changed, output)


def test_rate_one_changes_nothing(convolution):
    layer, _, _, forward = convolution
    output = forward(layer)
    redraw_reset(layer, split(layer, 1.0), generator=torch.Generator().manual_seed(0))
    assert torch.equal(forward(layer), output)


def test_attention_vectors_can_be_left_whole():
    layer = graph.GATConv(3, 4, heads=2)
    assert list(multiplicative_weights(layer, keep_whole=["att_src", "att_dst"])) == ["lin.weight"]


def test_a_model_is_reset_by_its_own_rule():
    model = graph.GAT(3, 8, num_layers=2, out_channels=2, heads=2)
    plan, before = split(model, 0.5), copy.deepcopy(model.state_dict())
    redraw_reset(model, plan, generator=torch.Generator().manual_seed(0), init="same_as_init")
    for name, mask in plan.masks.items():
        weight = model.get_parameter(name).detach()
        assert torch.equal(weight[mask], before[name][mask])
        # glorot: U(-a, a) with a = sqrt(6 / (rows + columns)) of the last two dimensions
        assert float(weight.abs().max()) <= (6 / (weight.size(-2) + weight.size(-1))) ** 0.5


def test_lazy_layers_are_run_first():
    layer = graph.SAGEConv(-1, 4)
    with pytest.raises(KeMetricError, match="run the network once"):
        multiplicative_weights(layer)
    layer(NODES, EDGES)
    assert list(multiplicative_weights(layer)) == ["lin_l.weight", "lin_r.weight"]


@pytest.mark.parametrize("norm", ["HeteroBatchNorm", "HeteroLayerNorm"])
def test_norms_of_several_kinds_of_nodes(norm):
    assert multiplicative_weights(getattr(graph, norm)(3, 2)) == {}


def test_a_linear_layer_of_several_kinds_of_nodes():
    assert list(multiplicative_weights(graph.HeteroLinear(3, 4, 2))) == ["weight"]


def test_a_convolution_that_is_not_known_is_refused():
    network = nn.Sequential(graph.GCNConv(3, 3), graph.GCN2Conv(3, 0.1, shared_weights=False))
    with pytest.raises(KeMetricError, match=r"1\.weight1 \[3, 3\] of module '1', a torch_geometric.*GCN2Conv"):
        multiplicative_weights(network)
    kept = ["1.weight1", "1.weight2"]
    assert list(multiplicative_weights(network, keep_whole=kept)) == ["0.lin.weight"]
