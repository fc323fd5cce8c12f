"""Every class of the installed pytorch-metric-learning is trained from a recipe, or refused in words."""

from __future__ import annotations

import inspect

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import nn
from torch.nn.functional import normalize

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.batches import DeviceBatch
from ke_metric.losses.building import build_loss, build_part
from ke_metric.losses.library import EMBEDDING_LOSSES, MINERS, MISCOUNTING, REFUSED, REMEMBERING
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Batches, Optimizer, Recipe, Training
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver
from ke_metric.training.one_generation import GenerationTraining

# 5 classes with 8 training pictures each; 4 pictures of 4 classes share a batch.
CLASS_SIZES = [8] * 5
SIZE = 8


def classes_of(module):
    return sorted(
        name for name, part in vars(module).items() if inspect.isclass(part) and issubclass(part, nn.Module)
    )


ARGUMENTS = {
    "RankedListLoss": {"margin": 0.4, "Tn": 10},
    # Two batches of 16 and a half: it is begun anew within the three steps.
    "CrossBatchMemory": {"loss": {"name": "ContrastiveLoss"}, "memory_size": 40},
    "MultipleLosses": {"losses": [{"name": "ProxyAnchorLoss"}, {"name": "SupConLoss"}], "weights": [1, 0.5]},
    "ThresholdReducer": {"low": 0.01},
    "ClassWeightedReducer": {"weights": [1.0, 2.0, 0.5, 1.0, 3.0]},
    "SparseCentersRegularizer": {"centers_per_class": 2},
}
# Which loss a part goes with; TripletMarginLoss where none is named.
HOSTS = {
    "DivisorReducer": {"name": "ProxyAnchorLoss"},
    "PerAnchorReducer": {"name": "ContrastiveLoss"},
    "SparseCentersRegularizer": {"name": "SoftTripleLoss", "centers_per_class": 2},
}
# What a trial says of those that it refuses: tests/losses/test_trial.py.
TRIED = {
    "DynamicSoftMarginLoss": "at the second step",
    "HistogramLoss": "two pictures of one class have the same embedding",
    "TupletMarginLoss": "two pictures of one class have the same embedding",
}


def is_refused(name):
    # The batches here are those that SmoothAPLoss counts right.
    return name in REFUSED or name in TRIED or (name in MISCOUNTING and name != "SmoothAPLoss")


def recipe_of(loss, miner=None):
    name, arguments = loss["name"], {key: value for key, value in loss.items() if key != "name"}
    return Recipe.model_validate(
        {
            "name": "library",
            "loss": {"name": name, "arguments": arguments, "learning_rate_factor": 10},
            "miner": miner,
            "network": {"embedding_size": SIZE},
            "batches": Batches(size=16, images_per_class=4),
            "optimizer": Optimizer(learning_rate=0.05),
            "training": Training(epochs=3, precision="fp32"),
        }
    )


def part_of(name):
    return {"name": name, **ARGUMENTS.get(name, {})}


class Noise:
    """One batch in each epoch."""

    def __len__(self):
        return 1

    def epoch(self, number):
        generator = torch.Generator().manual_seed(number)
        labels = torch.randperm(5, generator=generator)[:4].repeat_interleave(4)
        images = torch.randn(16, 12, generator=generator)
        yield DeviceBatch(images, labels, tuple(map(str, range(16))))


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, SIZE)

    def forward(self, images):
        return normalize(self.head(images), dim=1)


def training_of(recipe, rehearsed=False):
    with default_streams(0, 1, "library"):
        network, loss = Unit(), build_loss(recipe, class_sizes=CLASS_SIZES, rehearsed=rehearsed)
    return GenerationTraining(network, loss, Noise(), recipe=recipe, engine=Engine("fp32", "cpu"), number=1)


class States(TrainingObserver):
    def __init__(self):
        self.states = []

    def epoch_done(self, state):
        self.states.append(state)


def require_it_trains_and_resumes(recipe):
    """Take three steps, and the third one again from the state after two; everything is to move and to be finite."""
    training, seen = training_of(recipe, rehearsed=True), States()
    beginning = {name: value.clone() for name, value in training.network.named_parameters()}
    proxies = {name: value.clone() for name, value in training.loss.named_parameters()}
    training.train(seen)
    _, second, last = seen.states
    assert all(value.isfinite().all() for value in {**last.weights, **last.loss_weights}.values())
    for parameters, weights in ((beginning, last.weights), (proxies, last.loss_weights)):
        assert not any(torch.equal(value, weights[name]) for name, value in parameters.items())
    again = training_of(recipe)
    again.restore(second)
    resumed = again.train(TrainingObserver())
    for ours, theirs in ((resumed.weights, last.weights), (resumed.loss_weights, last.loss_weights)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert resumed.training_log[-1] | {"seconds": 0} == last.training_log[-1] | {"seconds": 0}
    return training.loss


def require_refusal(recipe, name):
    with pytest.raises(KeMetricError) as caught:
        build_loss(recipe, class_sizes=CLASS_SIZES)
    assert caught.value.exit_code is ExitCode.RECIPE
    message = str(caught.value)
    assert name in message
    assert REFUSED.get(name, MISCOUNTING.get(name, TRIED.get(name))) in message


def train_or_refuse(recipe, name):
    if is_refused(name):
        require_refusal(recipe, name)
    else:
        assert name in [type(module).__name__ for module in require_it_trains_and_resumes(recipe).modules()]


@pytest.mark.parametrize("name", sorted({*classes_of(losses), *EMBEDDING_LOSSES}))
def test_every_loss(name):
    train_or_refuse(recipe_of(part_of(name)), name)


@pytest.mark.parametrize("name", classes_of(miners))
def test_every_miner(name):
    recipe = recipe_of({"name": "TripletMarginLoss", "margin": 0.5}, {"name": name})
    train_or_refuse(recipe, name)


@pytest.mark.parametrize(
    ("keyword", "name"),
    [
        (keyword, name)
        for module, keyword in (
            (distances, "distance"),
            (reducers, "reducer"),
            (regularizers, "embedding_regularizer"),
            (regularizers, "weight_regularizer"),
        )
        for name in classes_of(module)
        # As many rows as there are centers of classes: a batch has another number.
        if (keyword, name) != ("embedding_regularizer", "SparseCentersRegularizer")
    ],
)
def test_every_part_of_a_loss(keyword, name):
    host = {"name": "NormalizedSoftmaxLoss"} if keyword == "weight_regularizer" else {"name": "TripletMarginLoss"}
    train_or_refuse(recipe_of({**HOSTS.get(name, host), keyword: part_of(name)}), name)


@pytest.mark.parametrize("name", sorted(set(classes_of(losses)) - REFUSED.keys() - TRIED.keys() - set(MISCOUNTING)))
def test_a_loss_does_not_go_by_the_order_of_a_batch_or_is_refused_for_it(name):
    """NPairsLoss takes the first pair of each class, as it says; what is refused for its order is below."""
    if name == "NPairsLoss":
        return
    generator = torch.Generator().manual_seed(0)
    vectors, labels = torch.randn(16, SIZE, generator=generator), torch.arange(4).repeat_interleave(4)
    values = []
    for rows in (torch.arange(16), torch.randperm(16, generator=generator)):
        torch.manual_seed(0)
        loss = build_loss(recipe_of(part_of(name)), class_sizes=CLASS_SIZES, rehearsed=False)
        values.append(loss(normalize(vectors[rows]), labels[rows]))
    value, moved = values
    torch.testing.assert_close(moved, value, rtol=1e-4, atol=1e-5)


def recall_downhill(name, classes, images):
    """Return Recall@1 of so many embeddings after 60 steps in the direction in which a loss falls."""
    torch.manual_seed(0)
    labels, sizes = torch.arange(classes).repeat_interleave(images), {"num_classes": classes, "embedding_size": 32}
    loss = build_part(EMBEDDING_LOSSES, name, {}, field="loss.arguments", sizes=sizes)
    vectors = torch.randn(len(labels), 32).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss(normalize(vectors), labels).backward()
        optimizer.step()
    cosine = (normalize(vectors.detach()) @ normalize(vectors.detach()).T).fill_diagonal_(-2)
    return float((labels[cosine.argmax(dim=1)] == labels).float().mean())


@pytest.mark.parametrize("name", MISCOUNTING)
def test_what_is_refused_for_its_numbers_is_still_wrong(name):
    """When a new version of pytorch-metric-learning has put it right, it need not be refused any more."""
    assert recall_downhill("NTXentLoss", 16, 4) == 1
    assert recall_downhill(name, 16, 4) < 0.3


def test_smooth_ap_is_right_where_it_is_allowed():
    assert recall_downhill("SmoothAPLoss", 4, 4) == 1
    recipe = recipe_of({"name": "SmoothAPLoss"})
    build_loss(recipe, class_sizes=CLASS_SIZES)
    for other in (Batches(size=16, images_per_class=2), Batches(size=16, sampler="shuffled", images_per_class=4)):
        with pytest.raises(KeMetricError, match="as many groups as a class has pictures"):
            build_loss(recipe.model_copy(update={"batches": other}), class_sizes=[4] * 8)


def test_a_training_that_has_begun_goes_on_with_what_is_refused_now():
    for name in MISCOUNTING:
        recipe = recipe_of({"name": name}).model_copy(update={"batches": Batches(size=16, images_per_class=2)})
        build_loss(recipe, class_sizes=[4] * 8, rehearsed=False)


@pytest.mark.parametrize("keyword", ["embedding_regularizer", "weight_regularizer"])
def test_a_regularizer_adds_to_the_loss(keyword):
    values = []
    for extra in ({}, {keyword: {"name": "ZeroMeanRegularizer"}}):
        torch.manual_seed(0)
        loss = build_loss(recipe_of({"name": "ProxyAnchorLoss", **extra}), class_sizes=CLASS_SIZES, rehearsed=False)
        vectors = torch.randn(16, SIZE, generator=torch.Generator().manual_seed(1))
        values.append(float(loss(normalize(vectors), torch.arange(4).repeat_interleave(4)).detach()))
    assert values[1] > values[0] + 0.1


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"name": "TripletMarginLoss", "reducer": {"name": "ClassWeightedReducer", "weights": [1, 2]}}, "5 numbers"),
        ({"name": "ProxyAnchorLoss", "weight_init_func": "normal_"}, "a function, which a recipe cannot name"),
        ({"name": "ContrastiveLoss", "collect_stats": True}, "nothing reads the numbers"),
        ({"name": "ContrastiveLoss", "mat_based_loss": True}, "set by the class itself"),
    ],
)
def test_keywords_that_a_recipe_cannot_have(loss, words):
    with pytest.raises(KeMetricError, match=words) as caught:
        build_loss(recipe_of(loss), class_sizes=CLASS_SIZES)
    assert caught.value.exit_code is ExitCode.RECIPE


def test_sizes_that_are_written_into_a_part_are_those_of_the_training():
    """A twin has other sizes, and must not be refused for those of the recipe."""
    part = {"name": "SparseCentersRegularizer", "centers_per_class": 2, "num_classes": 5}
    build_loss(
        recipe_of({"name": "SoftTripleLoss", "centers_per_class": 2, "weight_regularizer": part}),
        class_sizes=CLASS_SIZES,
    )


@pytest.mark.parametrize("name", sorted(REMEMBERING))
def test_every_loss_in_a_memory(name):
    recipe = recipe_of({"name": "CrossBatchMemory", "memory_size": 40, "loss": part_of(name)})
    if name == "TupletMarginLoss":
        with pytest.raises(KeMetricError, match="is nan on a batch"):
            build_loss(recipe, class_sizes=CLASS_SIZES)
    else:
        require_it_trains_and_resumes(recipe)


@pytest.mark.parametrize("name", MINERS)
def test_every_miner_in_a_memory(name):
    own = {"name": name, "arguments": {"pos_strategy": "hard"} if name == "BatchEasyHardMiner" else {}}
    inner = {"name": "TripletMarginLoss", "margin": 0.5}
    loss = require_it_trains_and_resumes(
        recipe_of({"name": "CrossBatchMemory", "memory_size": 40, "loss": inner}, own)
    )
    assert loss.tuples > 0
