"""Heads: classifiers, whose logits are whole in every split, and which are stored as the embedding networks are.

Embeddings have unit length in every precision, and all D are kept by a split.
"""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.losses.losses import AdaCosLoss
from ke_metric.networks.bundle import load_network, save_network
from ke_metric.networks.bundle_config import CONFIG, Architecture, NetworkCard, read_description
from ke_metric.networks.dense import Classifier, CosineHead, EmbeddingNetwork, build_classifier, build_network
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Recipe
from ke_metric.schema import Network
from ke_metric.split.hypotheses import extract_slim, redraw_reset, zero_reset
from ke_metric.split.planning import plan_split

CLASSES = 7
NAMES = tuple(f"class {number}" for number in range(CLASSES))
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
HEADS = ("linear", "cosine")
EMBEDDER = Network(backbone="timm/test_resnet", embedding_size=24)


def network_of(head, backbone="timm/test_resnet", number=1):
    with default_streams(0, number, "network"):
        return build_classifier(Network(backbone=backbone, head=head), 32, CLASSES)


def lived_in(network):
    """Give a network values that no initialisation has: norm statistics, scales, biases."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(torch.empty_like(tensor).uniform_(0.5, 1.5, generator=generator))
    return network.eval()


def recipe_of(head, task="classification"):
    return Recipe.model_validate(
        {
            "name": "x",
            "task": task,
            "data": {"image_size": 32},
            "network": {"backbone": "timm/test_resnet", "head": head},
            "evaluation": {"resize": 40},
        }
    )


def cosine(first, second):
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / math.sqrt(sum(a * a for a in first)) / math.sqrt(sum(b * b for b in second))


# Logits.


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_the_head_of_the_features(head):
    network = network_of(head).eval()
    with torch.no_grad():
        features, logits = network.features(IMAGES), network(IMAGES)
    assert features.shape == (3, 96)
    assert logits.shape == (3, CLASSES)
    for row, feature in zip(logits.tolist(), features.tolist(), strict=True):
        for number, (value, weight) in enumerate(zip(row, network.head.weight.tolist(), strict=True)):
            dot = sum(a * b for a, b in zip(feature, weight, strict=True))
            expected = dot + network.head.bias[number].item() if head == "linear" else cosine(feature, weight)
            assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_drawn_as_a_linear_layer_draws_itself(head):
    network = network_of(head)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        twin = nn.Linear(96, CLASSES, bias=head == "linear")
        torch.manual_seed(5)
        drawn = nn.Linear(96, CLASSES) if head == "linear" else CosineHead(96, CLASSES)
    assert network.head.weight.shape == (CLASSES, 96)
    assert {name for name, _ in network.head.named_parameters()} == {name for name, _ in twin.named_parameters()}
    assert torch.equal(drawn.weight, twin.weight)
    assert network.head.weight.abs().max() <= 96**-0.5
    assert torch.equal(network.head.weight, network_of(head).head.weight)
    assert not torch.equal(network.head.weight, network_of(head, number=2).head.weight)


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_lengths_do_not_matter_to_cosines_and_to_adacos(length, weight_length, seed):
    torch.manual_seed(seed)
    features, head, labels = torch.randn(4, 12), CosineHead(12, CLASSES), torch.tensor([0, 3, 3, 6])
    before = head(features)
    loss = AdaCosLoss(CLASSES)(before, labels)
    with torch.no_grad():
        head.weight *= weight_length
    after = head(length * features)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert AdaCosLoss(CLASSES)(after, labels).item() == pytest.approx(loss.item(), rel=1e-4)
    assert after.detach().abs().max() <= 1 + 1e-6


def test_cosines_of_nothing_are_zero():
    head = CosineHead(4, 2)
    with torch.no_grad():
        head.weight[0] = 0
    cosines = head(torch.tensor([[0.0, 0, 0, 0], [1, 2, 3, 4]]))
    assert cosines.isfinite().all()
    assert cosines[0].tolist() == [0, 0]
    assert cosines[1, 0] == 0


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_float32_in_every_precision(head):
    network = network_of(head).eval()
    with torch.no_grad():
        features = network.features(IMAGES)
        with torch.autocast("cpu", torch.bfloat16):
            assert network(IMAGES).dtype == torch.float32
            cosines = CosineHead.forward(network.head, features) if head == "cosine" else None
    if cosines is not None:
        # Autocast does not reach them.
        assert torch.equal(cosines, network.head(features))


def test_a_classifier_of_one_class_is_refused():
    with pytest.raises(KeMetricError, match="2 classes or more") as caught:
        build_classifier(Network(backbone="timm/test_resnet"), 32, 1)
    assert caught.value.exit_code is ExitCode.DATA


def test_pretrained_weights_can_be_left_out(monkeypatch):
    def refuse(*_, **__):
        raise OSError("asked for weights")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    section = Network(backbone="squeezenet1_1", pretrained=True)
    assert build_classifier(section, 64, CLASSES, load_pretrained=False).head.in_features == 512
    with pytest.raises(KeMetricError, match="asked for weights"):
        build_classifier(section, 64, CLASSES)


# Split.


@pytest.mark.parametrize(
    ("backbone", "features"),
    [
        ("resnet18", 512),
        ("googlenet", 1024),
        ("densenet121", 1024),
        pytest.param("vgg11_bn", 4096, marks=pytest.mark.slow),
    ],
)
def test_the_slim_classifier_is_the_dense_one_without_its_reset_hypothesis(backbone, features):
    network = lived_in(network_of("linear", backbone))
    plan = plan_split(network, IMAGES[:1], rate=0.5)
    head = plan.weights["head.weight"]
    assert (head.outputs.count, head.inputs.count, head.inputs.size) == (CLASSES, features // 2, features)
    assert not plan.norms
    assert not plan.kept_whole
    slim = extract_slim(network, plan)
    zero_reset(network, plan)
    with torch.no_grad():
        dense_logits, slim_logits = network(IMAGES), slim(IMAGES)
    assert slim_logits.shape == (3, CLASSES)
    assert slim_logits.std() > 0
    torch.testing.assert_close(slim_logits, dense_logits, rtol=1e-5, atol=1e-5 * float(dense_logits.abs().max()))


@pytest.mark.parametrize("backbone", ["resnet18", "googlenet"])
def test_cosines_of_the_slim_classifier_are_those_of_the_fit_features(backbone):
    network = lived_in(network_of("cosine", backbone))
    plan = plan_split(network, IMAGES[:1], rate=0.5)
    head = plan.weights["head.weight"]
    assert (head.outputs.count, head.inputs.count) == (CLASSES, head.inputs.size // 2)
    # The length of a feature is taken over the fit channels, and only there the slim network differs.
    assert set(plan.norms) == {"head"}
    assert plan.norms["head"].channels == head.inputs
    assert not plan.kept_whole
    slim = extract_slim(network, plan)
    zero_reset(network, plan)
    with torch.no_grad():
        features = network.features(IMAGES)
        slim_logits = slim(IMAGES)
        fit = features[:, head.inputs.index]
        # The reset part of a weight is 0: its cosine is that of the fit part.
        weights = network.head.weight[:, head.inputs.index]
        expected = [[cosine(row, weight) for weight in weights.tolist()] for row in fit.tolist()]
        dense_logits = network(IMAGES)
        ratio = features.norm(dim=1, keepdim=True) / fit.norm(dim=1, keepdim=True)
    torch.testing.assert_close(slim_logits, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slim_logits, dense_logits * ratio, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["kels", "wels"])
def test_the_weight_of_the_head_is_split_and_redrawn(head, kind):
    network, untouched = network_of(head), network_of(head)
    plan = plan_split(network, IMAGES[:1], rate=0.5, kind=kind, seed=3)
    fresh = network_of(head, number=2)
    for init in ("official", "same_as_init", "orthogonal"):
        redraw_reset(network, plan, generator=torch.Generator().manual_seed(1), init=init, fresh=fresh)
        fit = plan.masks["head.weight"]
        assert int(fit.sum()) == CLASSES * 48
        assert torch.equal(network.head.weight[fit], untouched.head.weight[fit])
        assert not (network.head.weight == untouched.head.weight)[~fit].any()


# Stored.


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("width", ["dense", "slim", "slim cut again"])
def test_a_stored_classifier_gives_the_same_logits(head, width, tmp_path):
    network = lived_in(network_of(head))
    for _ in range(["dense", "slim", "slim cut again"].index(width)):
        network = extract_slim(network, plan_split(network, IMAGES[:1], rate=0.5))
    recipe = recipe_of(head)
    save_network(
        network,
        tmp_path / "n",
        architecture=Architecture.of_recipe(recipe, classes=CLASSES),
        card=NetworkCard.of_recipe(recipe, class_names=NAMES),
    )
    loaded = load_network(tmp_path / "n")
    assert type(loaded) is Classifier
    assert type(loaded.head) is type(network.head)
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), network(IMAGES))
        assert torch.equal(loaded.features(IMAGES), network.features(IMAGES))
    described = read_description(tmp_path / "n")
    assert described.class_names == NAMES
    assert described.embedding_size is None
    assert (described.architecture.classes, described.architecture.network.head) == (CLASSES, head)
    assert described.normalization.resize == 40


def test_class_names_are_one_for_each_class(tmp_path):
    recipe, network = recipe_of("linear"), network_of("linear")
    architecture = Architecture.of_recipe(recipe, classes=CLASSES)
    with pytest.raises(KeMetricError, match="6 class names for 7 classes") as caught:
        save_network(network, tmp_path / "n", architecture=architecture, card=NetworkCard(class_names=NAMES[1:]))
    assert caught.value.exit_code is ExitCode.RECIPE
    assert not (tmp_path / "n").exists()
    save_network(network, tmp_path / "n", architecture=architecture, card=NetworkCard(class_names=NAMES))
    document = json.loads((tmp_path / "n" / CONFIG).read_text())
    document["class_names"].append("one more")
    (tmp_path / "n" / CONFIG).write_text(json.dumps(document))
    with pytest.raises(KeMetricError, match=r"class_names.*8 class names for 7 classes") as caught:
        load_network(tmp_path / "n")
    assert caught.value.exit_code is ExitCode.DATA


def test_a_network_with_the_other_head_is_not_stored_as_this_one(tmp_path):
    with pytest.raises(KeMetricError, match="head is a CosineHead, the architecture has a Linear"):
        save_network(
            network_of("cosine"),
            tmp_path / "n",
            architecture=Architecture.of_recipe(recipe_of("linear"), classes=CLASSES),
        )


@pytest.mark.parametrize(("task", "classes"), [("classification", None), ("classification", 1), ("retrieval", 7)])
def test_the_architecture_of_a_recipe_goes_by_its_task(task, classes):
    with pytest.raises(KeMetricError, match=f"task = '{task}': classes = {classes}") as caught:
        Architecture.of_recipe(recipe_of("linear", task), classes=classes)
    assert caught.value.exit_code is ExitCode.RECIPE


# Embedding networks.


@pytest.fixture
def network():
    with default_streams(0, 1, "network"):
        return build_network(EMBEDDER, 32)


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("half", [False, True])
def test_embeddings_have_unit_length(network, images, half):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        embeddings = network.eval()(images)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (4, 24)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


def test_embedding_is_the_head_of_the_feature(images):
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(3, 5)
    raw = images.mean(dim=(2, 3)) @ head.weight.T + head.bias
    expected = raw / raw.square().sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(EmbeddingNetwork(backbone, head)(images), expected)


def test_the_head_fits_the_backbone(network):
    assert (network.head.in_features, network.head.out_features) == (96, 24)


def test_a_split_keeps_every_output(network, images):
    plan = plan_split(network, images[:1], rate=0.5)
    assert plan.weights["head.weight"].outputs.count == 24
    assert plan.weights["head.weight"].inputs.count == 48
    embeddings = extract_slim(network, plan).eval()(images)
    assert embeddings.shape == (4, 24)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


def test_the_same_stream_gives_the_same_network(network):
    with default_streams(0, 1, "network"):
        again = build_network(EMBEDDER, 32)
    with default_streams(0, 2, "network"):
        other = build_network(EMBEDDER, 32)
    assert torch.equal(network.head.weight, again.head.weight)
    assert not torch.equal(network.head.weight, other.head.weight)


def test_pretrained_weights_of_an_embedding_network_can_be_left_out(monkeypatch):
    def refuse(*_, **__):
        raise OSError("asked for weights")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    section = Network(backbone="squeezenet1_1", pretrained=True)
    assert build_network(section, 64, load_pretrained=False).head.in_features == 512
    with pytest.raises(KeMetricError, match="asked for weights") as raised:
        build_network(section, 64)
    assert raised.value.exit_code == ExitCode.ENVIRONMENT
