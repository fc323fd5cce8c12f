"""Two and four processes compute what one does (product notes D1 to D3), on the CPU over the loopback interface.

This file is also the program that the processes run: `python test_processes.py FOLDER` writes what it found.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from ke_metric.arrays import weights_digest
from ke_metric.evolution import evolve
from ke_metric.images.batches import DeviceBatch
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.losses.building import build_embedding_loss
from ke_metric.losses.losses import CSKDLoss
from ke_metric.methods.method import Guided
from ke_metric.networks.dense import build_network
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Evaluation, Loss, Optimizer, Recipe, Split, Training
from ke_metric.scoring import Scorer
from ke_metric.split.planning import plan_split
from ke_metric.training.engine import Engine
from ke_metric.training.gradients import mean_gradients
from ke_metric.training.hooks import TrainingObserver
from ke_metric.training.one_generation import GenerationTraining

LOSSES = ("MultiSimilarityLoss", "ProxyAnchorLoss", "TripletMarginLoss", "ProxyNCALoss", "CrossBatchMemory")
# Two batches and a half: the four of a training begin it anew.
ARGUMENTS = {"CrossBatchMemory": {"loss": {"name": "ContrastiveLoss"}, "memory_size": 20}}
METHODS = {
    "knowledge_evolution": {},
    "repr": {"full_epochs": 1, "dropped_epochs": 1, "cycles": 1},
    "neural_regeneration": {},
    "born_again": {},
}
# With four processes this one alone: what a method does by itself is the same with two.
METHODS_OF = {2: tuple(METHODS), 4: ("knowledge_evolution",)}
SIZE = 32
# Test images of two classes, fewer than four processes.
FEW = (2, 1)
# In shares every class has one image: all positive pairs lie across the processes.
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
# How far a gradient or weight of several processes may be from that of one, as a share of its tensor's largest one.
TOLERANCE = 1e-5


class Network(nn.Module):
    """Without batch norm, whose statistics are those of a process's own images."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(12, 16)
        self.head = nn.Linear(16, 6)
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return normalize(self.head(torch.tanh(self.hidden(images.flatten(1)))), dim=1)


class Normalised(Network):
    """With batch norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def forward(self, images):
        return super().forward(self.norm(images.flatten(1)))


class Given(nn.Module):
    """As one that starts from given weights: a part of the backbone is frozen, and batch norm is at rest."""

    def __init__(self):
        super().__init__()
        norm = nn.BatchNorm1d(12)
        norm.running_mean.fill_(0.5)
        norm.running_var.fill_(2.0)
        self.backbone = nn.Sequential(nn.Flatten(), norm, nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 16))
        self.head = nn.Linear(16, 6)
        self.backbone[2].requires_grad_(False)

    def forward(self, images):
        return normalize(self.head(self.backbone(images)), dim=1)


class Shares:
    """Batches of 8 and of 7 images in each epoch, of which every process takes its share."""

    def __init__(self, engine):
        self._engine = engine

    def __len__(self):
        return 2

    def epoch(self, number):
        for step in range(2):
            images = torch.randn(8 - step, 3, 2, 2, generator=torch.Generator().manual_seed(10 * number + step))
            own = torch.arange(8 - step).tensor_split(self._engine.processes)[self._engine.rank]
            yield DeviceBatch(images[own], LABELS[own], tuple(f"{step}-{index}" for index in own.tolist()))


class SharesOfMixed(Shares):
    """The same, of pictures that have two classes each."""

    def epoch(self, number):
        for images, labels, keys in super().epoch(number):
            shares = torch.eye(6)[labels].lerp(torch.eye(6)[(labels + 1) % 4], 0.3)
            yield DeviceBatch(images, shares, keys)


class SharesOfPairs(Shares):
    """The same with 8 pictures, followed by their partners; every process takes its share of both."""

    def epoch(self, number):
        for step in range(2):
            images = torch.randn(16, 3, 2, 2, generator=torch.Generator().manual_seed(10 * number + step))
            share = 8 // self._engine.processes
            own = torch.arange(8)[self._engine.rank * share : (self._engine.rank + 1) * share]
            chosen = torch.cat([own, own + 8])
            yield DeviceBatch(
                images[chosen], LABELS.repeat(2)[chosen], tuple(f"{step}-{index}" for index in chosen.tolist())
            )


def training_of(loss, engine, rates=()):
    recipe = Recipe(
        name="shares",
        loss=Loss(name=loss, arguments=ARGUMENTS.get(loss, {})),
        split=Split(rates=rates),
        evaluation=Evaluation(slim_repair="auto"),
        optimizer=Optimizer(learning_rate=0.1),
        training=Training(epochs=2, precision="fp32"),
    )
    with default_streams(0, 1, "processes"):
        network, built = Network(), build_embedding_loss(recipe.loss, None, classes=4, embedding_size=6)
    training = GenerationTraining(network, built, Shares(engine), recipe=recipe, engine=engine, number=1)
    if rates:
        example = torch.zeros(1, 3, 2, 2)
        training.train_widths({f"{rate:g}": plan_split(network, example, rate=rate) for rate in rates})
    return training


def given(engine):
    """Train a network that starts from given weights."""
    recipe = Recipe(
        name="shares",
        network={"weights": "w.pt", "freeze": ["backbone.2"]},
        optimizer=Optimizer(learning_rate=0.1, backbone_factor=0.5),
        training=Training(epochs=2, precision="fp32", norm_statistics="stored"),
    )
    with default_streams(0, 1, "processes"):
        network, loss = Given(), build_embedding_loss(recipe.loss, None, classes=4, embedding_size=6)
    training = GenerationTraining(network, loss, Shares(engine), recipe=recipe, engine=engine, number=1)
    return dict(training.train(TrainingObserver()).weights)


def gradients(loss, engine, rates=()):
    training = training_of(loss, engine, rates)
    value = training.heard(training.take_step(0, next(training.epochs.epoch(1)))).loss
    modules = {"network": training.network, "loss": training.loss}
    return {"value": torch.tensor(value)} | {
        f"{module}.{name}": parameter.grad
        for module, part in modules.items()
        for name, parameter in part.named_parameters()
    }


def distilled(engine, kind=Network):
    """Train with partners: two halves of a batch in every process."""
    recipe = Recipe(
        name="pairs",
        task="classification",
        optimizer=Optimizer(learning_rate=0.1),
        training=Training(epochs=2, precision="fp32"),
    )
    with default_streams(0, 1, "processes"):
        network = kind()
    training = GenerationTraining(network, CSKDLoss(), SharesOfPairs(engine), recipe=recipe, engine=engine, number=1)
    return dict(training.train(TrainingObserver()).weights)


def classified(engine, shares=Shares):
    """Return the gradients of a step of a classification."""
    recipe = Recipe(name="classes", task="classification", training=Training(epochs=1, precision="fp32"))
    with default_streams(0, 1, "processes"):
        network, loss = Network(), nn.CrossEntropyLoss()
    training = GenerationTraining(network, loss, shares(engine), recipe=recipe, engine=engine, number=1)
    value = training.heard(training.take_step(0, next(training.epochs.epoch(1)))).loss
    return {"value": torch.tensor(value)} | {name: each.grad for name, each in network.named_parameters()}


def taught(engine, task):
    """Return the gradients of a step with a teacher, whose outputs the whole batch is compared with."""
    training = training_of("ProxyAnchorLoss", engine)
    with default_streams(0, 2, "teacher"):
        teacher = Network().requires_grad_(False)
    training.hooks = Guided(teacher, task, weight=5.0, temperature=None)
    value = training.heard(training.take_step(0, next(training.epochs.epoch(1)))).loss
    return {"value": torch.tensor(value)} | {
        name: parameter.grad for name, parameter in training.network.named_parameters()
    }


def saliency(engine, loss):
    """Return the mean absolute gradients of a network."""
    training = training_of(loss, engine)
    return mean_gradients(training.network, training.loss, training.epochs.epoch(1), engine)


def trained(loss, engine, rates=()):
    state = training_of(loss, engine, rates).train(TrainingObserver())
    images = {"images": torch.tensor(state.training_log[-1]["images"])}
    return {**state.weights, **state.loss_weights, **images}


def noise(tested=(3, 4), *, validated=()):
    """Pictures of test images, 7, which no processes can share evenly, and of 16 training images."""

    def part(name, counts, seed):
        labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
        tint = 40 * np.stack([labels, labels % 2, -labels], axis=1)[:, None, None, :]
        pixels = np.random.default_rng(seed).integers(130, 160, (len(labels), SIZE, SIZE, 3)) + tint
        sides = np.full(len(labels), SIZE, np.int64)
        keys = tuple(f"{name}-{number}" for number in range(len(labels)))
        images = ImageSet(keys, labels, tuple("abcd"[: len(counts)]), None)
        return images, PixelStore(pixels.astype(np.uint8).reshape(-1), sides, widths=sides)

    (train, train_store), (test, test_store) = part("train", (4, 4, 4, 4), 0), part("test", tested, 1)
    held, held_store = part("held", validated, 2) if validated else (None, None)
    benchmark = Benchmark("noise", train, test, test, validation=held)
    return Pictures(benchmark, train_store, test_store, test_store, held_store)


def recipe_of_noise(method="knowledge_evolution", training=None):
    return Recipe.model_validate(
        {
            "name": "noise",
            "generations": 2,
            "data": {"image_size": SIZE, "store_size": SIZE},
            "network": {"backbone": "timm/test_resnet", "embedding_size": 8},
            "method": {"name": method, **METHODS[method]},
            "batches": {"size": 8, "images_per_class": 2},
            "optimizer": {"learning_rate": 0.05},
            "training": {"epochs": 3 if method == "repr" else 1, "precision": "fp32"} | (training or {}),
            "evaluation": {"recall_at": [1], "resize": SIZE, "kmeans_seeds": 1, "backend": "torch"},
        }
    )


def scores_of(engine, tested=(3, 4)):
    """Score a network, and count the images that this process sent through it."""
    recipe, pictures = recipe_of_noise(), noise(tested)
    with default_streams(0, 1, "scores"):
        network = build_network(recipe.network, SIZE)
    seen = []
    network.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    scores = Scorer(pictures, recipe, engine).score(network)
    return {"scores": dict(scores), "images": sum(seen)}


def grown(engine, method, training=None):
    """Grow two generations with batch norm; score the stored weights of the last one again."""
    validated = (5, 4, 2) if "patience" in (training or {}) else ()
    recipe, pictures = recipe_of_noise(method, training), noise(validated=validated)
    generations = list(evolve(recipe, pictures, device="cpu"))
    with default_streams(0, 1, "again"):
        network = build_network(recipe.network, SIZE)
    network.load_state_dict(generations[-1].weights)
    engine.place(network, channels_last=True)
    return {
        "digests": [weights_digest({**part.weights, **part.loss_weights}) for part in generations],
        "ends": [vars(end) if (end := part.scorecard.best_epoch) else {} for part in generations],
        "scores": dict(generations[-1].scorecard.dense),
        "again": dict(Scorer(pictures, recipe, engine).score(network)),
    }


def main(folder):
    engine = Engine("fp32", "cpu")
    found = {
        "processes": engine.processes,
        "gradients": {loss: gradients(loss, engine) for loss in LOSSES},
        "gradients of widths": gradients("MultiSimilarityLoss", engine, (0.25, 0.5)),
        "classified": classified(engine),
        "classified mixed": classified(engine, SharesOfMixed),
        "trained": {loss: trained(loss, engine) for loss in LOSSES},
        "joint": trained("MultiSimilarityLoss", engine, (0.25, 0.5)),
        "given": given(engine),
        "scores": scores_of(engine),
        "scores of few": scores_of(engine, FEW),
        "grown": {method: grown(engine, method) for method in METHODS_OF.get(engine.processes, ())},
        "averaged": grown(engine, "knowledge_evolution", {"average": 0.9}),
        "patient": grown(engine, "knowledge_evolution", {"patience": 1, "epochs": 4, "average": 0.5}),
        "distilled": distilled(engine),
        "distilled with batch norm": distilled(engine, Normalised),
        "taught": {task: taught(engine, task) for task in ("retrieval", "classification")},
        "saliency": {loss: saliency(engine, loss) for loss in LOSSES},
        "records": engine.gather_records([engine.rank, "record"]),
        "any": [engine.any(engine.rank == 1), engine.any(False)],
    }
    torch.save(found, folder / f"{engine.rank}.pt")
    engine.wait()
    torch.distributed.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    """What two or four processes found, by rank."""
    count = request.param
    folder = tmp_path_factory.mktemp("processes")
    shared = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, __file__, str(folder)]
    processes = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        output = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(output)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.fixture(scope="module")
def engine():
    return Engine("fp32", "cpu")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_equal_to_rounding(found, expected, processes):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) <= TOLERANCE * float(value.abs().max()), name
        if processes == 2:
            # The sums of more have more roundings, which small numbers beside large ones show.
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def assert_gradients_equal(found, expected, processes):
    assert all(value.abs().max() > 0 for value in expected.values())
    assert_equal_to_rounding(found, expected, processes)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_one_process_with_the_whole_batch(loss, found, engine):
    expected = gradients(loss, engine)
    for process in found:
        assert process["processes"] == len(found)
        assert_gradients_equal(process["gradients"][loss], expected, len(found))


def test_gradients_of_several_widths_are_those_of_one_process(found, engine):
    expected = gradients("MultiSimilarityLoss", engine, (0.25, 0.5))
    for process in found:
        assert_gradients_equal(process["gradients of widths"], expected, len(found))


def test_gradients_of_a_classification_are_those_of_one_process(found, engine):
    expected, mixed = classified(engine), classified(engine, SharesOfMixed)
    for process in found:
        assert_gradients_equal(process["classified"], expected, len(found))
        assert_gradients_equal(process["classified mixed"], mixed, len(found))


@pytest.mark.parametrize("loss", LOSSES)
def test_training_ends_at_the_same_weights(loss, found, engine):
    expected = trained(loss, engine)
    assert int(expected["images"]) == 15
    assert ("loss.embedding_memory" in expected) == (loss == "CrossBatchMemory")
    for process in found:
        assert_equal_to_rounding(process["trained"][loss], expected, len(found))


def test_several_widths_are_trained_as_by_one_process(found, engine):
    expected = trained("MultiSimilarityLoss", engine, (0.25, 0.5))
    alone = trained("MultiSimilarityLoss", engine)
    assert not torch.allclose(expected["hidden.weight"], alone["hidden.weight"])
    for process in found:
        assert_close(process["joint"], expected)
        assert_equal(process["joint"], found[0]["joint"])


def test_given_weights_train_as_by_one_process(found, engine):
    """Batch norm at rest, which does not go by the share of a process, included."""
    expected, begun = given(engine), Given().state_dict()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(expected[f"backbone.1.{name}"], begun[f"backbone.1.{name}"])
    one, *others = (process["given"] for process in found)
    assert_close(one, expected)
    assert all(torch.equal(value, other[name]) for other in others for name, value in one.items())


@pytest.mark.parametrize("loss", LOSSES)
def test_processes_have_the_same_weights_to_the_last_bit(loss, found):
    for process in found[1:]:
        assert_equal(process["trained"][loss], found[0]["trained"][loss])


def test_every_picture_is_scored_once(found, engine):
    expected = scores_of(engine)
    assert expected["images"] == 7
    assert [process["scores"]["images"] for process in found] == {2: [4, 3], 4: [2, 2, 2, 1]}[len(found)]
    for process in found:
        assert process["scores"]["scores"] == pytest.approx(expected["scores"], abs=1e-6)


def test_fewer_pictures_than_processes_are_scored_once(found, engine):
    expected = scores_of(engine, FEW)
    assert [process["scores of few"]["images"] for process in found] == {2: [2, 1], 4: [1, 1, 1, 0]}[len(found)]
    for process in found:
        assert process["scores of few"]["scores"] == pytest.approx(expected["scores"], abs=1e-6)


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_a_teacher_is_compared_with_on_the_whole_batch(task, found, engine):
    expected = taught(engine, task)
    assert not torch.equal(expected["value"], gradients("ProxyAnchorLoss", engine)["value"])
    for process in found:
        assert_gradients_equal(process["taught"][task], expected, len(found))


def test_partners_of_all_processes_are_compared_with(found, engine):
    expected = distilled(engine)
    for process in found:
        assert_close(process["distilled"], expected)


@pytest.mark.parametrize("kind", ["distilled", "distilled with batch norm"])
def test_partners_leave_the_processes_with_one_network(kind, found):
    for process in found[1:]:
        assert_equal(process[kind], found[0][kind])


@pytest.mark.parametrize("loss", LOSSES)
def test_saliency_is_that_of_the_whole_batch(loss, found, engine):
    expected = saliency(engine, loss)
    assert all(value.max() > 0 for value in expected.values())
    for process in found:
        assert_close(process["saliency"][loss], expected)
        assert_equal(process["saliency"][loss], found[0]["saliency"][loss])


@pytest.mark.parametrize("method", METHODS)
def test_a_lineage_of_several_processes_is_one_lineage(method, found):
    """Norm statistics differ from process to process within an epoch; what is stored and scored is one network."""
    if method not in METHODS_OF[len(found)]:
        pytest.skip("grown by two processes")
    one, *others = (process["grown"][method] for process in found)
    assert all(other == one for other in others)
    assert one["scores"] == one["again"]


def test_averages_of_several_processes_are_one_network(found):
    """With norm statistics that the first one measured."""
    one, *others = (process["averaged"] for process in found)
    assert all(other == one for other in others)
    assert one["scores"] == one["again"]
    assert one["digests"] != found[0]["grown"]["knowledge_evolution"]["digests"]


def test_several_processes_end_after_the_same_epoch(found):
    """And take the weights of the same one, scored by the first process."""
    one, *others = (process["patient"] for process in found)
    assert all(other == one for other in others)
    assert one["scores"] == one["again"]
    assert all(1 <= end["epoch"] <= end["trained"] <= 4 for end in one["ends"])


def test_records_come_in_the_order_of_the_processes(found):
    for process in found:
        assert process["records"] == [each for rank in range(len(found)) for each in (rank, "record")]


def test_a_flag_of_one_is_a_flag_of_all(found):
    assert all(process["any"] == [True, False] for process in found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
