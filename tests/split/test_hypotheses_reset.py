import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.hypotheses import extract_slim, mean_magnitudes, redraw_reset, zero_reset
from ke_metric.split.plan import SplitPlan, WeightMask
from ke_metric.split.planning import plan_split
from ke_metric.split.wels import multiplicative_weights, plan_wels


def generator(seed=17):
    return torch.Generator().manual_seed(seed)


def wels(network, rate=0.5, **arguments):
    return SplitPlan("wels", rate, plan_wels(network, rate=rate, keep_whole=(), seed=0, **arguments))


def all_reset(network):
    """Return a plan in which no entry of any weight is fit: what is redrawn is a whole weight."""
    weights = multiplicative_weights(network)
    masks = {name: WeightMask.draw(weight.shape, 0.0, generator()) for name, weight in weights.items()}
    return SplitPlan("wels", 0.0, masks)


def reset_values(network, before, plan):
    """Demand that everything but the reset entries is bit-identical; return the reset entries, name -> values."""
    masks = plan.masks
    for name, tensor in network.state_dict().items():
        fit = masks.get(name, torch.ones(tensor.shape, dtype=torch.bool))
        assert torch.equal(tensor[fit], before[name][fit]), name
    return {name: network.get_parameter(name).detach()[~mask] for name, mask in masks.items()}


@pytest.fixture(params=["kels", "wels"])
def plan(request, small_network, images):
    return plan_split(small_network, images, rate=0.5, kind=request.param, seed=0)


def test_official(small_network, plan):
    """Kept entries, norms, biases and buffers are bit-identical; every reset entry is new, within 1/sqrt(fan_in)."""
    before = copy.deepcopy(small_network.state_dict())
    redraw_reset(small_network, plan, generator=generator())
    masks = plan.masks
    for name, tensor in small_network.state_dict().items():
        fit = masks.get(name, torch.ones(tensor.shape, dtype=torch.bool))
        assert torch.equal(tensor[fit], before[name][fit])
        assert bool((tensor[~fit] != before[name][~fit]).all())
        if name in masks:
            fan_in = tensor[0].numel()
            assert float(tensor[~fit].abs().max()) <= fan_in**-0.5


def test_official_is_uniform():
    """Mean 0, standard deviation 1/sqrt(3 fan_in), and values close to both bounds."""
    network = nn.Sequential(nn.Conv2d(3, 100, 1), nn.Conv2d(100, 500, 3))
    plan = plan_split(network, torch.zeros(1, 3, 3, 3), rate=0.5, kind="wels", seed=0)
    redraw_reset(network, plan, generator=generator())
    drawn = network[1].weight.detach()[~plan.masks["1.weight"]] * 900**0.5
    assert abs(float(drawn.mean())) < 0.01
    assert float(drawn.std()) == pytest.approx(3**-0.5, abs=0.01)
    assert float(drawn.min()) < -0.999
    assert float(drawn.max()) > 0.999


def test_same_seed_same_values(small_network, plan):
    first, second, third = (copy.deepcopy(small_network) for _ in range(3))
    redraw_reset(first, plan, generator=generator(1))
    redraw_reset(second, plan, generator=generator(1))
    redraw_reset(third, plan, generator=generator(2))
    assert torch.equal(first.widen.weight, second.widen.weight)
    assert not torch.equal(first.widen.weight, third.widen.weight)


def test_values_do_not_depend_on_precision(small_network, plan):
    double = copy.deepcopy(small_network).double()
    redraw_reset(small_network, plan, generator=generator())
    redraw_reset(double, plan, generator=generator())
    assert torch.equal(small_network.widen.weight, double.widen.weight.float())
    assert double.widen.weight.dtype == torch.float64


def test_same_as_init(small_network, plan):
    fresh = type(small_network)()
    before = copy.deepcopy(small_network.state_dict())
    redraw_reset(small_network, plan, init="same_as_init", fresh=fresh)
    for name, mask in plan.masks.items():
        weight = small_network.get_parameter(name)
        assert torch.equal(weight, torch.where(mask, before[name], fresh.get_parameter(name)))
    assert torch.equal(small_network.norm.weight, before["norm.weight"])
    assert torch.equal(small_network.stem.bias, before["stem.bias"])


def test_zero(small_network, plan):
    before = copy.deepcopy(small_network.state_dict())
    twin = copy.deepcopy(small_network)
    redraw_reset(small_network, plan, init="zero")
    zero_reset(twin, plan)
    for name, mask in plan.masks.items():
        assert torch.equal(small_network.get_parameter(name), before[name] * mask)
        assert torch.equal(twin.get_parameter(name), small_network.get_parameter(name))


def test_in_place(small_network, plan):
    """Parameters keep their storage, gradients and flags: an optimiser that holds them goes on with them."""
    small_network.stem.weight.requires_grad_(False)
    small_network(torch.rand(2, 3, 8, 8)).sum().backward()
    before = [
        (id(p), p.data_ptr(), p.requires_grad, None if p.grad is None else p.grad.clone())
        for p in small_network.parameters()
    ]
    redraw_reset(small_network, plan, generator=generator())
    for parameter, (identity, pointer, requires_grad, gradient) in zip(
        small_network.parameters(), before, strict=True
    ):
        assert (id(parameter), parameter.data_ptr(), parameter.requires_grad) == (identity, pointer, requires_grad)
        assert gradient is None or torch.equal(parameter.grad, gradient)


def test_channels_last_stays(small_network, plan):
    small_network.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(small_network).to(memory_format=torch.contiguous_format)
    redraw_reset(small_network, plan, generator=generator())
    redraw_reset(plain, plan, generator=generator())
    assert small_network.widen.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(small_network.widen.weight, plain.widen.weight)


@pytest.mark.parametrize("init", ["official", "same_as_init", "orthogonal", "zero"])
def test_rate_one_changes_nothing(small_network, images, init):
    plan = plan_split(small_network, images, rate=1.0)
    before = copy.deepcopy(small_network.state_dict())
    redraw_reset(small_network, plan, generator=generator(), init=init, fresh=type(small_network)())
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_network.state_dict().items())


def test_default_random_stream_is_untouched(small_network, plan):
    state = torch.get_rng_state()
    redraw_reset(small_network, plan, generator=generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_slim_network_does_not_see_the_reset(small_network, images):
    plan = plan_split(small_network, images, rate=0.5)
    before = extract_slim(small_network, plan).state_dict()
    redraw_reset(small_network, plan, generator=generator())
    after = extract_slim(small_network, plan).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "needs generator="),
        ({"init": "orthogonal"}, "init='orthogonal' draws random values and needs generator="),
        (
            {"init": "offical"},
            "reset 'offical' is none of official, same_as_init, orthogonal, zero; did you mean 'official'?",
        ),
        ({"init": "same_as_init"}, "needs generator=, or fresh=, a newly built network"),
    ],
)
def test_bad_arguments(small_network, plan, arguments, words):
    with pytest.raises(KeMetricError) as caught:
        redraw_reset(small_network, plan, **arguments)
    assert words in str(caught.value)
    assert caught.value.exit_code == ExitCode.RECIPE


def test_fresh_must_be_another_network_of_this_architecture(small_network, plan):
    with pytest.raises(KeMetricError, match="newly built network"):
        redraw_reset(small_network, plan, init="same_as_init", fresh=small_network)
    with pytest.raises(KeMetricError, match="another network than this Linear"):
        redraw_reset(small_network, plan, init="same_as_init", fresh=nn.Linear(2, 2))


def test_plan_of_another_network(plan):
    with pytest.raises(KeMetricError, match="another network than this Linear"):
        redraw_reset(nn.Linear(2, 2), plan, generator=generator())


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5), (6, 2, 3, 3), (20, 2, 3)])
def test_orthogonal_is_what_torch_draws(shape):
    layer = nn.Linear(1, 1)
    layer.weight = nn.Parameter(torch.ones(shape))
    redraw_reset(layer, all_reset(layer), generator=generator(), init="orthogonal")
    expected = nn.init.orthogonal_(torch.empty(shape), generator=generator())
    assert torch.equal(layer.weight, expected)
    demand_orthogonal(layer.weight.detach())


def demand_orthogonal(weight):
    matrix = weight.flatten(1)
    matrix = matrix if len(matrix) <= len(matrix[0]) else matrix.T
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)))


@pytest.mark.parametrize(
    ("layer", "blocks"),
    [
        (nn.LSTM(5, 3, proj_size=2), {"weight_ih_l0": 4, "weight_hh_l0": 4, "weight_hr_l0": 1}),
        (nn.GRU(5, 3, bidirectional=True), {"weight_ih_l0": 3, "weight_hh_l0_reverse": 3}),
        (nn.RNN(5, 3), {"weight_ih_l0": 1, "weight_hh_l0": 1}),
        (nn.LSTMCell(5, 3), {"weight_ih": 4, "weight_hh": 4}),
        (nn.MultiheadAttention(4, 2), {"in_proj_weight": 3, "out_proj.weight": 1}),
        (nn.MultiheadAttention(4, 2, kdim=3, vdim=5), {"q_proj_weight": 1, "k_proj_weight": 1}),
    ],
    ids=lambda value: f"{value!r:.30}",
)
def test_orthogonal_gate_by_gate(layer, blocks):
    layer = copy.deepcopy(layer)
    redraw_reset(layer, all_reset(layer), generator=generator(), init="orthogonal")
    for name, count in blocks.items():
        drawn = layer.get_parameter(name).detach().chunk(count)
        assert len({tuple(block.flatten().tolist()) for block in drawn}) == count
        for block in drawn:
            demand_orthogonal(block)


def test_orthogonal_leaves_the_fit_part(small_network, plan):
    before = copy.deepcopy(small_network.state_dict())
    redraw_reset(small_network, plan, generator=generator(), init="orthogonal")
    twin = copy.deepcopy(small_network).double()
    redraw_reset(twin, plan, generator=generator(), init="orthogonal")
    for name, values in reset_values(small_network, before, plan).items():
        assert bool((values != before[name][~plan.masks[name]]).all())
        assert torch.equal(values, twin.get_parameter(name).detach()[~plan.masks[name]].float())


RECURRENT = st.builds(
    lambda kind, bias, proj_size, layers, **arguments: kind(
        3, 5, layers, bias=bias, **arguments, **({"proj_size": proj_size} if kind is nn.LSTM else {})
    ),
    st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    bias=st.booleans(),
    proj_size=st.sampled_from([0, 2]),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@given(RECURRENT, st.sampled_from(["official", "same_as_init", "orthogonal", "zero"]))
def test_recurrent_layers(layer, init):
    """In place: a layer built anew with the same weights computes the same, as stale flat weights would not."""
    plan, before = wels(layer), copy.deepcopy(layer.state_dict())
    flat, storage = list(layer._flat_weights), [weight.data_ptr() for weight in layer.parameters()]
    assert len(plan.weights) == (3 if layer.proj_size else 2) * layer.num_layers * (1 + layer.bidirectional)
    redraw_reset(layer, plan, generator=generator(), init=init)
    for name, values in reset_values(layer, before, plan).items():
        assert bool((values != before[name][~plan.masks[name]]).all())
    assert all(one is other for one, other in zip(layer._flat_weights, flat, strict=True))
    assert [weight.data_ptr() for weight in layer.parameters()] == storage
    anew, examples = copy.deepcopy(layer), torch.rand(4, 6, 3)
    anew.load_state_dict(layer.state_dict())
    anew.flatten_parameters()
    torch.testing.assert_close(layer(examples)[0], anew(examples)[0], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@given(RECURRENT, st.sampled_from(["official", "same_as_init", "orthogonal", "zero"]))
def test_recurrent_output_at_rate_one(layer, init):
    examples = torch.rand(4, 6, 3)
    before = layer(examples)[0]
    redraw_reset(layer, wels(layer, rate=1.0), generator=generator(), init=init)
    assert torch.equal(layer(examples)[0], before)


@pytest.mark.parametrize("cell", [nn.LSTMCell(3, 5), nn.GRUCell(3, 5), nn.RNNCell(3, 5)], ids=lambda cell: f"{cell}")
@pytest.mark.parametrize("init", ["official", "same_as_init", "orthogonal"])
def test_recurrent_cells(cell, init):
    cell = copy.deepcopy(cell)
    plan, before = wels(cell), copy.deepcopy(cell.state_dict())
    redraw_reset(cell, plan, generator=generator(), init=init)
    drawn = reset_values(cell, before, plan)
    assert list(drawn) == ["weight_ih", "weight_hh"]
    assert all(bool((values != before[name][~plan.masks[name]]).all()) for name, values in drawn.items())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("init", ["official", "same_as_init", "orthogonal"])
def test_recurrent_layers_on_a_gpu(kind, init):
    """cuDNN reads one flat buffer; it must hold the new values, and the same ones as on the CPU."""
    layer = kind(3, 5, 2, bidirectional=True)
    gpu, plan, examples = copy.deepcopy(layer).cuda(), wels(layer), torch.rand(4, 6, 3)
    gpu(examples.cuda())
    redraw_reset(layer, plan, generator=generator(), init=init)
    redraw_reset(gpu, plan, generator=generator(), init=init)
    assert all(torch.equal(weight, gpu.get_parameter(name).cpu()) for name, weight in layer.named_parameters())
    torch.testing.assert_close(gpu(examples.cuda())[0].cpu(), layer(examples)[0], rtol=1e-4, atol=1e-5)


def test_attention():
    layer = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    plan, before = wels(layer), copy.deepcopy(layer.state_dict())
    redraw_reset(layer, plan, generator=generator())
    drawn = reset_values(layer, before, plan)
    assert list(drawn) == ["in_proj_weight", "out_proj.weight"]
    assert all(float(values.abs().max()) <= 8**-0.5 for values in drawn.values())


def test_a_layers_own_rule_reaches_further_than_the_official_one():
    """A recurrent layer initialises all of its weights within 1/sqrt(hidden), whatever their fan-in."""
    layer = nn.LSTM(400, 4)
    before, plan = copy.deepcopy(layer.state_dict()), wels(layer)
    redraw_reset(layer, plan, generator=generator(), init="same_as_init")
    drawn = reset_values(layer, before, plan)["weight_ih_l0"]
    assert 0.99 * 4**-0.5 < float(drawn.abs().max()) <= 4**-0.5


class Transformer(nn.Module):
    """Its attention resets the stacked projections only (`_reset_parameters`), its layers themselves the rest."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.linear = nn.Linear(8, 3)


def test_every_module_is_reset_by_the_rule_that_reaches_it():
    network, stream = Transformer(), torch.get_rng_state()
    plan, before = wels(network), copy.deepcopy(network.state_dict())
    redraw_reset(network, plan, generator=generator(), init="same_as_init")
    drawn = reset_values(network, before, plan)
    assert float(drawn["attention.in_proj_weight"].abs().max()) > 0.9 * (6 / 32) ** 0.5 > 8**-0.5
    assert 0.9 * 8**-0.5 < float(drawn["attention.out_proj.weight"].abs().max()) <= 8**-0.5
    assert torch.equal(torch.get_rng_state(), stream)
    again = copy.deepcopy(network).double()
    redraw_reset(again, plan, generator=generator(), init="same_as_init")
    assert torch.equal(again.linear.weight.float(), network.linear.weight)
    redraw_reset(again, plan, generator=generator(1), init="same_as_init")
    assert not torch.equal(again.linear.weight.float(), network.linear.weight)


def test_the_networks_own_rule_comes_before_its_layers():
    class Own(nn.Sequential):
        def reset_parameters(self):
            nn.init.constant_(self[0].weight, 7)

    network = Own(nn.Linear(9, 9), nn.Linear(9, 9))
    plan, before = wels(network), copy.deepcopy(network.state_dict())
    redraw_reset(network, plan, generator=generator(), init="same_as_init")
    drawn = reset_values(network, before, plan)
    assert bool((drawn["0.weight"] == 7).all())
    assert float(drawn["1.weight"].abs().max()) <= 1 / 3


class Conditional(nn.Linear):
    def reset_parameters(self, scale=None):
        if scale is None:
            raise TypeError("scale is missing")


class Untouched(nn.Linear):
    def reset_parameters(self):
        pass


def test_no_rule_that_reaches_a_weight():
    with torch.no_grad():
        untouched = nn.Sequential(nn.Linear(3, 3), Untouched(3, 3))
        for weight in untouched.parameters():
            weight.fill_(1)
    with pytest.raises(KeMetricError, match=r"1\.weight belongs to a Untouched, and no reset_parameters\(\) dr"):
        redraw_reset(untouched, wels(untouched), generator=generator(), init="same_as_init")
    assert all(bool((weight == 1).all()) for weight in untouched.parameters())


def test_a_rule_that_needs_more_than_the_module():
    layer = Untouched(3, 3)
    plan = wels(layer)
    layer.__class__ = Conditional
    with pytest.raises(KeMetricError, match=r"reset_parameters\(\) of Conditional failed: scale is missing; pass"):
        redraw_reset(layer, plan, generator=generator(), init="same_as_init")


@pytest.mark.parametrize("init", ["official", "same_as_init", "orthogonal", "zero"])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_the_padding_row_of_an_embedding_stays(init, kind):
    network = nn.Sequential(kind(6, 4, padding_idx=2), nn.Linear(4, 4))
    plan, before = wels(network, embeddings=True), copy.deepcopy(network.state_dict())
    redraw_reset(network, plan, generator=generator(), init=init)
    assert not plan.masks["0.weight"][2].all()
    assert not network[0].weight[2].any()
    rows = torch.arange(6) != 2
    drawn, mask = network[0].weight.detach()[rows], plan.masks["0.weight"][rows]
    assert torch.equal(drawn[mask], before["0.weight"][rows][mask])
    assert bool((drawn[~mask] != before["0.weight"][rows][~mask]).all())


def test_embeddings_are_not_touched_unless_asked():
    network = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4))
    before = network[0].weight.clone()
    redraw_reset(network, wels(network), generator=generator())
    assert torch.equal(network[0].weight, before)


def test_a_tied_weight_is_redrawn_once():
    """Its fit entries survive: a second mask on the same memory would reset some of them."""
    network = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    network[1].weight = network[0].weight
    plan, before = wels(network), network[0].weight.detach().clone()
    redraw_reset(network, plan, generator=generator())
    assert network[1].weight is network[0].weight
    assert int((network[0].weight == before).sum()) == round(0.5 * 81)


def freeze(network, *names):
    for name in names:
        network.get_parameter(name).requires_grad_(False)
    return network


def test_frozen_weights_stay_and_are_told(small_network, images, plan):
    """The others get the values that they get where nothing is frozen."""
    twin = copy.deepcopy(small_network)
    freeze(small_network, "inner.weight", "hidden.weight", "norm.weight")
    before = copy.deepcopy(small_network.state_dict())
    assert redraw_reset(small_network, plan, generator=generator()) == ["inner.weight", "hidden.weight"]
    assert redraw_reset(twin, plan, generator=generator()) == []
    for name, tensor in small_network.state_dict().items():
        expected = before[name] if name in ("inner.weight", "hidden.weight") else twin.state_dict()[name]
        assert torch.equal(tensor, expected), name
    told = plan_split(small_network, images, rate=0.5, kind=plan.kind, seed=0)
    assert told.frozen == ("inner.weight", "hidden.weight")
    assert told.masks.keys() == plan.masks.keys()
    assert "frozen (requires_grad=False), and so never redrawn: inner.weight, hidden.weight" in str(told)
    assert SplitPlan.from_json(told.to_json(), told.to_tensors()) == told


@pytest.mark.parametrize("init", ["official", "same_as_init", "orthogonal", "zero"])
def test_frozen_weights_stay_by_every_rule(small_network, plan, init):
    before = freeze(small_network, "inner.weight").inner.weight.clone()
    redraw_reset(small_network, plan, generator=generator(), init=init)
    assert torch.equal(small_network.inner.weight, before)


def test_a_weight_that_is_kept_whole_need_not_be_trained(small_network, images):
    """The first layer of a network of which only others are reset."""
    plan = plan_split(freeze(small_network, "head.weight"), images, rate=0.5, keep_whole=["hidden"])
    assert plan.frozen == ()
    assert redraw_reset(small_network, plan, generator=generator()) == []


def test_nothing_that_could_train_is_left(small_network, plan):
    small_network.requires_grad_(False)
    with pytest.raises(KeMetricError, match=r"every weight of this _Small with a reset part is frozen.*stem\.weight"):
        redraw_reset(small_network, plan, generator=generator())


def test_a_frozen_layer_at_zero_is_what_the_slim_network_has(small_network, images, slim_is_dense_with_zeros):
    freeze(small_network, "inner.weight", "widen.weight")
    _, slim = slim_is_dense_with_zeros(small_network, images, rate=0.5)
    assert not slim.inner.weight.requires_grad


@pytest.mark.parametrize("kind", ["kels", "wels"])
def test_means_of_both_parts(small_network, images, kind):
    plan = plan_split(small_network, images, rate=0.5, kind=kind, seed=0)
    means = mean_magnitudes(small_network, plan)
    masks = plan.masks
    assert list(means) == list(masks)
    for name, (fit, reset) in means.items():
        entries = list(
            zip(small_network.get_parameter(name).flatten().tolist(), masks[name].flatten().tolist(), strict=True)
        )
        kept = [abs(value) for value, is_fit in entries if is_fit]
        redrawn = [abs(value) for value, is_fit in entries if not is_fit]
        assert fit == pytest.approx(sum(kept) / len(kept))
        assert reset == pytest.approx(sum(redrawn) / len(redrawn))
    zero_reset(small_network, plan)
    assert {reset for _, reset in mean_magnitudes(small_network, plan).values()} == {0.0}


def test_an_empty_part_has_no_mean(small_network, images):
    for _, reset in mean_magnitudes(small_network, plan_split(small_network, images, rate=1.0)).values():
        assert reset is None


def test_half_precision_does_not_overflow():
    network = nn.Linear(300, 300, bias=False).half()
    with torch.no_grad():
        network.weight.fill_(100)
    plan = plan_split(network, torch.zeros(1, 300), rate=0.5, kind="wels", seed=0)
    assert mean_magnitudes(network, plan)["weight"] == (100.0, 100.0)


def test_magnitudes_by_a_plan_of_another_network(small_network, images):
    with pytest.raises(KeMetricError, match="another network than this Linear"):
        mean_magnitudes(nn.Linear(2, 2), plan_split(small_network, images, rate=0.5))
