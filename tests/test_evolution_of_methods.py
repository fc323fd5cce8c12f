"""Every method, grown for some generations: what it does to a lineage, and that a resume changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ke_metric import Lineage
from ke_metric.arrays import weights_digest
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evolution import LineageTraining, Start, evolve
from ke_metric.images.batches import TrainingEpochs
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.methods import METHODS, method_of
from ke_metric.recipe.schema import Recipe
from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.plan import SplitPlan
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingHooks, TrainingObserver
from ke_metric.training.joint import divergence

SIZE, CLASSES, IMAGES = 16, 4, 4
TASKS = ("retrieval", "classification")
UNITS = ["layer1", "layer2", "layer3", "layer4", "head"]
# Name -> the method's section, the task, and how many generations it takes to see all of it.
CASES = {
    "knowledge_evolution": ({"reset": "same_as_init", "teacher_weight": 1.0}, "retrieval", 2),
    "born_again": ({}, "classification", 2),
    "dense_sparse_dense": ({"reset_loss": False}, "retrieval", 3),
    "repr": ({"full_epochs": 1, "dropped_epochs": 1, "cycles": 1}, "classification", 2),
    "later_layer_forgetting": ({"layers": ["layer4"], "teacher_weight": 1.0}, "classification", 2),
    "layer_wise": ({"layers": UNITS}, "classification", 3),
    "neural_regeneration": ({}, "retrieval", 2),
    "restarts": ({"reset_loss": False}, "retrieval", 2),
    "repeats": ({}, "classification", 2),
    "shrink_and_perturb": ({}, "retrieval", 2),
    "slim_alone": ({}, "classification", 2),
}


class Interrupted(Exception):
    """Raised by a observer."""


class Recorder(TrainingObserver):
    def __init__(self):
        self.states = []

    def epoch_done(self, state):
        self.states.append(state)


class StopAfterEveryEpoch(TrainingObserver):
    """Stores what a resume needs, and stops."""

    def __init__(self, lineage):
        self._lineage = lineage

    def epoch_done(self, state):
        self._lineage.save_state(state)
        raise Interrupted


def part(name, classes, seed):
    labels = np.repeat(np.arange(classes), IMAGES).astype(np.int64)
    tint = 25 * np.stack([labels, labels % 2, -labels], axis=1)[:, None, None, :]
    pixels = np.random.default_rng(seed).integers(110, 150, (len(labels), SIZE, SIZE, 3)) + tint
    sides = np.full(len(labels), SIZE, np.int64)
    keys = tuple(f"{name}-{number}" for number in range(len(labels)))
    images = ImageSet(keys, labels, tuple("abcdef"[:classes]), None)
    return images, PixelStore(pixels.astype(np.uint8).reshape(-1), sides, widths=sides)


@pytest.fixture(scope="module")
def pictures():
    (train, train_store), (test, test_store) = part("train", CLASSES, 0), part("test", CLASSES, 1)
    return Pictures(Benchmark("noise", train, test, test), train_store, test_store, test_store)


def recipe_of(name, task=None, **sections):
    method, own_task, generations = CASES[name]
    task = task or own_task
    loss = {"name": "ProxyAnchorLoss"} if task == "retrieval" else {"name": "CrossEntropyLoss"}
    return Recipe.model_validate(
        {
            "name": "noise",
            "task": task,
            "generations": generations,
            "keep": "all",
            "data": {"image_size": SIZE, "store_size": SIZE},
            "network": {"backbone": "timm/test_resnet"} | ({"embedding_size": 8} if task == "retrieval" else {}),
            # Single weights where it does not matter: whole channels take a while to follow.
            "split": {"kind": "kels" if name in ("knowledge_evolution", "slim_alone") else "wels"},
            "method": {"name": name, **method},
            "loss": loss,
            "batches": {"size": 8, "images_per_class": 2},
            "optimizer": {"name": "sgd", "learning_rate": 0.01},
            "training": {"epochs": 3 if name == "repr" else 2, "precision": "fp32"},
            "evaluation": {"recall_at": [1], "resize": SIZE, "kmeans_seeds": 1, "backend": "torch"},
        }
        | sections
    )


def grown(recipe, pictures, observer=None):
    return list(evolve(recipe, pictures, device="cpu", watch=observer))


def training_of(recipe, pictures):
    return LineageTraining(recipe, pictures, Engine("fp32", "cpu"))


def child_by(training, parent):
    number = parent.number + 1 if parent else 1
    return training.assemble(training.inheritance(number, parent), rehearsed=False).network.state_dict()


def child_of(recipe, pictures, parent):
    """Return the network that the generation after `parent` begins with."""
    return child_by(training_of(recipe, pictures), parent)


def test_every_method_has_a_case():
    assert set(CASES) == set(METHODS)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"repr", "slim_alone"}))
def test_generation_1_is_the_plain_baseline_of_every_method(name, pictures):
    recipe = recipe_of(name, "classification")
    training = training_of(recipe, pictures)
    first = training.assemble(training.inheritance(1, None))
    assert type(first.hooks) is TrainingHooks
    plain = child_by(training_of(recipe_of("restarts", "classification"), pictures), None)
    assert weights_digest(first.network.state_dict()) == weights_digest(plain)


def assert_same(found, expected):
    assert weights_digest(found.weights) == weights_digest(expected.weights)
    assert weights_digest(found.loss_weights) == weights_digest(expected.loss_weights)
    assert found.scorecard == expected.scorecard
    assert found.magnitudes == expected.magnitudes
    assert (found.split, found.provenance.parent_digest) == (expected.split, expected.provenance.parent_digest)


@pytest.mark.parametrize("name", CASES)
def test_a_training_that_is_interrupted_after_every_epoch_is_the_same_training(name, pictures, tmp_path):
    """To the last bit, through the files on disk, every epoch in a new training."""
    recipe = recipe_of(name)
    expected = grown(recipe, pictures)
    lineage, stops = Lineage.create(tmp_path / "lineage", recipe, text="", command=""), 0
    with lineage.writing():
        while len(lineage.numbers) < recipe.generations:
            numbers = lineage.numbers
            start = Start(lineage.load(numbers[-1]) if numbers else None, lineage.load_state())
            observer = StopAfterEveryEpoch(lineage)
            try:
                for generation in evolve(recipe, pictures, start=start, device="cpu", watch=observer):
                    lineage.append(generation)
            except Interrupted:
                stops += 1
    assert stops == recipe.generations * recipe.training.epochs
    for generation in expected:
        assert_same(lineage.load(generation.number), generation)


PAIRED = {"loss": {"name": "CSKDLoss"}, "batches": {"size": 4, "sampler": "paired"}}
ADACOS = {"loss": {"name": "AdaCosLoss"}, "network": {"backbone": "timm/test_resnet", "head": "cosine"}}


@pytest.mark.parametrize("name", ["knowledge_evolution", "neural_regeneration"])
@pytest.mark.parametrize("sections", [PAIRED, ADACOS], ids=["CS-KD", "AdaCos"])
def test_other_losses_go_on_after_an_epoch_too(name, sections, pictures):
    recipe, recorder = recipe_of(name, "classification", **sections), Recorder()
    one, two = grown(recipe, pictures, recorder)
    state = recorder.states[2]
    assert (state.number, state.epoch) == (2, 1)
    found = next(evolve(recipe, pictures, start=Start(one, state), device="cpu"))
    assert_same(found, two)


@pytest.fixture(scope="module")
def ancestors(pictures):
    """A first generation by task and kind of split, the same for all methods that do nothing while it trains."""
    recipes = [recipe_of(name, task) for task in TASKS for name in ("repeats", "knowledge_evolution")]
    return {(recipe.task, recipe.split.kind): next(evolve(recipe, pictures, device="cpu")) for recipe in recipes}


@pytest.mark.parametrize("name", sorted(set(CASES) - {"slim_alone"}))
def test_what_a_child_begins_with_depends_on_its_parent_alone(name, pictures, ancestors):
    """Never on what was computed before."""
    recipe = recipe_of(name)
    one = ancestors[recipe.task, recipe.split.kind]
    first = child_of(recipe, pictures, one)
    torch.rand(7)
    again = child_of(recipe, pictures, one)
    assert weights_digest(first) == weights_digest(again)


def test_regeneration_redraws_other_weights_in_every_generation(pictures):
    """Measured on the parent, over all layers together, exactly a fifth of all."""
    recipe = recipe_of("neural_regeneration", "classification", generations=3)
    one, two, _ = grown(recipe, pictures)
    masks = []
    for parent in (one, two):
        child = child_of(recipe, pictures, parent)
        new = {name: child[name] != parent.weights[name] for name in child if child[name].ndim > 1}
        total = sum(flags.numel() for flags in new.values())
        assert sum(int(flags.sum()) for flags in new.values()) == round(0.2 * total)
        assert all(torch.equal(value, parent.weights[name]) for name, value in child.items() if name not in new)
        masks.append(torch.cat([flags.flatten() for flags in new.values()]))
    # Beside weights without gradient, which see nothing but the padding around a picture so small.
    assert 0.01 < (masks[0] & ~masks[1]).sum() / masks[0].sum() < 0.5


@pytest.mark.parametrize("task", TASKS)
def test_saliency_is_measured_on_the_parent_and_its_loss(task, pictures, ancestors):
    """On the first fifth of an epoch that it was not trained on."""
    recipe, parent = recipe_of("neural_regeneration", task), ancestors[task, "wels"]
    training = training_of(recipe, pictures)
    network, loss = training.networks.build(7).eval(), training.loss(7, None)
    network.load_state_dict(parent.weights)
    loss.load_state_dict(parent.loss_weights)
    epochs = TrainingEpochs(pictures, recipe, generation=1, device=torch.device("cpu"))
    assert len(epochs) == 2
    batch = next(epochs.epoch(recipe.training.epochs + 1))
    loss(network(batch.images), batch.labels).backward()
    found = training.gradients(parent)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad.abs(), msg=name, rtol=1e-4, atol=1e-6)


class Drawing(nn.Module):
    """A loss that draws random numbers, as some miners do."""

    def forward(self, outputs, labels):
        return (outputs * torch.rand(outputs.shape)).sum()


class DrawingTraining(LineageTraining):
    def loss(self, number, parent, **_):
        return Drawing()


def test_saliency_does_not_depend_on_what_was_drawn_before(pictures, ancestors):
    # A large share: the smallest one is of weights without gradient, whatever the loss.
    recipe = recipe_of("neural_regeneration", "classification", method={"name": "neural_regeneration", "share": 0.8})
    training, children = DrawingTraining(recipe, pictures, Engine("fp32", "cpu")), []
    for _ in range(2):
        torch.rand(7)
        children.append(weights_digest(child_by(training, ancestors["classification", "wels"])))
    assert children[0] == children[1]


def test_a_sparse_generation_ends_sparse_and_a_dense_one_does_not(pictures):
    one, two, three = grown(recipe_of("dense_sparse_dense"), pictures)
    for name, value in two.weights.items():
        if value.ndim > 1:
            assert int((value == 0).sum()) == round(0.3 * value.numel()), name
            assert not (one.weights[name] == 0).any()
            # What sees nothing but the padding around a picture has no gradient.
            assert (three.weights[name] == 0).sum() < (two.weights[name] == 0).sum()
    assert not (three.weights["backbone.layer1.0.conv1.weight"] == 0).any()
    rates = [generation.training_log[0]["learning_rate"] for generation in (one, two, three)]
    assert rates == [rates[0], rates[0], pytest.approx(rates[0] / 10)]


def test_repeats_are_what_other_first_generations_would_be(pictures):
    """They share neither weights nor batches, and have nothing of their parent."""
    recipe = recipe_of("repeats")
    one, two = grown(recipe, pictures)
    other = replace(one, weights={name: torch.zeros_like(value) for name, value in one.weights.items()})
    again = next(evolve(recipe, pictures, start=Start(other), device="cpu"))
    assert weights_digest(again.weights) == weights_digest(two.weights)
    assert weights_digest(one.weights) != weights_digest(two.weights)


def test_slim_alone_grows_the_slim_architecture(pictures):
    recipe = recipe_of("slim_alone")
    dense = training_of(recipe_of("knowledge_evolution", "classification"), pictures)
    inheritance = dense.inheritance(1, None)
    slim = extract_slim(dense.assemble(inheritance).network, inheritance.plan)
    begun = child_by(training_of(recipe, pictures), None)
    assert weights_digest(begun) == weights_digest(slim.state_dict())
    one, two = grown(recipe, pictures)
    for generation in (one, two):
        card = generation.scorecard
        assert card.slim is None
        assert card.dense_parameters == sum(parameter.numel() for parameter in slim.parameters())
        assert {name: value.shape for name, value in generation.weights.items()} == {
            name: value.shape for name, value in slim.state_dict().items()
        }
        plan = SplitPlan.from_json(generation.split)
        assert plan.reset_count == 0
        assert plan.rate == 1
        assert all(reset is None for _, reset in generation.magnitudes.values())
    assert weights_digest(child_of(recipe, pictures, one)) == weights_digest(one.weights)


def test_slim_alone_of_another_rate_is_refused(pictures):
    one = next(evolve(recipe_of("slim_alone"), pictures, device="cpu"))
    with pytest.raises(KeMetricError, match="another network") as raised:
        child_of(recipe_of("slim_alone", split={"kind": "kels", "rate": 0.8}), pictures, one)
    assert raised.value.exit_code == ExitCode.RECIPE


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("task", TASKS)
def test_every_method_begins_on_both_tasks(name, task, pictures, ancestors):
    """With a first generation and with a second one; slim_alone has a parent of another size."""
    recipe = recipe_of(name, task)
    lineage, parent = training_of(recipe, pictures), ancestors[task, recipe.split.kind]
    lineage.require_buildable()
    number = 1 if name == "slim_alone" else 2
    training = lineage.assemble(lineage.inheritance(number, parent if number == 2 else None))
    loss = training.heard(training.take_step(0, next(training.epochs.epoch(1)))).loss
    assert np.isfinite(loss)


SLIM_LAST = {"method": {"name": "knowledge_evolution", "slim_last": True}, "split": {"kind": "kels"}}


@pytest.mark.parametrize("task", TASKS)
def test_the_last_generation_is_the_slim_network_of_its_parent_and_taught_by_it(task, pictures):
    recipe = recipe_of("knowledge_evolution", task, generations=3, **SLIM_LAST)
    one, two, three = grown(recipe, pictures)
    assert_same(
        one, grown(recipe_of("knowledge_evolution", task, generations=1, split=SLIM_LAST["split"]), pictures)[0]
    )
    training = training_of(recipe, pictures)
    dense = training.networks.build(2)
    dense.load_state_dict(two.weights)
    expected = extract_slim(dense, SplitPlan.from_json(two.split, two.split_bits))
    child = child_of(recipe, pictures, two)
    assert weights_digest(child) == weights_digest(expected.state_dict())
    hooks = method_of(recipe, 3).hooks(expected, training.inheritance(3, two))
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(hooks.targets(images), dense.eval()(images))
    assert weights_digest(three.weights) != weights_digest(child)
    # It is dense and slim in one: all of it is kept.
    assert three.scorecard.slim == three.scorecard.dense
    assert three.scorecard.dense_parameters == three.scorecard.slim_parameters == two.scorecard.slim_parameters
    assert SplitPlan.from_json(three.split, three.split_bits).rate == 1.0
    assert all(reset is None for _, reset in three.magnitudes.values())


@pytest.mark.parametrize(
    "fields",
    [
        {"method": {"name": "knowledge_evolution", "slim_last": True}, "split": {"kind": "kels"}},
        {"split": {"kind": "kels", "rates": [0.25, 0.5, 0.75], "joint": "sandwich"}},
    ],
    ids=["slim last", "joint widths"],
)
def test_what_any_method_may_do_besides_goes_on_after_an_epoch(fields, pictures):
    method = {**fields, "evaluation": {"recall_at": [1], "resize": SIZE, "kmeans_seeds": 1, "slim_repair": "auto"}}
    recipe, recorder = recipe_of("knowledge_evolution", generations=2, **method), Recorder()
    one, two = grown(recipe, pictures, recorder)
    state = recorder.states[2]
    assert (state.number, state.epoch) == (2, 1)
    assert_same(next(evolve(recipe, pictures, start=Start(one, state), device="cpu")), two)


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 1.0), (0.5, 0.5)])
def test_the_teacher_of_a_slim_network_has_weight_1_unless_told(weight, expected, pictures):
    section = {"name": "restarts", "slim_last": True, "teacher_weight": weight}
    recipe = recipe_of("restarts", "classification", split={"kind": "kels"}, method=section)
    one = next(evolve(recipe, pictures, device="cpu"))
    training = training_of(recipe, pictures)
    assert type(method_of(recipe, 1).hooks(nn.Identity(), training.inheritance(1, None))) is TrainingHooks
    hooks = method_of(recipe, 2).hooks(nn.Identity(), training.inheritance(2, one))
    outputs, targets = torch.eye(4), torch.ones(4, 4)
    plain = divergence(targets, outputs, 1.0)
    assert float(hooks.added_loss(outputs, targets)) == pytest.approx(expected * float(plain))
