"""Everything that builds a lineage's networks builds the same ones."""

import pytest
import torch

from ke_metric.arrays import weights_digest
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.networks import recipe_networks as module
from ke_metric.networks.dense import Classifier, build_network
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Recipe
from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.planning import plan_split

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def networks_of(classes=5, **sections):
    fields = {
        "name": "x",
        "data": {"image_size": 32},
        "network": {"backbone": "timm/test_resnet"}
        | ({} if sections.get("task") == "classification" else {"embedding_size": 8}),
        "evaluation": {"resize": 32},
    }
    return LineageNetworks(Recipe.model_validate(fields | sections), classes)


def digest(network):
    return weights_digest(network.state_dict())


def test_generations_begin_with_weights_of_their_own():
    one, again, two, seed = (
        digest(networks_of(**facts).build(number)) for facts, number in (({}, 1), ({}, 1), ({}, 2), ({"seed": 1}, 1))
    )
    assert one == again
    assert len({one, two, seed}) == 3


def test_an_embedding_network_is_built_by_the_stream_of_its_generation():
    recipe = networks_of().recipe
    with default_streams(recipe.seed, 3, "network"):
        expected = build_network(recipe.network, 32)
    assert digest(networks_of().build(3)) == digest(expected)


def test_building_leaves_the_default_streams_alone():
    random = torch.get_rng_state()
    networks_of().plan(networks_of().build(1), 1)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_classifier_has_as_many_outputs_as_classes():
    network = networks_of(task="classification").build(1)
    assert isinstance(network, Classifier)
    assert network(IMAGES).shape == (2, 5)
    assert networks_of().build(1)(IMAGES).shape == (2, 8)


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_the_plan_is_the_recipes(task):
    split = {"rate": 0.5, "keep_whole": ["backbone.layer4"], "channel_multiple": 12}
    networks = networks_of(task=task, split=split)
    network = networks.build(1)
    plan = networks.plan(network, 1)
    expected = plan_split(network, torch.zeros(1, 3, 32, 32), **split)
    assert plan.to_json() == expected.to_json()
    assert plan.weights["head.weight"].outputs.count == (5 if task == "classification" else 8)


def test_the_masks_of_single_weights_go_by_the_seed_alone():
    masks = [
        weights_digest(
            networks_of(split={"kind": "wels"}, seed=seed).plan(networks_of().build(number), number).to_tensors()
        )
        for seed, number in ((0, 1), (0, 2), (1, 1))
    ]
    assert masks[0] == masks[1] != masks[2]


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_slim_alone_is_cut_from_the_dense_network_of_the_same_seed(task):
    dense, alone = networks_of(task=task), networks_of(task=task, method={"name": "slim_alone"})
    for number in (1, 2):
        network = dense.build(number)
        expected = extract_slim(network, dense.plan(network, number))
        slim = alone.build(number)
        assert digest(slim) == digest(expected)
        assert torch.equal(slim.eval()(IMAGES), expected.eval()(IMAGES))
        plan = alone.plan(slim, 1)
        assert (plan.rate, plan.reset_count) == (1, 0)
        assert torch.equal(extract_slim(slim, plan).eval()(IMAGES), slim(IMAGES))


def test_slim_alone_keeps_whole_what_the_recipe_keeps_whole():
    split = {"rate": 0.5, "keep_whole": ["backbone.layer4"], "channel_multiple": 12}
    alone = networks_of(split=split, method={"name": "slim_alone"})
    slim = alone.build(1)
    assert len(slim.get_parameter("backbone.layer1.0.conv1.weight")) == 24
    assert len(slim.get_parameter("backbone.layer4.0.conv1.weight")) == 96
    assert alone.plan(slim, 1).reset_count == 0


def test_the_channels_are_those_of_the_network():
    graph = networks_of().channels()
    weights = [name for name, value in networks_of().build(1).named_parameters() if value.ndim > 1]
    assert set(graph.layers) == set(weights)


def test_pretrained_weights_are_loaded_when_asked_for(monkeypatch):
    asked, build = [], module.build_network

    def note(*arguments, load_pretrained):
        asked.append(load_pretrained)
        return build(*arguments, load_pretrained=False)

    monkeypatch.setattr(module, "build_network", note)
    networks_of().build(1)
    networks_of().build(1, load_pretrained=True)
    assert asked == [False, True]


def test_networks_that_cannot_be_built():
    with pytest.raises(KeMetricError, match="resnet81") as raised:
        networks_of(network={"backbone": "resnet81"}).build(1)
    assert raised.value.exit_code == ExitCode.RECIPE
    with pytest.raises(KeMetricError, match="2 classes or more"):
        networks_of(1, task="classification").build(1)


def test_the_last_generation_may_be_the_slim_network():
    networks = networks_of(method={"slim_last": True}, generations=3)
    dense, slim = networks.build(2), networks.build(3)
    expected = extract_slim(networks_of().build(3), networks.plan(dense, 2))
    assert digest(slim) == digest(expected)
    assert networks.plan(slim, 3).rate == 1.0
    assert networks.plan(dense, 2).rate == 0.5


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_stored_generation_comes_back_as_it_was_scored(channels_last):
    """Its weights, not the random ones of its number; its plan; its layout in memory."""
    networks = networks_of(training={"channels_last": channels_last})
    network = networks.build(2)
    plan = networks.plan(network, 2)
    with torch.no_grad():
        network.head.weight.mul_(3)
    restored, restored_plan = networks.restore(stored(network, plan))
    assert digest(restored) == digest(network) != digest(networks.build(2))
    assert restored_plan == plan
    convolution = max((weight for weight in restored.parameters() if weight.ndim == 4), key=torch.Tensor.numel)
    assert convolution.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_weights_of_another_network_are_refused():
    networks = networks_of()
    network = networks.build(1)
    generation = stored(network, networks.plan(network, 1))
    del generation.weights["head.weight"]
    with pytest.raises(KeMetricError, match="the stored weights do not fit the recipe's network"):
        networks.restore(generation)


def stored(network, plan):
    return Generation(
        number=2,
        weights=network.state_dict(),
        loss_weights={},
        split=plan.to_json(),
        split_bits=plan.to_tensors(),
        scorecard=Scorecard({}, None, 1, None),
        training_log=(),
        magnitudes={},
        provenance=Provenance("0", "1", 0, {}, {}, {}),
    )
