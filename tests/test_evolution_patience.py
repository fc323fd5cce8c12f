"""Lineages with patience: which epoch is scored, stored and inherited, by pictures nobody learns from or tests on."""

from dataclasses import replace

import numpy as np
import pytest

from ke_metric import slim_repair
from ke_metric.arrays import weights_digest
from ke_metric.cli.train import expected_disk
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.evolution import LineageTraining, Start, evolve
from ke_metric.generation import BestEpoch
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.lineage import files
from ke_metric.recipe.schema import Recipe
from ke_metric.scoring import Scorer
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver

SIZE = 32
CLASSES = 4


@pytest.fixture(scope="module", autouse=True)
def few_pictures_to_measure():
    """Of two dozen training pictures, 64 draws say as much as a thousand."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(slim_repair, "MOST_IN_MEMORY", 64)
        yield


def part(name, seed, each=6, names="abcd"):
    """Noise with a tint that tells a class a little, and a picture more."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), each).astype(np.int64)
    tint = 9 * np.stack([labels, labels % 2, -labels], axis=1)[:, None, None, :]
    tint = tint + generator.integers(-14, 15, (len(labels), 1, 1, 3))
    pixels = generator.integers(60, 190, (len(labels), SIZE, SIZE, 3)) + tint
    sides = np.full(len(labels), SIZE, np.int64)
    images = ImageSet(tuple(f"{name}-{number}" for number in range(len(labels))), labels, tuple(names), None)
    return images, PixelStore(pixels.astype(np.uint8).reshape(-1), sides, widths=sides)


def pictures_of(test_seed=1, **fields):
    names = "abcd" if fields else "ijkl"
    (train, train_store), (test, test_store) = part("train", 0), part("test", test_seed, names=names)
    held, held_store = part("held", 2, names="abcd" if fields else "efgh")
    benchmark = Benchmark("noise", train, test, test, validation=held, **fields)
    return Pictures(benchmark, train_store, test_store, test_store, held_store)


@pytest.fixture(scope="module")
def pictures():
    return pictures_of()


def recipe_of(**sections):
    fields = {
        "name": "noise",
        "generations": 2,
        "data": {"image_size": SIZE, "store_size": SIZE},
        "network": {"backbone": "timm/test_resnet", "embedding_size": 8},
        "loss": {"name": "ProxyAnchorLoss", "learning_rate_factor": 10},
        "method": {"reset_loss": False},
        "batches": {"size": 8, "images_per_class": 2},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "training": {"epochs": 6, "precision": "fp32", "patience": 2, "schedule": "constant"},
        "evaluation": {"recall_at": [1, 2], "resize": SIZE, "kmeans_seeds": 1, "backend": "torch"},
    }
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section if isinstance(section, dict) else section
    return Recipe.model_validate(fields)


CASES = {
    "knowledge evolution": recipe_of(),
    "averaged": recipe_of(training={"average": 0.8}),
    "the slim network alone": recipe_of(method={"name": "slim_alone"}),
    "the last one slim": recipe_of(method={"slim_last": True}),
    "sparse": recipe_of(method={"name": "dense_sparse_dense"}),
    "saliency": recipe_of(method={"name": "neural_regeneration"}),
    "joint widths": recipe_of(split={"rates": [0.25, 0.5]}, evaluation={"slim_repair": "statistics"}),
}


class Recorder(TrainingObserver):
    def __init__(self):
        self.states = []

    def epoch_done(self, state):
        self.states.append(state)


def grow(recipe, pictures, start=None):
    recorder = Recorder()
    return list(evolve(recipe, pictures, device="cpu", start=start, watch=recorder)), recorder.states


@pytest.fixture(scope="module", params=CASES)
def grown(request, pictures):
    recipe = CASES[request.param]
    return recipe, *grow(recipe, pictures)


def scored(recipe, pictures, number, weights):
    """Return Recall@1 on the validation part by hand: its pictures are queries and gallery."""
    training = LineageTraining(recipe, pictures, Engine("fp32", "cpu"))
    network = training.networks.build(number)
    network.load_state_dict(weights)
    only = replace(pictures.benchmark, query=pictures.benchmark.validation, gallery=pictures.benchmark.validation)
    held = Pictures(only, pictures.train, pictures.validation, pictures.validation)
    vectors, _ = Scorer(held, recipe, Engine("fp32", "cpu")).vectors(network)
    how = Scoring(backend="torch", kmeans_seeds=())
    return score_retrieval(vectors, only.query.labels, (1,), scoring=how)["recall@1"]


def test_the_scores_of_epochs_are_those_of_their_weights(grown, pictures):
    recipe, _, states = grown
    if recipe.training.averages:
        pytest.skip("what is scored is in no state")
    for state in states:
        assert state.training_log[-1]["validation"] == scored(recipe, pictures, state.number, state.weights)


def test_what_is_stored_is_the_best_epoch(grown, pictures):
    recipe, generations, states = grown
    for generation in generations:
        log = [record["validation"] for record in generation.training_log]
        best = log.index(max(log)) + 1
        assert generation.scorecard.best_epoch == BestEpoch(best, len(log))
        assert len(log) == min(best + 2, 6)
        assert generation.scorecard.dense["validation_recall@1"] == max(log)
        assert scored(recipe, pictures, generation.number, generation.weights) == max(log)
        at_best = next(each for each in states if (each.number, each.epoch) == (generation.number, best))
        assert weights_digest(generation.loss_weights) == weights_digest(at_best.loss_weights)
        if not recipe.training.averages:
            assert weights_digest(generation.weights) == weights_digest(at_best.weights)
        assert generation.provenance.seconds["validating"] > 0
        for slim in generation.scorecard.slims.values():
            assert "validation_recall@1" in slim.scores


def test_something_was_chosen(pictures):
    """Or the tests above would hold of the last epoch, too."""
    found = [grow(recipe, pictures)[0] for recipe in (CASES["knowledge evolution"], CASES["averaged"])]
    ends = [generation.scorecard.best_epoch for generations in found for generation in generations]
    assert any(end.epoch < end.trained for end in ends)
    assert any(end.trained < 6 for end in ends)


def test_a_child_goes_on_from_the_best_epoch(grown, pictures):
    """Its network before the first step is that of a lineage whose parent had these weights as its last ones."""
    recipe, (one, _), _ = grown
    training = LineageTraining(recipe, pictures, Engine("fp32", "cpu"))
    assert one.inherited is one.weights
    found = training.assemble(training.inheritance(2, one))
    plain = LineageTraining(
        recipe.model_copy(update={"training": recipe.training.model_copy(update={"patience": None})}),
        pictures,
        Engine("fp32", "cpu"),
    )
    expected = plain.assemble(plain.inheritance(2, one))
    assert weights_digest(found.network.state_dict()) == weights_digest(expected.network.state_dict())
    assert weights_digest(found.loss.state_dict()) == weights_digest(expected.loss.state_dict())
    assert expected.patience is None


def test_other_test_pictures_change_no_weight(grown):
    """Nor the epoch that counts: nothing is chosen by them."""
    recipe, generations, _ = grown
    others, _ = grow(recipe, pictures_of(test_seed=9))
    for found, expected in zip(others, generations, strict=True):
        assert weights_digest(found.weights) == weights_digest(expected.weights)
        assert found.scorecard.best_epoch == expected.scorecard.best_epoch
        assert found.scorecard.dense["map@r"] != expected.scorecard.dense["map@r"]


def test_going_on_is_never_having_stopped(grown, pictures, tmp_path):
    """Through files, also from a last epoch, after which only scores are missing."""
    recipe, generations, states = grown
    length = len(generations[0].training_log)
    files.write_generation(tmp_path / "parent", generations[0])
    for state in (states[1], states[length - 1], states[length], states[-1]):
        folder = tmp_path / f"{state.number}-{state.epoch}"
        files.write_state(folder, state)
        parent = files.read_generation(tmp_path / "parent", 1) if state.number == 2 else None
        found = next(
            evolve(recipe, pictures, device="cpu", start=Start(parent, files.read_state(folder, state.number)))
        )
        expected = generations[state.number - 1]
        assert weights_digest(found.weights) == weights_digest(expected.weights)
        assert weights_digest(found.loss_weights) == weights_digest(expected.loss_weights)
        assert found.scorecard == expected.scorecard


def test_a_stored_generation_says_which_epoch_it_is(grown, tmp_path):
    _, (one, _), _ = grown
    files.write_generation(tmp_path / "one", one)
    assert files.read_generation(tmp_path / "one", 1).scorecard == one.scorecard


def test_patience_for_more_epochs_than_there_are_and_the_last_one_best(pictures):
    """Is a training without patience, and a validation part alone changes none."""
    endless = recipe_of(training={"patience": 99, "epochs": 3}, generations=1)
    plain = recipe_of(training={"patience": None, "epochs": 3}, generations=1)
    (found,), states = grow(endless, pictures)
    (expected,), _ = grow(plain, pictures)
    assert weights_digest(states[-1].weights) == weights_digest(expected.weights)
    if found.scorecard.best_epoch.epoch == 3:
        assert weights_digest(found.weights) == weights_digest(expected.weights)
        assert found.scorecard.dense == expected.scorecard.dense
    assert expected.scorecard.best_epoch is None
    bare = replace(pictures, benchmark=replace(pictures.benchmark, validation=None), validation=None)
    (nobody_looks,), _ = grow(plain, bare)
    assert weights_digest(nobody_looks.weights) == weights_digest(expected.weights)
    without = {name: value for name, value in expected.scorecard.dense.items() if not name.startswith("validation_")}
    assert nobody_looks.scorecard.dense == without
    assert "validating" not in nobody_looks.provenance.seconds


def test_a_classifier_goes_by_top1():
    recipe = recipe_of(
        task="classification",
        network={"backbone": "timm/test_resnet", "embedding_size": 128},
        loss={"name": "CrossEntropyLoss"},
    )
    generations, states = grow(recipe, pictures_of(task="classification"))
    for generation in generations:
        log = [record["validation"] for record in generation.training_log]
        assert generation.scorecard.dense["validation_top1"] == max(log)
        assert generation.scorecard.best_epoch.epoch == log.index(max(log)) + 1
    assert len({state.training_log[-1]["validation"] for state in states}) > 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, r"data\.validation_fraction = 0\.1, for example, holds one out"),
        ({"data": {"train_on": "trainval"}}, r"data\.train_on = 'train' keeps one out"),
    ],
)
def test_without_a_validation_part_nothing_begins(fields, told, pictures):
    bare = replace(pictures, benchmark=replace(pictures.benchmark, validation=None), validation=None)
    training = LineageTraining(recipe_of(**fields), bare, Engine("fp32", "cpu"))
    for begin in (training.require_buildable, lambda: next(evolve(training.recipe, bare, device="cpu"))):
        with pytest.raises(
            KeMetricError, match=rf"training\.patience = 2: .* no validation part here.*{told}"
        ) as raised:
            begin()
        assert raised.value.exit_code is ExitCode.RECIPE


def test_a_state_with_the_best_epoch_needs_as_much_again(pictures):
    sizes = {}
    for patience in (None, 2):
        training = LineageTraining(recipe_of(training={"patience": patience}), pictures, Engine("fp32", "cpu"))
        sizes[patience] = expected_disk(training.assemble(training.inheritance(1, None)))
        weights = sum(each.numel() for each in training.assemble(training.inheritance(1, None)).network.parameters())
    assert sizes[2] - sizes[None] > 8 * weights
