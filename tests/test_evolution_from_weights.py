"""Lineages that start from given weights: what a child redraws and with what, what is frozen, what a record says."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ke_metric.arrays import weights_digest
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evolution import LineageTraining, Start, evolve
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.lineage import files
from ke_metric.networks.bundle_config import Architecture
from ke_metric.recipe.schema import Recipe
from ke_metric.split.plan import SplitPlan
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver

FROZEN = "backbone.layer1"
SIZE = 32


def part(name, classes, seed):
    labels = np.repeat(np.arange(classes), 4).astype(np.int64)
    tint = 25 * np.stack([labels, labels % 2, -labels], axis=1)[:, None, None, :]
    pixels = np.random.default_rng(seed).integers(110, 150, (len(labels), SIZE, SIZE, 3)) + tint
    sides = np.full(len(labels), SIZE, np.int64)
    images = ImageSet(tuple(f"{name}-{number}" for number in range(len(labels))), labels, tuple("abcd"), None)
    return images, PixelStore(pixels.astype(np.uint8).reshape(-1), sides, widths=sides)


@pytest.fixture(scope="module")
def pictures():
    (train, train_store), (test, test_store) = part("train", 4, 0), part("test", 4, 1)
    return Pictures(Benchmark("noise", train, test, test), train_store, test_store, test_store)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of another training; every value is its own."""
    network = timm.create_model("test_resnet")
    generator = torch.Generator().manual_seed(3)
    state = {
        name: 0.05 + 0.1 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else value + 5
        for name, value in network.state_dict().items()
    }
    path = tmp_path_factory.mktemp("given") / "weights.pt"
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, path)
    return path


@pytest.fixture(scope="module")
def given(file):
    """Name in the network to the value in the file, which has weights of a classifier besides."""
    state = torch.load(file, weights_only=True)["model"]
    named = {name.replace("module.", "backbone."): value for name, value in state.items()}
    return {name: value for name, value in named.items() if not name.startswith("backbone.fc.")}


def recipe_of(file=None, **sections):
    fields = {
        "name": "squares",
        "generations": 2,
        "data": {"image_size": 32, "store_size": 32},
        "network": {"backbone": "timm/test_resnet", "embedding_size": 8} | ({"weights": str(file)} if file else {}),
        "loss": {"name": "ProxyAnchorLoss", "learning_rate_factor": 10},
        "batches": {"size": 8, "images_per_class": 2},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "training": {"epochs": 2, "precision": "fp32"},
        "evaluation": {"recall_at": [1], "resize": 32, "kmeans_seeds": 1, "backend": "torch"},
    }
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section if isinstance(section, dict) else section
    return Recipe.model_validate(fields)


def training_of(recipe, pictures):
    return LineageTraining(recipe, pictures, Engine("fp32", "cpu"))


def begun(recipe, pictures, parent=None):
    """Return the state dict that a generation begins with, and its split plan."""
    training = training_of(recipe, pictures)
    inheritance = training.inheritance(parent.number + 1 if parent else 1, parent)
    state = training.assemble(inheritance, rehearsed=False).network.state_dict()
    return {name: value.clone() for name, value in state.items()}, inheritance.plan


class Recorder(TrainingObserver):
    def __init__(self):
        self.notes, self.states = [], []

    def note(self, text):
        self.notes.append(text)

    def epoch_done(self, state):
        self.states.append(state)


@pytest.fixture(scope="module")
def grown(pictures, file):
    """Two generations of Knowledge Evolution, and what their training said."""
    recorder = Recorder()
    return list(evolve(recipe_of(file), pictures, device="cpu", watch=recorder)), recorder


def test_generation_1_begins_with_the_backbone_of_the_file_and_the_head_of_its_seed(pictures, file, given):
    found, _ = begun(recipe_of(file), pictures)
    random, _ = begun(recipe_of(), pictures)
    for name, value in found.items():
        assert torch.equal(value, given.get(name, random[name])), name
    assert not torch.equal(found["backbone.layer1.0.conv1.weight"], random["backbone.layer1.0.conv1.weight"])


@pytest.mark.parametrize("reset", ["official", "same_as_init", "orthogonal", "zero"])
def test_a_child_redraws_its_reset_hypothesis_with_random_values(reset, pictures, file, given, grown):
    """As from a random start: given values would be the same ones in every generation."""
    (parent, _), _ = grown
    child, plan = begun(recipe_of(file, method={"reset": reset}), pictures, parent)
    random, _ = begun(recipe_of(method={"reset": reset}), pictures, parent)
    assert weights_digest(child) == weights_digest(random)
    assert plan.masks
    for name, value in child.items():
        fit = plan.masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value[fit], parent.weights[name][fit]), name
        if name in given and not fit.all():
            assert not (value[~fit] == given[name][~fit]).any(), name


def test_a_child_goes_back_to_the_weights_it_started_from(pictures, file, given, grown):
    (parent, _), _ = grown
    child, plan = begun(recipe_of(file, method={"reset": "starting_weights"}), pictures, parent)
    drawn, _ = begun(recipe_of(file, method={"reset": "same_as_init"}), pictures, parent)
    changed = 0
    for name, value in child.items():
        fit = plan.masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value[fit], parent.weights[name][fit]), name
        assert torch.equal(value[~fit], given.get(name, drawn[name])[~fit]), name
        changed += int((~fit).sum())
    assert changed == plan.reset_count > 0


@pytest.mark.parametrize(
    "method",
    [
        {"name": "later_layer_forgetting", "layers": ["layer4"]},
        {"name": "neural_regeneration"},
    ],
    ids=lambda method: method["name"],
)
def test_other_methods_go_back_too(method, pictures, file, given, grown):
    (parent, _), _ = grown
    child, _ = begun(recipe_of(file, method={**method, "reset": "starting_weights"}), pictures, parent)
    reset = {name: value != parent.weights[name] for name, value in child.items()}
    assert any(flags.any() for name, flags in reset.items() if name in given)
    for name, flags in reset.items():
        if name in given:
            assert torch.equal(child[name][flags], given[name][flags]), name


def frozen_recipe(file, **sections):
    sections["network"] = {"freeze": [FROZEN]} | sections.get("network", {})
    return recipe_of(file, **sections)


def frozen_of(weights):
    return {name: value for name, value in weights.items() if name.startswith(f"{FROZEN}.")}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"method": {"reset": "starting_weights"}},
        {"method": {"name": "restarts"}},
        {"method": {"name": "neural_regeneration"}},
        {"method": {"name": "later_layer_forgetting", "layers": ["layer1"]}},
        {"split": {"kind": "wels"}},
        {"optimizer": {"name": "sgd", "weight_decay": 0.1}},
        {"split": {"rates": [0.5]}, "evaluation": {"slim_repair": "statistics"}},
    ],
    ids=str,
)
def test_what_is_frozen_stays_in_every_generation(sections, pictures, file, given):
    """Weights, norm statistics and their counters; everything else learns."""
    generations = list(evolve(frozen_recipe(file, **sections), pictures, device="cpu"))
    expected = frozen_of(given)
    assert len(expected) > 10
    for generation in generations:
        found = frozen_of(generation.weights)
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
        learnt = [name for name, value in given.items() if not torch.equal(value, generation.weights[name])]
        assert set(given) - set(learnt) == set(expected)


def test_the_slim_network_has_the_fit_part_of_what_is_frozen(pictures, file, given):
    (generation,) = evolve(frozen_recipe(file, generations=1), pictures, device="cpu")
    training = training_of(frozen_recipe(file, generations=1), pictures)
    dense, plan = training.networks.restore(generation)
    slim = training.networks.slim(dense, generation).state_dict()
    name = f"{FROZEN}.0.conv1.weight"
    rows, columns = (axis.index for axis in plan.weights[name].axes)
    assert torch.equal(slim[name], given[name][rows][:, columns])
    assert all(parameter.requires_grad for parameter in dense.parameters()), "it is stored as any network"


def test_the_last_generation_alone_may_be_slim(pictures, file, given):
    recipe = frozen_recipe(file, method={"slim_last": True})
    last = list(evolve(recipe, pictures, device="cpu"))[-1]
    plan = training_of(recipe, pictures).networks.plan_at(training_of(recipe, pictures).networks.build(1), 0.5)
    name = f"{FROZEN}.0.conv1.weight"
    rows, columns = (axis.index for axis in plan.weights[name].axes)
    assert torch.equal(last.weights[name], given[name][rows][:, columns])


def norms_of(recipe, pictures):
    training = training_of(recipe, pictures)
    training = training.assemble(training.inheritance(1, None))
    training.begin_training()
    norms = {name: part for name, part in training.network.named_modules() if isinstance(part, _BatchNorm)}
    assert all(part.training for name, part in training.network.named_modules() if name not in norms)
    return {name: norm.training for name, norm in norms.items()}


def test_norms_at_rest_are_those_that_are_frozen_or_all(pictures, file):
    assert set(norms_of(recipe_of(file), pictures).values()) == {True}
    frozen = norms_of(frozen_recipe(file), pictures)
    assert {name for name, trains in frozen.items() if not trains} == {
        name for name in frozen if name.startswith(FROZEN)
    }
    assert len(set(frozen.values())) == 2
    assert set(norms_of(recipe_of(file, training={"norm_statistics": "stored"}), pictures).values()) == {False}


def test_stored_statistics_stay_and_their_norms_learn(pictures, file, given):
    recipe = recipe_of(file, training={"norm_statistics": "stored"})
    for generation in evolve(recipe, pictures, device="cpu"):
        for name, value in given.items():
            is_statistic = name.endswith(("running_mean", "running_var", "tracked"))
            assert torch.equal(value, generation.weights[name]) == is_statistic, name


def test_the_backbone_has_its_own_learning_rate(pictures, file):
    """It moves less from one step, and all else as much: gradients of the first step are the same."""

    def moved(factor):
        recipe = recipe_of(file, optimizer={"name": "sgd", "backbone_factor": factor, "weight_decay": 0})
        training = training_of(recipe, pictures)
        training = training.assemble(training.inheritance(1, None))
        before = {name: value.clone() for name, value in training.network.named_parameters()}
        training.begin_training()
        training.take_step(0, next(training.epochs.epoch(1)))
        return {name: value.detach() - before[name].detach() for name, value in training.network.named_parameters()}

    whole, tenth = moved(1.0), moved(0.1)
    for name, change in whole.items():
        expected = change if name.startswith("head.") else change * 0.1
        torch.testing.assert_close(tenth[name], expected, rtol=1e-3, atol=1e-7)
        assert change.abs().max() > 0


def test_a_factor_of_1_trains_as_ever(pictures):
    plain, factor = (recipe_of(generations=1, optimizer=section) for section in ({}, {"backbone_factor": 1.0}))
    assert plain.digest == factor.digest
    training = training_of(plain, pictures)
    groups = training.assemble(training.inheritance(1, None)).optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [
        len(list(training.networks.build(1).parameters())),
        1,
    ]


@pytest.mark.parametrize("number", [1, 2])
def test_a_resume_is_bit_identical(number, pictures, file, tmp_path):
    """With everything that is new, from a state that was on the disk."""
    recipe = frozen_recipe(
        file,
        optimizer={"backbone_factor": 0.1},
        training={"norm_statistics": "stored"},
        method={"reset": "starting_weights"},
    )
    recorder = Recorder()
    generations = list(evolve(recipe, pictures, device="cpu", watch=recorder))
    state = next(state for state in recorder.states if (state.number, state.epoch) == (number, 1))
    files.replace_state(tmp_path / "state", state)
    stored = files.read_state(files.newest_state(tmp_path / "state", number), number)
    start = Start(generations[0] if number == 2 else None, stored)
    again = list(evolve(recipe, pictures, device="cpu", start=start))
    assert [weights_digest(each.weights) for each in again] == [
        weights_digest(each.weights) for each in generations[number - 1 :]
    ]


def test_slim_alone_starts_from_the_slim_part(pictures, file, given):
    recipe = recipe_of(file, method={"name": "slim_alone"})
    found, _ = begun(recipe, pictures)
    networks = training_of(recipe, pictures).networks
    plan = networks.plan_at(networks._dense(load_pretrained=False), 0.5)
    name = "backbone.layer1.0.conv1.weight"
    rows, columns = (axis.index for axis in plan.weights[name].axes)
    assert torch.equal(found[name], given[name][rows][:, columns])


def test_layer_wise_keeps_the_norms_of_the_given_weights(pictures, file, given, grown):
    (parent, _), _ = grown
    recipe = recipe_of(file, generations=40, method={"name": "layer_wise"})
    late = replace(parent, number=39, provenance=replace(parent.provenance, parent_digest="0"))
    child, _ = begun(recipe, pictures, late)
    name = "backbone.layer1.0.conv1.weight"
    torch.testing.assert_close(child[name].norm(), given[name].norm())
    assert not torch.isclose(parent.weights[name].norm(), given[name].norm(), rtol=1e-6)


def test_what_is_told_and_recorded(file, grown):
    generations, recorder = grown
    told = [note for note in recorder.notes if note.startswith("starting weights: ")]
    assert len(told) == 1
    assert "matched" in told[0]
    assert "module.fc.weight, module.fc.bias" in told[0]
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    for generation in generations:
        record = generation.provenance.training["starting_weights"]
        assert json.loads(json.dumps(record)) == record
        assert (record["file"], record["sha256"]) == (str(file), sha256)
        assert (record["missing"], record["left_over"]) == (0, 2)


def test_a_random_start_is_recorded_as_ever(pictures):
    (generation,) = evolve(recipe_of(generations=1, training={"epochs": 1}), pictures, device="cpu")
    assert "starting_weights" not in generation.provenance.training


def test_the_first_weights_that_a_later_generation_reads_are_the_same_ones(pictures, file, grown, tmp_path):
    (parent, _), _ = grown
    other = tmp_path / "weights.pt"
    state = torch.load(file, weights_only=True)["model"]
    torch.save({name: value * 2 for name, value in state.items()}, other)
    recipe = recipe_of(other, method={"reset": "starting_weights"})
    with pytest.raises(
        KeMetricError, match=r"weights\.pt': has changed since generation 1 started from it"
    ) as raised:
        list(evolve(recipe, pictures, device="cpu", start=Start(parent)))
    assert raised.value.exit_code == ExitCode.DATA
    moved = tmp_path / "moved.pt"
    moved.write_bytes(file.read_bytes())
    list(evolve(recipe_of(moved, method={"reset": "starting_weights"}), pictures, device="cpu", start=Start(parent)))


def test_a_generation_that_does_not_read_the_file_does_without(pictures, tmp_path, grown):
    generations, _ = grown
    (again,) = evolve(recipe_of(tmp_path / "gone.pt"), pictures, device="cpu", start=Start(generations[0]))
    assert weights_digest(again.weights) == weights_digest(generations[1].weights)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"network": {"freeze": ["backbone.layr1"]}}, "no module 'backbone.layr1' with parameters; did you mean"),
        ({"network": {"freeze": ["backbone.act1"]}}, "no module 'backbone.act1' with parameters"),
        (
            {"network": {"freeze": ["backbone"]}, "split": {"keep_whole": ["backbone.layer4"]}},
            "every weight of this EmbeddingNetwork with a reset part is frozen",
        ),
    ],
)
def test_what_cannot_be_frozen_is_refused_before_any_training(sections, words, pictures, file):
    with pytest.raises(KeMetricError, match=words) as raised:
        training_of(recipe_of(file, **sections), pictures).require_buildable()
    assert raised.value.exit_code == ExitCode.RECIPE


def test_all_of_the_backbone_may_be_frozen(pictures, file, given):
    recipe = recipe_of(file, network={"freeze": ["backbone"]})
    generations = list(evolve(recipe, pictures, device="cpu"))
    for generation in generations:
        assert all(torch.equal(value, generation.weights[name]) for name, value in given.items())
    heads = [generation.weights["head.weight"] for generation in generations]
    assert not torch.equal(*heads)
    plan = SplitPlan.from_json(generations[0].split, generations[0].split_bits)
    assert not plan.masks["head.weight"].all()


def test_what_travels_does_not_say_where_it_came_from(file):
    stored = Architecture.of_recipe(frozen_recipe(file)).model_dump(mode="json")["network"]
    assert (stored["weights"], stored["freeze"]) == (None, [])
