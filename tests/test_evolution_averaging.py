"""Lineages of averaged weights: what is scored, stored and inherited, and that going on is never having stopped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ke_metric import slim_repair
from ke_metric.arrays import weights_digest
from ke_metric.cli.train import expected_disk
from ke_metric.evolution import LineageTraining, Start, evolve
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.lineage import files
from ke_metric.recipe.schema import Recipe
from ke_metric.scoring import Scorer, count_parameters
from ke_metric.slim_repair import augmented_pictures
from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.repair import estimate_norm_statistics
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver

SIZE = 32
CPU = torch.device("cpu")
STATISTICS = ("running_mean", "running_var")
JOINT = {"split": {"rates": [0.25, 0.5]}, "evaluation": {"slim_repair": "statistics"}}


@pytest.fixture(scope="module", autouse=True)
def few_pictures_to_measure():
    """Of 16 training pictures, 64 draws say as much as a thousand."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(slim_repair, "MOST_IN_MEMORY", 64)
        yield


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


def recipe_of(**sections):
    fields = {
        "name": "noise",
        "generations": 2,
        "data": {"image_size": SIZE, "store_size": SIZE},
        "network": {"backbone": "timm/test_resnet", "embedding_size": 8},
        "loss": {"name": "ProxyAnchorLoss", "learning_rate_factor": 10},
        "batches": {"size": 8, "images_per_class": 2},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "training": {"epochs": 3, "precision": "fp32"},
        "evaluation": {"recall_at": [1], "resize": SIZE, "kmeans_seeds": 1, "backend": "torch"},
    }
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section if isinstance(section, dict) else section
    return Recipe.model_validate(fields)


def averaged(last=False, **sections):
    kind = {"average_last": 2} if last else {"average": 0.9}
    return recipe_of(training=kind | sections.pop("training", {}), **sections)


class Recorder(TrainingObserver):
    def __init__(self):
        self.states = []

    def epoch_done(self, state):
        self.states.append(state)


def grow(recipe, pictures, start=None):
    recorder = Recorder()
    return list(evolve(recipe, pictures, device="cpu", start=start, watch=recorder)), recorder.states


def training_of(recipe, pictures):
    return LineageTraining(recipe, pictures, Engine("fp32", "cpu"))


@pytest.fixture(scope="module", params=[False, True], ids=["moving", "last"])
def grown(request, pictures):
    recipe = averaged(request.param)
    return recipe, *grow(recipe, pictures)


def is_statistic(name):
    return name.endswith(STATISTICS)


def test_what_is_stored_is_the_average_with_statistics_of_its_own(grown, pictures):
    recipe, generations, states = grown
    for generation in generations:
        state = next(each for each in states if (each.number, each.epoch) == (generation.number, 3))
        for name, value in generation.weights.items():
            if not is_statistic(name):
                assert torch.equal(value, state.average.get(name, state.weights[name])), name
        network, _ = training_of(recipe, pictures).networks.restore(generation)
        estimate_norm_statistics(network, augmented_pictures(pictures, recipe, CPU, generation.number))
        measured = {name: value for name, value in network.state_dict().items() if is_statistic(name)}
        assert measured
        for name, value in measured.items():
            torch.testing.assert_close(generation.weights[name], value, rtol=1e-4, atol=1e-6)
            assert not torch.allclose(generation.weights[name], state.weights[name], rtol=1e-3), name
        assert generation.last_weights == {}


def test_what_is_stored_gives_its_scorecard_dense_and_slim(grown, pictures):
    recipe, generations, _ = grown
    for generation in generations:
        network, plan = training_of(recipe, pictures).networks.restore(generation)
        scorer = Scorer(pictures, recipe, Engine("fp32", "cpu"))
        assert scorer.score(network) == generation.scorecard.dense
        assert scorer.score(extract_slim(network, plan)) == generation.scorecard.slim


def test_the_average_is_another_network_than_the_last_one(grown, pictures):
    _, generations, states = grown
    plain, _ = grow(recipe_of(generations=1), pictures)
    assert weights_digest(states[2].weights) == weights_digest(plain[0].weights)
    assert weights_digest(states[2].weights) != weights_digest(generations[0].weights)


def begun_from(recipe, pictures, parent):
    training = training_of(recipe, pictures)
    return training.assemble(training.inheritance(2, parent), rehearsed=False).network.state_dict()


@pytest.mark.parametrize("last", [False, True])
def test_a_child_inherits_what_the_recipe_says(last, pictures):
    inherits, keeps = (averaged(last, method={"name": "restarts", "inherit_average": flag}) for flag in (True, False))
    (scored, _), _ = grow(inherits, pictures)
    (beside, _), states = grow(keeps, pictures)
    assert weights_digest(scored.weights) == weights_digest(beside.weights)
    assert scored.scorecard == beside.scorecard
    assert weights_digest(beside.last_weights) == weights_digest(states[2].weights)
    assert weights_digest(begun_from(inherits, pictures, scored)) == weights_digest(scored.weights)
    assert weights_digest(begun_from(keeps, pictures, beside)) == weights_digest(beside.last_weights)


def test_a_lineage_that_inherits_no_average_trains_as_without_one(pictures):
    keeps, _ = grow(averaged(method={"inherit_average": False}), pictures)
    plain, _ = grow(recipe_of(), pictures)
    for found, expected in zip(keeps, plain, strict=True):
        assert weights_digest(found.last_weights) == weights_digest(expected.weights)
        assert weights_digest(found.loss_weights) == weights_digest(expected.loss_weights)


def test_the_teacher_is_the_average_whatever_is_inherited(pictures):
    recipe = averaged(method={"inherit_average": False, "teacher_weight": 1.0})
    one = next(evolve(recipe, pictures, device="cpu"))
    hooks = training_of(recipe, pictures).assemble(training_of(recipe, pictures).inheritance(2, one)).hooks
    assert weights_digest(hooks._teacher.state_dict()) == weights_digest(one.weights)


def test_a_dry_run_counts_the_average_and_what_is_kept_beside_it(pictures):
    def bytes_of(recipe):
        _, training = training_of(recipe, pictures).require_buildable()
        return expected_disk(training), 4 * (count_parameters(training.network) + count_parameters(training.loss))

    plain, weights = bytes_of(recipe_of())
    assert bytes_of(averaged())[0] == plain + 2 * weights, "in each of two states"
    assert bytes_of(averaged(method={"inherit_average": False}))[0] == plain + 4 * weights, "and two generations"


def test_a_slim_last_generation_and_saliency_go_by_what_is_inherited(pictures):
    keeps = averaged(method={"inherit_average": False, "slim_last": True})
    one = next(evolve(keeps, pictures, device="cpu"))
    training = training_of(keeps, pictures)
    begun = training.assemble(training.inheritance(2, one), rehearsed=False).network
    network, plan = training.networks.restore(one)
    network.load_state_dict(one.last_weights)
    assert weights_digest(begun.state_dict()) == weights_digest(extract_slim(network, plan).state_dict())
    regenerates = averaged(method={"name": "neural_regeneration", "inherit_average": False}, split={"kind": "wels"})
    one = next(evolve(regenerates, pictures, device="cpu"))
    found = training_of(regenerates, pictures).gradients(one)
    plain = training_of(regenerates, pictures).gradients(replace(one, last_weights={}))
    assert weights_digest(found) != weights_digest(plain)


CASES = {
    "moving": averaged(),
    "last": averaged(last=True),
    "not inherited": averaged(method={"inherit_average": False}),
    "joint widths": averaged(**JOINT),
    "taught": averaged(last=True, method={"teacher_weight": 1.0}),
    "sparse": averaged(method={"name": "dense_sparse_dense"}, split={"kind": "wels"}),
    "inherited proxies": averaged(method={"reset_loss": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_going_on_is_never_having_stopped(case, pictures, tmp_path):
    """From every epoch, through files, also from the last one, after which only scores are missing."""
    recipe = CASES[case]
    generations, states = grow(recipe, pictures)
    # Before there is a mean of the last epochs, with a parent, and after the last epoch.
    for state in (states[0], states[4], states[5]):
        folder = tmp_path / f"{state.number}-{state.epoch}"
        files.write_state(folder, state)
        parent = None
        if state.number == 2:
            files.write_generation(tmp_path / f"parent-{state.epoch}", generations[0])
            parent = files.read_generation(tmp_path / f"parent-{state.epoch}", 1)
        start = Start(parent, files.read_state(folder, state.number))
        found = next(evolve(recipe, pictures, device="cpu", start=start))
        expected = generations[state.number - 1]
        for name in ("weights", "loss_weights", "last_weights"):
            assert weights_digest(getattr(found, name)) == weights_digest(getattr(expected, name)), name
        assert found.scorecard == expected.scorecard


def test_a_sparse_average_is_as_sparse(pictures):
    _, two = grow(CASES["sparse"], pictures)[0]
    zeros = [(value == 0).float().mean() for name, value in two.weights.items() if value.ndim > 1]
    assert min(zeros) > 0.25


def test_slim_networks_of_joint_widths_are_cut_from_the_average(pictures):
    recipe = CASES["joint widths"]
    for generation in grow(recipe, pictures)[0]:
        networks = training_of(recipe, pictures).networks
        network, _ = networks.restore(generation)
        scorer = Scorer(pictures, recipe, Engine("fp32", "cpu"))
        assert scorer.score(networks.slim(network, generation)) == generation.scorecard.slim
        found = scorer.score(networks.slim(network, generation, 0.25))
        assert found == generation.scorecard.narrow["0.25"].scores


def test_classifiers_are_averaged_with_their_head(pictures):
    sections = {"task": "classification", "loss": {"name": "CrossEntropyLoss"}, "generations": 1}
    recipe = averaged(**sections, network={"backbone": "timm/test_resnet", "embedding_size": 128})
    (found,), states = grow(recipe, pictures)
    assert torch.equal(found.weights["head.weight"], states[-1].average["head.weight"])
    assert not torch.equal(found.weights["head.weight"], states[-1].weights["head.weight"])


@pytest.fixture(scope="module")
def file(tmp_path_factory, pictures):
    """Weights to start from, with norm statistics of their own."""
    network = training_of(recipe_of(), pictures).networks.build(1)
    generator = torch.Generator().manual_seed(0)
    state = {
        name.removeprefix("backbone."): value + 0.1 * torch.rand(value.shape, generator=generator)
        if is_statistic(name)
        else value
        for name, value in network.state_dict().items()
        if name.startswith("backbone.")
    }
    path = tmp_path_factory.mktemp("given") / "weights.pt"
    torch.save(state, path)
    return path


def test_statistics_that_are_not_to_move_are_not_measured(file, pictures):
    """Those of frozen layers, and all of them where the recipe trains by what came with the weights."""
    given = {f"backbone.{name}": value for name, value in torch.load(file, weights_only=True).items()}
    network = {"weights": str(file), "freeze": ["backbone.layer1"]}
    (frozen,), _ = grow(averaged(network=network, generations=1), pictures)
    names = [name for name in given if is_statistic(name)]
    assert any(name.startswith("backbone.layer1.") for name in names)
    for name in names:
        assert torch.equal(frozen.weights[name], given[name]) == name.startswith("backbone.layer1."), name
    stored = averaged(network={"weights": str(file)}, training={"norm_statistics": "stored"}, generations=1)
    (stays,), _ = grow(stored, pictures)
    assert all(torch.equal(stays.weights[name], given[name]) for name in names)


def test_a_network_without_batch_norm_needs_no_measuring(pictures):
    recipe = averaged(network={"backbone": "timm/test_convnext", "embedding_size": 8}, generations=1)
    assert not any(isinstance(part, _BatchNorm) for part in training_of(recipe, pictures).networks.build(1).modules())
    (found,), states = grow(recipe, pictures)
    assert weights_digest(found.weights) == weights_digest({**states[-1].weights, **states[-1].average})


def test_the_seconds_of_measuring_are_told_where_there_is_any(grown, pictures):
    _, generations, _ = grown
    assert all("averaging" in generation.provenance.seconds for generation in generations)
    (plain,), _ = grow(recipe_of(generations=1), pictures)
    assert "averaging" not in plain.provenance.seconds


def test_weights_beside_the_average_are_kept_and_dropped_with_it(pictures, tmp_path):
    (one,), _ = grow(averaged(method={"inherit_average": False}, generations=1), pictures)
    folder = tmp_path / "generation"
    files.write_generation(folder, one)
    assert (folder / "last.safetensors").stat().st_size == (folder / "weights.safetensors").stat().st_size
    assert weights_digest(files.read_generation(folder, 1).inherited) == weights_digest(one.last_weights)
    files.drop_weights(folder)
    assert not list(folder.glob("*.safetensors"))


def test_without_an_average_nothing_is_kept_beside_the_weights(pictures):
    (plain,), _ = grow(recipe_of(generations=1), pictures)
    assert plain.last_weights == {}
    assert plain.inherited is plain.weights
