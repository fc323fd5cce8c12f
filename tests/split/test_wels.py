"""What WELS masks: which parameters of which kind of layer, how much of them, and what it refuses to guess."""

import ast
import copy
import inspect
import itertools
import re
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models import list_models

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.randomness import torch_generator
from ke_metric.split import wels as roles
from ke_metric.split.admission import class_names
from ke_metric.split.plan import WeightMask
from ke_metric.split.wels import multiplicative_weights, plan_wels

RECURRENT = {"num_layers": 2, "bidirectional": True}
PLACES = ("l0", "l0_reverse", "l1", "l1_reverse")
RECURRENT_WEIGHTS = [f"weight_{kind}_{place}" for place in PLACES for kind in ("ih", "hh")]
RECURRENT_BIASES = [f"bias_{kind}_{place}" for place in PLACES for kind in ("ih", "hh")]
PROJECTED_WEIGHTS = [f"weight_{kind}_{place}" for place in PLACES for kind in ("ih", "hh", "hr")]
CELL = (["weight_ih", "weight_hh"], ["bias_ih", "bias_hh"])
PLAIN = (["weight"], ["bias"])
ALONE = ([], ["weight", "bias"])

# Every kind of layer of torch.nn that owns parameters -> (what is masked, what is left alone).
LAYERS = {
    nn.Linear(3, 4): PLAIN,
    nn.Linear(3, 1): PLAIN,
    nn.Bilinear(2, 3, 4): PLAIN,
    nn.Conv1d(2, 4, 3): PLAIN,
    nn.Conv2d(2, 4, 3): PLAIN,
    nn.Conv3d(2, 4, 3): PLAIN,
    nn.Conv2d(4, 4, 1, groups=4): PLAIN,
    nn.ConvTranspose1d(2, 4, 3): PLAIN,
    nn.ConvTranspose2d(2, 4, 3): PLAIN,
    nn.ConvTranspose3d(2, 4, 3): PLAIN,
    nn.RNN(3, 4, **RECURRENT): (RECURRENT_WEIGHTS, RECURRENT_BIASES),
    nn.GRU(3, 4, **RECURRENT): (RECURRENT_WEIGHTS, RECURRENT_BIASES),
    nn.LSTM(3, 4, **RECURRENT): (RECURRENT_WEIGHTS, RECURRENT_BIASES),
    nn.LSTM(3, 4, proj_size=2, **RECURRENT): (PROJECTED_WEIGHTS, RECURRENT_BIASES),
    nn.RNNCell(3, 4): CELL,
    nn.GRUCell(3, 4): CELL,
    nn.LSTMCell(3, 4): CELL,
    nn.MultiheadAttention(4, 2, add_bias_kv=True): (
        ["in_proj_weight", "out_proj.weight"],
        ["in_proj_bias", "out_proj.bias", "bias_k", "bias_v"],
    ),
    nn.MultiheadAttention(4, 2, kdim=3, vdim=5): (
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        ["in_proj_bias", "out_proj.bias"],
    ),
    nn.Embedding(5, 3): ([], ["weight"]),
    nn.EmbeddingBag(5, 3): ([], ["weight"]),
    nn.BatchNorm2d(4): ALONE,
    nn.InstanceNorm2d(4, affine=True): ALONE,
    nn.GroupNorm(2, 4): ALONE,
    nn.LayerNorm((2, 3)): ALONE,
    nn.RMSNorm((2, 3)): ([], ["weight"]),
    nn.PReLU(4): ([], ["weight"]),
    nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2]): (["head.weight", "tail.0.0.weight", "tail.0.1.weight"], []),
}


class Bare(nn.Module):
    """A module of no known kind with one parameter."""

    def __init__(self, *shape):
        super().__init__()
        self.theta = nn.Parameter(torch.rand(shape))


def names(network, **arguments):
    return list(multiplicative_weights(network, **arguments))


def refusal(network, **arguments):
    with pytest.raises(KeMetricError) as caught:
        multiplicative_weights(network, **arguments)
    assert caught.value.exit_code == ExitCode.RECIPE
    return str(caught.value)


def pasted(message):
    """Return the value of the keep_whole=[...] that an error offers."""
    return ast.literal_eval(re.search(r"keep_whole=(\[.*?\])", message)[1])


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer!r:.40}")
def test_names_of_every_layer_of_torch(layer):
    masked, alone = LAYERS[layer]
    assert names(layer) == masked
    assert sorted(masked + alone) == sorted(name for name, _ in layer.named_parameters())


def test_no_layer_of_torch_is_missing():
    """A new kind of layer in torch.nn fails here before it surprises a user."""
    classes = [kind for kind in vars(nn).values() if inspect.isclass(kind) and issubclass(kind, nn.Module)]
    owners = {kind for kind in classes if "Parameter(" in inspect.getsource(kind)}
    known = {kind for kind in owners if any(key in roles.LAYER_KINDS for key in class_names(kind.__new__(kind)))}
    assert {kind.__name__ for kind in owners - known} == {"Module", "ParameterList", "ParameterDict"}
    tested = {base for layer in LAYERS for base in type(layer).__mro__}
    assert {kind.__name__ for kind in known - tested if not kind.__name__.startswith("Lazy")} == set()


@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.floats(0, 1, exclude_min=True), st.integers(0, 2**31))
def test_exactly_the_share_of_every_weight(widths, rate, seed):
    pairs = list(itertools.pairwise(widths))
    network = nn.Sequential(*(nn.Conv2d(before, after, 3) for before, after in pairs))
    masks = plan_wels(network, rate=rate, keep_whole=(), seed=seed)
    for number, (before, after) in enumerate(pairs):
        mask = masks[f"{number}.weight"]
        assert mask.shape == (after, before, 3, 3)
        assert int(mask.expand().sum()) == mask.fit_count == round(rate * before * after * 9)


def test_a_mask_depends_on_seed_and_name_only():
    """The masks of plans that were stored before: what a layer draws does not depend on the others."""
    one = plan_wels(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 7)), rate=0.3, keep_whole=(), seed=7)
    other = plan_wels(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Linear(4, 7)), rate=0.3, keep_whole=(), seed=7)
    assert one["1.weight"] == other["1.weight"]
    assert one["0.weight"] == WeightMask.draw((4, 5), 0.3, torch_generator(7, 0, "wels mask of 0.weight"))
    assert one != plan_wels(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 7)), rate=0.3, keep_whole=(), seed=8)


def test_planning_changes_nothing():
    network = nn.LSTM(3, 4)
    before, stream = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    plan_wels(network, rate=0.5, keep_whole=(), seed=0)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_masks_need_a_seed():
    with pytest.raises(KeMetricError, match="needs seed=") as caught:
        plan_wels(nn.Linear(2, 2), rate=0.5, keep_whole=(), seed=None)
    assert caught.value.exit_code == ExitCode.RECIPE


def test_embeddings_on_request():
    network = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    assert names(network) == ["1.weight"]
    assert names(network, embeddings=True) == ["0.weight", "1.weight"]
    assert list(plan_wels(network, rate=0.5, keep_whole=(), seed=0, embeddings=True)) == ["0.weight", "1.weight"]


def test_keep_whole():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    assert names(network, keep_whole=["0.weight"]) == ["1.weight"]
    assert list(plan_wels(network, rate=0.5, keep_whole={"1.weight"}, seed=0)) == ["0.weight"]


def test_a_subclass_is_what_it_inherits_from():
    class Scaled(nn.Conv2d):
        def __init__(self):
            super().__init__(3, 4, 3)
            self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))

    class Adapted(Scaled):
        def __init__(self):
            super().__init__()
            self.down = nn.Parameter(torch.ones(2, 27))

    assert names(Scaled()) == ["weight"]
    assert "down [2, 27]" in refusal(Adapted())
    assert names(Adapted(), keep_whole=["down"]) == ["weight"]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 1, 5), (5, 1, 1), (1, 5, 1, 1), (1, 1, 1)])
def test_what_can_be_a_bias_or_scale_only_is_left_alone(shape):
    assert names(nn.Sequential(Bare(*shape), nn.Linear(2, 2))) == ["1.weight"]


@pytest.mark.parametrize("shape", [(2, 3), (1, 5), (5, 1), (1, 1), (1, 4, 5), (3, 1, 5), (2, 2, 2)])
def test_what_can_be_a_weight_is_never_skipped(shape):
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Bare(*shape)))
    message = refusal(network)
    assert f"no rule says whether 1.0.theta {list(shape)} of module '1.0', a " in message
    assert f"{__name__.rpartition('.')[2]}.Bare, does" in message
    assert names(network, keep_whole=pasted(message)) == ["0.weight"]


def test_all_unknown_parameters_are_offered_at_once():
    network = nn.Sequential(Bare(2, 3), nn.ParameterList([torch.rand(3, 3), torch.rand(3)]), nn.Linear(2, 2))
    message = refusal(network)
    assert "(and 1 more such parameters)" in message
    assert pasted(message) == ["0.theta", "1.0"]
    assert names(network, keep_whole=pasted(message)) == ["2.weight"]


def test_a_parameter_of_the_network_itself():
    assert "theta [1, 4, 5] of the network itself, a " in refusal(Bare(1, 4, 5))


@pytest.mark.parametrize("layer", [nn.LazyLinear(3), nn.LazyConv2d(3, 1), nn.LazyBatchNorm1d()])
def test_a_lazy_layer_is_run_first(layer):
    network = nn.Sequential(nn.Flatten(0, 0), layer)
    assert "run the network once" in refusal(network, keep_whole=["1.weight"])
    network(torch.rand(2, 4, 1, 1) if isinstance(layer, nn.LazyConv2d) else torch.rand(2, 4))
    assert names(network) == ([] if isinstance(layer, nn.modules.batchnorm._NormBase) else ["1.weight"])


def old_norm(function):
    def apply(layer, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return function(layer, name)

    return apply


def pruned(layer, name):
    prune.l1_unstructured(layer, name, 0.5)
    prune.random_unstructured(layer, name, 0.5)


UNPARAMETRISE = nn.utils.parametrize.remove_parametrizations
# What makes a weight a function of other parameters, what undoes it, and what the error calls that.
REPARAMETRISED = [
    (parametrizations.weight_norm, UNPARAMETRISE, "torch.nn.utils.parametrize.remove_parametrizations"),
    (parametrizations.spectral_norm, UNPARAMETRISE, "torch.nn.utils.parametrize.remove_parametrizations"),
    (parametrizations.orthogonal, UNPARAMETRISE, "torch.nn.utils.parametrize.remove_parametrizations"),
    (old_norm(nn.utils.weight_norm), nn.utils.remove_weight_norm, "torch.nn.utils.remove_weight_norm"),
    (old_norm(nn.utils.spectral_norm), nn.utils.remove_spectral_norm, "torch.nn.utils.remove_spectral_norm"),
    (pruned, prune.remove, "torch.nn.utils.prune.remove"),
]


@pytest.mark.parametrize(("apply", "remove", "called"), REPARAMETRISED)
@pytest.mark.parametrize(("layer", "weight"), [(nn.Conv2d(3, 4, 3), "weight"), (nn.GRUCell(3, 4), "weight_hh")])
def test_a_weight_that_is_computed_from_others(apply, remove, called, layer, weight):
    network = nn.ModuleList([copy.deepcopy(layer), nn.Linear(2, 2)])
    plain = names(network)
    apply(network[0], weight)
    message = refusal(network)
    assert f"{called} makes it an ordinary weight again" in message
    rest = names(network, keep_whole=pasted(message))
    assert rest == [name for name in plain if name != f"0.{weight}"]
    remove(network[0], weight)
    assert sorted(names(network)) == sorted(plain)


def test_a_pruned_bias_is_a_bias():
    layer = nn.Linear(3, 4)
    prune.l1_unstructured(layer, "bias", 0.5)
    assert names(layer) == ["weight"]


def test_a_tied_weight_is_drawn_once():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    assert names(network) == ["0.weight", "1.weight"]
    assert names(network, keep_whole=["2.weight"]) == ["1.weight"]


def test_weights_that_share_memory_are_one():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = nn.Parameter(network[0].weight.detach())
    assert names(network) == ["0.weight"]


def test_weights_without_memory_are_not_one():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert names(network) == ["0.weight", "1.weight"]


def test_a_table_stays_a_table_where_a_linear_layer_shares_it():
    network = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
    network[1].weight = network[0].weight
    assert names(network) == []
    assert names(network, embeddings=True) == ["0.weight"]


def test_an_unknown_module_that_holds_a_layers_weight():
    network = nn.Sequential(Bare(3), nn.Linear(3, 3))
    network[0].alias = network[1].weight
    assert names(network) == ["0.alias"]


def test_weights_that_are_not_floating_point():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[0].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    message = refusal(network)
    assert "0.weight is torch.int8" in message
    assert names(network, keep_whole=pasted(message)) == ["1.weight"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_weight_without_entries():
    assert plan_wels(nn.Linear(0, 3), rate=0.5, keep_whole=(), seed=0) == {}


def test_a_class_that_merely_has_the_name_of_a_known_one():
    class GATConv(nn.Module):
        def __init__(self):
            super().__init__()
            self.att_src = nn.Parameter(torch.rand(1, 2, 3))

    assert "att_src [1, 2, 3]" in refusal(GATConv())


def layer_weights(network):
    """Return the weights of all linear layers, convolutions and attention of a network, in parameter order."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
    inside = {
        id(weight) for part in network.modules() if isinstance(part, kinds) for weight in part.parameters(False)
    }
    return [name for name, weight in network.named_parameters() if id(weight) in inside and "bias" not in name]


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t", "googlenet", "mvit_v2_s"]
)
def test_torchvision(name, meta_network):
    network = meta_network(name)
    assert names(network) == layer_weights(network)


@pytest.mark.slow
def test_every_classifier_of_torchvision(meta_network):
    from torchvision import models

    found = list_models(models)
    assert len(found) >= 80
    for name in found:
        network = meta_network(name)
        assert names(network) == layer_weights(network), name


@pytest.mark.parametrize(
    "name",
    [
        "resnet26d",
        "convnextv2_atto",
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "dm_nfnet_f0",
        "levit_128s",
        "mvitv2_tiny",
        "halonet26t",
        "lambda_resnet26t",
        "crossvit_tiny_240",
    ],
)
def test_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model(name)
    # gain scales the weights of a standardised convolution, one value for every channel.
    assert names(network) == [weight for weight in layer_weights(network) if not weight.endswith("gain")]


@pytest.mark.parametrize(
    ("name", "ending"), [("efficientnet_cc_b0_4e", "conv_pw.weight"), ("swiftformer_xs", "attn.w_g")]
)
def test_timm_layers_with_weights_of_their_own(name, ending):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model(name)
    assert any(weight.endswith(ending) for weight in names(network))


@pytest.fixture
def meta_network():
    """Build a torchvision network without memory for its weights."""
    from torchvision import models

    def build(name):
        # RegNet rounds its widths with a tensor, which needs values.
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            return models.get_model(name, weights=None, **arguments)

    return build
